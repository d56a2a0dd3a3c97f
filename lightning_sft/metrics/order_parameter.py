"""The order parameter of a near-synonym probe, its signal, its drag, and what moved it between two readings.

The formulas are reconstructed from the abstract of arXiv 2606.07559; the paper's own may differ. With p the prediction
at the answer position, e_k the unit-normalised row k of an embedding matrix and O_kj = e_k . e_j:

    rho = sum_k p_k |e_k><e_k|,   A = |e_c><e_c| - |e_s><e_s|,   a_k = <e_k|A|e_k> = O_kc^2 - O_ks^2
    Phi = Tr(rho A) = sum_k p_k a_k = S + D
    S   = (p_c - p_s)(1 - O_cs^2)             signal
    D   = sum over k other than c and s       background drag

No dim x dim matrix is made, but for the purity; the vocabulary is streamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.metrics.drift import log_probabilities
from lightning_sft.metrics.synonyms import add_rows, averages
from lightning_sft.metrics.wide import WideMetric

CHUNK = 8192  # rows of the vocabulary at a time: about 32 MB of fp32 at dim 1024
PARALLEL = 1e-6  # 1 - O^2 below this is |O| = 1 within the rounding of fp32


@dataclass(frozen=True)
class AnswerGeometry:
    """What the embeddings contribute to the order parameter of some probes.

    Attributes:
        weights: a_k = O_kc^2 - O_ks^2, (probes, vocab); 0 for rows of zeros, such as padding of the vocabulary.
        overlap: O_cs, (probes,).
        correct: ids of the correct tokens, (probes,), int64.
        competitor: ids of the competitors, (probes,), int64.
    """

    weights: Tensor
    overlap: Tensor
    correct: Tensor
    competitor: Tensor

    @property
    def scale(self) -> Tensor:
        """1 - O_cs^2, (probes,): what Phi is for a fully correct prediction."""
        return 1 - self.overlap.square()


class OrderReading(NamedTuple):
    """One row a probe; every field is (probes,). ``scaled_*`` are divided by 1 - O_cs^2."""

    phi: Tensor
    signal: Tensor
    drag: Tensor
    scaled_phi: Tensor
    scaled_signal: Tensor
    scaled_drag: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over the vocabulary, (probes, vocab), in at least fp32, to about 1e-6 of each probability.

    ``torch.softmax`` in fp32 on a CPU adds up 50,000 candidates one after the other and is off by 2e-5 in the worst
    case; ``logsumexp`` is not.
    """
    return log_probabilities(logits).exp_()


