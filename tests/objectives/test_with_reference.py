"""Objectives that look at another model: what they keep, what their slopes are, and where they meet others."""

import math

import pytest
import torch
from torch import Tensor

from lightning_sft.head.fused import fused_head
from lightning_sft.head.reference import reference_head
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives import ASFT, DFT, NLL, PSFT, Distill, KLAnchor, Objective, Rho1, TailSFT, WeightedSum
from lightning_sft.objectives.quantile import BINS, counts, largest_from
from lightning_sft.scores import TokenScores
from tests.objectives.batch import make_batch, started


def scores_of_gaps(gaps: list[float], row: list[int] | None = None) -> TokenScores:
    """Tokens of p = 1/e, which the reference finds likelier by these many nats."""
    logp = torch.full((len(gaps),), -1.0, dtype=torch.float64)
    rows = None if row is None else torch.tensor(row)
    return TokenScores(logp, torch.zeros(len(gaps), dtype=torch.long), rows, reference_logp=logp + torch.tensor(gaps))


def losses_and_gradient(objective: Objective) -> tuple[Tensor, Tensor]:
    batch = make_batch()
    out = fused_head(*batch.inputs(), started(objective, batch))
    out.loss_sum.backward()
    return out.losses, batch.weight.grad


def same(first: Objective, second: Objective) -> bool:
    pairs = zip(losses_and_gradient(first), losses_and_gradient(second), strict=True)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_asft_is_an_anchored_dft_and_kl_anchor_an_asft_of_nll():
    assert same(ASFT(weight=0.3, direction="reverse"), KLAnchor(DFT(), 0.3, "reverse"))
    assert same(ASFT(NLL(), 0.3), KLAnchor(weight=0.3))
    assert not same(ASFT(NLL(), 0.3), KLAnchor(weight=0.2))


def test_distillation_of_nothing_but_the_teacher_is_the_anchor_alone():
    anchor = WeightedSum({"a": KLAnchor(weight=1.0), "nll": NLL()}, {"nll": 0.0})
    losses, gradient = losses_and_gradient(anchor)
    nll, by_nll = losses_and_gradient(NLL())
    distilled, by_teacher = losses_and_gradient(Distill(weight=1.0))
    torch.testing.assert_close(distilled, losses - nll)
    torch.testing.assert_close(by_teacher, gradient - by_nll)


@pytest.mark.parametrize(("beta", "end"), [(1e-6, "forward"), (1 - 1e-6, "reverse")])
def test_the_mixture_ends_in_the_two_divergences(beta, end):
    jsd, _ = losses_and_gradient(Distill(weight=1.0, divergence="jsd", beta=beta))
    limit, _ = losses_and_gradient(Distill(weight=1.0, divergence=end))
    torch.testing.assert_close(jsd / min(beta, 1 - beta), limit, rtol=1e-3, atol=1e-6)


def test_a_student_that_equals_its_teacher_is_left_alone():
    for divergence in ("forward", "reverse", "jsd"):
        batch = make_batch()
        inputs, unembedding = batch.inputs()
        same_model = type(inputs)(inputs.hidden, inputs.targets, reference_hidden=inputs.hidden.detach())
        out = fused_head(same_model, unembedding, Distill(weight=1.0, divergence=divergence, temperature=3.0))
        out.loss_sum.backward()
        assert out.losses.abs().max() < 1e-12
        assert batch.hidden.grad.abs().max() < 1e-12


def test_psft_with_a_fresh_snapshot_has_the_gradient_of_nll():
    batch = make_batch()
    inputs, unembedding = batch.inputs()
    fresh = type(inputs)(inputs.hidden, inputs.targets, reference_hidden=inputs.hidden.detach())
    fused_head(fresh, unembedding, PSFT(1)).loss_sum.backward()
    torch.testing.assert_close(batch.weight.grad, losses_and_gradient(NLL())[1])


