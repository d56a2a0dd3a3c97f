"""What answers are worth, against counting by hand; when they have collapsed, and which losses cannot be."""

from itertools import combinations
from math import log

import pytest
import torch

from lightning_sft.metrics.degeneration import AnswerHealth, LossTrend, implausible
from lightning_sft.metrics.generated import AnswerSums, repetition, unbiased_pass_at_k


def test_repetition_is_the_share_of_4_grams_that_were_there_before():
    assert repetition([1, 2, 3]) == repetition([]) == repetition([1, 2, 3, 4]) == 0
    assert repetition([1] * 13) == pytest.approx(9 / 10)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_one():
    for samples in range(1, 7):
        for right in range(samples + 1):
            for k in range(1, samples + 1):
                draws = list(combinations([True] * right + [False] * (samples - right), k))
                assert unbiased_pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_sums_of_ranks_add_up():
    both, first, second = (AnswerSums(2, pass_at=(1, 2)) for _ in range(3))
    for sums in (both, first):
        sums.add(0, [1, 2, 3], stopped=True, score=1.0)
        sums.add_samples(0, [1.0, 0.0, None])
    for sums in (both, second):
        sums.add(1, [5] * 8, stopped=False, score=None)
        sums.add_samples(1, [None, None, None])
    assert torch.equal(first.sums + second.sums, both.sums)
    means = [both.means(part) for part in (*both.sums, both.sums.sum(0), torch.zeros_like(both.sums[0]))]
    assert means[0] == {
        "stop_share": 1,
        "answer_tokens": 3,
        "repetition": 0,
        "task_accuracy": 1,
        "sampled_pass_at_1": pytest.approx(1 / 3),
        "sampled_pass_at_2": pytest.approx(2 / 3),
    }
    assert means[1] == {"stop_share": 0, "answer_tokens": 8, "repetition": pytest.approx(4 / 5)}
    assert means[2]["answer_tokens"] == 5.5
    assert means[2]["task_accuracy"] == 1, "rows without a score count nothing in it"
    assert means[3] == {}


def reading(repetition: float = 0.0, stop_share: float = 1.0, answer_tokens: float = 5.0) -> dict[str, float]:
    return {"repetition": repetition, "stop_share": stop_share, "answer_tokens": answer_tokens}


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        (reading(repetition=0.6), "60% of their 4-grams are repeats (0% at best before)"),
        (reading(stop_share=0.25), "25% of them end by themselves (100% at best before)"),
        (reading(answer_tokens=0.2), "they have 0.2 tokens on average (5.0 at best before)"),
    ],
)
def test_a_collapse_is_told_once_until_it_is_over(worse, told):
    health = AnswerHealth()
    sure = {"entropy": 0.1, "vocabulary": 1000}
    assert health.complaints("val", reading(repetition=0.1), **sure) == []
    assert health.complaints("val", reading(), **sure) == []
    assert health.complaints("val/other", worse, **sure) == [], "a first reading has nothing to be compared with"
    assert health.complaints("val", worse, **sure) == [told]
    assert health.complaints("val", worse, **sure) == []
    assert health.complaints("val", reading(0.2, 0.6, 2.0), **sure) == []
    assert health.complaints("val", worse, **sure) == [told]


def test_guesses_are_no_standard():
    health = AnswerHealth()
    assert health.complaints("val", reading(), entropy=0.9 * log(1000), vocabulary=1000) == []
    assert health.complaints("val", reading(repetition=1.0), entropy=0.1, vocabulary=1000) == []


@pytest.mark.parametrize(
    ("nll", "entropy", "wrong"),
    [(0.0, None, "exactly 0"), (0.001, 1.0, "far below the 1 nats"), (0.03, 1.0, None), (0.0001, 0.01, None)],
)
def test_losses_that_cannot_be(nll, entropy, wrong):
    told = implausible(nll, entropy)
    assert told is None if wrong is None else wrong in told


def test_the_trend_compares_first_and_last_losses_and_resumes():
    trend = LossTrend()
    for i in range(20):
        trend.add(torch.tensor(2.0 * (20 - i)), 2)
    first, tokens, last, last_tokens = trend.sums("cpu").tolist()
    assert (first / tokens, last / last_tokens, tokens) == (sum(range(13, 21)) / 8, sum(range(1, 9)) / 8, 16)
    resumed = LossTrend()
    resumed.load_state_dict(trend.state_dict())
    assert resumed.sums("cpu").tolist() == [first, tokens, 0, 0]
