"""The learning rates that a run's schedulers would give, step by step, without training."""

from __future__ import annotations

import math
import warnings

from lightning.pytorch import Trainer

from lightning_sft._lightning import batches_begun
from lightning_sft.errors import UserError
from lightning_sft.sweep.rates import peak_rate
from lightning_sft.sweep.snapshot import Snapshot


def schedule_shares(trainer: Trainer, snapshot: Snapshot, steps: int) -> list[float]:
    """Return each step's rate as a share of the peak rate, from stepping the schedulers without training.

    Schedulers are stepped where Lightning would: after optimizer steps, or at the ends of epochs. Those that follow a
    metric are taken as they stand.

    Args:
        trainer: in a fit, at the first micro-batch of an optimizer step.
        snapshot: puts the schedulers back.
        steps: number of optimizer steps.

    Raises:
        UserError: a schedule goes by epochs, and nobody knows how long an epoch is.
    """
    peak, shares = peak_rate(trainer), []
    group = trainer.optimizers[0].param_groups[0]
    configs = [c for c in trainer.lr_scheduler_configs if not c.reduce_on_plateau]
    length, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
    batch, epoch = max(batches_begun(trainer) - 1, 0), trainer.current_epoch
    by_epoch = [type(c.scheduler).__name__ for c in configs if c.interval == "epoch"]
    if by_epoch and math.isinf(length):
        raise UserError(
            f"Cannot predict this: {by_epoch[0]} changes the rate at the end of each epoch, and the training loader "
            "has no length, so nobody knows when that is. Use a schedule by steps (interval: step)."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch: no optimizer step before the scheduler's
            for _ in range(steps):
                shares.append(float(group["lr"]) / peak)
                batch = (batch // accumulate + 1) * accumulate
                ends = batch >= length  # an epoch's end completes a step
                batch = int(length) if ends else batch
                for config in configs:
                    count = batch if config.interval == "step" else epoch + 1
                    if (ends or config.interval == "step") and count % config.frequency == 0:
                        config.scheduler.step()  # type: ignore[call-arg]  # those by metric are left out
                batch, epoch = (0, epoch + 1) if ends else (batch, epoch)
    finally:
        snapshot.restore()
    return shares
