"""Callbacks, thin: they read, reduce and log. They also work in other people's LightningModules."""

from lightning_sft.callbacks.generation import GenerationMonitor
from lightning_sft.callbacks.prediction import PredictionWriter
from lightning_sft.callbacks.readings import Readings
from lightning_sft.callbacks.summary import RunSummary

__all__ = ["GenerationMonitor", "PredictionWriter", "Readings", "RunSummary"]
