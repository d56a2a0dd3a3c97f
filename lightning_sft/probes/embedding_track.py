"""Embedding matrices at the previous reading, to attribute changes of Phi to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_sft.head.reference import plain_logits
from lightning_sft.metrics.order_parameter import (
    AnswerGeometry,
    CounterfactualSplit,
    StepSplit,
    answer_geometry,
    counterfactual_split,
    order_parameter,
    probabilities,
    step_split,
)
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.probes.forward import ProbeReading, is_plain, layer_rows, whole_unembedding


@dataclass(frozen=True)
class Moved:
    """What changed Phi since the reading before.

    Attributes:
        split: by algebra, into readout and geometry.
        counterfactual: by cause; None where it was not computed.
        still: neither the embeddings nor the unembedding can have moved, so their share in the cause is 0.
    """

    split: StepSplit
    counterfactual: CounterfactualSplit | None
    still: bool = False

    def values(self) -> dict[str, Tensor]:
        """Return what is logged, (probes,) each."""
        result = {**self.split._asdict(), "geometry_share": self.split.share()}
        if self.counterfactual is not None:
            result |= {f"counterfactual_{k}": v for k, v in self.counterfactual._asdict().items()}
        return result

    def shares(self) -> dict[str, list[float]]:
        """Return the embeddings' shares in the change, a value a probe."""
        result = {"geometry_share": self.split.share().tolist()}
        if self.counterfactual is not None:
            result["counterfactual_share"] = self.counterfactual.share().tolist()
        elif self.still:
            result["counterfactual_share"] = [0.0] * len(result["geometry_share"])
        return result


def embedding_layers(
    model: PreTrainedModel, matrix: Literal["auto", "input", "output"]
) -> tuple[dict[str, nn.Module], bool]:
    """Return the layers whose rows make the overlaps, by prefix of the log keys, and whether the output's can move."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = is_plain(inputs) and is_plain(outputs) and inputs.weight is outputs.weight
    if matrix == "auto":
        layers = {"": inputs} if tied else {"": inputs, "output_": outputs}
    else:
        layers = {"": inputs if matrix == "input" else outputs}
    return layers, can_move(outputs)


def can_move(layer: nn.Module) -> bool:
    """Return whether an optimizer may change the rows of a layer."""
    return any(p.requires_grad for p in layer.parameters())


class EmbeddingTrack:
    """One embedding matrix over the readings of a run: its overlaps with the answers, now and at the last reading.

    While the layer is frozen and nobody wrote into it, the overlaps are computed once.
    """

    def __init__(self, layer: nn.Module, center: bool) -> None:
        self.layer = layer
        self.center = center
        self.geometry: AnswerGeometry | None = None
        self.frozen = False
        self._key: object = None
        self._before: tuple[Tensor, AnswerGeometry] | None = None

    def rows(self) -> Tensor:
        """Return the rows as the layer uses them, (vocab, dim)."""
        return layer_rows(self.layer)

    def look(self, encoded: EncodedProbes) -> AnswerGeometry:
        """Return the present geometry, computing it only if the rows may have changed."""
        self.frozen = not can_move(self.layer)
        parameters = list(self.layer.parameters())
        sharded = any(isinstance(p, DTensor) for p in parameters)
        # Gathering a shard writes into a parameter, so its version says nothing.
        key = tuple(() if sharded else (id(p), p._version) for p in parameters)
        if self.geometry is None or not self.frozen or key != self._key:
            rows = self.rows()
            self.geometry = answer_geometry(rows, encoded.correct, encoded.competitor, center=self.center)
            self._key = key
        return self.geometry

    def compare(self, now: Tensor, kept: Tensor | None, *, output_moves: bool) -> Moved | None:
        """Return what changed Phi since `keep`; None if there was no reading before.

        Args:
            now: probabilities of this reading, (probes, vocab).
            kept: those of the present hidden states under the earlier unembedding; None if unknown.
            output_moves: whether the unembedding can move.
        """
        if self._before is None or self.geometry is None:
            return None
        p, geometry = self._before
        split = step_split(p, geometry, now, self.geometry)
        if not output_moves and self.geometry is geometry:
            return Moved(split, None, still=True)
        if kept is None:
            return Moved(split, None)
        phi_before, phi_now = order_parameter(p, geometry).phi, order_parameter(now, self.geometry).phi
        return Moved(split, counterfactual_split(phi_before, phi_now, order_parameter(kept, geometry).phi))

    def keep(self, p: Tensor) -> None:
        """Remember this reading's probabilities, (probes, vocab), for the next."""
        assert self.geometry is not None
        self._before = p, self.geometry


class UnembeddingMemory:
    """The unembedding of the last reading, kept only where it can move and logits are plain hidden @ W^T."""

    def __init__(self, model: PreTrainedModel, *, keep: bool) -> None:
        self._model = model
        self._keep = keep
        self._rows: Tensor | None = None

    def probabilities(self, reading: ProbeReading, *, output_moves: bool) -> Tensor | None:
        """Return the prediction of the present hidden states under the earlier unembedding; None if unknown."""
        if not output_moves:
            return probabilities(reading.logits)
        if self._rows is None:
            return None
        hidden = reading.hidden.to(reading.logits.dtype)
        return probabilities(plain_logits(hidden, whole_unembedding(self._model, self._rows)))

    @torch.no_grad()
    def refresh(self) -> None:
        """Remember the present unembedding."""
        if not self._keep:
            return
        rows = layer_rows(self._model.get_output_embeddings())
        if self._rows is None:
            self._rows = rows.clone()
        else:
            self._rows.copy_(rows)
