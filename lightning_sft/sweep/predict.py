"""The import path that earlier documentation showed; the prediction lives in `lightning_sft.sweep.prediction`."""

from lightning_sft.sweep.prediction.predict import predict_critical_lr

__all__ = ["predict_critical_lr"]
