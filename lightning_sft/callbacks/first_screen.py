"""FirstScreen: TensorBoard opened on a run answers what a person asks first."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lightning_sft._lightning import callbacks_of, data_parallel_size_and_rank
from lightning_sft.advice.rules import advise
from lightning_sft.callbacks.capability_probe import CapabilityProbe
from lightning_sft.callbacks.drift import DriftMonitor
from lightning_sft.callbacks.generation import GenerationMonitor
from lightning_sft.callbacks.probe_reading import ProbeCallback
from lightning_sft.callbacks.silent_failure import SilentFailureMonitor
from lightning_sft.callbacks.summary import RunSummary
from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.figures.board import OUTCOMES, SETTINGS, Parts, log_layout, log_settings
from lightning_sft.figures.loggers import log_text
from lightning_sft.objectives import Objective
from lightning_sft.units import adapter_kind


class FirstScreen(Callback):
    """Order TensorBoard's screens by what people ask: is it working, where does the model stand, did it fail silently?

    In the custom scalars tab sections of curves that belong together, Overview first, those that the run fills; in the
    HParams tab objective, learning rate, adapter, batch, seed and capability, with the last held-out values; and the
    text ``about/run``: the settings at the start, and at the end of fit also the table before and after, verdicts
    and advice. `SFTModule` brings it along; without a TensorBoard logger it does nothing.

    Args:
        enabled: False turns it off where it would be brought along.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = self._loggers(trainer)
        if not loggers:
            return
        parts, settings = _parts(trainer, pl_module), _settings(trainer, pl_module)
        outcomes = [key for key in OUTCOMES if _is_logged(key, parts)]
        for logger in loggers:
            log_layout(logger, parts)
            log_settings(logger, settings, outcomes)
        log_text(trainer, "about/run", _settings_table(settings), trainer.global_step)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loggers(trainer) and trainer.global_step:
            text = "\n\n".join([*_outcome(trainer), _settings_table(_settings(trainer, pl_module))])
            log_text(trainer, "about/run", text, trainer.global_step)

    def _loggers(self, trainer: Trainer) -> list[TensorBoardLogger]:
        fast: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self.enabled or trainer.barebones or fast or not trainer.is_global_zero:
            return []
        return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _parts(trainer: Trainer, module: LightningModule) -> Parts:
    callbacks, objective = callbacks_of(trainer), getattr(module, "objective", None)
    probes: dict[str, list[str]] = {}
    for callback in callbacks:
        if isinstance(callback, ProbeCallback):
            probes.setdefault(callback.area, []).append("/".join(filter(None, (callback.area, callback.name))))
    return Parts(
        validates=trainer.enable_validation,
        generates=any(isinstance(c, GenerationMonitor) for c in callbacks) and _scores_answers(trainer),
        state=isinstance(objective, Objective) and bool(objective.logged()),
        silent=any(isinstance(c, SilentFailureMonitor) and c.watched for c in callbacks),
        capability=any(isinstance(c, CapabilityProbe) and c.start is not None for c in callbacks),
        guards=[name for c in callbacks if isinstance(c, DriftMonitor) for name in c.texts],
        probes=probes,
        sweeps=[c.name for c in callbacks if isinstance(c, SweepCallback)],
    )


def _scores_answers(trainer: Trainer) -> bool:
    """Return whether generated answers to held-out prompts get a score."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not trainer.enable_validation or not hasattr(datamodule, "generation_rows"):
        return False
    return any(datamodule.score(row, "") is not None for row in datamodule.generation_rows("val", None))


def _is_logged(key: str, parts: Parts) -> bool:
    """Return whether a run with these parts may log a key."""
    return {
        "val": parts.validates and (parts.generates or key != "val/task_accuracy"),
        "silent": parts.silent,
        "capability": parts.capability,
        "synonyms": "synonyms" in (parts.probes or {}).get("synonyms", ()),
    }[key.partition("/")[0]]


def _settings(trainer: Trainer, module: LightningModule) -> dict[str, str | float]:
    """Return what is known of a run by the keys of `SETTINGS`; modules that are not ours tell less."""
    found: dict[str, Any] = {}
    objective = getattr(module, "objective", None)
    if objective is not None:
        found["objective"] = str(objective).removesuffix("()")
    if trainer.optimizers:
        group = trainer.optimizers[0].param_groups[0]
        found["learning_rate"] = float(group.get("initial_lr", group["lr"]))
    settings: Any = getattr(module, "settings", None)
    if hasattr(settings, "adapter"):
        found["model"], found["adapter"] = str(settings.name), _adapter(settings)
    ranks, _ = data_parallel_size_and_rank(trainer)
    size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if isinstance(size, int):
        found["rows_per_step"] = size * trainer.accumulate_grad_batches * ranks
    if trainer.estimated_stepping_batches != float("inf"):
        found["steps"] = int(trainer.estimated_stepping_batches)
    if (seed := os.environ.get("PL_GLOBAL_SEED", "")).lstrip("-").isdecimal():
        found["seed"] = int(seed)
    readings = [c.start for c in callbacks_of(trainer) if isinstance(c, CapabilityProbe) and c.start is not None]
    if readings:
        found["capability"] = float(f"{readings[0].judged.mean_p:.3g}")
    return {key: found[key] for key in SETTINGS if key in found}


def _adapter(settings: Any) -> str:
    if settings.adapter_path is not None:
        return f"from {settings.adapter_path}"
    if settings.adapter is None:
        return "none: all weights are trained"
    rank = getattr(settings.adapter, "r", None)
    kind = adapter_kind(type(settings.adapter).__name__)
    return kind if rank is None else f"{kind} r={rank}"


def _settings_table(settings: dict[str, str | float]) -> str:
    rows = (f"| {SETTINGS[key]} | {value} |" for key, value in settings.items())
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _outcome(trainer: Trainer) -> list[str]:
    """Return the verdicts, the advice and the table before and after, a Markdown block each."""
    blocks = []
    for callback in callbacks_of(trainer):
        if isinstance(callback, SilentFailureMonitor) and callback.verdicts:
            blocks.append("\n\n".join(f"**{v.sentence}**" for v in callback.verdicts.values()))
        if isinstance(callback, CapabilityProbe) and callback.start is not None:
            blocks.append(f"Before training: {advise(callback.start).headline}")
    for summary in (c for c in callbacks_of(trainer) if isinstance(c, RunSummary) and c.after):
        first = "before" if summary.before_step == 0 else f"step {summary.before_step}"
        lines = [f"| held out | {first} | step {summary.after_step} |", "| --- | --- | --- |"]
        for key, after in sorted(summary.after.items()):
            before = summary.before.get(key)
            lines.append(f"| {key} | {'' if before is None else f'{before:.4f}'} | {after:.4f} |")
        blocks.append("\n".join(lines))
    return blocks
