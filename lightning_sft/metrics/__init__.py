"""Pure functions, and torchmetrics classes with sum states on top of them."""

from lightning_sft.metrics.order_parameter import OrderParameter
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.metrics.synonyms import SynonymRank
from lightning_sft.metrics.tokens import TokenAverages

__all__ = ["OrderParameter", "SetAverages", "SynonymRank", "TokenAverages"]
