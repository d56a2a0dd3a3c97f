"""Trials in other people's modules: their batches, loggers, rates and loops."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core import rank_zero
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sft.callbacks import LearningRateSweep
from lightning_sft.errors import UserError
from lightning_sft.sweep.prediction.session import _one_batch
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Trial, TrialRunner
from tests.sweep.toys import Margin, Toy, between, fit, quadratic


def trials(module: Toy, folder: Path, *rates: float, steps: int = 4, **options: Any) -> list[Trial]:
    """Trials of a module, one after the other, from the same snapshot."""

    def work(trainer: Trainer, toy: LightningModule) -> list[Trial]:
        with TrialRunner(trainer, toy, steps) as runner:
            return [runner.run(rate, [Margin(lambda x: x[0])]) for rate in rates or (0.1, 0.1)]

    found: list[Trial] = between(module, work, folder, **options)
    return found


# ---------------------------------------------------------------------- batches


@dataclass
class Rows:
    """A batch as a dataclass, with tensors nested inside."""

    ids: Tensor
    more: dict[str, list[Tensor]]


def collated(rows: list[Tensor]) -> UserDict:
    """A batch as Hugging Face's collators hand it out: a mapping that is no dict."""
    return UserDict(ids=torch.stack(rows), nested=Rows(torch.stack(rows), {"a": [torch.stack(rows)]}))


SEEN: list[float] = []  # outside of the module, whose own lists are put back after a trial


class Greedy(Toy):
    """Takes its batch apart and writes into it."""

    def __init__(self) -> None:
        super().__init__([3.0], quadratic(1.0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(64.0)[:, None], batch_size=1, collate_fn=collated)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, nested = batch.pop("ids"), batch["nested"]
        SEEN.append(float(ids) + float(nested.ids) + float(nested.more["a"][0]))
        for tensor in (ids, nested.ids, nested.more["a"][0]):
            tensor += 100.0
        return self.loss(self.x)


def test_every_trial_gets_batches_of_its_own(tmp_path: Path) -> None:
    def work(trainer: Trainer, toy: LightningModule) -> Any:
        seen = []
        with Session(trainer, toy, SweepSettings("toy", 4, None)) as session:
            for rate in (0.1, 0.2, 0.3):
                SEEN.clear()
                assert session.trial(rate).outcome == "finished"
                seen.append([*SEEN])
            assert not _one_batch(session)
        return seen

    assert between(Greedy(), work, tmp_path) == [[0.0, 3.0, 6.0, 9.0]] * 3


def test_a_batch_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    class Streaming(Toy):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(torch.zeros(8, 1), batch_size=1, collate_fn=lambda rows: {"rows": (r for r in rows)})

    with pytest.raises(UserError, match="a dict of the training loader"):
        trials(Streaming([3.0], quadratic(1.0)), tmp_path)


# ---------------------------------------------------------------------- loggers


def test_a_logger_that_swallows_stands_for_the_fits_own(tmp_path: Path) -> None:
    class Chatty(Toy):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            assert self.logger is not None
            self.logger.log_metrics({"mine": float(batch_idx)})
            self.logger.experiment.add_text("sample", "text").anything["more"].finish()
            self.log("loss", 1.0)
            assert self.logger.name == "mine"
            assert self.logger.version == 3
            assert self.trainer.log_dir is not None
            return super().training_step(batch, batch_idx)

    class Accepting(CSVLogger):
        """A logger with the experiment of another service."""

        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            self.written: list[dict[str, float]] = []

        @property
        def experiment(self) -> Any:
            return _Anything()

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.written.append(dict(metrics))

    sweep = LearningRateSweep(low=1e-3, high=0.5, steps=6)
    logger = Accepting(tmp_path, name="mine", version=3)
    fit(Chatty([3.0], quadratic(1.0)), sweep, folder=tmp_path, logger=logger, log_every_n_steps=1)
    assert sum("mine" in row for row in logger.written) == 1, "the fit's own step, and none of a trial"
    assert sum("loss" in row for row in logger.written) == 1


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any) -> Any:
        return self

    def __getitem__(self, key: str) -> Any:
        return self


# ---------------------------------------------------------------------- rates


class SetsItself(Toy):
    """A rate written by hand, before the step (Lightning's own recipe of a warm-up), after it, or before the batch."""

    where = "before"

    def _set(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (self.trainer.global_step + 1) / 10)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        if self.where == "before":
            self._set(optimizer)
        optimizer.step(closure=optimizer_closure)
        if self.where == "after":
            self._set(optimizer)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if self.where == "batch":
            self._set(self.optimizers())


