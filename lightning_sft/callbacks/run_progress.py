"""RunProgress: how far a run is, as a bar in a terminal and as plain lines in a log."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm
from typing_extensions import override

from lightning_sft.callbacks.run_clock import RunClock, validations_left
from lightning_sft.training.accumulation import accumulator_of
from lightning_sft.units import duration, pace

#: what a validation says in a line
_TOLD = ("val/nll", "val/exact_match", "val/task_accuracy")
#: tqdm's own estimate of the time left knows of no validations
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
#: seconds between two looks of the bar at what it shows
_REFRESH = 0.2
#: what is said in its own words, and not again from what modules show on a bar
_OWN = ("loss", "trained tokens/s", "val/nll", "v_num")


class RunProgress(ProgressBar):
    """Say every few seconds which of all optimizer steps is done, the loss, the rates and the time that is left.

    In a terminal that is a bar; elsewhere (``> log``, nohup, SLURM) it is a line each ``every`` seconds. Loss, tokens a
    second and learning rate are those of whole optimizer steps, over all ranks: ``tokens/s`` counts what the model
    reads, ``trained`` those of them that are learned from, as ``perf/tokens_per_second`` does. The time left covers the
    steps and the validations that are due until the end of the run. Validations, tests and predictions that take longer
    say how many batches are done.

    The command line puts this in the place of Lightning's bar, unless another ProgressBar is configured or
    ``trainer.enable_progress_bar`` is false.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float = 10.0) -> None:
        super().__init__()
        self.every = every
        self._is_on = True
        self._bar: tqdm[Any] | None = None
        self._batches = 0
        self._since = self._next = 0.0
        self._rate: float | None = None
        self._began: float | None = None  # time of training from which steps are timed
        self._terminal = sys.stderr.isatty()
        self._total: int | None = None
        self._warm = False
        self._clock = RunClock()
        self._due = self._told_at = 0.0
        self._loss: float | Tensor = math.nan
        self._sums = {"tokens": 0.0, "trained": 0.0}
        self._step = self._first_step = 0

    @override
    def disable(self) -> None:
        self._is_on = False

    @override
    def enable(self) -> None:
        self._is_on = True

    def restart_clock(self) -> None:
        """Leave what was done since the last optimizer step, such as a sweep, out of the pace of the steps."""
        self._warm = False
        self._told_at = self._clock.training

    # ------------------------------------------------------------------ training

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._total = None if total == math.inf else int(total)
        self._step = self._first_step = trainer.global_step
        self._began = self._rate = None
        self._warm = False  # whether a step has been made whose time is like that of the others
        self._due = 0.0  # the first step is told at once

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._clock.train()
        if self._began is None:  # what callbacks read before the first step is no step
            self._began = self._told_at = self._clock.training
            if self._is_on and self._terminal:
                shape = None if self._total is None else _BAR
                self._bar = tqdm(total=self._total, initial=self._step, desc="fit", unit="step", dynamic_ncols=True,
                                 bar_format=shape)  # fmt: skip

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        moved, self._step = trainer.global_step - self._step, trainer.global_step
        self._count(pl_module, outputs)
        if not self._warm:  # the first step also warms up, and waits for what is read before it
            self._warm, self._began, self._first_step = True, self._clock.training, self._step
        now = self._clock.training
        last = self._total is not None and self._step >= self._total
        if self._bar is not None:
            self._bar.update(moved)
        if self._bar is not None and (now >= self._due or last):
            self._due = now + _REFRESH
            left = self._left(trainer)
            parts = [*self._readings(trainer, reset=False), *([f"{duration(left)} left"] if left else [])]
            self._bar.set_postfix_str(", ".join(parts))
        if self._is_on and not self._terminal and (now >= self._due or last):
            self._due = now + self.every
            self._say(trainer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])  # of this step: the schedule has moved on at its end

    def _count(self, module: LightningModule, outputs: Any) -> None:
        """Add an optimizer step's tokens, and keep its loss."""
        accumulator = accumulator_of(module)
        totals = {} if accumulator is None else accumulator.totals
        if accumulator is None or not totals:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._loss = math.nan if loss is None else loss  # read where it is shown: reading waits for the device
            return
        self._loss = accumulator.totals.loss(accumulator.denominator)
        self._sums["trained"] += float(totals["supervised"])
        if "positions" in totals:
            self._sums["tokens"] += float(totals["positions"]) - float(totals["padding"])

    def _say(self, trainer: Trainer) -> None:
        done = f"step {self._step}" if self._total is None else f"step {self._step} of {self._total}"
        share = f" ({self._step / self._total:.0%})" if self._total else ""
        left = self._left(trainer)
        parts = [f"{done}{share}", *self._readings(trainer, reset=True)]
        if self._step == self._total:
            parts.append(self._ending(trainer))
        elif left is not None:
            parts.append(f"{duration(left)} left")
        print(" | ".join(parts), flush=True)

    def _ending(self, trainer: Trainer) -> str:
        """Return what follows the last step."""
        if not trainer.enable_validation or not sum(trainer.num_val_batches):
            return "done"
        took = self._clock.validation
        return f"done but for the last validation{f', about {duration(took)}' if took >= 1 else ''}"

    def _readings(self, trainer: Trainer, *, reset: bool) -> list[str]:
        """Return loss, val/nll, learning rate, speeds, and what a module shows on bars."""
        parts = [f"loss {float(self._loss):.4g}"]
        nll = trainer.callback_metrics.get("val/nll")
        parts += [] if nll is None else [f"val/nll {float(nll):.4g}"]
        if self._rate is not None:
            parts.append(f"lr {self._rate:.3g}")
        seconds = self._clock.training - self._told_at
        if self._sums["trained"] and seconds > 0:
            read, trained = self._sums["tokens"] / seconds, self._sums["trained"] / seconds
            rate = pace(trained)
            parts.append(f"{pace(read)} tokens/s, {rate} of them trained" if read else f"{rate} trained tokens/s")
        for name, value in trainer.progress_bar_metrics.items():
            if name not in _OWN and not name.startswith("val/"):
                parts.append(f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}")
        if reset:
            self._told_at = self._clock.training
            self._sums = dict.fromkeys(self._sums, 0.0)
        return parts

    def _left(self, trainer: Trainer) -> float | None:
        """Return the seconds until the run ends, its validations included."""
        done = self._step - self._first_step
        if self._total is None or self._began is None or (not done and self._step < self._total):
            return None
        steps = max(self._total - self._step, 0)
        return self._clock.left(self._began, done, steps, validations_left(trainer, self._step, self._total))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # ------------------------------------------------------------------ evaluation

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.validate()
        self._evaluation_starts()

    @override
    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluated("validating", batches)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        glance = trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf
        if not self._is_on or glance or trainer.state.fn != "fit":
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k in _TOLD}
        told = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        line = f"validation at step {trainer.global_step}: {told} ({duration(self._clock.validation)})"
        if told and self._bar is not None:
            self._bar.write(line)
        elif told:
            print(line, flush=True)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_starts()

    @override
    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._evaluated("testing", trainer.num_test_batches)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_starts()

    @override
    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._evaluated("predicting", trainer.num_predict_batches)

    def _evaluation_starts(self) -> None:
        self._batches = 0
        self._since = self._clock.total
        self._next = self._since + self.every

    def _evaluated(self, what: str, batches: Sequence[int | float]) -> None:
        """Say how many batches of an evaluation are done, where it takes longer than a line's time."""
        self._batches += 1
        now = self._clock.total
        if not self._is_on or now < self._next:
            return
        self._next = now + self.every
        total = sum(batches)
        each = (now - self._since) / self._batches
        left = "" if total == math.inf else f", {duration(each * (total - self._batches))} left"
        line = f"{what}: {self._batches} of {total} batches{left}"
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, file=sys.stderr if self._terminal else sys.stdout, flush=True)
