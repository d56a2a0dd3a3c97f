"""GenerationMonitor: sampled pass@k against the exact one, named sets, the guard against collapse, what it refuses."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import GenerationMonitor
from lightning_sft.data import Source
from lightning_sft.data.named import NamedSet
from lightning_sft.errors import UserError
from lightning_sft.models.generation import generate
from lightning_sft.models.merged import merged_adapters
from tests.distributed.fits import lora
from tests.fitting import trainer
from tests.running import run, run_folder, scalars, toy_arguments
from tests.toys import toy_tokenizer


def rows(path: Path, pairs: list[tuple[str, str]]) -> str:
    lines = ({"prompt": f"say {word}", "completion": answer} for word, answer in pairs)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


WORDS = ["a", "bb", "ccc", "dddd", "ef", "g", "hi", "jk"]


class Logged(Callback):
    """What each validation of a fit has logged, and the model's state around it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})


def fit(model: Path, data: SFTDataModule, monitor: GenerationMonitor, *, module=None, ckpt_path=None, **settings):
    adamw = settings.pop("optimizer", lambda p: torch.optim.AdamW(p, lr=2e-2))
    module = module or SFTModule(str(model), optimizer=adamw, lr_scheduler="constant", pass_at_k=[4])
    kept = Logged()
    defaults = {"max_epochs": None, "max_steps": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    made = trainer(callbacks=[monitor, kept], **{**defaults, **settings})
    made.fit(module, data, ckpt_path=ckpt_path)
    return made, module, kept.seen


@pytest.fixture
def words(tmp_path):
    return rows(tmp_path / "words.jsonl", [(word, word) for word in WORDS])


@pytest.fixture(scope="module")
def knowing(toy_folder, tmp_path_factory):
    """A folder with a toy that has half learned the words."""
    folder = tmp_path_factory.mktemp("knowing")
    train = rows(folder / "words.jsonl", [(word, word) for word in WORDS])
    _, module, _ = fit(toy_folder, SFTDataModule(train=train, cache_dir=False), GenerationMonitor(), max_steps=25)
    module.scorer.causal_lm.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    return folder


def validated(model: Path, monitor: GenerationMonitor, **data) -> dict[str, float]:
    module = SFTModule(str(model), pass_at_k=[4])
    made = trainer(callbacks=[monitor])
    (found,) = made.validate(module, SFTDataModule(cache_dir=False, batch_size=4, **data), verbose=False)
    return found


def test_sampled_pass_at_k_estimates_the_exact_one(knowing, words):
    monitor = GenerationMonitor(num_return_sequences=150, pass_at_k=[4, 1], max_new_tokens=6, batch_size=400)
    before = torch.get_rng_state()
    found = validated(knowing, monitor, val=Source(words, score="exact_match"))
    assert torch.equal(before, torch.get_rng_state())
    assert found["val/task_accuracy"] == found["val/exact_match"]
    assert 0.05 < found["val/pass_at_1"] < 0.95
    for k in (1, 4):
        # 4 standard errors of a mean of 8 x 150 draws, at most 0.5 each
        assert found[f"val/sampled_pass_at_{k}"] == pytest.approx(found[f"val/pass_at_{k}"], abs=4 * 0.5 / 1200**0.5)
    other = validated(
        knowing,
        GenerationMonitor(num_return_sequences=3, temperature=1e-4, max_new_tokens=6),
        val=Source(words, score="exact_match"),
    )
    assert other["val/sampled_pass_at_1"] == other["val/sampled_pass_at_3"] == other["val/exact_match"], (
        "cold is greedy"
    )


def test_answers_are_read_by_set_and_only_where_the_set_is_read(toy_folder, words, tmp_path):
    others = rows(tmp_path / "others.jsonl", [("x", "no number"), ("y", "none")])
    val = {
        "own": Source(words, score="contains"),
        "rare": NamedSet(Source(others, score="ignore_case"), every=2),
        "unscored": others,
    }
    data = SFTDataModule(train=words, val=val, batch_size=4, cache_dir=False)
    monitor = GenerationMonitor(max_new_tokens=6, num_return_sequences=2)
    _, module, seen = fit(toy_folder, data, monitor, val_check_interval=1)
    assert ["val/rare/stop_share" in validation for validation in seen] == [False, True, True, True]
    last = seen[-1]
    for key in ("stop_share", "answer_tokens", "repetition"):
        own, unscored = last[f"val/own/{key}"], last[f"val/unscored/{key}"]
        assert last[f"val/{key}"] == pytest.approx((8 * own + 2 * unscored) / 10), key
    assert {k for k in last if "unscored" in k and ("pass_at" in k or "accuracy" in k)} == {
        "val/unscored/token_accuracy",
        "val/unscored/pass_at_1",
        "val/unscored/pass_at_4",
    }
    assert last["val/own/task_accuracy"] == last["val/task_accuracy"]
    prompts = [row for row in data.generation_rows("val") if data.source_names[row.source] == "words"]
    answers = generate(module.scorer.causal_lm, module.tokenizer, [r.prompt_ids for r in prompts], max_new_tokens=6)
    score = sum(data.score(row, answer) for row, answer in zip(prompts, answers, strict=True)) / 8
    assert last["val/own/task_accuracy"] == score


def test_rows_without_an_answer_get_no_score(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "say a"}]}) + "\n")
    data = SFTDataModule(predict=Source(str(path), score="contains"), cache_dir=False, tokenizer=toy_tokenizer())
    data.setup("predict")
    (row,) = data.generation_rows("predict")
    assert row.reference is None
    assert data.score(row, "a") is None


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_fit_with_it_follows_the_fit_without_it(toy_folder, words, adapter, tmp_path):
    source = {"class_path": "Source", "init_args": {"path": words, "score": "exact_match"}}
    arguments = toy_arguments(toy_folder, Path(json.dumps(source)), trainer__val_check_interval=1)
    arguments += [f"--model.adapter={lora(0.3)}"] if adapter else []
    monitor = "--trainer.callbacks+=GenerationMonitor"
    for name, more in {
        "with": ["--trainer.callbacks.num_return_sequences=2", "--trainer.callbacks.max_new_tokens=4"],
        "without": ["--trainer.callbacks.limit=0"],
    }.items():
        run("fit", [*arguments, f"--trainer.default_root_dir={name}", monitor, *more])
    one, other = (scalars(run_folder(Path(name) / "lightning_logs")) for name in ("with", "without"))
    own = {"task_accuracy", "stop_share", "answer_tokens", "repetition", "sampled_pass_at_1", "sampled_pass_at_2"}
    assert one.keys() - other.keys() == {f"val/{name}" for name in own}
    for key in other.keys() - {"perf/tokens_per_second"}:
        assert one[key] == other[key], key


