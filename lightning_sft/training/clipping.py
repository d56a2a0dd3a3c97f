"""Gradient clipping where Lightning's own would refuse or measure another norm."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from lightning_sft.training.strategies import adapter_of


def clip_gradients(trainer: Trainer, optimizer: Optimizer, value: float, algorithm: str) -> bool:
    """Clip the gradients, or return False to leave it to Lightning.

    Args:
        trainer: in a fit; its strategy and its precision decide.
        optimizer: whose gradients to clip.
        value: the largest norm or the largest entry; 0 clips nothing.
        algorithm: ``"norm"`` or ``"value"``.
    """
    if value and adapter_of(trainer).clip(value, algorithm):
        return True
    precision = trainer.precision_plugin
    if not isinstance(precision, MixedPrecision) or precision.scaler is not None:
        return False
    # MixedPrecision refuses optimizers that unscale by themselves, such as fused ones. Nothing is scaled here.
    super(MixedPrecision, precision).clip_gradients(optimizer, value, GradClipAlgorithmType(algorithm))
    return True
