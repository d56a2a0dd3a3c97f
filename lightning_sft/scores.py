"""TokenScores: what an objective may look at, for the supervised positions only."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_sft.errors import UserError

#: the label of a position without supervision, as in Hugging Face
IGNORED = -100


class StatisticUnavailable(UserError):
    """An objective asked for a statistic that these scores do not hold."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of the supervised positions of one micro-batch, or of one chunk of it.

    Everything is one row a token. ``logp`` is always there. ``logits`` is there only for objectives that declare
    ``reads = "row"`` (the head then calls them chunk by chunk and differentiates through it), so every statistic
    below that is made of a row of logits raises `StatisticUnavailable` for the others.

    Attributes:
        logp: log-probability of the target in nats, (tokens,), fp32 or float64.
        targets: target ids, (tokens,), int64.
        row: which sequence of the micro-batch a token belongs to, (tokens,), int64; None if unknown.
        source: id of the data source of a token's sequence, (tokens,), int64; None if unknown.
        is_top1: whether the target is the strongest candidate, (tokens,), bool; only in the scores that a head returns.
        weight: what the head multiplies the token's loss by, (tokens,); None for 1. Objectives leave it alone.
        reference_logp: log-probability of the target under the reference model, (tokens,); None without a reference.
        margin: logit of the target minus that of its competitor, the strongest other candidate, (tokens,); only in the
            scores of a head that was asked for competitors. Where there is no other, it is the largest number.
        competitor: id of that candidate, (tokens,), int64; the lowest of several that are equally strong, -1 without
            one.
        logits: the logits, (tokens, vocab), fp32 or float64, differentiable; None where no row is at hand.
        reference_logits: the reference model's logits, (tokens, vocab), without gradient; None without a reference.
    """

    logp: Tensor
    targets: Tensor
    row: Tensor | None = None
    source: Tensor | None = None
    is_top1: Tensor | None = None
    weight: Tensor | None = None
    reference_logp: Tensor | None = None
    margin: Tensor | None = None
    competitor: Tensor | None = None
    logits: Tensor | None = None
    reference_logits: Tensor | None = None

    @property
    def p(self) -> Tensor:
        """Probability of the target, (tokens,). Losses are better written in ``logp`` (``expm1``, ``log1p``)."""
        return self.logp.exp()

    @property
    def hit(self) -> Tensor | None:
        """The name of ``is_top1`` before 0.2; it goes with the release after the next."""
        warnings.warn("TokenScores.hit is now called is_top1.", DeprecationWarning, stacklevel=2)
        return self.is_top1

    def require(self, name: str) -> Tensor:
        """Return the field ``name``, or raise `StatisticUnavailable` with the way out."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            return value
        ways = {
            "logits": "where you make the scores yourself, pass TokenScores(logits=...); a head gives them to an "
            'objective that declares `reads = "row"`',
            "reference_logits": "where you make the scores yourself, pass TokenScores(reference_logits=...); a head "
            'gives them to an objective that declares `reference = "logits"` in a run with a reference model',
            "margin": "set `with_competitors` of the TokenScorer, or pass HeadInput(competitors=True) to a head",
            "competitor": "set `with_competitors` of the TokenScorer, or pass HeadInput(competitors=True) to a head",
            "reference_logp": "where you make the scores yourself, pass TokenScores(reference_logp=...); a head gives "
            'them to an objective that declares `reference = "logp"` in a run with a reference model',
        }
        raise StatisticUnavailable(
            f"These scores hold no {name!r}: {ways.get(name, 'the data module gave none for this batch')}."
        )

    def logsumexp(self) -> Tensor:
        """Log of the partition function, (tokens,)."""
        return self.require("logits").logsumexp(-1)

    def log_softmax(self) -> Tensor:
        """Log-probabilities of the whole vocabulary, (tokens, vocab)."""
        return self.require("logits").log_softmax(-1)

    def mean_logp(self) -> Tensor:
        """Mean over the vocabulary of the log-probability, (tokens,): the label-smoothing term."""
        logits = self.require("logits")
        return logits.mean(-1) - logits.logsumexp(-1)

    def entropy(self) -> Tensor:
        """Entropy of the prediction in nats, (tokens,)."""
        logp = self.log_softmax()
        return -(logp.exp() * logp).sum(-1)

    def topk_entropy(self, k: int) -> Tensor:
        """Entropy in nats of the k likeliest candidates, renormalised among themselves, (tokens,)."""
        logits = self.require("logits")
        logp = logits.topk(min(k, logits.shape[-1]), dim=-1).values.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def collision(self) -> Tensor:
        """Collision probability, the sum over the vocabulary of p squared, (tokens,)."""
        return (2.0 * self.log_softmax()).logsumexp(-1).exp()

    def runner_up(self) -> tuple[Tensor, Tensor]:
        """Strongest competitor of the target.

        Returns:
            Its logit minus the target's, (tokens,), differentiable, and its id, (tokens,), int64.
        """
        logits = self.require("logits")
        target = self.targets[:, None]
        others = logits.scatter(-1, target, float("-inf"))
        value, index = others.max(-1)
        return value - logits.gather(-1, target)[:, 0], index

    def detached(self) -> TokenScores:
        """Return the per-token fields without graph and without rows of logits: what callbacks may keep."""
        reference = None if self.reference_logp is None else self.reference_logp.detach()
        return replace(self, logp=self.logp.detach(), reference_logp=reference, logits=None, reference_logits=None)

    def __len__(self) -> int:
        """Return the number of supervised tokens."""
        return int(self.logp.shape[0])
