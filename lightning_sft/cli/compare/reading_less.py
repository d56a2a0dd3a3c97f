"""What a run that only helps to find a rate leaves out: validations on the way, and readings that select nothing.

A callback of your own counts as an instrument where its class says ``only_reads = True``: it changes no step by what it
reads. All others may act on a validation, and keep every one of them.

Its judged rows are as many as those of any other run: fewer would make the choice of a rate noisier.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_OURS = "lightning_sft.callbacks."
#: callbacks whose readings are no part of the validation itself: each costs forward passes or answers of its own
_INSTRUMENTS = {
    f"{_OURS}{name}": off
    for name, off in {
        "CapabilityProbe": {"enabled": False},
        "DriftMonitor": None,
        "GenerationMonitor": {"samples": 0, "limit": 0},
        "OrderParameterLogger": None,
        "SilentFailureMonitor": {"enabled": False},
        "SynonymRankMonitor": None,
    }.items()
}
#: callbacks that do not change training by what a validation says
_IDLE = frozenset(
    [
        *_INSTRUMENTS,
        *(f"{_OURS}{name}" for name in ("AdapterReport", "DataReport", "FinalValidation", "LastCheckpoint")),
        *(f"{_OURS}{name}" for name in ("FirstScreen", "RunProgress", "RunStory", "RunSummary", "TrainingMetrics")),
        *(
            f"lightning.pytorch.callbacks.{name}"
            for name in (
                "DeviceStatsMonitor",
                "GradientAccumulationScheduler",
                "LearningRateMonitor",
                "ModelCheckpoint",  # none takes part in a comparison
                "ModelSummary",
                "RichModelSummary",
                "RichProgressBar",
                "TQDMProgressBar",
            )
        ),
    ]
)
#: so many epochs have no run: its only validation is the one at its end
_NEVER = 10**6


def reading_less(content: Mapping[str, Any], *, instruments: bool) -> dict[str, Any]:
    """Return a configuration that trains the same steps and validates once, after the last one.

    Where anything may act on a validation on the way (early stopping, a schedule that watches a reading, a class that
    is not ours, a limit in wall time), the configuration stays as it is.

    Args:
        content: a configuration of ``fit``, with full class names.
        instruments: whether callbacks that read more than the validation stay, since rates are selected by one of them.
    """
    if _acts_on_validations(content):
        return dict(content)
    trainer = {
        **content["trainer"],
        "num_sanity_val_steps": 0,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": _NEVER,
    }
    if not instruments:
        auto = content["model"].get("objective") == "auto"  # which reads by CapabilityProbe's settings
        left = {path: off for path, off in _INSTRUMENTS.items() if not (auto and path.endswith(".CapabilityProbe"))}
        paths = [(c, c["class_path"]) for c in _callbacks(content)]
        kept = [c for c, path in paths if path not in left and (path in _IDLE or not _only_reads(path))]
        trainer["callbacks"] = kept + [{"class_path": p, "init_args": off} for p, off in left.items() if off]
    return {**content, "data": _each_time(content["data"]), "trainer": trainer}


def _each_time(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of data whose named validation sets are all read at the one validation."""
    val = data.get("val")
    if not isinstance(val, Mapping) or "class_path" in val:
        return dict(data)
    sets = {k: {**v, "every": 1} if isinstance(v, Mapping) and "sources" in v else v for k, v in val.items()}
    return {**data, "val": sets}


def _acts_on_validations(content: Mapping[str, Any]) -> bool:
    model, trainer = content["model"], content["trainer"]
    foreign = "class_path" in model or "class_path" in content["data"]
    schedule = str(model.get("lr_scheduler"))
    others = any(c["class_path"] not in _IDLE and not _only_reads(c["class_path"]) for c in _callbacks(content))
    return foreign or "plateau" in schedule.lower() or trainer.get("max_time") is not None or others


def _only_reads(path: str) -> bool:
    """Return whether a class says of itself that it only reads; one that cannot be imported says nothing."""
    module, _, name = path.rpartition(".")
    try:
        return bool(getattr(getattr(importlib.import_module(module), name), "only_reads", False))
    except (ImportError, AttributeError, ValueError):
        return False


def _callbacks(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = content["trainer"].get("callbacks") or []
    return list(given) if isinstance(given, list) else [given]
