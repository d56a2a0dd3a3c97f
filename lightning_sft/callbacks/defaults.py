"""The callbacks that `SFTModule` brings along."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from lightning_sft._lightning import callbacks_of
from lightning_sft.callbacks.adapter_report import AdapterReport
from lightning_sft.callbacks.capability_probe import CapabilityProbe
from lightning_sft.callbacks.data_report import DataReport
from lightning_sft.callbacks.final_validation import FinalValidation
from lightning_sft.callbacks.first_screen import FirstScreen
from lightning_sft.callbacks.generation import GenerationMonitor
from lightning_sft.callbacks.silent_failure import SilentFailureMonitor
from lightning_sft.callbacks.training_metrics import TrainingMetrics


def default_callbacks(trainer: Trainer) -> list[Callback]:
    """Return those that the trainer was not given itself; none where it is barebones."""
    if trainer.barebones:
        return []
    given = callbacks_of(trainer)
    silent = SilentFailureMonitor()
    silent.required = False
    defaults: list[Callback] = [
        DataReport(),
        AdapterReport(),
        CapabilityProbe.where_possible(),
        TrainingMetrics(),
        GenerationMonitor(),
        FinalValidation(),
        silent,
        FirstScreen(),  # last: it sums up what the others found
    ]
    return [callback for callback in defaults if not any(isinstance(g, type(callback)) for g in given)]
