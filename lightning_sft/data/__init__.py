"""Data: any source in, exactly the right tokens trained."""

from lightning_sft.data.batches.loader import ResumableDataLoader
from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.data.datamodule import SFTDataModule
from lightning_sft.data.encoding.weights import LossWeights
from lightning_sft.data.reading.scorers import Scorer
from lightning_sft.data.reading.sources import DataSource, Source
from lightning_sft.data.reading.tasks import ReasoningGymTask
from lightning_sft.data.types import BadRow, Example, GenerationRow

__all__ = [
    "BadRow",
    "DataSource",
    "EpochSampler",
    "Example",
    "GenerationRow",
    "LossWeights",
    "ReasoningGymTask",
    "ResumableDataLoader",
    "SFTDataModule",
    "Scorer",
    "Source",
]