def _centre(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mean row, (dim,). Rows of zeros, such as padding of the vocabulary, do not count."""
    total = torch.zeros(embeddings.shape[1], dtype=dtype, device=embeddings.device)
    count = torch.zeros((), dtype=torch.int64, device=embeddings.device)
    for rows in embeddings.split(CHUNK):
        total += rows.sum(0, dtype=dtype)
        count += (rows != 0).any(1).sum()
    return total / count.clamp_min(1)


def _moved(rows: Tensor, centre: Tensor | None) -> Tensor:
    """Return rows minus the mean row, (rows, dim); rows of zeros stay zero."""
    if centre is None:
        return rows
    return torch.where((rows != 0).any(1, keepdim=True), rows - centre, 0)


@torch.no_grad()
def answer_geometry(embeddings: Tensor, correct: Tensor, competitor: Tensor, *, center: bool = False) -> AnswerGeometry:
    """Compute the weights a_k of every token for some pairs: two (vocab x dim) products a pair.

    Args:
        embeddings: rows of any length, (vocab, dim); lower precision than fp32 is raised to fp32, chunk by chunk.
        correct: ids of the correct tokens, (probes,), int64.
        competitor: ids of the competitors, (probes,), int64.
        center: subtract the mean row first; rows of zeros neither count in the mean nor move.

    Raises:
        UserError: an answer's row is zero, or the two rows of a pair are parallel (Phi would be 0 identically).
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    centre = _centre(embeddings, dtype) if center else None
    answers = embeddings[torch.cat([correct, competitor])].to(dtype)
    answers = _moved(answers, centre)
    lengths = answers.norm(dim=1, keepdim=True)
    ids = torch.cat([correct, competitor])
    if (lengths == 0).any():
        raise UserError(
            f"The embedding rows of the answer tokens {ids[lengths[:, 0] == 0].tolist()} are zero, so they have no "
            "direction. Choose other answers, or another matrix (`matrix`)."
        )
    answers = answers / lengths
    overlap = (answers[: len(correct)] * answers[len(correct) :]).sum(1)
    parallel = 1 - overlap.square() < PARALLEL
    if parallel.any():
        pairs = list(zip(correct[parallel].tolist(), competitor[parallel].tolist(), strict=True))
        raise UserError(
            f"The embedding rows of the answer tokens {pairs} (correct, competitor) are parallel (|O_cs| = 1), which "
            "makes the order parameter 0 whatever the model predicts. Choose another competitor, or another matrix "
            "(`matrix`)."
        )
    weights = torch.empty(len(correct), embeddings.shape[0], dtype=dtype, device=embeddings.device)
    for start in range(0, embeddings.shape[0], CHUNK):
        rows = embeddings[start : start + CHUNK].to(dtype)
        rows = _moved(rows, centre)
        squares = (answers @ rows.T).square_()
        # A row of zeros has no direction: its overlaps are 0, not 0 / 0.
        norms = torch.linalg.vector_norm(rows, dim=1).square().clamp_min(torch.finfo(dtype).tiny)
        weights[:, start : start + CHUNK] = (squares[: len(correct)] - squares[len(correct) :]) / norms
    scale = (1 - overlap.square())[:, None]
    weights.scatter_(1, correct[:, None], scale)
    weights.scatter_(1, competitor[:, None], -scale)
    return AnswerGeometry(weights, overlap, correct, competitor)


def order_parameter(p: Tensor, geometry: AnswerGeometry) -> OrderReading:
    """Return Phi, S and D of every probe.

    Args:
        p: softmax over the whole vocabulary at the answer position, (probes, vocab), fp32 or float64.
        geometry: of the same probes.
    """
    correct, competitor = geometry.correct[:, None], geometry.competitor[:, None]
    difference = (p.gather(1, correct) - p.gather(1, competitor))[:, 0]
    signal = difference * geometry.scale
    others = (p * geometry.weights).scatter(1, correct, 0).scatter(1, competitor, 0)
    drag = others.sum(1)
    phi = signal + drag
    return OrderReading(phi, signal, drag, phi / geometry.scale, difference, drag / geometry.scale)


@torch.no_grad()
def purity(p: Tensor, embeddings: Tensor, *, center: bool = False) -> Tensor:
    """Return Tr rho^2 = sum_ij p_i p_j O_ij^2, (probes,), through one dim x dim matrix a probe.

    Args:
        p: (probes, vocab).
        embeddings: (vocab, dim).
        center: subtract the mean row first.
    """
    dtype = torch.promote_types(embeddings.dtype, p.dtype)
    centre = _centre(embeddings, torch.promote_types(dtype, torch.float32)) if center else None
    rho = torch.zeros(len(p), embeddings.shape[1], embeddings.shape[1], dtype=dtype, device=embeddings.device)
    for start in range(0, embeddings.shape[0], CHUNK):
        rows = embeddings[start : start + CHUNK].to(dtype)
        rows = _moved(rows, centre)
        unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        part = p[:, start : start + CHUNK].to(dtype)
        for i in range(len(rho)):
            rho[i] += unit.T @ (unit * part[i][:, None])
    return rho.square().sum((1, 2))


class StepSplit(NamedTuple):
    """What moved Phi between two readings; (probes,) each. ``readout + geometry`` is the whole change, exactly."""

    readout: Tensor
    geometry: Tensor

    def share(self) -> Tensor:
        """Return the geometry share |g| / (|r| + |g|), (probes,); 0 where nothing moved."""
        return share(self.geometry, self.readout)


def share(part: Tensor, rest: Tensor) -> Tensor:
    """Return |part| / (|part| + |rest|), and 0 where both are 0."""
    whole = part.abs() + rest.abs()
    return torch.where(whole > 0, part.abs() / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0)


def step_split(
    before: Tensor, geometry_before: AnswerGeometry, after: Tensor, geometry_after: AnswerGeometry
) -> StepSplit:
    """Split a change of Phi into the part of the probabilities (readout) and the part of the embeddings (geometry).

        dPhi = sum_k dp_k (a_k + a'_k) / 2  +  sum_k (p_k + p'_k) / 2 da_k

    This is algebra, not cause: where embeddings are tied to the unembedding, moved rows also move p. For the cause
    see `counterfactual_split`.

    Args:
        before: probabilities of the earlier reading, (probes, vocab).
        geometry_before: of the earlier reading.
        after: probabilities of the later reading, (probes, vocab).
        geometry_after: of the later reading; the same object says that nothing moved, and geometry is exactly 0.
    """
    a, b = geometry_before.weights, geometry_after.weights
    if a is b:
        return StepSplit(((after - before) * a).sum(1), torch.zeros_like(geometry_after.overlap))
    return StepSplit(
        readout=((after - before) * (a + b)).sum(1) / 2,
        geometry=((after + before) * (b - a)).sum(1) / 2,
    )


class CounterfactualSplit(NamedTuple):
    """Causes of a change of Phi; (probes,) each. ``hidden + embeddings`` is the whole change, exactly.

    Attributes:
        hidden: the change there would have been, had the embeddings kept their earlier values under the present
            hidden states.
        embeddings: the rest: what the moved rows did, through the probabilities and through the overlaps.
    """

    hidden: Tensor
    embeddings: Tensor

    def share(self) -> Tensor:
        """Return the embeddings' share of the change, (probes,)."""
        return share(self.embeddings, self.hidden)


def counterfactual_split(before: Tensor, after: Tensor, kept: Tensor) -> CounterfactualSplit:
    """Separate what moved embeddings did to Phi from what the hidden states did.

    Args:
        before: Phi of the earlier reading, (probes,).
        after: Phi of the later reading, (probes,).
        kept: Phi of the present hidden states under the earlier embeddings and overlaps, (probes,).
    """
    return CounterfactualSplit(hidden=kept - before, embeddings=after - kept)


class OrderParameter(WideMetric):
    """Averages of `order_parameter` over readings, from sums in float64: exact however ranks share the rows.

    ``compute`` returns, for every field of `OrderReading`, the average over all rows and, under
    ``<field>_per_probe``, the averages of each probe, (num_probes,); with ``with_purity`` also ``purity``.

    Args:
        num_probes: number of different probes that rows belong to.
        with_purity: also average Tr rho^2: a dim x dim matrix a row, so off by default.
    """

    full_state_update = False

    def __init__(self, num_probes: int = 1, with_purity: bool = False) -> None:
        super().__init__()
        self.num_probes = num_probes
        self.with_purity = with_purity
        self.fields = (*OrderReading._fields, *(("purity",) if with_purity else ()))
        for name in (*self.fields, "rows"):
            self.add_state(name, torch.zeros(num_probes, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(
        self, logits: Tensor, embeddings: Tensor, correct: Tensor, competitor: Tensor, probe: Tensor | None = None
    ) -> None:
        """Add rows of logits, (rows, vocab), read with embeddings (vocab, dim) and ids (rows,).

        ``probe`` (rows,) says which probe each row belongs to; None: all to the first.
        """
        p = probabilities(logits)
        values = order_parameter(p, answer_geometry(embeddings, correct, competitor))._asdict()
        if self.with_purity:
            values["purity"] = purity(p, embeddings)
        add_rows(self, values, torch.zeros_like(correct) if probe is None else probe)

    @override
    def compute(self) -> dict[str, Tensor]:
        return averages(self, self.fields)
