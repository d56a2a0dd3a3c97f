"""The settings by which runs differ, and those that matter of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sft.report.run import Run, class_name

#: where a run writes, which says nothing of what it does
_PLACES = ("trainer.logger", "ckpt_path", "trainer.default_root_dir")
#: settings of the table of one run: heading -> dotted name
_SHOWN = {
    "model": "model.model_name_or_path",
    "weights": "model.dtype",
    "adapter": "model.adapter",
    "objective": "model.objective",
    "optimizer": "model.optimizer",
    "schedule": "model.lr_scheduler",
    "warm-up share": "model.warmup_ratio",
    "rows per batch": "data.batch_size",
    "batches per step": "trainer.accumulate_grad_batches",
    "most steps": "trainer.max_steps",
    "most epochs": "trainer.max_epochs",
    "precision": "trainer.precision",
    "gradient clipping": "trainer.gradient_clip_val",
    "training data": "data.train",
    "seed": "seed_everything",
}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name; lists are values."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return the settings that are not the same in all runs: their names and the value in each."""
    settings = [flat(run.config) for run in runs]
    for section in sorted({name.removesuffix(".class_path") for one in settings for name in one if _names_class(name)}):
        if len({one.get(f"{section}.class_path") for one in settings}) > 1:  # arguments of two classes do not pair up
            for run, one in zip(runs, settings, strict=True):
                for name in [name for name in one if name == section or name.startswith(f"{section}.")]:
                    del one[name]
                one[section] = run.setting(section)
    names = sorted({name for one in settings for name in one if not name.startswith(_PLACES)})
    return [
        [name, *(_shown(one.get(name)) for one in settings)]
        for name in names
        if len({_shown(one.get(name)) for one in settings}) > 1
    ]


def _names_class(name: str) -> bool:
    return name.endswith(".class_path") and ".init_args." not in name


def settings_of(run: Run) -> list[list[str]]:
    """Return the settings that matter, heading and value."""
    values = {heading: run.setting(name) for heading, name in _SHOWN.items()}
    values |= {heading: "no limit" for heading in ("most steps", "most epochs") if values[heading] == -1}
    values["went on at step"] = ", ".join(map(str, run.resumed)) or None
    return [[heading, _shown(value)] for heading, value in values.items() if value is not None]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        value = class_name(value) if "class_path" in value else ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    elif isinstance(value, list):
        value = ", ".join(class_name(item) for item in value)
    text = str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
