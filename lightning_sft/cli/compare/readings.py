"""What a run of a comparison reads: every log key at every validation, tokens and seconds until then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from typing_extensions import override

from lightning_sft.compare.result import Point
from lightning_sft.sweep.rates import set_peak_rate
from lightning_sft.training.accumulation import accumulator_of
from lightning_sft.training.nonfinite import LossWatch

#: rooms of log keys that say how the run went, and not what the model can do
_PROCESS = ("train/", "perf/", "data/", "sweep/", "epoch", "lr-", "loss")


class Recorder(Logger):
    """The only logger of such a run: hands every metric on, whoever logs it, and writes nothing.

    Args:
        folder: of the run.
        take: is given metrics and their step.
    """

    def __init__(self, folder: str, take: Callable[[Mapping[str, float], int | None], None]) -> None:
        super().__init__()
        self._folder = folder
        self._take = take

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return self._folder

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._take(metrics, step)

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The comparison knows them."""


class Readings(Callback):
    """Sets the rate of a run, ends it when it diverges, and keeps what it logs.

    Args:
        rate: peak learning rate, to which parameter groups and schedule are scaled; None leaves them.

    Attributes:
        points: a validation each.
        diverged: a loss was not finite.
    """

    next_commands = ()  # the comparison says what to do next, not each of its runs

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.points: list[Point] = []
        self.diverged = False
        self.tokens = 0
        self.seconds = 0.0
        self._since = 0.0
        self._values: dict[str, float] = {}

    def take(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Remember what was logged since the last validation."""
        numbers = {k: float(v) for k, v in metrics.items() if not k.startswith(_PROCESS) and _is_number(v)}
        self._values |= numbers

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rate is not None:
            set_peak_rate(trainer, self.rate)
        watch: object = getattr(pl_module, "loss_watch", None)
        if isinstance(watch, LossWatch) and watch.action == "stop":
            watch.trial()  # a loss that is not finite is a result here

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._values and not self.tokens:
            self._end(0)  # what callbacks log at the start of training belongs to the validation before it
        self._since = time.perf_counter()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        accumulator = accumulator_of(pl_module)
        if accumulator is not None and accumulator.totals:
            self.tokens += int(accumulator.totals["supervised"])

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += time.perf_counter() - self._since
        watch: object = getattr(pl_module, "loss_watch", None)
        if isinstance(watch, LossWatch) and watch.quiet and watch.steps:
            self.diverged = True
            trainer.should_stop = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            if trainer.num_sanity_val_steps != math.inf:
                return  # a glance at a few rows
            self.take(trainer.callback_metrics)  # which reach no logger then
        step = 0 if trainer.sanity_checking else trainer.global_step
        self._end(step)

    def finish(self, step: int) -> None:
        """Take what was logged after the last validation, as by callbacks at the end of training."""
        if self._values:
            self._end(step)

    def _end(self, step: int) -> None:
        values, self._values = self._values, {}
        if self.points and self.points[-1].step == step:
            last = self.points.pop()
            values = {**last.values, **values}
        self.points.append(Point(step, self.tokens, self.seconds, values))

    @override
    def state_dict(self) -> dict[str, Any]:
        points = [{"step": p.step, "tokens": p.tokens, "seconds": p.seconds, "values": p.values} for p in self.points]
        counts = {"tokens": self.tokens, "seconds": self.seconds, "diverged": self.diverged}
        return {"points": points, "values": self._values, **counts}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = [Point(**p) for p in state_dict["points"]]
        self._values = dict(state_dict["values"])
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.diverged = state_dict["diverged"]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
