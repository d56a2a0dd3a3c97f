"""What goes into a head and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_sft.head.trouble import Trouble
from lightning_sft.scores import TokenScores


@dataclass(frozen=True)
class Unembedding:
    """How a model turns a hidden state into logits: ``softcap(scale * (h @ weight.T + bias))``.

    Attributes:
        weight: (vocab, dim).
        bias: (vocab,) or None.
        scale: factor on the logits (Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``).
        softcap: c of ``c * tanh(logits / c)`` (Gemma 2's ``final_logit_softcapping``), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def first_rows(self, rows: int) -> Unembedding:
        """Return the unembedding of the first ``rows`` candidates, detached."""
        bias = None if self.bias is None else self.bias.detach()[:rows]
        return replace(self, weight=self.weight.detach()[:rows], bias=bias)


@dataclass(frozen=True)
class HeadInput:
    """The supervised positions of one micro-batch.

    Attributes:
        hidden: hidden states that predict the targets, (tokens, dim).
        targets: target ids, (tokens,), int64.
        row: sequence of each token, (tokens,), int64, or None.
        source: data source of each token, (tokens,), int64, or None.
        reference_hidden: the reference model's hidden states, (tokens, dim), without gradient, or None.
        reference: the reference model's unembedding; None means the model's own.
        weight: what the loss of each token is multiplied by, (tokens,), finite, or None for 1.
        competitors: whether the scores are to name the target's strongest competitor, and its margin over it.
        largest_target: the largest target, where the caller knows it and that none is negative; else the head reads it
            from the device.
    """

    hidden: Tensor
    targets: Tensor
    row: Tensor | None = None
    source: Tensor | None = None
    reference_hidden: Tensor | None = None
    reference: Unembedding | None = None
    weight: Tensor | None = None
    competitors: bool = False
    largest_target: int | None = None


@dataclass(frozen=True)
class HeadOutput:
    """What a head returns.

    Attributes:
        loss_sum: sum of the losses, scalar, fp32 (float64 for float64 inputs); carries the gradient.
        losses: the losses, (tokens,), times their weights, detached.
        scores: the scores, detached, with ``is_top1`` and without rows of logits.
        trouble: tells whether a loss is not finite, which, and why; None where nobody has looked.
        model_losses: losses of the micro-batch as a whole by name, scalars with their graph, such as the load-balancing
            loss of a mixture of experts; they belong to its mean loss, and ``loss_sum`` does not hold them.
    """

    loss_sum: Tensor
    losses: Tensor
    scores: TokenScores
    trouble: Trouble | None = None
    model_losses: dict[str, Tensor] = field(default_factory=dict)
