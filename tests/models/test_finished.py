"""Finished models of every kind, read as plain transformers and peft read them."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.models.finished import FinishedModel, load_finished
from tests.export.runs import train
from tests.fitting import batches, loader, trainer
from tests.toys import save_toy, toy_model, toy_tokenizer

# each fit is a run of its own; peft 0.21 warns of adapters beside tied embeddings
pytestmark = [
    pytest.mark.filterwarnings("ignore:`loftq_config` specified"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
(BATCH,) = batches(rows=4, size=4)


@torch.no_grad()
def independent(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """logp of the labels and whether they are the first choice, in float64 by transformers alone."""
    model = model.double().eval()
    logits = model(input_ids=BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits[:, :-1]
    labels = BATCH["labels"][:, 1:]
    logp = logits.log_softmax(-1)
    at = labels != -100
    return logp[at].gather(-1, labels[at][:, None])[:, 0], logp[at].argmax(-1) == labels[at]


def assert_reads_like(finished: FinishedModel, model: torch.nn.Module) -> None:
    scores = finished.score(BATCH).scores
    logp, first = independent(model)
    torch.testing.assert_close(scores.logp.double(), logp, rtol=0, atol=1e-5)
    assert torch.equal(scores.is_top1, first)
    assert not any(p.requires_grad for p in finished.scorer.parameters())
    assert not any(m.training for m in finished.scorer.modules())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("base"))


def plain_adapter(base: Path, folder: Path) -> PreTrainedModel:
    """Write an adapter as peft does, with weights that count; returns the base with the adapter in it."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run"), "tied")


def merged_by_hand(checkpoint: Path, base: Path) -> PreTrainedModel:
    """The base plus B A alpha / r of a checkpoint, added by hand; alpha is 8 and r is 4 in that run."""
    model = AutoModelForCausalLM.from_pretrained(base)
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "scorer.model.base_model.model."
    places = dict(model.named_parameters())
    names = [k for k in weights if "lora_A" in k]
    assert len(names) == 14
    with torch.no_grad():
        for name in names:
            place = name.removeprefix(prefix).replace("lora_A.default.", "")
            places[place] += weights[name.replace("lora_A", "lora_B")] @ weights[name] * 2.0
    return model


def test_a_folder_of_transformers(base: Path) -> None:
    finished = load_finished(base)
    assert (finished.base, finished.step) == (None, None)
    assert finished.tokenizer.chat_template == toy_tokenizer().chat_template
    assert_reads_like(finished, toy_model())


def test_answers_are_judged(base: Path) -> None:
    finished = load_finished(base)
    with torch.no_grad():
        first = finished.causal_lm(input_ids=torch.tensor([[5]])).logits[0, -1].argmax()
    for end in (int(first), int(first) + 1):
        ids = torch.tensor([[5, end]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[-100, end]])}
        finished.causal_lm.generation_config.eos_token_id = [end]
        assert finished.answers(batch, finished.score(batch)).exact.tolist() == [end == first]


def test_an_adapter_of_peft_on_the_base_that_it_names(base: Path, tmp_path: Path) -> None:
    model = plain_adapter(base, tmp_path / "adapter")
    finished = load_finished(tmp_path / "adapter")
    assert finished.base == str(base)
    assert_reads_like(finished, model)
    exact = load_finished(tmp_path / "adapter", dtype="float64").score(BATCH).scores.logp
    torch.testing.assert_close(exact, independent(model)[0], rtol=0, atol=1e-12)


def test_an_adapter_whose_base_has_moved(base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    model = plain_adapter(moved, tmp_path / "adapter")
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"adapter' stands on '.*moved', which does not exist.*--base"):
        load_finished(tmp_path / "adapter")
    assert_reads_like(load_finished(tmp_path / "adapter", base=str(tmp_path / "elsewhere")), model)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say what it stands on"):
        load_finished(tmp_path / "adapter")


def test_an_adapter_by_its_hub_name(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub/models--someone--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    model = plain_adapter(base, repository / "snapshots/abc")
    import huggingface_hub.constants
    import huggingface_hub.file_download
    import transformers.utils.hub

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # read at once by us, and at import by the libraries
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert_reads_like(load_finished("someone/adapter"), model)


def test_a_checkpoint_of_the_command_line(lora_run: Path) -> None:
    base = lora_run.parents[3] / "model"
    finished = load_finished(lora_run)
    assert (finished.base, finished.step) == (str(base), 4)
    assert_reads_like(finished, merged_by_hand(lora_run, base))


def test_a_folder_of_shards(lora_run: Path, tmp_path: Path) -> None:
    from torch.distributed import checkpoint as distributed

    content = torch.load(lora_run, weights_only=True)
    folder = tmp_path / "shards.ckpt"
    with pytest.warns(UserWarning, match="torch.distributed is"):
        distributed.save({"state_dict": content.pop("state_dict")}, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / "meta.pt")
    assert_reads_like(load_finished(folder), merged_by_hand(lora_run, lora_run.parents[3] / "model"))


def test_a_checkpoint_whose_base_has_moved(lora_run: Path, tmp_path: Path) -> None:
    content = torch.load(lora_run, weights_only=True)
    content["hyper_parameters"]["model_name_or_path"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match=r"checkpoint '.*moved.ckpt' stands on '.*gone', which does not exist"):
        load_finished(tmp_path / "moved.ckpt")
    base = lora_run.parents[3] / "model"
    assert_reads_like(load_finished(tmp_path / "moved.ckpt", base=str(base)), merged_by_hand(lora_run, base))


def fitted(module: SFTModule, path: Path) -> Path:
    run = trainer(max_steps=2)
    run.fit(module, loader(batches()))
    run.save_checkpoint(path)
    return path


def test_a_checkpoint_of_python(base: Path, tmp_path: Path) -> None:
    module = SFTModule(str(base), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    checkpoint = fitted(module, tmp_path / "full.ckpt")
    finished = load_finished(checkpoint)
    assert not torch.equal(finished.score(BATCH).scores.logp, load_finished(base).score(BATCH).scores.logp)
    assert_reads_like(finished, module.scorer.causal_lm)


def test_an_adapter_that_was_a_python_object(base: Path, tmp_path: Path) -> None:
    checkpoint = fitted(SFTModule(str(base), adapter=peft.LoraConfig(target_modules="all-linear")), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="adapter was given as a Python object"):
        load_finished(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "Lightning did not write"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "not of an SFTModule"),
    ],
)
def test_files_that_hold_no_model(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=message):
        load_finished(tmp_path / "odd.ckpt")


def test_a_checkpoint_with_too_few_weights(lora_run: Path, tmp_path: Path) -> None:
    content = torch.load(lora_run, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match="missing there"):
        load_finished(tmp_path / "less.ckpt")


def test_a_base_for_what_needs_none(base: Path) -> None:
    with pytest.raises(UserError, match="stands on nothing"):
        load_finished(base, base="other")
    with pytest.raises(UserError, match="'fastest'"):
        load_finished(base, dtype="fastest")
