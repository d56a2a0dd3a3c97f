"""Near-synonym probes under both models: the order parameter before and after, and which failure it looks like."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_sft.files import tensor_bytes
from lightning_sft.head.reference import plain_logits
from lightning_sft.metrics.order_parameter import (
    CHUNK,
    AnswerGeometry,
    OrderReading,
    answer_geometry,
    counterfactual_split,
    order_parameter,
    probabilities,
    step_split,
)
from lightning_sft.metrics.synonyms import SynonymReading, synonym_rank
from lightning_sft.models.finished import FinishedModel
from lightning_sft.probes.competitors import lacks_competitors, name_competitors
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.probes.forward import layer_rows, read_probes, whole_unembedding
from lightning_sft.probes.history import ProbeHistory
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import Verdict, judge


@dataclass(frozen=True)
class ProbePass:
    """One model's reading of all probes.

    Attributes:
        encoded: the probes, all of them with a competitor.
        p: probabilities over the vocabulary, (probes, vocab).
        hidden: what the unembedding turns into logits, (probes, dim).
        plain: whether the logits are the unembedding times ``hidden``.
        geometry: of the input embeddings.
        order: Phi, S and D, (probes,) each.
        ranks: rank, margin and loss, (probes,) each.
        rows: digests of the rows of input and output embeddings, which tell whether they moved.
    """

    encoded: EncodedProbes
    p: Tensor
    hidden: Tensor
    plain: bool
    geometry: AnswerGeometry
    order: OrderReading
    ranks: SynonymReading
    rows: tuple[str, str]


@dataclass(frozen=True)
class ProbeOutcome:
    """One probe under both models; ``before`` is None where only one model was read.

    Attributes:
        probe: the probe.
        before: readings of the first model by name: ``p_correct``, ``p_competitor``, ``rank``, ``loss``, ``phi``,
            ``signal`` and ``drag``.
        after: the same of the second.
        verdict: what happened between the two.
        embeddings_share: share of the embeddings in the change of Phi, by algebra; None if unknown.
        cause_share: their share by the counterfactual, what would be had they stayed as they were; None if unknown.
    """

    probe: Probe
    before: dict[str, float] | None
    after: dict[str, float]
    verdict: Verdict | None
    embeddings_share: float | None
    cause_share: float | None


def unembedding_rows(model: FinishedModel) -> Iterator[Tensor]:
    """Yield the rows of a model's unembedding in fp32 or float64, some thousand at a time, (rows, dim)."""
    yield from whole_unembedding(model.causal_lm).weight.split(CHUNK)


@torch.no_grad()
def under_other_rows(model: FinishedModel, hidden: Tensor, rows: Iterable[Tensor]) -> Tensor | None:
    """Return what a model would predict from hidden states if its unembedding had other rows, (probes, vocab).

    Bias, scale and soft-capping are the model's own.

    Args:
        model: the model.
        hidden: (probes, dim).
        rows: the other rows, in order, some at a time.

    Returns:
        Probabilities; None if the rows do not fit.
    """
    found = whole_unembedding(model.causal_lm)
    parts, start = [], 0
    for some in rows:
        weight = some.to(found.weight)
        if weight.shape[1] != hidden.shape[1] or start + len(weight) > len(found.weight):
            return None
        bias = None if found.bias is None else found.bias[start : start + len(weight)]
        parts.append(plain_logits(hidden.to(weight.dtype), replace(found, weight=weight, bias=bias)))
        start += len(weight)
    return probabilities(torch.cat(parts, 1))


def pass_probes(model: FinishedModel, encoded: EncodedProbes) -> ProbePass:
    """Read all probes with a model, which names the competitors of those that have none."""
    causal_lm = model.causal_lm
    encoded = encoded.to(model.device)
    reading = read_probes(causal_lm, encoded)
    if lacks_competitors(encoded):
        encoded = name_competitors(encoded, reading.logits, causal_lm, model.tokenizer)
    p = probabilities(reading.logits)
    layers: tuple[nn.Module, nn.Module] = (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    matrix = layer_rows(layers[0])
    geometry = answer_geometry(matrix, encoded.correct, encoded.competitor)
    ranks = synonym_rank(reading.logits, encoded.correct, encoded.competitor)
    rows = (_digest(matrix), _digest(layer_rows(layers[1])))
    return ProbePass(encoded, p, reading.hidden, reading.plain, geometry, order_parameter(p, geometry), ranks, rows)


def _digest(rows: Tensor) -> str:
    state = hashlib.sha256()
    for chunk in rows.split(CHUNK):
        state.update(tensor_bytes(chunk))
    return state.hexdigest()


def compare_probes(after: ProbePass, before: ProbePass | None = None, kept: Tensor | None = None) -> list[ProbeOutcome]:
    """Say what happened to each probe.

    Args:
        after: the second model's reading.
        before: the first model's.
        kept: what the second model's hidden states give under the first one's unembedding, (probes, vocab); None if
            unknown.
    """
    now = _columns(after)
    if before is None:
        return [ProbeOutcome(p, None, now[i], None, None, None) for i, p in enumerate(after.encoded.probes)]
    then = _columns(before)
    split, cause = _shares(before, after, kept)
    outcomes = []
    for i, probe in enumerate(after.encoded.probes):
        history = ProbeHistory(step=[0, 1])
        for name in ("p_correct", "p_competitor", "loss", "phi", "signal", "drag"):
            getattr(history, name).extend([then[i][name], now[i][name]])
        history.geometry_share = [None, split[i]]
        history.counterfactual_share = [None, cause[i]]
        verdict = judge(history, finished=True, rank=now[i]["rank"])
        outcomes.append(ProbeOutcome(probe, then[i], now[i], verdict, split[i], cause[i]))
    return outcomes


def _columns(reading: ProbePass) -> list[dict[str, float]]:
    correct, competitor = reading.geometry.correct[:, None], reading.geometry.competitor[:, None]
    columns = {
        "p_correct": reading.p.gather(1, correct)[:, 0],
        "p_competitor": reading.p.gather(1, competitor)[:, 0],
        "rank": reading.ranks.rank,
        "loss": reading.ranks.loss,
        "phi": reading.order.phi,
        "signal": reading.order.signal,
        "drag": reading.order.drag,
    }
    values = {name: column.tolist() for name, column in columns.items()}
    return [{name: column[i] for name, column in values.items()} for i in range(len(reading.p))]


def _shares(before: ProbePass, after: ProbePass, kept: Tensor | None) -> tuple[list[float | None], list[float | None]]:
    """Return the embeddings' share in each change of Phi, by algebra and by cause; None where it is unknown."""
    unknown: list[float | None] = [None] * len(after.p)
    if before.p.shape != after.p.shape:
        return unknown, unknown
    still = before.rows[0] == after.rows[0]
    geometry = before.geometry if still else after.geometry
    split = step_split(before.p, before.geometry, after.p, geometry).share().tolist()
    if before.rows == after.rows:
        return split, [0.0] * len(split)
    if kept is None or not (before.plain and after.plain):
        return split, unknown
    phi = order_parameter(kept, before.geometry).phi
    cause = counterfactual_split(before.order.phi, after.order.phi, phi).share().tolist()
    return split, [None if math.isnan(share) else share for share in cause]
