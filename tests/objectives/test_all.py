"""One tester for all objectives: every row of the table, through both heads, in every precision."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_sft.head.fused import fused_head
from lightning_sft.head.reference import reference_head
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives import PowerFamily
from lightning_sft.scores import TokenScores
from tests.objectives import formulas
from tests.objectives.batch import FACTS, TOKENS, Batch, logits_batch, make_batch, scores_of, started
from tests.objectives.rows import ROWS, Row, objective_names

HEADS = {"reference": reference_head, "fused": fused_head}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}

each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def test_every_objective_has_a_row():
    assert objective_names() == {type(row.make()).__name__ for row in ROWS.values()}


def losses_and_gradients(row: Row, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the formula's losses and its gradients on hidden states and unembedding, all in float64."""
    losses = row.formula(batch.truth())
    return losses.detach(), *torch.autograd.grad(losses.sum(), (batch.hidden, batch.weight))


def relative(value: Tensor, truth: Tensor) -> float:
    value, truth = value.cpu().double(), truth.cpu().double()
    return ((value - truth).norm() / truth.norm()).item()


@each_dtype
@each_head
@each_row
def test_agrees_with_the_formula(row, head, dtype, device, monkeypatch):
    batch, here = make_batch(dtype, device), make_batch(dtype)
    exact = replace(here, **{n: getattr(here, n).detach().double().requires_grad_() for n in ("hidden", "weight")})
    truth = losses_and_gradients(row, exact)
    out = head(*batch.inputs(), started(row.make(), batch))
    out.loss_sum.backward()
    ours = (out.losses, batch.hidden.grad, batch.weight.grad)
    assert out.losses.dtype == torch.promote_types(dtype, torch.float32)
    if dtype == torch.float64:
        bounds = [row.exact] * 3
    else:
        # as far off as the same formula on rounded values, plus roundings of the results
        rounded = formula_in_bf16(row, exact) if dtype == torch.bfloat16 else formula_in_fp32(row, exact, monkeypatch)
        last = 2**-7 if dtype == torch.bfloat16 else 8 * torch.finfo(dtype).eps
        errors = [[relative(r, t) for r, t in zip(values, truth, strict=True)] for values in rounded]
        bounds = [2 * max(of_one) + last for of_one in zip(*errors, strict=True)]
    for value, true, bound in zip(ours, truth, bounds, strict=True):
        assert relative(value, true) <= bound


Values = tuple[Tensor, Tensor, Tensor]


def formula_of(row: Row, exact: Batch, z: Tensor, reference: Tensor) -> Values:
    """Return the formula's losses and gradients at other logits."""
    z = z.detach().requires_grad_()
    losses = row.formula(replace(exact.truth(), z=z, reference=reference))
    (slope,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach(), slope @ exact.weight.detach(), slope.T @ exact.hidden.detach()


def formula_in_bf16(row: Row, exact: Batch) -> list[Values]:
    """Return the formula on logits that were rounded once."""
    truth = exact.truth()
    return [formula_of(row, exact, truth.z.bfloat16().double(), truth.reference.bfloat16().double())]


def formula_in_fp32(row: Row, exact: Batch, monkeypatch: pytest.MonkeyPatch) -> list[Values]:
    """Return the formula with its logits, and then log p, off by what fp32 may lose, in both directions each.

    A logit is a sum of products, so its error is in proportion to the sum of their sizes. log p is the difference of
    a logit and the logarithm of a sum of at least 1: also where it is nearly 0, its error is in proportion to 1. A
    formula may multiply that error: p^alpha by alpha. How a kernel computes log p does not matter.
    """
    truth, eps = exact.truth(), torch.finfo(torch.float32).eps
    size = eps * (exact.hidden.abs() @ exact.weight.abs().T)
    apart = 2 * torch.nn.functional.one_hot(truth.y, size.shape[-1]) - 1  # the target up and the others down
    log_p, found = formulas.log_p, []
    for of_z, of_log_p in itertools.product((1, -1), repeat=2):

        def moved(z: Tensor, y: Tensor, sign: int = of_log_p) -> Tensor:
            exact = log_p(z, y)
            return exact + sign * 2 * eps * (1 + exact.detach().abs())

        with monkeypatch.context() as patch:
            patch.setattr(formulas, "log_p", moved)
            found.append(formula_of(row, exact, truth.z + of_z * size * apart, truth.reference))
    return found


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.strength is not None])
@each_head
def test_pulls_on_the_logits_with_its_strength(name, head):
    row = ROWS[name]
    z = make_batch().truth().z.detach().requires_grad_()
    batch = logits_batch(z, make_batch())
    head(*batch.inputs(), started(row.make(), batch)).loss_sum.backward()
    softmax = z.detach().softmax(-1)
    p = softmax.gather(-1, batch.targets[:, None])[:, 0]
    onehot = torch.nn.functional.one_hot(batch.targets, z.shape[-1])
    expected = -row.strength(p)[:, None] * (onehot - softmax)
    torch.testing.assert_close(z.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.strength is not None])
