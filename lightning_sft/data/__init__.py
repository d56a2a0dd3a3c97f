"""Data: any source in, exactly the right tokens trained."""

from lightning_sft.data.datamodule import SFTDataModule
from lightning_sft.data.loader import ResumableDataLoader
from lightning_sft.data.sampler import EpochSampler
from lightning_sft.data.sources import DataSource, Source
from lightning_sft.data.tasks import ReasoningGymTask
from lightning_sft.data.types import BadRow, Example, GenerationRow

__all__ = [
    "BadRow",
    "DataSource",
    "EpochSampler",
    "Example",
    "GenerationRow",
    "ReasoningGymTask",
    "ResumableDataLoader",
    "SFTDataModule",
    "Source",
]
