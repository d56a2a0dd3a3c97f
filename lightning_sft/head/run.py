"""One call of the fused head: its tokens in chunks, its buffers, and what has been scored so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sft.head.gradients import Gradients
from lightning_sft.head.sizes import IN_PLACE, Sizes, pick_sizes, sizes_in_place
from lightning_sft.head.tiles import Chunk, Projection, score_chunk
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.head.workspace import Workspace
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class HeadRun:
    """Tokens, buffers and results of one call.

    Args:
        inputs: the supervised positions.
        unembedding: the unembedding.
        objective: the objective.
        dtype: dtype of the products.
        need: whether hidden states, weight and bias need a gradient.
        sizes: how much to work on at once; None picks for the device.

    Attributes:
        sizes: how much to work on at once.
        workspace: memory to work in.
        logp: log-probabilities of the targets, (tokens,), filled chunk by chunk, as are ``is_top1`` and
            ``reference_logp`` (None without a reference), ``margin`` and ``competitor`` (None unless asked for).
        gradients: where they add up; None when nobody needs one.
    """

    def __init__(
        self,
        inputs: HeadInput,
        unembedding: Unembedding,
        objective: Objective,
        dtype: torch.dtype,
        need: tuple[bool, ...],
        sizes: Sizes | None = None,
    ) -> None:
        self.inputs, self.objective = inputs, objective
        self.hidden = inputs.hidden.detach()
        self.accumulation_dtype = torch.promote_types(self.hidden.dtype, torch.float32)
        self.projection = _project(unembedding, dtype, self.accumulation_dtype)
        self.weight = None if inputs.weight is None else inputs.weight.detach().to(self.accumulation_dtype)
        self.reference = None
        if inputs.reference_hidden is not None:
            self.reference = _project(inputs.reference or unembedding, dtype, self.accumulation_dtype)
        tokens = len(inputs.targets)
        # autograd's rows are rounded once more than exponentials are, which leaves no room for sums in bf16
        in_place = objective.reads == "logp" and unembedding.weight.dtype == torch.bfloat16
        if sizes is None:
            sizes = pick_sizes(self.hidden.device, self.projection.vocab, dtype.itemsize)
            if in_place and need[1]:
                sizes = sizes_in_place(sizes, tokens, self.hidden.shape[1])
        self.sizes = sizes
        self.workspace = Workspace(self.hidden.device)
        self.logp = self.hidden.new_empty(tokens, dtype=self.accumulation_dtype)
        self.is_top1 = self.hidden.new_empty(tokens, dtype=torch.bool)
        self.reference_logp = torch.empty_like(self.logp) if self.reference else None
        self.margin = torch.empty_like(self.logp) if inputs.competitors else None
        self.competitor = torch.empty_like(inputs.targets) if inputs.competitors else None
        chunks = max(1, math.ceil(tokens / self.sizes.chunk))
        self.chunk = math.ceil(tokens / chunks)  # equal chunks, no small last one
        self.gradients = None
        if any(need):
            # objectives of the whole batch sum each tile in fp32 by itself
            few = chunks <= (IN_PLACE if in_place else 1) or objective.reads == "batch"
            self.gradients = Gradients(self.projection, self.hidden, need, few, self.workspace, self.sizes.tile)

    def spans(self) -> Iterator[slice]:
        """Yield the chunks."""
        tokens = len(self.inputs.targets)
        for start in range(0, tokens, max(1, self.chunk)):
            yield slice(start, min(start + self.chunk, tokens))

    def scores(self, span: slice = slice(None)) -> TokenScores:
        """Return what an objective may see of a chunk, as far as it is known."""
        inputs = self.inputs

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[span]

        return TokenScores(
            logp=self.logp[span],
            targets=inputs.targets[span],
            row=cut(inputs.row),
            source=cut(inputs.source),
            weight=cut(self.weight),
            reference_logp=cut(self.reference_logp),
        )

    def all_scores(self) -> TokenScores:
        """Return the scores of all tokens, with what only callbacks see."""
        return replace(self.scores(), is_top1=self.is_top1, margin=self.margin, competitor=self.competitor)

    def note_competitors(self, span: slice, margin: Tensor, competitor: Tensor) -> None:
        """Keep a chunk's competitors, (tokens,), where they were asked for."""
        if self.margin is not None and self.competitor is not None:
            self.margin[span], self.competitor[span] = margin, competitor

    def score(self, span: slice, keep: bool) -> tuple[Chunk, Tensor]:
        """Score a chunk, the reference model's log-probabilities first; return it with its exponentials."""
        targets, tile = self.inputs.targets[span], self.sizes.tile
        if self.reference and self.inputs.reference_hidden is not None and self.reference_logp is not None:
            other = self.inputs.reference_hidden.detach()[span]
            self.reference_logp[span] = score_chunk(self.reference, other, targets, self.workspace, tile, False)[0].logp
        chunk, exponentials = score_chunk(
            self.projection, self.hidden[span], targets, self.workspace, tile, keep, competitors=self.inputs.competitors
        )
        self.logp[span], self.is_top1[span] = chunk.logp, chunk.margin >= 0
        if chunk.competitor is not None:
            self.note_competitors(span, chunk.margin, chunk.competitor)
        return chunk, exponentials


def _project(unembedding: Unembedding, dtype: torch.dtype, accumulation_dtype: torch.dtype) -> Projection:
    bias = None if unembedding.bias is None else unembedding.bias.detach()
    given = replace(unembedding, weight=unembedding.weight.detach(), bias=bias)
    return Projection(given, given.weight.to(dtype), accumulation_dtype)