def test_strength_of_hopeless_and_of_certain_tokens(name):
    row = ROWS[name]
    unlikely = torch.logspace(-30, -0.1, 150, dtype=torch.float64)
    logp = torch.cat([unlikely, 1 - torch.logspace(-7, -0.7, 50, dtype=torch.float64)]).log().float().requires_grad_()
    objective = row.make()
    objective.prepare(FACTS)
    losses = objective(TokenScores(logp, torch.zeros(len(logp), dtype=torch.long)))
    (slope,) = torch.autograd.grad(losses.sum(), logp)
    expected = row.strength(logp.detach().double().exp())
    # below the smallest normal number, fp32 itself has no digits left
    error = (-slope.double() - expected).abs() / expected.abs().clamp(min=torch.finfo(torch.float32).tiny)
    assert error.max() < 1e-6


@each_head
@pytest.mark.parametrize("alpha", [1.0, 3.0, 4.0])
def test_a_batch_of_unlikely_tokens_keeps_its_gradient(head, alpha):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = 0.1 * torch.randn(64, 16, generator=draw), 0.1 * torch.randn(200, 16, generator=draw)
    targets = torch.randint(200, (64,), generator=draw)  # p is about 1 / 200 each
    exact = hidden.double().requires_grad_()
    logp = (exact @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (((alpha * logp.detach()).exp() * -logp).sum()).backward()
    head(HeadInput(hidden.requires_grad_(), targets), Unembedding(weight), PowerFamily(alpha)).loss_sum.backward()
    assert relative(hidden.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.detaches])
def test_gradient_is_the_slope_of_the_loss(name):
    like = make_batch()
    objective = started(ROWS[name].make(), like)
    z = like.truth().z.detach()[:6].requires_grad_()
    reference = like.truth().reference[:6]

    def loss(z: Tensor) -> Tensor:
        return reference_head(*logits_batch(z, like, reference).inputs(), objective).loss_sum

    assert torch.autograd.gradcheck(loss, (z,))


