"""A prediction inside a fit: before the sweep, against the sweep, and without a trace."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from lightning_sft.callbacks import CriticalLearningRateFinder
from lightning_sft.errors import UserError
from lightning_sft.probes import Probe
from lightning_sft.sweep.prediction.record import CriticalLRPrediction
from lightning_sft.sweep.prediction.schedule import schedule_shares
from lightning_sft.sweep.prediction.session import WHOLE_RUN
from lightning_sft.sweep.snapshot import Snapshot
from tests.callbacks.stranger import PROBES, Stranger
from tests.callbacks.stranger import fit as fit_stranger
from tests.running import run, run_folder, toy_arguments
from tests.sweep.toys import Toy, between, quadratic
from tests.sweep.toys import fit as fit_toy

PROBE = {"context": "say 1", "correct": "q", "competitor": "w", "leading_space": False, "name": "probe"}


def fit(model: Path, rows: Path, root: str, **given: object) -> Path:
    search = {"steps": 12, "low": 1e-5, "high": 1e-2, "points": 3, "resolution": 0.005, "probes": [PROBE], **given}
    callbacks = [{"class_path": "CriticalLearningRateFinder", "init_args": search}]
    settings = {
        "model__optimizer": json.dumps({"class_path": "torch.optim.AdamW", "init_args": {"lr": 1, "weight_decay": 0}}),
        "model__lr_scheduler": "linear",
        "model__warmup_steps": 2,
        "data__val_split": None,
        "data__batch_size": 1,
        "trainer__max_steps": 12,
        "trainer__default_root_dir": root,
        "trainer__limit_val_batches": 0,
        "trainer__callbacks": json.dumps(callbacks),
        "seed_everything": 3,
    }
    run("fit", toy_arguments(model, rows, **settings))
    return run_folder(Path(root) / "lightning_logs")


def written(folder: Path) -> CriticalLRPrediction:
    (path,) = folder.glob("sweep/critical.prediction.*.json")
    return CriticalLRPrediction.read(path)


def test_prediction_and_sweep_of_one_run(toy_folder: Path, tmp_path: Path) -> None:
    """One row again and again, under warm-up and decay: the schedule counts by its sum."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "say 1", "completion": "q"}\n')
    folder = fit(toy_folder, rows, "swept", predict=True)
    prediction = written(folder)
    found = json.loads((folder / "sweep" / "critical.json").read_text())
    assert found["status"] == "found"
    assert prediction.together is not None
    said = prediction.together.estimate
    assert said.lr == prediction.probes[0].estimate.lr
    assert abs(math.log(said.lr / found["upper"])) < 0.03
    assert said.low < found["upper"] < said.high
    assert prediction.steps <= sum(t["steps"] for t in found["trials"]) / 10
    shares = prediction.inputs["target"]["shares"]
    assert len(shares) == 12
    assert shares[0] < shares[2] > shares[-1]
    assert WHOLE_RUN not in prediction.notes


