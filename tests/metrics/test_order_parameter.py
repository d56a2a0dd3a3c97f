"""Against matrices rho and A made of float64, as the definitions are written."""

import pytest
import torch

from lightning_sft.errors import UserError
from lightning_sft.metrics import order_parameter as op

DIM = 12


def make(seed=0, vocab=40, probes=5, dim=DIM, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    # a common offset, so that overlaps are large and not centred
    embeddings = torch.randn(vocab, dim, generator=g, dtype=torch.float64) + torch.randn(dim, generator=g).double()
    embeddings = embeddings * torch.rand(vocab, 1, generator=g, dtype=torch.float64).exp()
    logits = 4 * torch.randn(probes, vocab, generator=g, dtype=torch.float64)
    correct = torch.randperm(vocab, generator=g)[:probes]
    competitor = (correct + torch.randint(1, vocab, (probes,), generator=g)) % vocab
    return tuple(tensor.to(device) for tensor in (embeddings, logits.softmax(1), correct, competitor))


def naive(embeddings, p, c, s):
    """Phi, S, D and purity of one probe through dim x dim matrices."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    rho = sum(p[k] * torch.outer(unit[k], unit[k]) for k in range(len(unit)))
    a = torch.outer(unit[c], unit[c]) - torch.outer(unit[s], unit[s])
    torch.testing.assert_close(rho.trace(), torch.ones_like(rho[0, 0]))
    overlap = unit[c] @ unit[s]
    bulk = [k for k in range(len(unit)) if k not in (int(c), int(s))]
    drag = sum(p[k] * (unit[k] @ a @ unit[k]) for k in bulk)
    return (rho @ a).trace(), (p[c] - p[s]) * (1 - overlap**2), drag, (rho @ rho).trace(), overlap


@pytest.mark.parametrize("chunk", [7, 8192])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_forms_equal_the_matrices(monkeypatch, seed, center, chunk, device):
    monkeypatch.setattr(op, "CHUNK", chunk)
    embeddings, p, correct, competitor = make(seed, device=device)
    reading = op.order_parameter(p, geometry := op.answer_geometry(embeddings, correct, competitor, center=center))
    purity = op.purity(p, embeddings, center=center)
    rows = embeddings - embeddings.mean(0) if center else embeddings
    for i, (c, s) in enumerate(zip(correct, competitor, strict=True)):
        phi, signal, drag, square, overlap = naive(rows, p[i], c, s)
        got = torch.stack([reading.phi[i], reading.signal[i], reading.drag[i], purity[i], geometry.overlap[i]])
        torch.testing.assert_close(got, torch.stack([phi, signal, drag, square, overlap]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_identities_and_bounds(seed):
    embeddings, p, correct, competitor = make(seed, probes=8)
    geometry = op.answer_geometry(embeddings, correct, competitor)
    reading = op.order_parameter(p, geometry)
    p_c, p_s = (p.gather(1, ids[:, None])[:, 0] for ids in (correct, competitor))
    sine, slack = geometry.scale.sqrt(), 1e-12
    assert (geometry.weights.abs() <= sine[:, None] + slack).all()
    assert (reading.drag.abs() <= (1 - p_c - p_s) * sine + slack).all()
    assert (reading.phi.abs() <= sine + slack).all()
    assert (reading.scaled_phi.abs() <= 1 / sine + slack).all()
    torch.testing.assert_close(reading.phi, reading.signal + reading.drag, rtol=0, atol=1e-15)
    torch.testing.assert_close(reading.scaled_phi * geometry.scale, reading.phi, rtol=0, atol=1e-14)
    torch.testing.assert_close(reading.scaled_signal, p_c - p_s, rtol=0, atol=1e-15)
    swapped = op.order_parameter(p, op.answer_geometry(embeddings, competitor, correct))
    torch.testing.assert_close(swapped.phi, -reading.phi, rtol=0, atol=1e-14)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    overlaps = (unit @ unit.T).square()
    torch.testing.assert_close(op.purity(p, embeddings), (p @ overlaps * p).sum(1), rtol=0, atol=1e-12)


def test_a_fully_correct_prediction_has_scaled_phi_one():
    embeddings, p, correct, competitor = make()
    certain = torch.zeros_like(p).scatter(1, correct[:, None], 1.0)
    reading = op.order_parameter(certain, op.answer_geometry(embeddings, correct, competitor))
    torch.testing.assert_close(reading.scaled_phi, torch.ones_like(reading.phi))
    assert (reading.drag == 0).all()


def test_step_split_is_exact_and_says_which_side_moved():
    embeddings, before, correct, competitor = make(1)
    moved, after, _, _ = make(2)
    g0, g1 = (op.answer_geometry(e, correct, competitor) for e in (embeddings, moved))
    change = op.order_parameter(after, g1).phi - op.order_parameter(before, g0).phi
    split = op.step_split(before, g0, after, g1)
    torch.testing.assert_close(split.readout + split.geometry, change, rtol=0, atol=1e-12)
    a0, a1 = g0.weights, g1.weights
    torch.testing.assert_close(split.readout, ((after - before) * (a0 + a1) / 2).sum(1), rtol=0, atol=1e-12)
    still = op.step_split(before, g0, after, g0)
    assert (still.geometry == 0).all()
    assert (still.share() == 0).all()
    only_rows = op.step_split(before, g0, before, g1)
    assert (only_rows.readout == 0).all()
    assert (only_rows.share() == 1).all()
    assert (op.step_split(before, g0, before, g0).share() == 0).all()


def test_counterfactual_split_is_exact():
    before, after, kept = torch.tensor([0.1]), torch.tensor([0.5]), torch.tensor([0.2])
    split = op.counterfactual_split(before, after, kept)
    torch.testing.assert_close(split.hidden + split.embeddings, after - before)
    torch.testing.assert_close(split.share(), torch.tensor([0.75]))


def test_parallel_answers_are_refused_whatever_their_length_and_sign():
    embeddings, _, correct, competitor = make()
    for factor in (1.0, -3.0):
        embeddings[competitor[0]] = factor * embeddings[correct[0]]
        with pytest.raises(UserError, match=r"parallel.*another competitor"):
            op.answer_geometry(embeddings.float(), correct, competitor)


def test_zero_rows_are_refused_as_answers_and_weightless_elsewhere():
    embeddings, _, correct, competitor = make()
    padded = torch.cat([embeddings, torch.zeros(3, DIM, dtype=torch.float64)])
    geometry = op.answer_geometry(padded, correct, competitor)
    assert (geometry.weights[:, -3:] == 0).all()
    torch.testing.assert_close(geometry.weights[:, :-3], op.answer_geometry(embeddings, correct, competitor).weights)
    with pytest.raises(UserError, match=r"\[41\] are zero"):
        op.answer_geometry(padded, torch.tensor([41]), torch.tensor([0]))


def test_half_precision_rows_are_raised_chunk_by_chunk():
    embeddings, _, correct, competitor = make()
    low = embeddings.bfloat16()
    expected = op.answer_geometry(low.double(), correct, competitor)
    got = op.answer_geometry(low, correct, competitor)
    assert got.weights.dtype == torch.float32
    torch.testing.assert_close(got.weights.double(), expected.weights, rtol=0, atol=1e-6)


def test_metric_equals_the_average_of_readings_however_it_is_fed():
    embeddings, p, correct, competitor = make(probes=6)
    probe = torch.tensor([0, 1, 0, 1, 2, 2])
    metric = op.OrderParameter(num_probes=3, with_purity=True)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(p[part].log(), embeddings, correct[part], competitor[part], probe[part])
    expected = op.order_parameter(p, op.answer_geometry(embeddings, correct, competitor))._asdict()
    expected["purity"] = op.purity(p, embeddings)
    values = metric.compute()
    for name, column in expected.items():
        torch.testing.assert_close(values[name], column.mean(), rtol=0, atol=1e-12)
        means = torch.stack([column[probe == i].mean() for i in range(3)])
        torch.testing.assert_close(values[f"{name}_per_probe"], means, rtol=0, atol=1e-12)
    assert "purity" not in op.OrderParameter().fields


@pytest.mark.parametrize("center", [False, True])
def test_rows_of_zeros_weigh_nothing(center):
    torch.manual_seed(3)
    rows, hidden = torch.randn(60, 8, dtype=torch.float64) + 0.7, torch.randn(8, dtype=torch.float64)
    correct, competitor = torch.tensor([2]), torch.tensor([5])
    found = []
    for padding in (0, 20):
        padded = torch.cat([rows, torch.zeros(padding, 8, dtype=torch.float64)])
        p = torch.cat([(rows @ hidden).softmax(0), torch.zeros(padding, dtype=torch.float64)])[None]
        geometry = op.answer_geometry(padded, correct, competitor, center=center)
        found.append(torch.stack([*op.order_parameter(p, geometry), op.purity(p, padded, center=center)]))
    assert torch.allclose(*found, rtol=1e-12, atol=1e-14)


def test_a_zero_row_is_no_answer_under_center_either():
    rows = torch.randn(6, 3)
    rows[2] = 0
    with pytest.raises(UserError, match=r"\[2\] are zero"):
        op.answer_geometry(rows, torch.tensor([2]), torch.tensor([5]), center=True)


@pytest.mark.parametrize("vocabulary", [50, 152_000])
def test_probabilities_of_a_large_vocabulary_keep_their_digits(vocabulary):
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, vocabulary)
    expected = logits.double().softmax(1)
    partition = logits.logsumexp(1, keepdim=True)
    # half a unit in the last place of z - logsumexp and of logsumexp, and some of exp and of the sum
    eps = torch.finfo(torch.float32).eps
    bound = eps / 2 * float((logits - partition).abs().max() + partition.max()) + 4 * eps
    assert ((op.probabilities(logits).double() - expected).abs() / expected).max() < bound
