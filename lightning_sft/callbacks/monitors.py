"""Which log keys the callbacks and schedules of a run follow."""

from __future__ import annotations

from lightning.pytorch import Trainer

from lightning_sft._lightning import callbacks_of


def monitored_keys(trainer: Trainer) -> set[str]:
    """Return the keys that checkpoints, early stopping, bounds and learning-rate schedules of a run follow."""
    followers = [*callbacks_of(trainer), *trainer.lr_scheduler_configs]
    keys = {getattr(follower, "monitor", None) for follower in followers}
    # of BestCheckpoint
    bounds = {bound.key for callback in callbacks_of(trainer) for bound in getattr(callback, "bounds", ())}
    return {key for key in keys | bounds if isinstance(key, str)}