@pytest.mark.parametrize("where", ["before", "after", "batch"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_rate_that_is_set_elsewhere_is_an_error(where: str, scheduled: bool, tmp_path: Path) -> None:
    class Module(SetsItself):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            flat = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": flat, "interval": "step"}] if scheduled else []

    module = Module([3.0], quadratic(1.0))
    module.where = where
    with pytest.raises(UserError, match=r"Module has set 0.000[12] by itself"):
        trials(module, tmp_path, 0.1)
    if where == "after":
        return  # a range test sets every step's rate after it
    with pytest.raises(UserError, match="by itself"):
        fit(module, LearningRateSweep(low=1e-3, high=0.5, steps=6), folder=tmp_path)


class Scheduled(Toy):
    """A schedule by a function of the step."""

    def __init__(self, factor: Callable[[int], float]) -> None:
        super().__init__([3.0], quadratic(1.0))
        self.factor = factor

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_a_schedule_that_stays_at_zero_is_an_error_and_a_warm_up_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rate is 0 in all of them"):
        trials(Scheduled(lambda step: 0.0 if step < 10 else 1.0), tmp_path, 0.1)
    warm = trials(Scheduled(lambda step: float(step > 1)), tmp_path, 0.1)[0]
    assert warm.rates == [0.0, 0.0, 0.1, 0.1]
    assert warm.losses[:3] == [4.5, 4.5, 4.5]


def test_a_step_that_is_never_taken_and_a_gradient_of_zero_are_errors(tmp_path: Path) -> None:
    class Lazy(Toy):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer_closure()

    with pytest.raises(UserError, match=r"never called. Look at Lazy\.optimizer_step"):
        trials(Lazy([3.0], quadratic(1.0)), tmp_path)
    with pytest.raises(UserError, match="gradients are zero"):
        trials(Toy([3.0], lambda x: (x * 0.0).sum() + 1.0), tmp_path)


def test_updates_that_16_bit_weights_round_away_are_a_result_with_a_warning(tmp_path: Path) -> None:
    module = Toy([3.0], lambda x: 0.5 * (x**2).sum()).to(torch.bfloat16)
    with pytest.warns(UserWarning, match="rounded away in torch.bfloat16"):
        found = trials(module, tmp_path, 1e-6)
    assert found[0].outcome == "finished"
    assert found[0].losses == [4.5] * 4


# ---------------------------------------------------------------------- loops


class ByHand(Toy):
    """Optimizes manually, and accumulates over some micro-batches."""

    def __init__(self, every: int = 1, answer: bool = True) -> None:
        super().__init__([3.0], quadratic(1.0))
        self.automatic_optimization = False
        self.every = every
        self.answer = answer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        SEEN.append(int(batch))
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = self.loss(self.x)
        self.manual_backward(loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            assert len(schedule.get_last_lr()) == 1
        return loss.detach() if self.answer else None

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(64)[:, None], batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)]


def test_manual_optimization_counts_optimizer_steps_on_rows_of_their_own(tmp_path: Path) -> None:
    module = ByHand(every=4)
    trial = trials(module, tmp_path, 0.5, steps=3)[0]
    assert trial.rates == [0.5, 0.25, 0.125]
    assert trial.readings["margin"] == [[1.5], [1.125], [0.984375]]
    assert trial.losses == [4.5, 1.125, pytest.approx(0.5 * 1.125**2)]


def test_manual_optimization_sees_each_row_once_and_its_schedulers_hold_still_in_a_range_test(tmp_path: Path) -> None:
    module = ByHand(every=4)

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        with TrialRunner(trainer, toy, 3) as runner:
            SEEN.clear()
            return runner.run(0.1, rates=[0.1, 0.2, 0.3])

    trial = between(module, work, tmp_path)
    assert trial.rates == pytest.approx([0.1, 0.2, 0.3])
    assert SEEN[:12] == list(range(12))
    assert trial.losses == [4.5, pytest.approx(0.5 * 2.7**2), pytest.approx(0.5 * 2.16**2)]


def test_manual_optimization_without_a_loss_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    module = ByHand(answer=False)

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        try:
            with TrialRunner(trainer, toy, 3):
                raise AssertionError("refused on entering")
        except UserError as error:
            return str(error), toy.x.tolist()

    message, x = between(module, work, tmp_path)
    assert "ByHand optimizes manually, and its training_step returns no loss" in message
    assert x == [3.0], "the rehearsal is taken back"
    with pytest.raises(UserError, match="took no optimizer step in 64 micro-batches"):
        trials(ByHand(every=1000), tmp_path)


def test_steps_without_a_loss_are_no_divergence(tmp_path: Path) -> None:
    class Now(Toy):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            return self.loss(self.x) if batch_idx % 2 else None

    class Never(Toy):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            return None

    with pytest.warns(UserWarning, match="returned `None`"):
        trial = trials(Now([3.0], quadratic(1.0)), tmp_path, 0.5)[0]
    assert trial.outcome == "finished"
    assert str(trial.losses) == "[nan, 4.5, 4.5, 1.125]"
    with pytest.raises(UserError, match="no loss in any step"):
        trials(Never([3.0], quadratic(1.0)), tmp_path, 0.5)


def test_the_trainer_of_the_other_package_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero, "log", rank_zero.log)  # that package takes the logger of both for itself
    old = pytest.importorskip("pytorch_lightning")
    trainer = old.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="a Trainer of pytorch_lightning"):
        TrialRunner(trainer, Toy([3.0], quadratic(1.0)), 3)
