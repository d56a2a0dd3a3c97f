"""AdapterReport: what an adapter works on, what it leaves out, and what learns nothing in the first step."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_sft._lightning import is_told
from lightning_sft.models.reach import Reach, kinds_of, without_gradient
from lightning_sft.training.strategies import adapter_of

_SHOWN = 6


class AdapterReport(Callback):
    """Say at the start of a fit what its adapter reaches, and after the first step which parts of it got no gradient.

    A part without a gradient never learns: the loss does not depend on it, as with the experts of a mixture that no
    token was sent to. Nothing is said about modules without an adapter, nor where a strategy keeps gradients to itself.

    Works with modules whose ``scorer`` is a `TokenScorer`, such as [`SFTModule`][lightning_sft.module.SFTModule].
    """

    #: its hook reads gradients and writes none, so that a norm taken before it still holds
    leaves_gradients = True

    def __init__(self) -> None:
        self._is_due = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reach = _reach(pl_module)
        self._is_due = reach is not None
        if reach is not None and reach.weights and not is_told(trainer):
            rank_zero_info(str(reach))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._is_due:
            return
        groups = optimizer.param_groups
        norm = adapter_of(trainer).gradient_norm(p.grad for g in groups for p in g["params"] if p.grad is not None)
        if norm is not None and float(norm) == 0:
            return  # a step without a token to learn from says nothing
        self._is_due = False
        names = [] if norm is None else without_gradient(pl_module)
        silent = kinds_of(name.rpartition("base_model.model.")[2] for name in names)
        if silent:
            more = f" and {len(silent) - _SHOWN} more" if len(silent) > _SHOWN else ""
            rank_zero_warn(
                f"These parts of the adapter got no gradient in the first step: {', '.join(silent[:_SHOWN])}{more}. If "
                "that stays so they learn nothing: leave them out of target_modules (exclude_modules)."
            )


def _reach(module: LightningModule) -> Reach | None:
    found = getattr(getattr(module, "scorer", None), "adapter_reach", None)
    return found if isinstance(found, Reach) else None
