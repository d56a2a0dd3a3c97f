"""Callbacks, thin: they read, reduce and log. They also work in other people's LightningModules."""

from lightning_sft.callbacks.critical_learning_rate import CriticalLearningRateFinder
from lightning_sft.callbacks.data_report import DataReport
from lightning_sft.callbacks.generation import GenerationMonitor
from lightning_sft.callbacks.last_checkpoint import LastCheckpoint
from lightning_sft.callbacks.learning_rate_sweep import LearningRateSweep
from lightning_sft.callbacks.objective_sweep import ObjectiveSweep
from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.callbacks.prediction import PredictionWriter
from lightning_sft.callbacks.summary import RunSummary
from lightning_sft.callbacks.synonym_rank import SynonymRankMonitor
from lightning_sft.callbacks.training_metrics import TrainingMetrics

__all__ = [
    "CriticalLearningRateFinder",
    "DataReport",
    "GenerationMonitor",
    "LastCheckpoint",
    "LearningRateSweep",
    "ObjectiveSweep",
    "OrderParameterLogger",
    "PredictionWriter",
    "RunSummary",
    "SynonymRankMonitor",
    "TrainingMetrics",
]
