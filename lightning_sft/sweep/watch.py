"""What looks on while a trial trains: the losses of its steps, and whether it trains at its own rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.training.accumulation import accumulator_of

#: how schedulers are stepped: torch's name, and that of timm's schedulers
_STEPS = ("step", "step_update")


class StepLosses(Callback):
    """Gathers the loss of an optimizer step from its micro-batches."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._values.append(wide(loss.detach()).mean() * trainer.accumulate_grad_batches)

    def close(self, trainer: Trainer, module: LightningModule) -> float | None:
        """Return the step's loss over all ranks: exact where the module keeps totals, else the micro-batches' mean.

        None for a step without one: no supervised token, or a training step that returned nothing.
        """
        values, self._values = self._values, []
        accumulator = accumulator_of(module)
        if accumulator is not None and accumulator.totals:
            totals = accumulator.totals
            return totals.mean("nll" if "nll" in totals else "loss") if accumulator.learned else None
        zero = torch.zeros((), dtype=torch.float64, device=wide_device(module.device))
        own = torch.stack([torch.stack(values).sum() if values else zero, zero + len(values)])
        total = trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(total, Tensor)
        return float(total[0] / total[1]) if total[1] else None


class RateWatch:
    """Counts the optimizers' steps, and sees to it that each is taken at the rate of the trial.

    Args:
        trainer: in a fit.
        module: its module, for messages.
        lr: the trial's rate, for messages.
        follow_schedule: whether schedulers move the rate; otherwise they are there and do nothing.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, lr: float, *, follow_schedule: bool) -> None:
        self.steps = 0
        self.highest = 0.0
        self._lr = lr
        self._module = module
        self._follow = follow_schedule
        self._optimizers = [o for o in trainer.optimizers if isinstance(o, torch.optim.Optimizer)]
        self._schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._expected: dict[int, list[float]] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Watch for as long as the context lasts."""
        handles = [o.register_step_pre_hook(self._before_step) for o in self._optimizers]
        names = [(vars(s), name) for s in self._schedulers for name in _STEPS if callable(getattr(s, name, None))]
        own = [(table, name, table[name]) for table, name in names if name in table]
        for scheduler in self._schedulers:
            for name in _STEPS:
                step = getattr(scheduler, name, None)
                if callable(step):
                    vars(scheduler)[name] = self._scheduled(step)
        self.expect()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for table, name in names:
                table.pop(name, None)
            for table, name, step in own:
                table[name] = step

    def expect(self) -> None:
        """Take the rates of now for those of the next step."""
        self._expected = {id(o): _rates(o) for o in self._optimizers}

    def _scheduled(self, step: Any) -> Any:
        def scheduled(*args: Any, **kwargs: Any) -> None:
            if self._follow:
                for optimizer in self._optimizers:  # a schedule that goes on from the present rate would hide it
                    self._check(optimizer, self.steps)
                step(*args, **kwargs)
                self.expect()

        return scheduled

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        self.highest = max(self.highest, *_rates(optimizer))
        self._check(optimizer, self.steps)

    def _check(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        now, expected = _rates(optimizer), self._expected[id(optimizer)]
        if now != expected:
            found, meant = next((a, b) for a, b in zip(now, expected, strict=True) if a != b)
            raise UserError(
                f"A trial at learning rate {self._lr:.6g} is to train at {meant:.6g} in its step {step}, but "
                f"{type(self._module).__name__} has set {found:.6g} by itself, for example in optimizer_step. A sweep "
                "finds a rate only where nobody else sets it. Return the warm-up or schedule from "
                "configure_optimizers as a scheduler."
            )

    def lost_in(self, dtypes: set[torch.dtype]) -> bool:
        """Return whether steps were taken, but weights of these types may round them away."""
        return bool(self.steps and self.highest) and all(dtype.itemsize < 4 for dtype in dtypes)

    def explain_rest(self, dtypes: set[torch.dtype]) -> str:
        """Return why no parameter moved, as far as can be told.

        Args:
            dtypes: of the trainable parameters.
        """
        name = type(self._module).__name__
        if not self.steps:
            return f"the optimizer's step was never called. Look at {name}.optimizer_step, or at the loss scaler"
        if not self.highest:
            return "the schedule's rate is 0 in all of them. Give the sweep more steps, or the run a shorter warm-up"
        if self.lost_in(dtypes):
            return f"updates this small are rounded away in {' and '.join(sorted(map(str, dtypes)))}"
        return "their gradients are zero, or the optimizer holds other parameters than the module"


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
