"""Gradient clipping by the norm that the log shows, and where Lightning's own would refuse."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from lightning_sft.training.gradients import SharedNorm
from lightning_sft.training.strategies import adapter_of


def clip_gradients(trainer: Trainer, optimizer: Optimizer, value: float, algorithm: str) -> bool:
    """Clip the gradients, or return False to leave it to Lightning.

    Args:
        trainer: in a fit; its strategy and its precision decide.
        optimizer: whose gradients to clip.
        value: the largest norm or the largest entry; 0 clips nothing.
        algorithm: ``"norm"`` or ``"value"``.
    """
    adapter, precision = adapter_of(trainer), trainer.precision_plugin
    if value and adapter.clip(value, algorithm):
        return True
    scaled = isinstance(precision, MixedPrecision) and precision.scaler is not None
    if value > 0 and algorithm == "norm" and not scaled and SharedNorm(optimizer, adapter.gradient_norm).clip(value):
        return True
    if not isinstance(precision, MixedPrecision) or scaled:
        return False
    # MixedPrecision refuses optimizers that unscale by themselves, such as fused ones. Nothing is scaled here.
    super(MixedPrecision, precision).clip_gradients(optimizer, value, GradClipAlgorithmType(algorithm))
    return True
