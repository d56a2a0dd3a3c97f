"""The contract that every objective keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_sft.scores import TokenScores

Reads = Literal["logp", "row", "batch"]
Reference = Literal["none", "logp", "logits"]


@dataclass(frozen=True)
class RunFacts:
    """What an objective may know of the run, given to :meth:`Objective.prepare` before the first batch.

    Attributes:
        sources: names of the data sources; ``TokenScores.source`` indexes them.
        total_steps: optimizer steps of the whole run; None if unknown (a run that ends by time, or validation).
        has_reference: whether the run can score tokens under a reference model.
    """

    sources: tuple[str, ...] = ()
    total_steps: int | None = None
    has_reference: bool = False


class Objective(nn.Module, ABC):
    """A map from token scores to per-token losses. It never divides, never reduces and never sees Lightning.

    The head calls ``forward`` chunk by chunk, micro-batch by micro-batch, and in self-checks: it must be pure. What
    an objective remembers changes in :meth:`update` alone, once per optimizer step, from sums over every
    micro-batch and rank of that step, and lives in buffers so that checkpoints hold it.

    Class attributes (an instance may set its own, as wrappers do):
        reads: what a token's loss depends on. ``"logp"``: its own log-probability alone (fastest: the gradient on
            the logits is -s(p)(onehot - softmax)). ``"row"``: its own row of logits too. ``"batch"``: the
            log-probabilities of other tokens of the micro-batch as well.
        reference: what the objective needs of a reference model: ``"none"``, its ``"logp"`` of the target, or its
            ``"logits"``.
    """

    reads: Reads = "logp"
    reference: Reference = "none"

    def prepare(self, facts: RunFacts) -> None:
        """Check at the start of a run that the objective can work in it, and take what it needs of the facts.

        Wrappers pass the call on to the objectives they wrap.

        Raises:
            UserError: the run cannot give what the objective needs.
        """

    @abstractmethod
    def forward(self, scores: TokenScores) -> Tensor:
        """Return the losses, (tokens,), in the dtype of ``scores.logp``; differentiable in the scores it reads."""

    def kept(self, scores: TokenScores) -> Tensor:
        """Return which tokens the objective keeps, (tokens,), bool: the denominator of ``denominator="kept"``.

        All of them, unless an objective masks tokens out.
        """
        return torch.ones_like(scores.logp, dtype=torch.bool)

    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        """Return sums over the tokens (any shape, the same keys and shapes on every call) that ``update`` needs.

        ``scores`` are those that the head returned for the whole micro-batch: detached, without rows of logits.
        """
        return {}

    def update(self, sums: dict[str, Tensor]) -> None:
        """Change the state, once per optimizer step, from ``statistics`` summed over the step's tokens.

        Args:
            sums: the keys of ``statistics``, summed over all micro-batches and ranks of the optimizer step.
        """

    def logged(self) -> dict[str, Tensor | float]:
        """Return scalars worth a curve (``train/objective/<name>``), such as the state of an adaptive objective."""
        return {}
