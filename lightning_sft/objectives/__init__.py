"""Fine-tuning objectives behind one contract: token scores in, per-token losses out."""

from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.nll import NLL
from lightning_sft.objectives.power import PowerFamily

__all__ = ["NLL", "Objective", "PowerFamily", "RunFacts"]
