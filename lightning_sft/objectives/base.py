"""The contract that every objective keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from lightning_sft.errors import UserError
from lightning_sft.scores import TokenScores

Reads = Literal["logp", "row", "batch"]
Reference = Literal["none", "logp", "logits"]
Denominator = Literal["all", "kept", "weights", "sequences"]


@dataclass(frozen=True)
class RunFacts:
    """What an objective may know of the run, given to `Objective.prepare` before the first batch.

    Attributes:
        sources: names of the data sources; ``TokenScores.source`` indexes them.
        total_steps: optimizer steps of the whole run; None if unknown (a run that ends by time, or validation).
        has_reference: whether the run can score tokens under a reference model.
        takes_snapshots: whether the run renews the reference after `Objective.snapshot_every` optimizer steps.
        denominator: what the run divides by: all supervised tokens, those of `Objective.kept`, the sum of the tokens'
            absolute weights, or the number of sequences.
        special_tokens: ids of the tokenizer's special tokens.
        vocabulary: number of rows of the model's unembedding; None if unknown.
        token_ids: gives the token ids of a text without special tokens; None without a tokenizer.
        training: whether optimizer steps follow. A run that only validates knows no ``total_steps`` and needs none.
    """

    sources: tuple[str, ...] = ()
    total_steps: int | None = None
    has_reference: bool = False
    takes_snapshots: bool = False
    denominator: Denominator = "all"
    special_tokens: tuple[int, ...] = ()
    vocabulary: int | None = None
    token_ids: Callable[[str], list[int]] | None = None
    training: bool = True


class Objective(nn.Module, ABC):
    """A map from token scores to per-token losses. It never divides, never reduces and never sees Lightning.

    The head calls ``forward`` chunk by chunk, micro-batch by micro-batch, and in self-checks: it must be pure. What
    an objective remembers changes in `update` alone, once per optimizer step, from sums over every
    micro-batch and rank of that step, and lives in buffers so that checkpoints hold it. An objective has no
    trainable parameters: the fused gradient would miss them.

    Order of calls in a run: `prepare`; if `needs_seed` says so (a fresh run, not a resumed one), the
    micro-batches of the first optimizer step are scored without gradient, their `statistics` summed and given
    to `seed`; then, for every optimizer step, ``forward`` on its micro-batches, and `update` with the
    sums of their statistics.

    Class attributes (an instance may set its own, as wrappers do):
        reads: what a token's loss depends on. ``"logp"``: its own log-probability alone (fastest: the gradient on
            the logits is -s(p)(onehot - softmax)). ``"row"``: its own row of logits too. ``"batch"``: the
            log-probabilities of other tokens of the micro-batch as well.
        reference: what the objective needs of a reference model: ``"none"``, its ``"logp"`` of the target, or its
            ``"logits"``.
        snapshot_every: optimizer steps after which the reference becomes a snapshot of the model under training; 0, the
            default: the reference stays what the run was given.
    """

    reads: Reads = "logp"
    reference: Reference = "none"
    snapshot_every: int = 0

    def prepare(self, facts: RunFacts) -> None:
        """Check at the start of a run that the objective can work in it, and take what it needs of the facts.

        Wrappers pass the call on to the objectives they wrap. Calling it again, with other facts, is allowed. The
        default refuses a run without the reference model that ``reference`` asks for.

        Raises:
            UserError: the run cannot give what the objective needs.
        """
        if self.reference != "none" and not facts.has_reference:
            raise UserError(
                f"{type(self).__name__} compares the model with a reference model (its {self.reference}), and this run "
                "has none. Train an adapter (the base model with the adapter off is the reference), or give the run a "
                "frozen reference copy."
            )
        if self.snapshot_every and facts.training and not facts.takes_snapshots:
            raise UserError(
                f"{type(self).__name__} compares the model with snapshots of itself, and this run takes none. Train on "
                "one device or under DDP."
            )

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A module cast to half precision would round the state of its objective; buffers keep their precision.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @abstractmethod
    def forward(self, scores: TokenScores) -> Tensor:
        """Return the losses, (tokens,), in the dtype of ``scores.logp``; differentiable in the scores it reads."""

    def kept(self, scores: TokenScores) -> Tensor:
        """Return which tokens the objective keeps, (tokens,), bool: the denominator of ``denominator="kept"``.

        All of them, unless an objective masks tokens out.
        """
        return torch.ones_like(scores.logp, dtype=torch.bool)

    def mask(self) -> str:
        """Return in words which tokens `kept` keeps, such as ``"p >= 0.1"``; ``"all"`` without a mask.

        Objectives that are mixed under ``denominator="kept"`` must give the same answer, as all gradients of a step
        are divided by one number.
        """
        return "all"

    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        """Return sums over the tokens (any shape, the same keys and shapes on every call) that ``update`` needs.

        ``scores`` are those that the head returned for the whole micro-batch: detached, without rows of logits.
        """
        return {}

    def needs_seed(self) -> bool:
        """Return whether `seed` must be called before the first optimizer step is trained on."""
        return False

    def seed(self, sums: dict[str, Tensor]) -> None:
        """Take a first state from the first optimizer step's own ``statistics``, before it is trained on.

        Args:
            sums: as in `update`. Not a step of its own: ``update`` follows with the same step's sums.
        """

    def update(self, sums: dict[str, Tensor]) -> None:
        """Change the state, once per optimizer step, from ``statistics`` summed over the step's tokens.

        Args:
            sums: the keys of ``statistics``, summed over all micro-batches and ranks of the optimizer step.
        """

    def logged(self) -> dict[str, Tensor | float]:
        """Return scalars worth a curve (``train/objective/<name>``), such as the state of an adaptive objective."""
        return {}
