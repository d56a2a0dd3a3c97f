"""Objectives, inputs and instruments that the tests of the heads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_sft.head import HeadInput, HeadOutput, Unembedding
from lightning_sft.head.sizes import Sizes
from lightning_sft.objectives import NLL, Objective, PowerFamily
from lightning_sft.scores import TokenScores

SMALL = Sizes(chunk=7, tile=10, block=6, rows=600)  # divides nothing below


class Kept(Objective):
    """-logp of the tokens above a probability: the others have s = 0."""

    def __init__(self, above: float = 0.03) -> None:
        super().__init__()
        self.above = above

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp * (scores.p.detach() >= self.above)


class Smoothed(Objective):
    """Reads its row with gradient, next to logp."""

    reads = "row"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -0.9 * scores.logp - 0.1 * scores.mean_logp() + 0.01 * scores.logsumexp() ** 2


class RowAlone(Objective):
    """Reads its row with gradient, and never logp."""

    reads = "row"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return scores.runner_up()[0].sigmoid() + scores.collision()


class Weighed(Objective):
    """Reads its row without gradient, as a weight of logp."""

    reads = "row"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp * scores.topk_entropy(5).detach()


class Centred(Objective):
    """Reads the other tokens' logp, with gradient through them."""

    reads = "batch"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp * scores.p.mean() + (scores.logp - scores.logp.mean()) ** 2


class LogRatio(Objective):
    """Reads the reference model's logp."""

    reference = "logp"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp * (scores.logp.detach() - scores.require("reference_logp")).exp().clamp(0, 16)


class KL(Objective):
    """Reads the reference model's row."""

    reads = "row"
    reference = "logits"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        reference = scores.require("reference_logits").log_softmax(-1)
        return -scores.logp + (reference.exp() * (reference - scores.log_softmax())).sum(-1)


class Constant(Objective):
    """Depends on nothing."""

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.ones_like(scores.logp)


OBJECTIVES: dict[str, Objective] = {
    "nll": NLL(),
    "power": PowerFamily(2.0),
    "kept": Kept(),
    "smoothed": Smoothed(),
    "row_alone": RowAlone(),
    "weighed": Weighed(),
    "centred": Centred(),
    "constant": Constant(),
}


@dataclass
class Case:
    """Leaves that ask for gradients, and targets."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    scale: float = 1.0
    softcap: float | None = None

    def unembedding(self) -> Unembedding:
        return Unembedding(self.weight, self.bias, self.scale, self.softcap)

    def run(self, head: Callable[..., HeadOutput], objective: Objective, factor: float = 0.3) -> list[Tensor]:
        """Everything that a head gives: sum, losses, scores, gradients."""
        for leaf in (self.hidden, self.weight, self.bias):
            if leaf is not None:
                leaf.grad = None
        row = torch.arange(len(self.targets), device=self.targets.device) // 3
        output = head(HeadInput(self.hidden, self.targets, row, row), self.unembedding(), objective)
        if output.loss_sum.requires_grad:
            (output.loss_sum * factor).backward()
        scores = output.scores
        assert not output.losses.requires_grad
        assert not scores.logp.requires_grad
        assert scores.logits is None
        assert scores.row is not None
        leaves = [leaf.grad for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]
        return [output.loss_sum.detach(), output.losses, scores.logp, scores.is_top1, scores.row, *leaves]


def make(
    tokens: int = 19,
    dim: int = 8,
    vocab: int = 33,
    dtype: torch.dtype = torch.float64,
    *,
    bias: bool = False,
    frozen: bool = False,
    confident: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **how: Any,
) -> Case:
    """A random case; ``confident`` pulls half of the hidden states towards their targets' rows."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, dim, generator=draw, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=draw)
    hidden = torch.randn(tokens, dim, generator=draw, dtype=torch.float64)
    hidden[::2] += confident * weight[targets[::2]] / weight.norm(dim=1).mean()
    vector = torch.randn(vocab, generator=draw, dtype=torch.float64).to(device, dtype) if bias else None
    leaves = hidden.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_(not frozen)
    return Case(*leaves, None if vector is None else vector.requires_grad_(), targets.to(device), **how)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, and how many numbers all products multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.multiplied = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.multiplied += left.shape[0] * left.shape[1] * right.shape[1]
        return result
