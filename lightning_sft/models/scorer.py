"""TokenScorer: the module whose forward holds both the decoder and the head."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_sft.head import (
    HeadInput,
    HeadKind,
    HeadOutput,
    Unembedding,
    delegated_head,
    fused_head,
    reference_from_logits,
    refusal,
)
from lightning_sft.models.access import backbone, find_causal_lm, unembedding, vocabulary_size
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.neftune import EmbeddingNoise
from lightning_sft.models.packing import (
    decoder_inputs,
    document_lengths,
    documents,
    flattened,
    is_packed,
    per_document,
    supervised,
)
from lightning_sft.models.reach import Reach
from lightning_sft.models.reference import FrozenReference, Reference, Snapshot
from lightning_sft.models.router import hidden_and_router_loss
from lightning_sft.models.tuners import adapter_loss
from lightning_sft.objectives import Objective

Weighting = Literal["none", "tokens", "sequences"]


class TokenScorer(nn.Module):
    """A causal language model that scores its labels and sums an objective over them.

    Decoder and head run inside one forward, so that a strategy that shards this module as a root finds the
    unembedding whole when the head reads it.

    Args:
        model: a transformers causal LM, or a peft model around one.
        head: ``"fused"``: the chunked head on the decoder's hidden states; ``"reference"``: the model's own logits;
            ``"cut_cross_entropy"``: the kernels of that package where they can do it, else the chunked head.
        reference: what objectives with a reference compare with; None means the model itself with its adapters
            switched off.

    Attributes:
        with_boundaries: give the decoder the boundaries of packed documents, which its kernels need to keep them apart.
        router_coefficient: of the load-balancing loss of a mixture of experts; None leaves that loss out.
        adapter_reach: what the adapter works on and what it leaves out; None without one.
        flat_refusal: why flat batches would be wrong or slow for this model; None where they are right.
        noise: NEFTune's, on the input embeddings; None without.
        with_competitors: let the head name the strongest competitor of each target, in the scores' ``margin`` and
            ``competitor``.
    """

    def __init__(self, model: nn.Module, head: HeadKind = "fused", reference: Reference | None = None) -> None:
        super().__init__()
        self.model = model
        self.head: HeadKind = head
        self.with_boundaries = False
        self.router_coefficient: float | None = None
        self.adapter_reach: Reach | None = None
        self.flat_refusal: str | None = "nothing is known about its documents"
        self.noise: EmbeddingNoise | None = None
        self.with_competitors = False
        self.reference = reference

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model inside."""
        return find_causal_lm(self.model)

    @override
    def forward(self, batch: Mapping[str, Any], objective: Objective, weighting: Weighting = "none") -> HeadOutput:
        """Score the labels of a micro-batch.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels``, (batch, length), int64, labels unshifted and -100
                where untrained; optionally ``position_ids``, (batch, length), and ``source``, (batch,). With
                ``position_ids`` and without ``attention_mask`` the rows are packed: positions begin at 0 in each
                document, whose first label is -100, and ``source`` is that of each token, (batch, length). A flat
                batch is one such row with ``cu_seq_lens``, ``max_length`` and ``supervised``, see ``FlatCollator``.
                ``loss_weight``, (batch, length), floating: what the loss of each label is multiplied by; a label of
                weight 0 is untrained.
            objective: the losses to sum.
            weighting: ``"none"``: every loss counts once, as in validation; ``"tokens"``: times ``loss_weight``, where
                the batch has one; ``"sequences"``: that, divided by the number of supervised tokens of the sequence.

        Returns:
            The losses and scores of the supervised tokens, in the order of the batch; ``row`` in them counts the
            rows of the batch, or the documents in packed rows. Losses that are not finite are told by ``trouble``: a
            rank that raised alone would leave the others waiting.
        """
        causal_lm = self.causal_lm
        packed = is_packed(batch)
        if packed and (self.with_boundaries or per_document(causal_lm)):
            batch = flattened(batch)
        at, weight = supervised(batch), batch.get("loss_weight")
        if weight is not None:
            weight = weight.flatten()[at + 1]
            at, weight = at[weight != 0], weight[weight != 0]
        rows, source = _rows(batch), batch.get("source")
        if source is not None:
            source = (source if packed else source[:, None].expand_as(rows)).flatten()[at + 1]
        facts = {"targets": batch["labels"].flatten()[at + 1], "row": rows.flatten()[at + 1], "source": source}
        facts["largest_target"] = batch.get("largest_label")
        facts["competitors"] = self.with_competitors
        if weighting != "none":
            share = weighting == "sequences"
            facts["weight"] = _share_of_sequence(facts["row"], weight, batch["labels"].numel()) if share else weight
        compares = objective.reference != "none"
        extra: dict[str, Tensor] = {}
        if self.head == "reference":
            logits = self._logits(causal_lm, batch, at, extra)
            with self._reference_model() if compares else contextlib.nullcontext() as model:
                reference_logits = None if model is None else self._logits(model, batch, at)[:, : logits.shape[-1]]
            output = reference_from_logits(
                logits, HeadInput(logits, **facts), objective, reference_logits, strict=False
            )
            return self._with_model_losses(output, extra)
        with self._reference_model() if compares else contextlib.nullcontext() as model:
            if model is not None:
                # taken here, as a snapshot's rows change places with the model's own afterwards
                facts["reference"] = unembedding(model).first_rows(vocabulary_size(causal_lm))
                facts["reference_hidden"] = self._hidden(model, batch, at)
        hidden = self._hidden(causal_lm, batch, at, extra)
        output = self._scored(HeadInput(hidden, **facts), unembedding(causal_lm), objective)
        return self._with_model_losses(output, extra)

    def _scored(self, inputs: HeadInput, matrix: Unembedding, objective: Objective) -> HeadOutput:
        """Score hidden states by the chunked head, or by the package that it is delegated to."""
        if self.head == "cut_cross_entropy":
            reason = refusal(inputs, matrix, objective)
            if reason is None:
                return delegated_head(inputs, matrix, objective, strict=False)
            if torch.is_grad_enabled() and not inputs.competitors:
                warnings.warn(f"head: cut_cross_entropy works in chunks of its own here: {reason}.", stacklevel=2)
        output = fused_head(inputs, matrix, objective, strict=False)
        assert isinstance(output, HeadOutput)
        return output

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[PreTrainedModel]:
        """Give the reference model, in eval mode and without gradients."""
        with torch.no_grad():
            if self.reference is not None:
                with self.reference.in_place(self.model) as model:
                    yield model
            else:
                with self.model.disable_adapter(), eval_mode(self.causal_lm):  # type: ignore[operator]  # peft has it
                    yield self.causal_lm

    def can_compare(self, objective: Objective) -> bool:
        """Return whether the reference that the objective compares with is at hand."""
        if objective.reference == "none":
            return True
        if objective.snapshot_every:
            return isinstance(self.reference, Snapshot)
        return isinstance(self.reference, FrozenReference) or hasattr(self.model, "disable_adapter")

    def step_ended(self, objective: Objective) -> None:
        """Take a new snapshot of the model, where the objective asks for one after so many optimizer steps."""
        if isinstance(self.reference, Snapshot) and objective.snapshot_every:
            self.reference.grow_older(self.model, objective.snapshot_every)

    def _hidden(
        self, model: PreTrainedModel, batch: Mapping[str, Any], at: Tensor, extra: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return the hidden states that predict the supervised labels, (tokens, dim); put a router's loss in extra."""
        hidden: Tensor
        if extra is None or not self._wants_router_loss():
            hidden = self._decoded(backbone(model), model, batch).last_hidden_state
        else:
            hidden, extra["router_loss"] = self._decoded(partial(hidden_and_router_loss, model), model, batch)
        return hidden.flatten(0, 1).index_select(0, at)

    def _logits(
        self, model: PreTrainedModel, batch: Mapping[str, Any], at: Tensor, extra: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return the model's own logits at the positions that predict the supervised labels, (tokens, vocab)."""
        output = self._decoded(model, model, batch)
        if extra is not None and self._wants_router_loss():
            extra["router_loss"] = output.aux_loss
        logits: Tensor = output.logits
        return logits.flatten(0, 1).index_select(0, at)

    def _decoded(self, call: Callable[..., Any], model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Call the model or its decoder, with noise that knows the length of each document."""
        inputs = decoder_inputs(model, batch, self.with_boundaries)
        if self.noise is None:
            return call(**inputs)
        with self.noise.for_lengths(document_lengths(batch)):
            return call(**inputs)

    def _wants_router_loss(self) -> bool:
        return self.training and self.router_coefficient is not None

    def _with_model_losses(self, output: HeadOutput, extra: dict[str, Tensor]) -> HeadOutput:
        """Add what router and adapter cost beside the tokens; in training alone."""
        if "router_loss" in extra and self.router_coefficient is not None:
            extra["router_loss"] = self.router_coefficient * extra["router_loss"].to(output.loss_sum)
        of_adapter = adapter_loss(self.model) if self.training else None
        if of_adapter is not None:
            extra["adapter_loss"] = of_adapter.to(output.loss_sum)
        return replace(output, model_losses=extra) if extra else output


def _share_of_sequence(row: Tensor, weight: Tensor | None, positions: int) -> Tensor:
    """Return the weight of each token divided by the tokens of its sequence, (tokens,).

    Args:
        row: sequence of each token, (tokens,).
        weight: (tokens,), or None for 1.
        positions: of the batch; there are no more sequences than that.
    """
    sizes = torch.zeros(positions, dtype=torch.float64, device=row.device)
    share: Tensor = 1.0 / sizes.index_add_(0, row, torch.ones_like(row, dtype=torch.float64))[row]
    return share if weight is None else share * weight


def _rows(batch: Mapping[str, Any]) -> Tensor:
    """Return the number of the row or, in packed rows, of the document of each position, (batch, length)."""
    if is_packed(batch):
        return documents(batch["position_ids"])
    ids = batch["input_ids"]
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
