"""Data: any source in, exactly the right tokens trained."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "BadRow": "types",
    "DataSource": "reading.sources",
    "EpochSampler": "batches.sampler",
    "Example": "types",
    "GenerationRow": "types",
    "LossWeights": "encoding.weights",
    "ReasoningGymTask": "reading.tasks",
    "ResumableDataLoader": "batches.loader",
    "SFTDataModule": "datamodule",
    "Scorer": "reading.scorers",
    "Source": "reading.sources",
}


def __getattr__(name: str) -> Any:
    """Import the public names when one of them is first asked for: files can be read without torch.

    All of them at once, because settings name classes in short, and only those that are loaded are found.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update({each: getattr(import_module(f"{__name__}.{home}"), each) for each, home in _HOMES.items()})
    return globals()[name]
