"""Averages over the tokens and the answers of named validation sets, exact over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.metrics.answers import AnswerReading, pass_at_k
from lightning_sft.metrics.wide import WideMetric, wide
from lightning_sft.scores import TokenScores

_TOKEN_SUMS = ("tokens", "loss", "nll", "p", "hits")
_ANSWER_SUMS = ("answers", "exact")
#: averages that every set with a token has
ALWAYS = ("loss", "nll", "perplexity", "token_accuracy", "mean_p")


class SetAverages(WideMetric):
    """Averages over the supervised tokens and the answers of each of some sets, from sums in float64.

    ``compute`` returns a dict of scalars over the pooled sets together, and a list of one such dict for each set:
    ``loss`` (under the objective), ``nll`` (nats per token), ``perplexity``, ``token_accuracy`` (the target is the
    first choice) and ``mean_p``; and, where a complete answer was seen, ``exact_match``, ``pass_at_1`` and
    ``pass_at_<k>`` (see `AnswerReading`). Every token and every answer counts once. Without a token the pooled averages
    are nan, and those of a set are left out.

    Args:
        set_of_source: set of each source by its index; sources beyond, and unknown ones, belong to the first set.
        pooled: the sets that are pooled; None is all.
        pass_at: the k of ``pass_at_<k>``, beside 1.
    """

    full_state_update = False
    token_sums: Tensor
    answer_sums: Tensor

    def __init__(
        self, set_of_source: Sequence[int] = (), pooled: Sequence[int] | None = None, pass_at: Sequence[int] = ()
    ) -> None:
        super().__init__()
        sets = max(set_of_source, default=0) + 1
        self.pooled = list(range(sets) if pooled is None else pooled)
        self.pass_at = (1, *(k for k in pass_at if k != 1))
        self._set_of_source = torch.tensor([*set_of_source, 0], dtype=torch.int64)
        shape = {"token_sums": len(_TOKEN_SUMS), "answer_sums": len(_ANSWER_SUMS) + len(self.pass_at)}
        for name, count in shape.items():
            self.add_state(name, torch.zeros(sets, count, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, losses: Tensor, scores: TokenScores, answers: AnswerReading | None = None) -> None:
        """Add a batch: ``losses`` (tokens,), the scores that a head returned, and the answers judged from them."""
        which = self._sets(scores.source, len(scores))
        columns = (torch.ones_like(losses), losses, -scores.logp, scores.logp.exp(), scores.require("is_top1"))
        self.token_sums.index_add_(0, which, torch.stack([wide(c.detach()) for c in columns], dim=1))
        if answers is not None:
            which = self._sets(answers.source, len(answers.exact))
            p = answers.logp.exp()
            passes = [p if k == 1 else pass_at_k(p, k) for k in self.pass_at]
            rows = torch.stack([torch.ones_like(p), answers.exact.to(p), *passes], dim=1)
            self.answer_sums.index_add_(0, which, rows)

    def _sets(self, source: Tensor | None, count: int) -> Tensor:
        known = self._set_of_source.to(self.token_sums.device)
        if source is None:
            return known.new_zeros(count)
        return known[source.to(known.device).clamp(-1, len(known) - 1)]

    @override
    def compute(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        pooled = [self.token_sums[self.pooled].sum(0), self.answer_sums[self.pooled].sum(0)]
        pairs = zip(self.token_sums, self.answer_sums, strict=True)
        return self._averages(*pooled), [self._averages(*pair) if pair[0][0] else {} for pair in pairs]

    def _averages(self, tokens: Tensor, answers: Tensor) -> dict[str, Tensor]:
        sums = dict(zip(_TOKEN_SUMS, tokens, strict=True))
        count = sums["tokens"]
        nll = sums["nll"] / count
        result = {
            "loss": sums["loss"] / count,
            "nll": nll,
            "perplexity": nll.exp(),
            "token_accuracy": sums["hits"] / count,
            "mean_p": sums["p"] / count,
        }
        if answers[0]:
            means = answers / answers[0]
            names = ("exact_match", *(f"pass_at_{k}" for k in self.pass_at))
            result |= dict(zip(names, means[1:], strict=True))
        return result


def sums_by_source(scores: TokenScores, sources: int) -> Mapping[str, Tensor]:
    """Return ``source_tokens`` and ``source_nll`` of a micro-batch, (sources,) each, float64.

    Args:
        scores: what a head returned; its ``source`` must be known.
        sources: number of sources.
    """
    nll = -wide(scores.logp.detach())
    source = scores.require("source").to(nll.device)
    zeros = torch.zeros(sources, dtype=torch.float64, device=nll.device)
    return {
        "source_tokens": zeros.index_add(0, source, torch.ones_like(nll)),
        "source_nll": zeros.index_add(0, source, nll),
    }
