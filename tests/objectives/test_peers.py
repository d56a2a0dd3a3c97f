"""Factors of the table "who else offers it", each against the formula that the peer documents, written here anew."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from lightning_sft import objectives as ours
from lightning_sft.objectives import Objective
from tests.objectives.batch import Batch, make_batch, scores_of
from tests.objectives.test_with_reference import losses_and_gradient

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="none")


def p(z: Tensor, y: Tensor) -> Tensor:
    return (-nll(z, y)).exp()


def top_entropy(z: Tensor, k: int) -> Tensor:
    share = z.detach().topk(k, -1).values.softmax(-1)
    return -(share * share.log()).sum(-1)


def deft(z: Tensor, y: Tensor) -> Tensor:
    c = z.detach().softmax(-1).square().sum(-1)
    return (1 - p(z, y) ** c) / (c + 1e-6)


def gkd(z: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    s, t = (x.div(temperature).log_softmax(-1) for x in (z, teacher))
    if beta in (0, 1):
        ends = (s, t) if beta == 0 else (t, s)
        return kl_div(*ends, reduction="none", log_target=True).sum(-1)
    m = torch.log((1 - beta) * s.exp() + beta * t.exp())
    both = beta * kl_div(m, t, reduction="none", log_target=True)
    return (both + (1 - beta) * kl_div(m, s, reduction="none", log_target=True)).sum(-1)


def kd(z: Tensor, y: Tensor, teacher: Tensor, alpha: float, ce_alpha: float, temperature: float) -> Tensor:
    return ce_alpha * nll(z, y) + alpha * temperature**2 * gkd(z, teacher, 0, temperature)


def asft(z: Tensor, y: Tensor, reference: Tensor, alpha: float) -> Tensor:
    dft = nll(z, y) * p(z, y).detach()
    return dft + alpha * kl_div(z.log_softmax(-1), reference.softmax(-1), reduction="none").sum(-1)


def k3(z: Tensor, y: Tensor, reference: Tensor) -> Tensor:
    ratio = p(reference, y) / p(z, y)
    return ratio - ratio.log() - 1


def psft(z: Tensor, y: Tensor, old: Tensor) -> Tensor:
    ratio = p(z, y) / p(old, y)
    return -torch.minimum(ratio, ratio.clamp(1 - 0.2, 1 + 0.28))


def chosen(excess: Tensor, fraction: float) -> Tensor:
    return torch.zeros_like(excess).index_fill(0, excess.topk(math.ceil(fraction * len(excess))).indices, 1.0)


#: objective, the peer's loss of a token, its gradient over ours, and the same of the values where they have a ratio
TABLE: dict[str, tuple[Objective, Peer, float, float | None]] = {
    "DFT": (ours.DFT(), lambda z, y, r: nll(z, y) * p(z, y).detach(), 1, 1),
    "-p": (ours.PowerFamily(1), lambda z, y, r: -p(z, y), 1, None),
    "GeneralFamily": (ours.PowerFamily(3), lambda z, y, r: -(p(z, y) ** 3 - 1) / 3, 1, 1),
    "convexity": (ours.Convexity(3), lambda z, y, r: -(p(z, y) ** 3), 3, None),
    "LogOneMinusP": (ours.LogOneMinusP(), lambda z, y, r: (1 - p(z, y) + 1e-3).log(), 1, 1),
    "OnlyTopLogP": (
        ours.Thresholded(threshold=0.3),
        lambda z, y, r: nll(z, y) * (p(z, y).detach() >= 0.3),
        1,
        1,
    ),
    "CHORD phi": (
        ours.Huber(1),
        lambda z, y, r: nll(z, y) * (p(z, y) * (1 - p(z, y))).detach(),
        1,
        None,
    ),
    "EAFT, LLaMA-Factory": (
        ours.EAFT(),
        lambda z, y, r: nll(z, y) * top_entropy(z, 20) / 3.0,
        1 / 1.0014,
        1 / 1.0014,
    ),
    "EAFT, LLaMA-Factory, alpha": (
        ours.EAFT(alpha=2),
        lambda z, y, r: nll(z, y) * (top_entropy(z, 20) / 3.0) ** 2,
        (math.log(20) / 3) ** 2,
        (math.log(20) / 3) ** 2,
    ),
    "EAFT, Axolotl": (ours.EAFT(), lambda z, y, r: nll(z, y) * top_entropy(z, 20), 1 / 0.33381, 1 / 0.33381),
    "EAFT, Axolotl, alpha and k": (
        ours.EAFT(10, 0.5),
        lambda z, y, r: nll(z, y) * top_entropy(z, 10) ** 0.5,
        math.log(10) ** 0.5,
        math.log(10) ** 0.5,
    ),
    "ProFiT": (ours.ProFiT(), lambda z, y, r: nll(z, y) * (p(z, y).detach() >= 0.1), 1, 1),
    "ASFT": (ours.ASFT(weight=0.1), lambda z, y, r: asft(z, y, r, 0.1), 1, 1),
    "sft+kl": (
        ours.KLAnchor(weight=0.1),
        lambda z, y, r: nll(z, y) + kl_div(z.log_softmax(-1), r.softmax(-1), reduction="none").sum(-1) * 0.1,
        1,
        1,
    ),
    "GKD": (
        ours.Distill(None, 1.0, "jsd", 0.3, 0.9),
        lambda z, y, r: gkd(z, r, 0.3, 0.9),
        0.9**-2,
        0.9**-2,
    ),
    "GKD, beta 0": (ours.Distill(None, 1.0, "forward", temperature=2), lambda z, y, r: gkd(z, r, 0, 2), 0.25, 0.25),
    "GKD, beta 1": (ours.Distill(None, 1.0, "reverse", temperature=2), lambda z, y, r: gkd(z, r, 1, 2), 0.25, 0.25),
    "Axolotl kd": (ours.Distill(weight=0.75, temperature=2), lambda z, y, r: kd(z, y, r, 0.9, 0.3, 2), 1.2, 1.2),
    "k3": (ours.KLAnchor(weight=0.2, estimate="target"), lambda z, y, r: nll(z, y) + 0.2 * k3(z, y, r), 1, 1),
    "DFT, floor": (ours.DFT(0.1), lambda z, y, r: nll(z, y) * p(z, y).detach().clamp(min=0.1), 1, 1),
    "TrSFT": (ours.TrustRegion(0.2), lambda z, y, r: nll(z, y) * (p(z, y).detach() / 0.2).clamp(max=1), 1, None),
    "PSFT": (ours.PSFT(8), lambda z, y, r: psft(z, y, r), 1, 1),
    "Rho-1": (ours.Rho1(0.6), lambda z, y, r: nll(z, y) * chosen(nll(z, y) - nll(r, y), 0.6), 1, 1),
    "label smoothing": (
        ours.LabelSmoothing(smoothing=0.2),
        lambda z, y, r: cross_entropy(z, y, reduction="none", label_smoothing=0.2),
        1,
        1,
    ),
}


def logits(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.hidden @ batch.weight.T, (batch.reference_hidden @ batch.weight.T).detach()


@pytest.mark.parametrize("name", TABLE)
def test_factor_of_a_peer(name: str) -> None:
    objective, peer, by_gradient, by_value = TABLE[name]
    batch = make_batch()
    z, reference = logits(batch)
    theirs = peer(z, batch.targets, reference)
    (gradient,) = torch.autograd.grad(theirs.sum(), batch.weight)
    losses, own_gradient = losses_and_gradient(objective)
    torch.testing.assert_close(gradient, by_gradient * own_gradient, rtol=1e-4, atol=1e-9)
    if by_value is not None:
        torch.testing.assert_close(theirs.detach(), by_value * losses, rtol=1e-4, atol=1e-9)


def test_deft_of_the_authors_has_our_gradient_to_a_millionth_of_its_exponent() -> None:
    batch = make_batch()
    z, _ = logits(batch)
    (gradient,) = torch.autograd.grad(deft(z, batch.targets).sum(), batch.weight)
    c = z.detach().softmax(-1).square().sum(-1)
    assert (c / (c + 1e-6)).min() > 1 - 3e-5
    own = losses_and_gradient(ours.DEFT())[1]
    assert (gradient - own).norm() < 3e-5 * own.norm()


def test_the_scores_are_those_of_plain_logits() -> None:
    batch = make_batch()
    torch.testing.assert_close(scores_of(batch).logp, -nll(logits(batch)[0], batch.targets).detach())
