"""Callbacks, thin: they read, reduce and log. They also work in other people's LightningModules."""

import warnings

from lightning_sft.callbacks.adapter_report import AdapterReport
from lightning_sft.callbacks.best_checkpoint import BestCheckpoint
from lightning_sft.callbacks.capability_probe import CapabilityProbe
from lightning_sft.callbacks.critical_learning_rate import CriticalLearningRateFinder
from lightning_sft.callbacks.data_report import DataReport
from lightning_sft.callbacks.drift import DriftMonitor
from lightning_sft.callbacks.exposure_forecast import ExposureForecast
from lightning_sft.callbacks.final_validation import FinalValidation
from lightning_sft.callbacks.first_screen import FirstScreen
from lightning_sft.callbacks.generation import GenerationMonitor
from lightning_sft.callbacks.last_checkpoint import LastCheckpoint
from lightning_sft.callbacks.learning_rate_sweep import LearningRateSweep
from lightning_sft.callbacks.objective_sweep import ObjectiveSweep
from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.callbacks.prediction import PredictionWriter
from lightning_sft.callbacks.run_progress import RunProgress
from lightning_sft.callbacks.run_report import RunReport
from lightning_sft.callbacks.run_story import RunStory
from lightning_sft.callbacks.silent_failure import SilentFailureMonitor
from lightning_sft.callbacks.summary import RunSummary
from lightning_sft.callbacks.synonym_rank import SynonymRankMonitor
from lightning_sft.callbacks.training_metrics import TrainingMetrics

__all__ = [
    "AdapterReport",
    "BestCheckpoint",
    "CapabilityProbe",
    "CriticalLearningRateFinder",
    "DataReport",
    "DriftMonitor",
    "ExposureForecast",
    "FinalValidation",
    "FirstScreen",
    "GenerationMonitor",
    "LastCheckpoint",
    "LearningRateSweep",
    "ObjectiveSweep",
    "OrderParameterLogger",
    "PredictionWriter",
    "RunProgress",
    "RunReport",
    "RunStory",
    "RunSummary",
    "SilentFailureMonitor",
    "SynonymRankMonitor",
    "TrainingMetrics",
]


def __getattr__(name: str) -> type[TrainingMetrics]:
    """Give the callback under its name before 0.2, which config.yaml of earlier runs hold."""
    if name != "Readings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("The callback Readings is now called TrainingMetrics.", DeprecationWarning, stacklevel=2)
    return TrainingMetrics
