"""Answers are found and judged as a loop over rows and tokens would do it."""

import math

import pytest
import torch

from lightning_sft.metrics.answers import answer_spans, pass_at_k, read_answers
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.scores import IGNORED, TokenScores

END = 9
ENDS = (END, 8)


def by_loop(labels, top1, logp):
    """(exact, sum of logp) of every complete answer, token by token."""
    found, tokens = [], iter(zip(top1, logp, strict=True))
    for row in labels.tolist():
        run: list | None = None
        for label in [*row[1:], IGNORED]:
            if label == IGNORED:
                if run is not None and run[2]:
                    found.append((run[0], run[1]))
                run = None
                continue
            hit, value = next(tokens)
            run = [True, 0.0, False] if run is None else run
            if not run[2]:
                run = [run[0] and hit, run[1] + value, label in ENDS]
    return found


def batch(seed, rows=4, length=20):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (rows, length), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = IGNORED
    count = int((labels[:, 1:] != IGNORED).sum())
    top1 = torch.rand(count, generator=generator) < 0.8
    return labels, top1, -torch.rand(count, generator=generator)


@pytest.mark.parametrize("seed", range(20))
def test_answers_are_those_of_a_loop(seed):
    labels, top1, logp = batch(seed)
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    reading = read_answers(TokenScores(logp, targets, is_top1=top1), answer_spans(labels, ENDS))
    expected = by_loop(labels, top1.tolist(), logp.tolist())
    assert reading.exact.tolist() == [exact for exact, _ in expected]
    assert reading.logp.tolist() == pytest.approx([total for _, total in expected], rel=1e-6)


def test_what_stands_behind_the_end_is_not_judged_and_cut_answers_are_no_items():
    labels = torch.tensor([[IGNORED, 1, 2, END, 3, IGNORED], [IGNORED, 1, 2, 3, 4, 5]])
    top1 = torch.tensor([True, True, True, False, *[False] * 5])
    scores = TokenScores(torch.full((9,), -1.0), labels[:, 1:][labels[:, 1:] != IGNORED], is_top1=top1)
    reading = read_answers(scores, answer_spans(labels, ENDS))
    assert reading.exact.tolist() == [True]
    assert reading.logp.tolist() == [-3.0]


def test_without_a_supervised_token_there_is_no_answer():
    labels = torch.full((2, 4), IGNORED)
    none = torch.zeros(0)
    reading = read_answers(TokenScores(none, none.long(), is_top1=none.bool()), answer_spans(labels, ENDS))
    assert len(reading.exact) == 0


@pytest.mark.parametrize(("p", "k"), [(0.3, 1), (0.3, 4), (1.0, 3), (0.0, 3), (1e-12, 10)])
def test_pass_at_k(p, k):
    expected = 1 - (1 - p) ** k if p > 1e-6 else k * p
    assert pass_at_k(torch.tensor(p, dtype=torch.float64), k).item() == pytest.approx(expected, rel=1e-9)


def test_sets_are_averaged_apart_and_pooled_by_tokens():
    sets = SetAverages([0, 0, 1, 2], pooled=[0, 2], pass_at=[2])
    rows = {}
    for seed in range(6):
        labels, top1, logp = batch(seed)
        source = torch.full_like(top1, seed % 4, dtype=torch.int64)
        scores = TokenScores(logp, torch.zeros_like(source), source=source, is_top1=top1)
        answers = read_answers(scores, answer_spans(labels, ENDS))
        sets.update(2 * -logp, scores, answers)
        entry = rows.setdefault((0, 0, 1, 2)[seed % 4], ([], [], []))
        entry[0].extend(logp.tolist())
        entry[1].extend(top1.tolist())
        entry[2].extend(by_loop(labels, top1.tolist(), logp.tolist()))
    pooled, single = sets.compute()

    def expected(*parts):
        logp, top1, items = ([value for part in parts for value in part[i]] for i in range(3))
        mean = sum(logp) / len(logp)
        ps = [math.exp(total) for _, total in items]
        return {
            "loss": -2 * mean,
            "nll": -mean,
            "perplexity": math.exp(-mean),
            "token_accuracy": sum(top1) / len(top1),
            "mean_p": sum(map(math.exp, logp)) / len(logp),
            "exact_match": sum(exact for exact, _ in items) / len(items),
            "pass_at_1": sum(ps) / len(ps),
            "pass_at_2": sum(1 - (1 - p) ** 2 for p in ps) / len(ps),
        }

    for i, averages in enumerate(single):
        assert {k: float(v) for k, v in averages.items()} == pytest.approx(expected(rows[i]), rel=1e-6)
    assert {k: float(v) for k, v in pooled.items()} == pytest.approx(expected(rows[0], rows[2]), rel=1e-6)


def test_an_unread_set_says_nothing_and_an_empty_pool_says_nan():
    sets = SetAverages([0, 1])
    none = torch.zeros(0)
    sets.update(none, TokenScores(none, none.long(), is_top1=none.bool()))
    pooled, single = sets.compute()
    assert single == [{}, {}]
    assert math.isnan(pooled["nll"])
    assert "exact_match" not in pooled
