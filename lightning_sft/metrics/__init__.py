"""Pure functions, and torchmetrics classes with sum states on top of them."""

from lightning_sft.metrics.order_parameter import OrderParameter
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.metrics.synonyms import SynonymRank

__all__ = ["OrderParameter", "SetAverages", "SynonymRank"]