def test_psft_lets_go_above_its_clip():
    gaps = [-math.log(r) for r in (0.1, 0.7, 1.0, 1.2, 1.3, 5.0)]
    scores = scores_of_gaps(gaps)
    logp = scores.logp.clone().requires_grad_()
    losses = PSFT(2, clip=0.25)(TokenScores(logp, scores.targets, reference_logp=scores.reference_logp))
    (slope,) = torch.autograd.grad(losses.sum(), logp)
    torch.testing.assert_close(-slope, torch.tensor([0.1, 0.7, 1.0, 1.2, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(-losses, torch.tensor([0.1, 0.7, 1.0, 1.2, 1.25, 1.25], dtype=torch.float64))


def test_rho1_keeps_the_share_that_lags_and_remembers_it():
    gaps = [0.5, -0.2, 3.0, 0.1, 0.0]
    objective = Rho1(0.4)
    assert objective.kept(scores_of_gaps(gaps)).all()  # until it is seeded
    objective.seed(objective.statistics(scores_of_gaps(gaps)))
    assert objective.kept(scores_of_gaps(gaps)).tolist() == [True, False, True, False, False]
    assert objective(scores_of_gaps(gaps)).tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    # the next step is weighed by this one's quantile, and replaces it
    lower = scores_of_gaps([gap - 1.0 for gap in gaps])
    assert objective.kept(lower).tolist() == [False, False, True, False, False]
    objective.update(objective.statistics(lower))
    assert objective.kept(lower).tolist() == [True, False, True, False, False]


def test_tail_sft_sets_aside_what_has_been_learnt():
    gaps, row = [-2.0, -4.0, -0.5, 0.0, 0.0, -9.0], [0, 0, 1, 2, 2, 3]  # gains of 3, 0.5, 0 and 9
    objective = TailSFT(0.5)
    scores = scores_of_gaps(gaps, row)
    objective.seed(objective.statistics(scores))
    assert objective.kept(scores).tolist() == [False, False, True, True, True, False]
    assert objective.logged()["threshold"] == objective.threshold


@pytest.mark.parametrize("objective", [Rho1(0.5), TailSFT(0.5)])
def test_a_model_that_has_not_moved_learns_from_everything(objective):
    rounding = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 1e-6
    scores = scores_of_gaps(rounding.tolist(), list(range(40)))
    objective.seed(objective.statistics(scores))
    assert objective.kept(scores).all()


def test_a_quantile_adds_up_and_parts_the_values():
    values = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counted = counts(values[:300]) + counts(values[300:])
    assert counted.shape == (BINS,)
    ranked = values.sort(descending=True).values
    for number in (1, 100, 500, 999, 1000):
        reached = int((values >= largest_from(counted, number)).sum())
        same_bin = (ranked - ranked[number - 1]).abs() <= 0.01 * ranked[number - 1].abs() + 1e-4
        assert number <= reached <= number + int(same_bin.sum())


def test_the_estimate_of_the_target_has_its_slope():
    scores = scores_of_gaps([0.0, 1e-4, 1.0, -3.0, 30.0])
    logp = scores.logp.clone().requires_grad_()
    objective = WeightedSum({"a": KLAnchor(weight=1.0, estimate="target"), "nll": NLL()}, {"nll": 0.0})
    losses = objective(TokenScores(logp, scores.targets, reference_logp=scores.reference_logp)) + logp
    (slope,) = torch.autograd.grad(losses.sum(), logp)
    gap = torch.tensor([0.0, 1e-4, 1.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(-slope[:4], gap.expm1())
    torch.testing.assert_close(losses.detach()[:4], gap.expm1() - gap, rtol=1e-6, atol=1e-15)
    assert -slope[4] == pytest.approx(math.expm1(20.0))


def test_the_reference_head_agrees_on_another_width():
    """A teacher may be wider than the student, as long as both have one vocabulary."""
    batch = make_batch()
    inputs, unembedding = batch.inputs()
    draw = torch.Generator().manual_seed(3)
    wide = torch.randn(len(inputs.targets), 20, generator=draw, dtype=torch.float64)
    rows = torch.randn(len(batch.weight), 20, generator=draw, dtype=torch.float64)
    given = type(inputs)(inputs.hidden, inputs.targets, reference_hidden=wide, reference=type(unembedding)(rows))
    outs = [head(given, unembedding, Distill(temperature=2.0)) for head in (fused_head, reference_head)]
    torch.testing.assert_close(outs[0].losses, outs[1].losses)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_a_student_reaches_the_distribution_of_its_teacher(divergence):
    draw = torch.Generator().manual_seed(0)
    contexts, targets = torch.randn(16, 24, generator=draw), torch.randint(30, (16,), generator=draw)
    teacher = Unembedding(0.2 * torch.randn(30, 40, generator=draw))
    seen = contexts @ torch.randn(24, 40, generator=draw) / 24**0.5  # what a wider teacher makes of the contexts
    body = (0.1 * torch.randn(24, 24, generator=draw)).requires_grad_()
    weight = (0.1 * torch.randn(30, 24, generator=draw)).requires_grad_()
    optimizer = torch.optim.Adam([body, weight], lr=0.05)
    objective = Distill(weight=1.0, divergence=divergence)
    truth = (seen @ teacher.weight.T).log_softmax(-1)

    def apart() -> Tensor:
        student = (contexts @ body @ weight.T).log_softmax(-1)
        return (truth.exp() * (truth - student)).sum(-1).mean().detach()

    assert apart() > 0.1
    for _ in range(200):
        optimizer.zero_grad()
        given = HeadInput(contexts @ body, targets, reference_hidden=seen, reference=teacher)
        (fused_head(given, Unembedding(weight), objective).loss_sum / len(targets)).backward()
        optimizer.step()
    assert apart() < 1e-3