LOOPING = [(word, "ha" * 12) for word in WORDS]


def test_a_collapse_is_told_while_the_loss_falls(knowing, words, tmp_path):
    """Trained to repeat itself, on answers that are cut before their end."""
    val = {"own": Source(words, score="exact_match")}
    train = rows(tmp_path / "looping.jsonl", LOOPING)
    data = SFTDataModule(train=train, val=val, batch_size=8, cache_dir=False, max_length=44, truncation="right")
    monitor = GenerationMonitor(max_new_tokens=24)
    with pytest.warns(UserWarning, match=r"answers of val/own collapse while the training loss falls from .* 4-grams"):
        _, _, seen = fit(knowing, data, monitor, max_steps=30, val_check_interval=10, num_sanity_val_steps=-1)
    assert seen[-1]["val/own/repetition"] > 0.5
    assert seen[-1]["val/own/stop_share"] < 0.5


def test_a_collapse_is_told_after_a_resume(knowing, words, tmp_path):
    """The healthy answers were seen by the first part of the run alone."""

    def part(**settings):
        train, val = rows(tmp_path / "looping.jsonl", LOOPING), Source(words, score="exact_match")
        data = SFTDataModule(
            train=train, val=val, batch_size=8, cache_dir=False, max_length=44, truncation="right", seed=1
        )
        return fit(knowing, data, GenerationMonitor(max_new_tokens=24), **settings)

    made, _, _ = part(max_steps=2, val_check_interval=5, num_sanity_val_steps=-1)
    made.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.warns(UserWarning, match="answers of val collapse while the training loss falls"):
        part(max_steps=30, val_check_interval=30, ckpt_path=str(tmp_path / "first.ckpt"))


