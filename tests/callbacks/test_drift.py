"""What DriftMonitor reads equals a plain computation, and reading changes nothing."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from lightning_sft.callbacks import DriftMonitor
from lightning_sft.errors import UserError
from lightning_sft.guard import load_texts
from lightning_sft.metrics.drift import kl_divergence, kl_lower_bound, log_probabilities, store
from tests.callbacks.stranger import Stranger, fit

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
TEXTS = ["The river was low that summer.", "Two doors.", "Copper conducts electricity better than iron does."] * 2
SETS = {"own": TEXTS, "short": ["ab"]}


class Tuned(Stranger):
    """A stranger's module with validation and, if asked for, a LoRA adapter on a frozen base."""

    def __init__(self, lora: bool = True, dtype: torch.dtype = torch.float64, dropout: float = 0.1, **options):
        super().__init__(**options)
        self.net = self.net.to(dtype)
        if lora:
            torch.manual_seed(0)
            self.net = get_peft_model(self.net, LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout))

    def validation_step(self, batch, batch_idx):
        self.log("val/nll", self.net(input_ids=batch, labels=batch, use_cache=False).loss)

    def val_dataloader(self):
        return DataLoader(next(iter(self.train_dataloader())), batch_size=4)


class Recorder(CSVLogger):
    def __init__(self, folder):
        super().__init__(folder)
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        drift = {key: value for key, value in metrics.items() if key.startswith("drift/")}
        self.seen.setdefault(step, {}).update(drift)

    def save(self):
        pass


