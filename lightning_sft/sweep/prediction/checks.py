"""What a run must be for its future to be predicted, looked at before the first trial."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_sft.errors import UserError

_SWEEP = "Sweep instead: CriticalLearningRateFinder without predict."


def check_predictable(trainer: Trainer) -> None:
    """Raise unless the run has one plain optimizer whose rates are known beforehand.

    Args:
        trainer: in a fit.

    Raises:
        UserError: several optimizers, one that is no torch optimizer, one whose states lie on another device than its
            parameters, or a schedule that is driven by a metric; the message says which.
    """
    optimizers = trainer.optimizers
    if len(optimizers) != 1:
        names = ", ".join(type(o).__name__ for o in optimizers) or "none"
        raise UserError(
            f"Cannot predict this: the run has {len(optimizers)} optimizers ({names}), and what each does to the "
            "gap cannot be told apart in a short run. Allowed: one optimizer, with any number of parameter groups."
        )
    optimizer: object = optimizers[0]
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"Cannot predict this: {type(optimizer).__name__} is no torch.optim.Optimizer, so it cannot be tried on a "
            f"steady gradient. {_SWEEP}"
        )
    for parameter, state in optimizer.state.items():
        away = {str(v.device) for v in state.values() if isinstance(v, Tensor) and v.ndim} - {str(parameter.device)}
        if away:
            raise UserError(
                f"Cannot predict this: {type(optimizer).__name__} keeps its states on {', '.join(sorted(away))}, "
                f"its parameters on {parameter.device}. Offloaded states are not put back after trials; keep them "
                "beside the parameters."
            )
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau):
            raise UserError(
                f"Cannot predict this: {type(config.scheduler).__name__} lowers the rate when {config.monitor!r} stops "
                "improving, and nobody knows today when that will be. Use a schedule by steps, or "
                f"s{_SWEEP[1:]}"
            )
