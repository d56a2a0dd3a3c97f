import math

import pytest
import torch

from lightning_sft.metrics.synonyms import SynonymRank, synonym_rank


@pytest.fixture
def rows(device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator, dtype=torch.float64) * 3
    correct, competitor = torch.tensor([3, 7, 7, 0, 49, 20]), torch.tensor([4, 1, 2, 49, 0, 21])
    return logits.to(device), correct.to(device), competitor.to(device)


def test_reading_equals_sorting(rows):
    logits, correct, competitor = rows
    reading = synonym_rank(*rows)
    for i in range(len(logits)):
        c, s = correct[i], competitor[i]
        order = logits[i].argsort(descending=True).tolist()
        p = logits[i].softmax(0)
        assert reading.rank[i] == order.index(c) + 1
        assert reading.reciprocal_rank[i] == 1 / reading.rank[i]
        assert bool(reading.flip[i]) == bool(p[c] > p[s])
        torch.testing.assert_close(reading.margin[i], (p[c] / p[s]).log(), rtol=0, atol=1e-10)
        torch.testing.assert_close(reading.loss[i], -p[c].log(), rtol=0, atol=1e-10)


def test_margin_and_probabilities_obey_the_tanh_identity(rows):
    logits, correct, competitor = rows
    p = logits.softmax(1)
    c, s = p.gather(1, correct[:, None])[:, 0], p.gather(1, competitor[:, None])[:, 0]
    torch.testing.assert_close(c - s, (c + s) * torch.tanh(synonym_rank(*rows).margin / 2), rtol=0, atol=1e-12)


def test_below_its_competitor_a_token_costs_at_least_ln_2(rows):
    reading = synonym_rank(*rows)
    assert (reading.loss[reading.flip == 0] >= math.log(2)).all()


def test_a_tie_is_no_flip_and_shares_the_better_rank():
    reading = synonym_rank(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([1]))
    assert reading.flip.tolist() == [0.0]
    assert reading.rank.tolist() == [1.0]


def test_half_precision_is_read_in_fp32(rows):
    logits, correct, competitor = rows
    assert synonym_rank(logits.bfloat16(), correct, competitor).loss.dtype == torch.float32


def test_metric_averages_all_rows_and_each_probe(rows):
    logits, correct, competitor = rows
    probe = torch.tensor([0, 1, 1, 2, 0, 2])
    metric = SynonymRank(num_probes=4)
    for part in (slice(0, 1), slice(1, 6)):
        metric.update(logits[part], correct[part], competitor[part], probe[part])
    values, reading = metric.compute(), synonym_rank(*rows)
    for name, column in reading._asdict().items():
        torch.testing.assert_close(values[name], column.mean(), rtol=0, atol=1e-12)
        means = torch.stack([column[probe == i].mean() for i in range(3)])
        torch.testing.assert_close(values[f"{name}_per_probe"][:3], means, rtol=0, atol=1e-12)
        assert values[f"{name}_per_probe"][3].isnan()


def test_merged_metrics_equal_one_over_all_rows(rows):
    """Sum states: what two ranks with unequal shares add up to is what one rank sees."""
    logits, correct, competitor = rows
    ranks = [SynonymRank(), SynonymRank()]
    ranks[0].update(logits[:1], correct[:1], competitor[:1])
    ranks[1].update(logits[1:], correct[1:], competitor[1:])
    for name in ranks[0]._defaults:
        setattr(ranks[0], name, getattr(ranks[0], name) + getattr(ranks[1], name))
    whole = SynonymRank()
    whole.update(logits, correct, competitor)
    for name, value in whole.compute().items():
        torch.testing.assert_close(ranks[0].compute()[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_predict_nothing(broken):
    logits = torch.zeros(2, 6)
    logits[0, 5] = broken
    reading = synonym_rank(logits, torch.tensor([3, 3]), torch.tensor([4, 4]))
    for name, values in reading._asdict().items():
        assert values[0].isnan(), name
        assert values[1].isfinite(), name


def test_a_masked_token_is_no_broken_row():
    logits = torch.tensor([[1.0, 0.0, -torch.inf]])
    assert synonym_rank(logits, torch.tensor([0]), torch.tensor([1])).rank.tolist() == [1.0]