def test_rows_that_differ_are_predicted_by_a_trial_of_the_whole_run(toy_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {"112"[i % 3]}", "completion": "{"qqe"[i % 3]}"}}\n' for i in range(12)))
    folder = fit(toy_folder, rows, "swept", predict=True, resolution=0.02)
    prediction = written(folder)
    found = json.loads((folder / "sweep" / "critical.json").read_text())
    assert found["status"] == "found"
    assert prediction.together is not None
    said = prediction.together.estimate
    assert said.lr is not None
    assert said.low is not None
    assert said.high is not None
    assert abs(math.log(said.lr / found["upper"])) < 0.1
    assert said.low < found["upper"] < said.high * 1.02
    assert WHOLE_RUN in prediction.notes
    assert 12 < prediction.steps <= sum(t["steps"] for t in found["trials"]) / 2


def test_a_prediction_leaves_no_trace(tmp_path: Path) -> None:
    def weights(*callbacks: CriticalLearningRateFinder) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = Stranger(attention_dropout=0.1)
        fit_stranger(module, list(callbacks), tmp_path)
        return module.state_dict()

    search = CriticalLearningRateFinder(
        PROBES[:2], low=1e-3, high=1e-1, points=2, steps=3, resolution=200, at_step=1, predict=True
    )
    plain, swept = weights(), weights(search)
    assert search.result is not None
    assert all(torch.equal(swept[k], v) for k, v in plain.items())


def test_probes_that_are_ahead_already_are_no_question(tmp_path: Path) -> None:
    turned = {**PROBE, "correct": "w", "competitor": "q", "kind": "synonym"}
    module = Stranger()
    with torch.no_grad():
        z = module.net.eval()(torch.tensor([module.tokenizer("say 1").input_ids])).logits[0, -1]
    ids = [module.tokenizer(letter).input_ids[0] for letter in "wq"]
    if z[ids[0]] < z[ids[1]]:
        turned |= {"correct": "q", "competitor": "w"}
    grid = {"low": 1e-3, "high": 1e-1, "points": 2, "steps": 3}
    search = CriticalLearningRateFinder([Probe(**turned)], **grid, predict=True)
    fit_stranger(module.train(), [search], tmp_path, logger=CSVLogger(tmp_path))
    (path,) = tmp_path.rglob("critical.prediction.*.json")
    prediction = CriticalLRPrediction.read(path)
    assert prediction.together.estimate.status == "already flipped"
    assert prediction.together.steps == 0


def test_the_schedule_is_read_and_put_back(tmp_path: Path) -> None:
    class Scheduled(Toy):
        def configure_optimizers(self):  # type: ignore[no-untyped-def]
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def work(trainer, module: LightningModule):  # type: ignore[no-untyped-def]
        shares = schedule_shares(trainer, Snapshot(trainer, module), 4)
        return shares, trainer.optimizers[0].param_groups[0]["lr"]

    shares, now = between(Scheduled([1.0], quadratic(1.0), lr=0.5), work, tmp_path)
    assert shares == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert now == 0.5


class Rates(Callback):
    """Keeps the rate of every optimizer step of the run, and before one what was foretold."""

    def __init__(self, at_step: int) -> None:
        self.at_step, self.seen, self.told = at_step, [], None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):  # type: ignore[no-untyped-def]
        if trainer.global_step == self.at_step and self.told is None:
            left = trainer.max_steps - self.at_step
            self.told = schedule_shares(trainer, Snapshot(trainer, module), left)

    def on_before_optimizer_step(self, trainer, module, optimizer):  # type: ignore[no-untyped-def]
        self.seen.append(optimizer.param_groups[0]["lr"])


class Decayed(Toy):
    """A rate that falls by a tenth whenever its scheduler is stepped."""

    def __init__(self, **config: object) -> None:
        super().__init__([1.0], quadratic(1.0), lr=0.5)
        self.config = config

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **self.config}}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "config", [{"interval": "epoch"}, {"interval": "epoch", "frequency": 2}, {"interval": "step", "frequency": 4}]
)
@pytest.mark.parametrize("at_step", [0, 4])
def test_schedules_are_stepped_where_lightning_steps_them(tmp_path: Path, accumulate, config, at_step) -> None:
    """In epochs of five micro-batches, the last of which completes a step alone where two are accumulated."""
    own = Rates(at_step)
    sizes = {"max_steps": 14, "max_epochs": -1, "limit_train_batches": 5, "accumulate_grad_batches": accumulate}
    fit_toy(Decayed(**config), own, folder=tmp_path, **sizes)
    assert own.told == pytest.approx([rate / 0.5 for rate in own.seen[at_step:]])
    assert len(set(own.told)) > 1


def test_a_schedule_by_epochs_of_unknown_length_is_refused(tmp_path: Path) -> None:
    class Endless(Decayed):
        def train_dataloader(self):  # type: ignore[no-untyped-def]
            class Rows(IterableDataset):
                def __iter__(self):  # type: ignore[no-untyped-def]
                    return iter(torch.zeros(8, 1))

            return DataLoader(Rows())

    with pytest.raises(UserError, match="ExponentialLR changes the rate at the end of each epoch"):
        fit_toy(Endless(interval="epoch"), Rates(0), folder=tmp_path, max_steps=4)
    fit_toy(Endless(interval="step"), steps := Rates(0), folder=tmp_path, max_steps=4)
    assert steps.told == pytest.approx([0.9**k for k in range(4)])


def test_only_rank_flips_are_predicted() -> None:
    with pytest.raises(UserError, match="predictions of the rank flip only"):
        CriticalLearningRateFinder(PROBES[:1], criterion="phi", predict=True)
