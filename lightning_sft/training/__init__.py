"""Optimizer steps: sums over micro-batches and ranks, the exact factor, optimizers and groups, strategies.

`StepAccumulator` makes gradients exact to the token in LightningModules and loops that are not this package's.
"""

from lightning_sft._lightning import step_is_complete
from lightning_sft.training.accumulation import StepAccumulator

__all__ = ["StepAccumulator", "step_is_complete"]
