"""Synonym rank: does the correct token stand above its near-synonym, and where in the vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_sft.metrics.wide import WideMetric, wide, wide_device


class SynonymReading(NamedTuple):
    """One row a probe; every field is (probes,).

    Attributes:
        rank: 1 + the number of tokens whose logit exceeds the correct token's; 1 is the top.
        flip: 1.0 where the correct token's probability exceeds the competitor's, else 0.0.
        margin: logit of the correct token minus the competitor's.
        reciprocal_rank: 1 / rank.
        loss: cross-entropy of the correct token in nats.

    A row of logits that holds NaN or infinity predicts nothing: every field is NaN there.
    """

    rank: Tensor
    flip: Tensor
    margin: Tensor
    reciprocal_rank: Tensor
    loss: Tensor


def synonym_rank(logits: Tensor, correct: Tensor, competitor: Tensor) -> SynonymReading:
    """Read the rank and the margin of the correct tokens off rows of logits.

    Args:
        logits: (probes, vocab); lower precision than fp32 is raised to fp32.
        correct: ids of the correct tokens, (probes,), int64.
        competitor: ids of the competitors, (probes,), int64.

    >>> synonym_rank(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([2]), torch.tensor([1])).rank
    tensor([2.])
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z_correct = logits.gather(1, correct[:, None])
    z_competitor = logits.gather(1, competitor[:, None])
    margin = (z_correct - z_competitor)[:, 0]
    partition = logits.logsumexp(1)  # NaN or infinite if the row holds such a logit; -inf masks a token and is fine
    nothing = torch.where(partition.isfinite(), 0.0, torch.nan).to(logits.dtype)
    rank = 1 + (logits > z_correct).sum(1).to(logits.dtype) + nothing
    return SynonymReading(
        rank=rank,
        flip=(margin > 0).to(logits.dtype) + nothing,
        margin=margin + nothing,
        reciprocal_rank=1 / rank,
        loss=partition - z_correct[:, 0] + nothing,
    )


class SynonymRank(WideMetric):
    """Averages of `synonym_rank` over readings, from sums in float64: exact however ranks share the rows.

    ``compute`` returns, for every field of `SynonymReading`, the average over all rows (``rank``, ``flip``
    (the flip share), ...) and, under ``<field>_per_probe``, the averages of each probe, (num_probes,); nan for what
    was never seen.

    Args:
        num_probes: number of different probes that rows belong to.
    """

    full_state_update = False

    def __init__(self, num_probes: int = 1) -> None:
        super().__init__()
        self.num_probes = num_probes
        for name in (*SynonymReading._fields, "rows"):
            self.add_state(name, torch.zeros(num_probes, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, logits: Tensor, correct: Tensor, competitor: Tensor, probe: Tensor | None = None) -> None:
        """Add rows of logits, (rows, vocab), with ids (rows,).

        ``probe`` (rows,) says which probe each row belongs to; None: all to the first.
        """
        reading = synonym_rank(logits, correct, competitor)
        add_rows(self, reading._asdict(), torch.zeros_like(correct) if probe is None else probe)

    @override
    def compute(self) -> dict[str, Tensor]:
        return averages(self, SynonymReading._fields)


def add_rows(metric: Metric, values: dict[str, Tensor], probe: Tensor) -> None:
    """Add values (rows,) to the sum states of their probes, and the rows to the state ``rows``."""
    for name, value in {**values, "rows": torch.ones_like(probe)}.items():
        getattr(metric, name).index_add_(0, probe.to(wide_device(probe.device)), wide(value))


def averages(metric: Metric, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the averages over all rows, and those of each probe under ``<name>_per_probe``."""
    rows = metric.rows
    assert isinstance(rows, Tensor)
    sums = {name: getattr(metric, name) for name in names}
    return {
        **{name: total.sum() / rows.sum() for name, total in sums.items()},
        **{f"{name}_per_probe": total / rows for name, total in sums.items()},
    }