def test_a_healthy_run_is_not_warned_of(knowing, words):
    """Warnings are errors in these tests."""
    data = SFTDataModule(train=words, val=Source(words, score="exact_match"), batch_size=8, cache_dir=False)
    settings = {"max_steps": 60, "val_check_interval": 10, "num_sanity_val_steps": -1}
    gentle = {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3)}
    _, _, seen = fit(knowing, data, GenerationMonitor(max_new_tokens=12), **settings, **gentle)
    assert seen[-1]["val/exact_match"] > seen[0]["val/exact_match"]
    assert seen[-1]["val/exact_match"] > 0.8


def test_an_implausible_loss_is_told(toy_folder, words):
    """A module whose validation counts something else: its NLL is nothing beside what its predictions say."""

    class Leaking(SFTModule):
        def validation_step(self, batch, batch_idx):
            output = super().validation_step(batch, batch_idx)
            self.averages.token_sums[:, 2] *= 1e-4
            return output

    module = Leaking(str(toy_folder), lr_scheduler="constant")
    data = SFTDataModule(train=words, val=words, batch_size=4, cache_dir=False)
    with pytest.warns(UserWarning, match=r"val/nll is .*, far below the .* nats .*a leak") as told:
        fit(toy_folder, data, GenerationMonitor(max_new_tokens=8), module=module, max_steps=4, val_check_interval=2)
    assert len([w for w in told if "implausible" in str(w.message)]) == 1


def test_nothing_to_sample_for_is_told_once(toy_folder, words):
    data = SFTDataModule(train=words, val=words, batch_size=4, cache_dir=False)
    monitor = GenerationMonitor(max_new_tokens=2, num_return_sequences=2)
    with pytest.warns(UserWarning, match=r"no source of data.val has a scorer") as told:
        _, _, seen = fit(toy_folder, data, monitor, val_check_interval=1)
    assert len([w for w in told if "scorer" in str(w.message)]) == 1
    assert not any("sampled" in key for key in seen[-1])


def test_adapters_are_merged_for_long_answers(knowing, words, monkeypatch):
    seen = []

    @contextmanager
    def noted(model):
        with merged_adapters(model) as count:
            seen.append(count)
            yield count

    monkeypatch.setattr("lightning_sft.callbacks.generation.merged_adapters", noted)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    module = SFTModule(str(knowing), adapter=adapter)
    data = SFTDataModule(val=Source(words, score="exact_match"), cache_dir=False)
    found = []
    for batch_size in (8, 1):
        monitor = GenerationMonitor(max_new_tokens=20, batch_size=batch_size)
        found += trainer(callbacks=[monitor]).validate(module, data, verbose=False)
    assert seen == [14], "8 batches of 20 tokens"
    for key in ("val/task_accuracy", "val/answer_tokens"):
        assert found[0][key] == found[1][key]


def test_stop_strings_reach_the_answers(knowing, words):
    plain = validated(knowing, GenerationMonitor(max_new_tokens=8), val=Source(words, score="exact_match"))
    stopped = GenerationMonitor(max_new_tokens=8, stop_strings=list("abcdefghijk"))
    ended = validated(knowing, stopped, val=Source(words, score="exact_match"))
    assert ended["val/answer_tokens"] <= 1 < plain["val/answer_tokens"]
    assert ended["val/stop_share"] == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pass_at_k": [8], "num_return_sequences": 4}, r"pass_at_k=\[8\] with num_return_sequences=4.*to 8 or more"),
        ({"pass_at_k": [1]}, r"pass_at_k=\[1\] with no num_return_sequences"),
        ({"pass_at_k": [0], "num_return_sequences": 4}, r"pass_at_k holds 0"),
        ({"num_return_sequences": 0}, r"num_return_sequences=0. Allowed: 1 or more"),
        ({"temperature": 0.0}, r"temperature=0.0. Allowed: a number above 0"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0. Allowed: 1 or more"),
        ({"batch_size": 0}, r"batch_size=0. Allowed: 1 or more"),
        ({"stop_strings": ["x", ""]}, r"an empty string among stop_strings"),
        ({"limit": -1}, r"limit=-1. Allowed: 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        GenerationMonitor(**wrong)
