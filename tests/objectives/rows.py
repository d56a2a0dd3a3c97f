"""The shared tester's table: one row an objective. An objective of the package without a row fails the suite."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sft import objectives as ours
from lightning_sft.objectives import Objective
from tests.objectives import formulas as f


@dataclass(frozen=True)
class Truth:
    """What a formula may look at: logits and reference logits, (tokens, vocab), and (tokens,) of the rest."""

    z: Tensor
    y: Tensor
    reference: Tensor
    row: Tensor
    source: Tensor


@dataclass(frozen=True)
class Row:
    """One objective under test.

    Attributes:
        make: builds it.
        formula: the losses, (tokens,), float64, once it has been seeded with the same tokens.
        strength: s(p), where the loss is of p alone and has no state.
        detaches: whether a part of it carries no gradient, so that differences of its value do not show its gradient.
        exact: relative error that float64 scores may have: more where the state is kept in fp32.
    """

    make: Callable[[], Objective]
    formula: Callable[[Truth], Tensor]
    strength: Callable[[Tensor], Tensor] | None = None
    detaches: bool = False
    exact: float = 1e-11


def advanced(objective: Objective, steps: int) -> Objective:
    for _ in range(steps):
        objective.update({})
    return objective


PAIRS = [(a, b) for a in range(0, 20, 3) for b in (a + 1, a + 2)]


def behind(t: Truth, pairs: list[tuple[int, int]] | None = None) -> Tensor:
    """The strongest rival's logit minus the target's, (tokens,)."""
    vocab = range(t.z.shape[-1])
    competing = [[a != b if pairs is None else (a, b) in pairs or (b, a) in pairs for b in vocab] for a in vocab]
    strongest = t.z.masked_fill(~torch.tensor(competing)[t.y], -math.inf).max(-1).values
    return strongest - t.z[torch.arange(len(t.y)), t.y]


FP32_STATE = 1e-6

ROWS = {
    "NLL": Row(ours.NLL, lambda t: f.nll(t.z, t.y), lambda p: torch.ones_like(p)),
    "PowerFamily-0": Row(lambda: ours.PowerFamily(0), lambda t: f.nll(t.z, t.y), lambda p: torch.ones_like(p)),
    "PowerFamily-0.1": Row(lambda: ours.PowerFamily(0.1), lambda t: f.power(t.z, t.y, 0.1), lambda p: p**0.1),
    "PowerFamily-1": Row(lambda: ours.PowerFamily(1), lambda t: f.power(t.z, t.y, 1), lambda p: p),
    "PowerFamily-10": Row(lambda: ours.PowerFamily(10), lambda t: f.power(t.z, t.y, 10), lambda p: p**10),
    "PowerFamily-100": Row(lambda: ours.PowerFamily(100), lambda t: f.power(t.z, t.y, 100), lambda p: p**100),
    "PowerFamily-floor": Row(
        lambda: ours.PowerFamily(2, floor=0.1),
        lambda t: f.power_with_floor(t.z, t.y, 2, 0.1),
        lambda p: (p**2).clamp(min=0.1),
    ),
    "TrustRegion": Row(
        lambda: ours.TrustRegion(0.3), lambda t: f.trust_region(t.z, t.y, 0.3), lambda p: (p / 0.3).clamp(max=1)
    ),
    "Convexity": Row(lambda: ours.Convexity(2), lambda t: f.power(t.z, t.y, 2), lambda p: p**2),
    "LogOneMinusP": Row(ours.LogOneMinusP, lambda t: f.log_one_minus_p(t.z, t.y), lambda p: p / (1 - p + 1e-3)),
    "Focal-0": Row(lambda: ours.Focal(0), lambda t: f.nll(t.z, t.y), lambda p: torch.ones_like(p)),
    "Focal-1": Row(lambda: ours.Focal(1), lambda t: f.focal(t.z, t.y, 1), lambda p: 1 - p - p * p.log()),
    "Focal-2": Row(ours.Focal, lambda t: f.focal(t.z, t.y, 2), lambda p: (1 - p) ** 2 - 2 * p * (1 - p) * p.log()),
    "Huber": Row(ours.Huber, lambda t: f.huber(t.z, t.y, 0.5), lambda p: p * (1 - p).clamp(max=0.5)),
    "Thresholded-top": Row(
        lambda: ours.Thresholded(threshold=0.2),
        lambda t: f.top(f.nll(t.z, t.y), t.z, t.y, 0.2),
        lambda p: (p >= 0.2).to(p.dtype),
        detaches=True,
    ),
    "Thresholded-bottom": Row(
        lambda: ours.Thresholded(ours.PowerFamily(1), "bottom", 0.6),
        lambda t: f.bottom(f.power(t.z, t.y, 1), t.z, t.y, 0.6),
        lambda p: p * (p <= 0.6),
        detaches=True,
    ),
    "Thresholded-row": Row(
        lambda: ours.Thresholded(ours.EAFT(4), "top", 0.2),
        lambda t: f.top(f.eaft(t.z, t.y, 4), t.z, t.y, 0.2),
        detaches=True,
    ),
    "DFT": Row(ours.DFT, lambda t: f.dft(t.z, t.y), lambda p: p, detaches=True),
    "DFT-floor": Row(
        lambda: ours.DFT(0.1), lambda t: f.dft_with_floor(t.z, t.y, 0.1), lambda p: p.clamp(min=0.1), detaches=True
    ),
    "DEFT": Row(ours.DEFT, lambda t: f.deft(t.z, t.y), detaches=True),
    "EAFT": Row(ours.EAFT, lambda t: f.eaft(t.z, t.y, 20), detaches=True),
    "EAFT-wide": Row(lambda: ours.EAFT(1000), lambda t: f.eaft(t.z, t.y, t.z.shape[-1]), detaches=True),
    "EAFT-alpha": Row(
        lambda: ours.EAFT(alpha=2.5),
        lambda t: (f.eaft(t.z, t.y, 20) / f.nll(t.z, t.y)).detach() ** 2.5 * f.nll(t.z, t.y),
        detaches=True,
    ),
    "TALR": Row(ours.TALR, lambda t: f.talr(t.z, t.y, t.row), detaches=True, exact=FP32_STATE),
    "ProFiT": Row(
        lambda: ours.ProFiT(0.3), lambda t: f.profit(t.z, t.y, 0.3), lambda p: (p >= 0.3).to(p.dtype), detaches=True
    ),
    "LabelSmoothing": Row(ours.LabelSmoothing, lambda t: f.label_smoothing(f.nll(t.z, t.y), t.z, t.y, 0.1)),
    "LabelSmoothing-power": Row(
        lambda: ours.LabelSmoothing(ours.PowerFamily(1), 0.3),
        lambda t: f.label_smoothing(f.power(t.z, t.y, 1), t.z, t.y, 0.3),
    ),
    "ZLoss": Row(ours.ZLoss, lambda t: f.z_loss(f.nll(t.z, t.y), t.z, 1e-4)),
    "ZLoss-focal": Row(lambda: ours.ZLoss(ours.Focal(), 0.1), lambda t: f.z_loss(f.focal(t.z, t.y, 2), t.z, 0.1)),
    "ASFT-forward": Row(ours.ASFT, lambda t: f.dft(t.z, t.y) + 0.05 * f.kl(t.reference, t.z), detaches=True),
    "ASFT-reverse": Row(
        lambda: ours.ASFT(ours.NLL(), 0.5, "reverse"), lambda t: f.nll(t.z, t.y) + 0.5 * f.kl(t.z, t.reference)
    ),
    "KLAnchor": Row(ours.KLAnchor, lambda t: f.nll(t.z, t.y) + 0.05 * f.kl(t.reference, t.z)),
    "KLAnchor-target": Row(
        lambda: ours.KLAnchor(ours.PowerFamily(1), 0.3, estimate="target"),
        lambda t: f.power(t.z, t.y, 1) + 0.3 * f.k3(t.z, t.y, t.reference),
    ),
    "Distill-forward": Row(
        lambda: ours.Distill(temperature=2.0),
        lambda t: f.distill(f.nll(t.z, t.y), t.z, t.reference, 0.5, lambda s, teacher: f.kl(teacher, s), 2.0),
    ),
    "Distill-reverse": Row(
        lambda: ours.Distill(ours.PowerFamily(1), 0.25, "reverse"),
        lambda t: f.distill(f.power(t.z, t.y, 1), t.z, t.reference, 0.25, f.kl),
    ),
    "Distill-jsd": Row(
        lambda: ours.Distill(None, 1.0, "jsd", beta=0.3, temperature=0.7),
        lambda t: f.distill(0, t.z, t.reference, 1.0, lambda s, teacher: f.jsd(s, teacher, 0.3), 0.7),
    ),
    "PSFT": Row(lambda: ours.PSFT(1), lambda t: f.psft(t.z, t.y, t.reference, 0.28)),
    # fractions between tokens, and sequences, that bf16 cannot confuse
    "Rho1": Row(lambda: ours.Rho1(0.65), lambda t: f.rho1(t.z, t.y, t.reference, 0.65), detaches=True),
    "TailSFT": Row(lambda: ours.TailSFT(0.25), lambda t: f.tail_sft(t.z, t.y, t.reference, t.row, 0.25), detaches=True),
    "GEM": Row(ours.GEM, lambda t: f.gem(t.z, t.y, 0.7), detaches=True),
    "GEM-sigmoid": Row(
        lambda: ours.GEM(0.9, "log_sigmoid"), lambda t: f.gem(t.z, t.y, 0.9, sigmoid=True), detaches=True
    ),
    "IWSFT": Row(ours.IWSFT, lambda t: f.iwsft(t.z, t.y, t.reference, t.row), detaches=True),
    "RunnerUpMargin": Row(ours.RunnerUpMargin, lambda t: f.nll(t.z, t.y) + 0.5 * torch.relu(1 + behind(t))),
    "RunnerUpMargin-pairs": Row(
        lambda: ours.RunnerUpMargin(ours.PowerFamily(1), 2.0, 0.3, PAIRS),
        lambda t: f.power(t.z, t.y, 1) + 0.3 * torch.relu(2 + behind(t, PAIRS)),
    ),
    "WeightedSum": Row(
        lambda: ours.WeightedSum({"a": ours.NLL(), "b.c": ours.PowerFamily(2)}, {"b.c": 3.0}),
        lambda t: f.nll(t.z, t.y) + 3 * f.power(t.z, t.y, 2),
        lambda p: 1 + 3 * p**2,
    ),
    "WeightedSum-mixed": Row(
        lambda: ours.WeightedSum({"z": ours.ZLoss(), "talr": ours.TALR(), "eaft": ours.EAFT(5)}, {"talr": 0.5}),
        lambda t: f.z_loss(f.nll(t.z, t.y), t.z, 1e-4) + 0.5 * f.talr(t.z, t.y, t.row) + f.eaft(t.z, t.y, 5),
        detaches=True,
        exact=FP32_STATE,
    ),
    "WeightedSum-batch": Row(
        lambda: ours.WeightedSum({"iw": ours.IWSFT(2.0), "nll": ours.NLL()}),
        lambda t: f.iwsft(t.z, t.y, t.reference, t.row, 2.0) + f.nll(t.z, t.y),
        detaches=True,
    ),
    "Scheduled": Row(
        lambda: advanced(ours.Scheduled(ours.NLL(), ours.PowerFamily(1), 1, 9), 3),
        lambda t: 0.75 * f.nll(t.z, t.y) + 0.25 * f.power(t.z, t.y, 1),
        lambda p: 0.75 + 0.25 * p,
    ),
    "Scheduled-to-the-end": Row(
        lambda: advanced(ours.Scheduled(ours.NLL(), ours.GEM()), 3),
        lambda t: 0.7 * f.nll(t.z, t.y) + 0.3 * f.gem(t.z, t.y, 0.7),
        detaches=True,
    ),
    "SpecialTokens": Row(
        lambda: ours.SpecialTokens(ours.PowerFamily(2), 0.5),
        lambda t: torch.where(
            torch.isin(t.y, torch.tensor([3, 7, 11, 20])), 0.5 * f.nll(t.z, t.y), f.power(t.z, t.y, 2)
        ),
    ),
    "PerSource": Row(
        lambda: ours.PerSource({"math.jsonl": ours.PowerFamily(1)}, default=ours.NLL()),
        lambda t: torch.where(t.source == 1, f.power(t.z, t.y, 1), f.nll(t.z, t.y)),
    ),
    "PerSource-state": Row(
        lambda: ours.PerSource({"math.jsonl": ours.Adaptive(0.05, 0.95), "web": ours.LabelSmoothing()}),
        lambda t: torch.where(
            t.source == 1,
            f.adaptive(t.z, t.y, t.source, 0.05, 0.95),
            f.label_smoothing(f.nll(t.z, t.y), t.z, t.y, 0.1),
        ),
        exact=FP32_STATE,
    ),
    "Adaptive": Row(
        lambda: ours.Adaptive(0.0, 1.0, 2.0),
        lambda t: f.adaptive(t.z, t.y, torch.zeros_like(t.y), 0.0, 1.0, 2.0),
        exact=FP32_STATE,
    ),
    "Adaptive-per-source": Row(
        lambda: ours.Adaptive(0.1, 0.9, math.e, per_source=True),
        lambda t: f.adaptive(t.z, t.y, t.source, 0.1, 0.9, math.e),
        exact=FP32_STATE,
    ),
}


def objective_names() -> set[str]:
    """Return the concrete objectives that the package exports."""
    exported = ((name, getattr(ours, name)) for name in ours.__all__)
    return {n for n, o in exported if inspect.isclass(o) and issubclass(o, Objective) and not inspect.isabstract(o)}