@each_dtype
@each_head
@each_row
@pytest.mark.parametrize("gap", [0.0, 20.0, 100.0, 1e4])
def test_certain_and_impossible_tokens_stay_finite(row, head, dtype, gap, device):
    like = make_batch(device=device)
    z = torch.zeros(TOKENS, 29, dtype=dtype, device=device)
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(2).repeat(TOKENS // 4)
    z[torch.arange(TOKENS), like.targets] = (gap * sign).to(z)
    batch = logits_batch(z.requires_grad_(), like, reference=-z.detach())
    out = head(*batch.inputs(), started(row.make(), batch))
    out.loss_sum.backward()
    assert out.losses.isfinite().all()
    assert z.grad.isfinite().all()


@each_head
@each_row
def test_batch_without_a_supervised_token(row, head):
    full, objective = make_batch(), row.make()
    batch = full.part(torch.zeros(TOKENS, dtype=torch.bool))
    started(objective, full)
    # a schedule counts this step too; every measured state stays as it is
    before = {k: v.clone() for k, v in objective.state_dict().items() if not k.endswith(("step", "last"))}
    out = head(*batch.inputs(), objective)
    out.loss_sum.backward()
    assert out.loss_sum == 0
    assert len(out.losses) == 0
    assert not batch.weight.grad.any()
    assert objective.kept(out.scores).shape == (0,)
    sums, whole = objective.statistics(out.scores), objective.statistics(scores_of(full))
    assert {key: value.shape for key, value in sums.items()} == {key: value.shape for key, value in whole.items()}
    objective.update(sums)
    after = objective.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@each_row
def test_forward_changes_nothing(row):
    batch = make_batch()
    objective = started(row.make(), batch)
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    random = torch.random.get_rng_state()
    outs = [reference_head(*batch.inputs(), objective) for _ in range(2)]
    first, second = (objective.statistics(out.scores) for out in outs)
    objective.kept(outs[0].scores)
    objective.logged()
    assert torch.equal(outs[0].losses, outs[1].losses)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in objective.state_dict().items())
    assert not list(objective.parameters())


@each_head
@each_row
def test_weights_of_tokens_multiply_their_losses(row, head):
    batch, exact = make_batch(), make_batch()
    weight = torch.linspace(-1.0, 3.0, TOKENS, dtype=torch.float64)
    truth = row.formula(exact.truth()) * weight
    truth.sum().backward()
    inputs, unembedding = batch.inputs()
    out = head(replace(inputs, weight=weight), unembedding, started(row.make(), batch))
    out.loss_sum.backward()
    for value, true in (
        (out.losses, truth),
        (batch.hidden.grad, exact.hidden.grad),
        (batch.weight.grad, exact.weight.grad),
    ):
        assert relative(value, true) <= row.exact
    # what is measured, and what an objective remembers, counts every token once
    torch.testing.assert_close(out.scores.logp, scores_of(batch).logp)


@each_head
@each_row
def test_splitting_the_batch_changes_nothing(row, head):
    batch = make_batch()
    objective = started(row.make(), batch)
    whole = head(*batch.inputs(), objective)
    # objectives of the batch may see other tokens of the same sequence, so sequences stay whole
    place = batch.row if objective.reads == "batch" else torch.arange(TOKENS) // 7
    parts = [place == value for value in place.unique()]
    outs = [head(*batch.part(part).inputs(), objective) for part in parts]
    for part, out in zip(parts, outs, strict=True):
        torch.testing.assert_close(out.losses, whole.losses[part], rtol=1e-12, atol=1e-12)
    by_sequence = [batch.row == value for value in batch.row.unique()]
    sums = [objective.statistics(scores_of(batch.part(part))) for part in by_sequence]
    for key, value in objective.statistics(whole.scores).items():
        torch.testing.assert_close(sum(s[key] for s in sums), value, rtol=1e-12, atol=1e-12)


@each_row
@pytest.mark.parametrize("prepared", [True, False], ids=["into a prepared one", "before prepare"])
def test_state_survives_a_checkpoint(row, prepared, tmp_path):
    batch = make_batch()
    objective = started(row.make(), batch)
    for _ in range(2):
        objective.update(objective.statistics(scores_of(batch)))
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    restored = row.make()
    if prepared:
        restored.prepare(FACTS)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    restored.prepare(FACTS)
    assert not restored.needs_seed()
    expected = reference_head(*batch.inputs(), objective).losses
    assert torch.equal(reference_head(*batch.inputs(), restored).losses, expected)
    restored.update(restored.statistics(scores_of(batch)))
    objective.update(objective.statistics(scores_of(batch)))
    assert restored.logged() == objective.logged()
    for key, value in objective.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value)


@each_row
def test_half_precision_leaves_the_state_alone(row):
    batch = make_batch()
    objective = started(row.make(), batch)
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    objective.to(torch.bfloat16)
    for key, value in objective.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, state[key])