def run(module, folder, monitor=None, **options):
    logger = Recorder(folder)
    monitor = DriftMonitor(SETS) if monitor is None else monitor
    settings = {"max_steps": 4, "val_check_interval": 2, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    fit(module, [monitor], folder, logger=logger, **settings | options)
    return {step: values for step, values in logger.seen.items() if values}


def by_definition(start, now, tokenizer, texts):
    """NLL, KL(start || now) and the share of changed first choices, text by text, by plain transformers."""
    nll, kl, changed = [], [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            before, after = (net.eval()(ids).logits[0, :-1].double().log_softmax(-1) for net in (start, now))
        nll += (-after.gather(1, ids[0, 1:, None])).flatten().tolist()
        kl += (before.exp() * (before - after)).sum(-1).tolist()
        changed += (before.argmax(-1) != after.argmax(-1)).tolist()
    return [sum(values) / len(values) for values in (nll, kl, changed)]


@pytest.mark.parametrize(
    ("start", "lora"), [("auto", True), ("copy", True), ("copy", False), ("top_k", True), ("auto", False)]
)
def test_readings_equal_a_plain_computation(tmp_path, start, lora):
    module = Tuned(lora)
    before = copy.deepcopy(module.net)
    seen = run(module, tmp_path, DriftMonitor(SETS, start=start, top_k=263, positions=64))
    assert sorted(seen) == [0, 1, 3]
    for name, texts in SETS.items():
        keys = [f"drift/{name}/{key}" for key in ("nll", "kl", "changed")]
        assert [seen[3][key] for key in keys] == pytest.approx(
            by_definition(before, module.net, module.tokenizer, texts), rel=1e-5, abs=1e-9
        )
        assert [seen[0][key] for key in keys[1:]] == pytest.approx([0, 0], abs=1e-9)
    assert seen[3]["drift/own/kl"] > 1e-4


def test_few_stored_tokens_give_a_lower_bound(tmp_path):
    exact, bound = (
        run(Tuned(), tmp_path, DriftMonitor(SETS, start=start, top_k=8)) for start in ("adapters_off", "top_k")
    )
    for step in (1, 3):
        for name in SETS:
            assert 0 < bound[step][f"drift/{name}/kl"] < exact[step][f"drift/{name}/kl"]
            for key in ("nll", "changed"):
                assert bound[step][f"drift/{name}/{key}"] == pytest.approx(exact[step][f"drift/{name}/{key}"])


@pytest.mark.parametrize(("start", "lora"), [("adapters_off", True), ("copy", False), ("top_k", False)])
def test_the_trajectory_is_bitwise_the_same_with_and_without(tmp_path, start, lora):
    ends = []
    for monitor in (Callback(), DriftMonitor(SETS, start=start)):
        torch.manual_seed(1)
        module = Tuned(lora, attention_dropout=0.3)
        frozen = next(p for n, p in module.named_parameters() if "lora_A" in n) if lora else None
        if frozen is not None:
            frozen.requires_grad_(False)  # by the user, and peft's own switch would thaw it
        fit(module, [monitor], tmp_path, max_steps=4, val_check_interval=2)
        ends.append((module.state_dict(), torch.get_rng_state(), [p.requires_grad for p in module.parameters()]))
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


@pytest.mark.parametrize(("start", "lora"), [("adapters_off", True), ("copy", False), ("top_k", False)])
def test_a_resumed_run_keeps_its_start(tmp_path, start, lora):
    half = tmp_path / "half.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 and not half.exists():
                trainer.save_checkpoint(half)

    def monitor(texts=TEXTS):
        return DriftMonitor({"own": texts, "short": ["ab"]}, start=start)

    whole = run(Tuned(lora, dropout=0.0), tmp_path, monitor())
    fit(Tuned(lora, dropout=0.0), [monitor(), Save()], tmp_path, max_steps=3, limit_val_batches=0)
    resumed = run(Tuned(lora, dropout=0.0), tmp_path, monitor(), ckpt_path=str(half))
    assert list(resumed) == [3]
    assert resumed[3] == pytest.approx(whole[3], rel=1e-9)
    with pytest.raises(UserError, match="not those of this run"):
        run(Tuned(lora), tmp_path, monitor(TEXTS[:2]), ckpt_path=str(half))


@pytest.mark.ranks
def test_two_ranks_read_what_one_reads(tmp_path):
    one = run(Tuned(), tmp_path / "one", DriftMonitor(SETS, positions=64))

    class Written(Recorder):
        def finalize(self, status):
            torch.save(self.seen, tmp_path / "seen.pt")

    logger = Written(tmp_path / "two")
    settings = {"max_steps": 4, "val_check_interval": 2, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    monitor = DriftMonitor(SETS, positions=64)
    fit(Tuned(), [monitor], tmp_path, logger=logger, devices=2, strategy="ddp_fork", **settings)
    two = torch.load(tmp_path / "seen.pt", weights_only=True)
    # dropout differs from rank to rank, so only the readings before the first step are the same
    assert two[0] == pytest.approx(one[0], rel=1e-12)
    assert two[3]["drift/own/kl"] > 0


def test_readings_can_be_monitored(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="drift/general/nll", mode="min")
    settings = {"max_steps": 2, "val_check_interval": 1, "enable_checkpointing": True}
    fit(Tuned(), [DriftMonitor(max_length=16), best], tmp_path, **settings)
    assert math.isfinite(float(best.best_model_score))


def test_stored_distributions_of_the_whole_vocabulary_lose_nothing():
    torch.manual_seed(0)
    before, now = (log_probabilities(3 * torch.randn(5, 50, dtype=torch.float64)) for _ in range(2))
    exact = kl_divergence(before, now)
    assert torch.allclose(exact, (before.exp() * (before - now)).sum(1), rtol=1e-12)
    bounds = torch.stack([kl_lower_bound(store(before, k), now) for k in (1, 5, 20, 50)])
    assert torch.allclose(bounds[-1], exact, rtol=1e-10)
    assert (bounds.diff(dim=0) > 0).all()
    assert torch.allclose(kl_lower_bound(store(now, 7), now), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_a_token_that_is_ruled_out_costs_nothing():
    before = log_probabilities(torch.tensor([[1.0, 2.0, -torch.inf]]))
    now = log_probabilities(torch.tensor([[2.0, 1.0, -torch.inf]]))
    assert kl_divergence(before, now).item() == pytest.approx(math.tanh(0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": {}}, "no guard set"),
        ({"sets": {"a/b": ["text"]}}, "log key"),
        ({"sets": {"own": ["  "]}}, "holds no text"),
        ({"sets": {"own": "nowhere.txt"}}, "there is no such file"),
        ({"sets": {"own": [3]}}, "is no text"),
        ({"top_k": 0}, "top_k=0"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        DriftMonitor(**settings)


@pytest.mark.parametrize(
    ("options", "lora", "message"),
    [
        ({"start": "adapters_off"}, False, "it has no adapter"),
        ({"sets": {"own": [""" """, "x"]}, "max_length": 2}, True, "has two tokens"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(tmp_path, options, lora, message):
    with pytest.raises(UserError, match=message):
        run(Tuned(lora), tmp_path, DriftMonitor(**options))


def test_texts_come_from_files_too(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert load_texts(tmp_path / "a.txt", "a") == load_texts(str(tmp_path / "a.jsonl"), "a") == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"txt": "one"}\n')
    with pytest.raises(UserError, match="line 1"):
        load_texts(tmp_path / "b.jsonl", "b")
    shipped = load_texts("general", "general")
    assert len(shipped) == len(set(shipped)) == 193


def test_a_fit_without_validation_is_read_at_its_end(tmp_path, caplog):
    """Before the first step and after the last one, with a note; a fit that was validated is not read again."""

    class Unvalidated(Tuned):
        validation_step = Stranger.validation_step
        val_dataloader = Stranger.val_dataloader

    module = Unvalidated()
    before = copy.deepcopy(module.net)
    with caplog.at_level("INFO"):
        seen = run(module, tmp_path, max_steps=3, val_check_interval=None)
    assert sorted(seen) == [0, 3]
    for name, texts in SETS.items():
        keys = [f"drift/{name}/{key}" for key in ("nll", "kl", "changed")]
        assert [seen[3][key] for key in keys] == pytest.approx(
            by_definition(before, module.net, module.tokenizer, texts), rel=1e-5, abs=1e-9
        )
    assert "this fit has none: the guard sets are read once more at its end" in caplog.text
    assert "Drift at the end: drift/own/nll" in caplog.text
    assert sorted(run(Tuned(), tmp_path, max_steps=3)) == [0, 1]
