"""Pure functions, and torchmetrics classes with sum states on top of them."""

from lightning_sft.metrics.tokens import TokenAverages

__all__ = ["TokenAverages"]
