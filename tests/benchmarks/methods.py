"""What the head benchmark compares: each method maps hidden states, unembedding and targets to a mean loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sft.head import HeadInput, Unembedding, delegated_head, fused_head
from lightning_sft.objectives import (
    ASFT,
    DFT,
    EAFT,
    GEM,
    NLL,
    PSFT,
    Distill,
    KLAnchor,
    LabelSmoothing,
    Objective,
    PowerFamily,
    Rho1,
    SpecialTokens,
    TailSFT,
    Thresholded,
    TrustRegion,
)


class CrossToken(NLL):
    """NLL down the path of objectives that read other tokens: scored first, recomputed for the gradient."""

    reads = "batch"


@dataclass(frozen=True)
class Data:
    """One micro-batch: ``hidden`` (tokens, dim), ``weight`` (vocab, dim), ``targets`` (tokens,).

    Attributes:
        median: the targets' median probability, a threshold that half of the tokens miss.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    median: float


Method = Callable[[Data], Tensor]


def make_data(tokens: int, dim: int, vocab: int, dtype: torch.dtype, frozen: bool, device: str = "cpu") -> Data:
    """Random states, pulled towards their targets' rows by random amounts: log-probabilities from hopeless to sure."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(vocab, dim, generator=draw) * (1.2 / dim**0.5)
    targets = torch.randint(vocab, (tokens,), generator=draw)
    pull = torch.rand(tokens, 1, generator=draw) * 22 / 1.2**2
    hidden = torch.randn(tokens, dim, generator=draw) * 2 + pull * weight[targets]
    targets = targets.to(device)
    leaves = hidden.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_(not frozen)
    with torch.no_grad():
        logp = fused_head(HeadInput(leaves[0], targets), Unembedding(leaves[1]), NLL()).scores.logp
    return Data(*leaves, targets, float(logp.exp().median()))


def naive(data: Data) -> Tensor:
    """The plain head: all logits, log_softmax in fp32, gather."""
    logp = (data.hidden @ data.weight.T).float().log_softmax(-1)
    return -logp.gather(1, data.targets[:, None]).mean()


def ours(make: Callable[[Data], Objective]) -> Method:
    """The fused head with an objective."""

    def run(data: Data) -> Tensor:
        objective = make(data).to(data.hidden.device)
        reference = data.hidden.detach() if objective.reference != "none" else None
        row = torch.arange(len(data.targets), device=data.targets.device) // 64
        inputs = HeadInput(data.hidden, data.targets, row, reference_hidden=reference)
        return fused_head(inputs, Unembedding(data.weight), objective).loss_sum / len(data.targets)

    return run


def _torch(reduction: str, **options: object) -> Method:
    def run(data: Data) -> Tensor:
        chosen = torch.nn.LinearCrossEntropyOptions(**options)
        loss = F.linear_cross_entropy(data.hidden, data.weight, data.targets, reduction=reduction, options=chosen)
        return loss.mean() if reduction == "none" else loss

    return run


OURS: dict[str, Method] = {
    "fused NLL": ours(lambda data: NLL()),
    "fused DFT": ours(lambda data: DFT()),
    "fused threshold, half the rows": ours(lambda data: Thresholded(threshold=data.median)),
    "fused EAFT": ours(lambda data: EAFT()),
    "fused label smoothing": ours(lambda data: LabelSmoothing()),
    "fused GEM": ours(lambda data: GEM()),
    "fused ASFT": ours(lambda data: ASFT()),
    "fused floor": ours(lambda data: PowerFamily(1.0, floor=0.1)),
    "fused trust region": ours(lambda data: TrustRegion()),
    "fused KL anchor": ours(lambda data: KLAnchor()),
    "fused KL anchor, target": ours(lambda data: KLAnchor(estimate="target")),
    "fused distillation": ours(lambda data: Distill(temperature=2.0)),
    "fused distillation, JSD": ours(lambda data: Distill(divergence="jsd")),
    "fused PSFT": ours(lambda data: PSFT(1)),
    "fused Rho-1": ours(lambda data: Rho1()),
    "fused TailSFT": ours(lambda data: TailSFT()),
    "fused special tokens": ours(lambda data: SpecialTokens(DFT())),
    "fused cross-token": ours(lambda data: CrossToken()),
}


def delegated(make: Callable[[Data], Objective]) -> Method:
    """The fused head's work by cut-cross-entropy's kernels, with an objective."""

    def run(data: Data) -> Tensor:
        inputs = HeadInput(data.hidden, data.targets)
        objective = make(data).to(data.hidden.device)
        return delegated_head(inputs, Unembedding(data.weight), objective).loss_sum / len(data.targets)

    return run


def peers(device: str = "cpu") -> dict[str, Method]:
    """Return the peers that are installed here, and run on the device."""
    found: dict[str, Method] = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch chunked, mean"] = _torch("mean")
        found["torch chunked, mean, compact"] = _torch("mean", acc_policy="compact")
        found["torch chunked, none"] = _torch("none")
        found["torch chunked, none, 256 tokens"] = _torch("none", batch_chunk_size=256)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        if device == "cuda":
            found["cut-cross-entropy"] = lambda data: linear_cross_entropy(data.hidden, data.weight, data.targets)
            found["cut-cross-entropy, nothing filtered"] = lambda data: linear_cross_entropy(
                data.hidden, data.weight, data.targets, filter_eps=None
            )
            found["delegated NLL"] = delegated(lambda data: NLL())
            found["delegated DFT"] = delegated(lambda data: DFT())

        found["cut-cross-entropy, torch_compile"] = lambda data: linear_cross_entropy(
            data.hidden, data.weight, data.targets, impl="torch_compile"
        )
    if importlib.util.find_spec("trl"):
        from trl.kernels import ChunkedLogProbFunction

        found["TRL fused head"] = lambda data: (
            -ChunkedLogProbFunction.apply(
                data.hidden, data.weight, None, data.targets, 1.0, 32768, None, 1.0, ("log_probs",)
            )[0].mean()
        )
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

        def liger(data: Data) -> Tensor:
            result = LigerFusedLinearScaledCrossEntropyFunction.apply(data.hidden, data.weight, data.targets)
            return (result[0] if isinstance(result, tuple) else result).mean()

        found["Liger scaled cross-entropy"] = liger
        if device == "cuda":
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            found["Liger fused cross-entropy"] = lambda data: LigerFusedLinearCrossEntropyLoss()(
                data.weight, data.hidden, data.targets
            )
    return found


def products(tokens: int, vocab: int, count: int) -> Method:
    """The head's bare matrix products in chunks of 256 tokens over tiles of 2048 candidates, and nothing else."""

    def run(data: Data) -> Tensor:
        hidden, weight = data.hidden.detach(), data.weight.detach()
        out: Tensor = hidden
        for start in range(0, tokens, 256):
            x = hidden[start : start + 256]
            for column in range(0, vocab, 2048):
                rows = weight[column : column + 2048]
                tile = x @ rows.T
                out = tile @ rows
                if count == 3:
                    out = tile.T @ x
        return out.float().sum()

    return run
