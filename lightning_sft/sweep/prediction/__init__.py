"""Critical learning rates predicted from a few short runs."""

from lightning_sft.sweep.prediction.estimate import Estimate
from lightning_sft.sweep.prediction.predict import predict_critical_lr
from lightning_sft.sweep.prediction.record import CriticalLRPrediction

__all__ = ["CriticalLRPrediction", "Estimate", "predict_critical_lr"]
