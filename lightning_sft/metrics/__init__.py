"""Pure functions, and torchmetrics classes with sum states on top of them."""

from lightning_sft.metrics.calibration import first_choice_calibration
from lightning_sft.metrics.capability import TokenTable, read_capability
from lightning_sft.metrics.capability_reading import CapabilityReading, CutOffs, load_reading
from lightning_sft.metrics.order_parameter import OrderParameter
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.metrics.synonyms import SynonymRank

__all__ = [
    "CapabilityReading",
    "CutOffs",
    "OrderParameter",
    "SetAverages",
    "SynonymRank",
    "TokenTable",
    "first_choice_calibration",
    "load_reading",
    "read_capability",
]
