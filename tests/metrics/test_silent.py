"""Silent failure on any tokens: against a computation of its own, planted outcomes, and a calibrated model."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lightning_sft.metrics.exact_share import exact_interval
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.metrics.silent import (
    SilentReading,
    TokenReading,
    bootstrap_interval,
    failed_silently,
    read_silent,
    worst,
)
from lightning_sft.metrics.silent_verdict import judge


def random_readings(tokens=400, vocab=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(tokens, vocab, generator=generator, dtype=torch.float64) * 2
    now = before + torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    return before, now, targets


def test_a_reading_equals_a_loop_over_tokens_in_plain_python():
    before, now, targets = random_readings()
    count = dict.fromkeys(("outranked", "behind", "failed", "displaced", "unlearned", "flipped", "lost"), 0)
    expected = 0.0
    for was, row, target in zip(before.numpy(), now.numpy(), targets.tolist(), strict=True):
        p_was, p = (np.exp(z) / np.exp(z).sum() for z in (was, row))
        rivals = [[(q[k], -k) for k in range(len(q)) if k != target] for q in (p_was, p)]
        (lead_was, rival_was), (lead, rival) = (max(r) for r in rivals)
        expected += 1 - p.max()
        count["outranked"] += lead > p[target]
        count["behind"] += lead_was > p_was[target]
        count["flipped"] += lead_was > p_was[target] and lead <= p[target]
        count["lost"] += lead_was <= p_was[target] and lead > p[target]
        learned = math.log(p[target]) - math.log(p_was[target]) > 0.1
        stays = lead_was > p_was[target] and lead > p[target]
        count["failed"] += stays and learned and rival == rival_was
        count["displaced"] += stays and learned and rival != rival_was
        count["unlearned"] += stays and not learned
    readings = [TokenReading.of_logits(z, targets) for z in (before, now)]
    got = read_silent(readings[1], torch.arange(400) // 5, readings[0])
    n, behind = len(targets), count["behind"]
    assert (got.tokens, got.rows, got.behind) == (400, 80, behind)
    assert got.outranked == pytest.approx(count["outranked"] / n, abs=1e-12)
    assert got.expected == pytest.approx(expected / n, abs=1e-12)
    assert got.excess == pytest.approx((count["outranked"] - expected) / n, abs=1e-12)
    assert got.share == pytest.approx(count["failed"] / behind, abs=1e-12)
    assert got.displaced == pytest.approx(count["displaced"] / behind, abs=1e-12)
    assert got.unlearned == pytest.approx(count["unlearned"] / behind, abs=1e-12)
    assert got.flipped == pytest.approx(count["flipped"] / behind, abs=1e-12)
    assert got.share + got.displaced + got.unlearned + got.flipped == pytest.approx(1, abs=1e-12)
    assert min(count.values()) > 0
    assert (got.failed, got.still_behind) == (count["failed"], behind - count["flipped"])
    assert got.lost == pytest.approx(count["lost"] / (n - behind), abs=1e-12)
    logp = now.log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert got.nll == pytest.approx(-float(logp.mean()), abs=1e-12)
    assert torch.allclose(readings[1].top_logp, now.log_softmax(1).amax(1), atol=1e-12, rtol=0)


PLANTED = {  # margin and competitor at first and now, how far the loss fell
    "failed": (-2.0, 7, -1.0, 7, 0.5),
    "another competitor": (-2.0, 7, -1.0, 8, 0.5),
    "learned too little": (-2.0, 7, -1.9, 7, 0.05),
    "flipped": (-2.0, 7, 1.0, 7, 2.0),
    "flipped to a tie": (-2.0, 7, 0.0, 7, 1.0),
    "lost": (1.0, 7, -1.0, 8, -1.0),
    "ahead": (1.0, 7, 2.0, 7, 0.5),
}


def planted(names):
    rows = [PLANTED[name] for name in names]
    was, rival_was, margin, rival, fell = (torch.tensor(column) for column in zip(*rows, strict=True))
    logp = torch.full_like(was, -3.0)
    return TokenReading(logp, was, rival_was), TokenReading(logp + fell, margin, rival)


def test_each_outcome_counts_where_it_belongs():
    names = list(PLANTED) * 8
    before, now = planted(names)
    reading = read_silent(now, torch.arange(len(names)) // 7, before)
    assert (reading.share, reading.flipped, reading.lost) == (1 / 5, 2 / 5, 1 / 2)
    assert (reading.displaced, reading.unlearned) == (1 / 5, 1 / 5)
    assert reading.outranked == 4 / 7
    # the same in every row, of which a bootstrap makes a single point
    assert (reading.share_low, reading.share_high) == exact_interval(8, 40, 8)
    failed = failed_silently(before, now)
    assert [n for n, f in zip(names, failed.tolist(), strict=True) if f] == ["failed"] * 8
    assert read_silent(now, torch.arange(len(names)), before, min_fall=0.04).share == 2 / 5


def drawn_from_the_model(seed, rows=100):
    """Logits, and targets that are drawn from them: a calibrated model."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows * 10, 6, generator=generator, dtype=torch.float64) * 1.5
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, targets, torch.arange(rows * 10) // 10


def test_a_short_run_whose_loss_rose_says_so_and_no_interval_is_beyond_all_tokens() -> None:
    seen = {"tokens": 20, "rows": 8, "outranked": 1.0, "expected": 0.023, "excess": 0.977, "behind": 20}
    seen |= {
        "excess_low": 0.913,
        "excess_high": 1.042,
        "share": 0.0,
        "share_low": 0.0,
        "share_high": 0.2,
        "flipped": 0.0,
    }
    for nll, rose in ((92.08, True), (9.12, False), (8.0, False)):
        r = SilentReading(nll=nll, nll_before=9.07, **seen)
        verdict = judge(r, "training tokens", trained=True, length=RunLength(3, 0.2))
        assert (verdict.outcome, verdict.loss_rose) == ("too early", rose)
    assert "(95% interval of the difference +91.3 to +97.7)" in judge(r, "held-out tokens", trained=False).sentence


def test_a_calibrated_model_has_no_excess_and_a_surer_one_has():
    held = 0
    for seed in range(60):
        logits, targets, row = drawn_from_the_model(seed)
        calibrated = read_silent(TokenReading.of_logits(logits, targets), row)
        held += calibrated.excess_low <= 0 <= calibrated.excess_high
    assert 51 <= held <= 60  # 57 of 60 are to be expected
    assert calibrated.excess_high - calibrated.excess_low < 0.1
    assert math.isnan(calibrated.share)
    assert judge(calibrated, "held-out tokens", trained=False).outcome == "no failure"
    surer = read_silent(TokenReading.of_logits(logits * 2, targets), row)
    assert surer.excess_low > 0
    verdict = judge(surer, "held-out tokens", trained=False)
    assert verdict.outcome == "overconfident"
    assert f"{100 * surer.excess:.1f} percentage points more (95% interval of the difference +" in verdict.sentence
    modest = judge(read_silent(TokenReading.of_logits(logits / 2, targets), row), "held-out tokens", trained=False)
    assert modest.sentence.startswith("No sign of overconfidence: ")
    assert " percentage points fewer (95% interval of the difference -" in modest.sentence


def test_tokens_that_all_come_out_alike_are_judged_by_the_chance_of_it():
    """A model that is as unsure as it is wrong is not overconfident because none of its few guesses hit."""
    logits = torch.randn(45, 259, generator=torch.Generator().manual_seed(0)) / 10
    missed = read_silent(TokenReading.of_logits(logits, logits.argmin(1)), torch.arange(45) // 3)
    assert missed.outranked == 1
    assert 0 < missed.excess < 0.02
    assert missed.excess_low < 0
    assert judge(missed, "validation tokens", trained=False).outcome == "no failure"
    sure = read_silent(TokenReading.of_logits(logits * 100, logits.argmin(1)), torch.arange(45) // 3)
    assert judge(sure, "validation tokens", trained=False).outcome == "overconfident"


@pytest.mark.parametrize("hits", [0, 1, 2])
def test_a_guess_or_two_that_hit_make_an_unsure_model_no_surer(hits):
    """A bootstrap of tokens that nearly all missed is hardly wider than one of tokens that all did."""
    logits = torch.randn(45, 259, generator=torch.Generator().manual_seed(0)) / 10
    targets = logits.argmin(1)
    targets[:hits] = logits[:hits].argmax(1)
    reading = read_silent(TokenReading.of_logits(logits, targets), torch.arange(45) // 3)
    chance = 1.96 * math.sqrt(reading.expected * (1 - reading.expected) / 45)
    assert reading.excess_low <= reading.excess - 0.99 * chance
    assert reading.excess_high >= reading.excess + 0.99 * chance
    assert judge(reading, "validation tokens", trained=False).outcome == "no failure"


def test_the_interval_covers_the_true_ratio_and_comes_out_the_same_each_time():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        tokens = random.integers(1, 20, 60).astype(float)
        hits = random.binomial(tokens.astype(int), 0.3).astype(float)
        low, high = bootstrap_interval(hits, tokens)
        covered += low <= 0.3 <= high
    assert 51 <= covered <= 60
    assert bootstrap_interval(hits, tokens) == (low, high)
    assert all(math.isnan(bound) for bound in bootstrap_interval(hits[:7], tokens[:7]))
    none = np.zeros(50)
    assert bootstrap_interval(np.append(hits, none), np.append(tokens, none)) == (low, high)


def test_an_interval_has_a_width_where_all_tokens_came_out_alike():
    """Korn and Graubard's: Clopper and Pearson's of a token a row, and of fewer tokens where rows hold several."""
    alone = binomtest(3, 20).proportion_ci(0.95)
    assert exact_interval(3, 20, 20) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert exact_interval(0, 18, 8) == (0.0, pytest.approx(0.22696, abs=1e-5))  # 18 x (2.1098 / 2.3646)^2 = 14.33
    low, high = exact_interval(18, 18, 8)
    assert (1 - low, high) == (pytest.approx(0.22696, abs=1e-5), 1.0)
    row = torch.arange(18) % 8
    for outcome, share in (("flipped", 0.0), ("failed", 1.0)):
        before, now = planted([outcome] * 18)
        reading = read_silent(now, row, before)
        assert reading.share == share
        assert (reading.share_low, reading.share_high) == exact_interval(18 * share, 18, 8)
    before, now = planted(["flipped"] * 18)
    verdict = judge(read_silent(now, row, before), "training tokens", trained=True, more="train_rows, here 8")
    assert verdict.outcome == "undecided"
    assert verdict.sentence.startswith(
        "Undecided: nothing is behind any more, but 18 tokens are too few to rule out 10%. Watch more rows "
        "(train_rows, here 8). Of 18 training tokens"
    )
    assert "95% interval of the first share 0.0% to 22.7%, bound 10%." in verdict.sentence
    whole = judge(read_silent(now, row, before), "training tokens", trained=True, all_read="all training rows").sentence
    assert "too few to rule out 10%. These are all training rows. Of 18" in whole
    assert "atch more" not in whole, "there are no more"


def test_one_failure_is_no_surer_than_none():
    highs = []
    for failures in range(4):
        before, now = planted(["failed"] * failures + ["flipped"] * (60 - failures))
        highs.append(read_silent(now, torch.arange(60) % 8, before).share_high)
    assert highs == sorted(highs)
    assert highs[0] == pytest.approx(0.0823, abs=1e-4)


@pytest.mark.parametrize(("rows", "share"), [(8, 0.03), (8, 0.1), (16, 0.03), (32, 0.1)])
def test_a_failure_is_seldom_ruled_out_where_there_is_one(rows, share):
    """The upper bound, on which "no failure" rests, over draws in which tokens of a row are more alike than others."""
    random, outside, draws = np.random.default_rng(3), 0, 60
    place = torch.arange(rows * 5) // 5
    for _ in range(draws):
        chance = random.beta(4 * share, 4 * (1 - share), rows).repeat(5)
        before, now = planted(["failed" if hit else "flipped" for hit in random.random(rows * 5) < chance])
        outside += read_silent(now, place, before).share_high < share
    assert outside / draws <= 0.1  # of a bootstrap alone up to one in two


def test_scores_that_are_not_finite_are_no_success():
    before, now = planted(["flipped"] * 9)
    now.margin[3], now.logp[3] = math.nan, math.nan
    reading = read_silent(now, torch.arange(9), before)
    assert reading.scalars() == {}
    assert judge(reading, "training tokens", trained=True).outcome == "nothing to judge"
    assert not now.is_top1[3]


def test_verdicts_on_trained_tokens():
    row = torch.arange(40) // 2
    before, now = planted(["failed", "flipped"] * 20)
    failed = judge(read_silent(now, row, before), "training tokens", trained=True)
    assert failed.outcome == "silent failure"
    assert "50.0%" in failed.sentence
    before, now = planted(["flipped"] * 40)
    assert judge(read_silent(now, row, before), "training tokens", trained=True).outcome == "no failure"
    before, now = planted(["failed"] * 4 + ["flipped"] * 36)
    unsure = judge(read_silent(now, row, before), "training tokens", trained=True)
    assert unsure.outcome == "undecided"
    assert not unsure.failed
    before, now = planted(["ahead"] * 40)
    assert judge(read_silent(now, row, before), "training tokens", trained=True).outcome == "nothing to judge"
    before, now = planted(["failed"] * 6)
    assert judge(read_silent(now, row[:6], before), "training tokens", trained=True).outcome == "nothing to judge"
    alone = judge(read_silent(now, torch.zeros(6, dtype=torch.int64), before), "training tokens", trained=True)
    assert "6 tokens in the one row of this reading" in alone.sentence
    none = read_silent(now.at(torch.zeros(6, dtype=torch.bool)), row[:0])
    assert "there are none" in judge(none, "training tokens", trained=True).sentence


def test_a_third_word_in_the_competitor_s_place_is_no_success():
    """The loss fell far, every right token is behind another word than at the start, and none is the first choice."""
    row = torch.arange(80) // 2
    before, now = planted(["another competitor"] * 80)
    reading = read_silent(now, row, before)
    assert (reading.share, reading.displaced, reading.flipped) == (0, 1, 0)
    assert reading.share_high < 0.1
    verdict = judge(reading, "training tokens", trained=True)
    assert (verdict.outcome, verdict.failed) == ("still outranked", True)
    assert verdict.sentence.startswith(
        "Still outranked: the loss fell, but most right tokens that were behind at the start still are. Of 80 training "
        "tokens that were outranked at the start, 0.0% have a loss lower by more than 0.1 nats and are still behind "
        "the same competitor, 100.0% have such a loss and are behind another word than at the start, and 0.0% are the "
        "first choice now (mean NLL of all 80 tokens in the 40 rows of this reading 3.00 -> 2.50); 95% interval of the "
        "first share 0.0% to "
    )
    before, now = planted(["learned too little"] * 80)
    verdict = judge(read_silent(now, row, before), "training tokens", trained=True)
    assert verdict.outcome == "still outranked"
    assert "100.0% have no such loss and are still behind" in verdict.sentence
    assert "behind another word" not in verdict.sentence, "what became of none is left out"
    assert not verdict.loss_rose
    worse = TokenReading(before.logp - 1, before.margin, before.competitor)
    verdict = judge(read_silent(worse, row, before), "training tokens", trained=True)
    assert (verdict.outcome, verdict.loss_rose) == ("still outranked", True)
    assert verdict.sentence.startswith("Still outranked: the loss rose, and most right tokens")


@pytest.mark.parametrize(
    ("flipped", "outcome"), [(39, "still outranked"), (40, "no failure"), (80, "no failure"), (0, "still outranked")]
)
def test_no_failure_asks_for_half_of_the_tokens_to_have_overtaken(flipped, outcome):
    before, now = planted(["flipped"] * flipped + ["another competitor"] * (80 - flipped))
    verdict = judge(read_silent(now, torch.arange(80) // 2, before), "training tokens", trained=True)
    assert verdict.outcome == outcome
    assert ("are behind another word than at the start" in verdict.sentence) == (flipped < 80)


def test_the_rest_of_the_tokens_is_told_beside_no_failure():
    before, now = planted(
        ["flipped"] * 60 + ["another competitor"] * 12 + ["learned too little"] * 8 + ["lost", "ahead"]
    )
    verdict = judge(read_silent(now, torch.arange(82) // 2, before), "training tokens", trained=True)
    assert verdict.outcome == "no failure"
    assert (
        "15.0% have such a loss and are behind another word than at the start, 10.0% have no such loss and are still "
        "behind, and 75.0% are the first choice now"
    ) in verdict.sentence
    assert verdict.sentence.endswith("; of the first choices at the start, 50.0% are not any more.")


def test_tokens_still_outranked_in_a_run_whose_loss_still_falls_are_told_too_early():
    before, now = planted(["another competitor"] * 60 + ["flipped"] * 20)
    reading = read_silent(now, torch.arange(80) // 2, before)

    def outcome(length):
        return judge(reading, "training tokens", trained=True, length=length).outcome

    straight, settled = (5.0, 4.0, 3.0), (5.0, 3.1, 3.0)
    assert outcome(RunLength(6, 1.0, (0.0, 3.0, 6.0), straight)) == "too early", "though a quarter has overtaken"
    assert outcome(RunLength(6, 1.0, (0.0, 3.0, 6.0), settled)) == "still outranked"
    assert outcome(RunLength(18, 3.0, (0.0, 9.0, 18.0), straight)) == "still outranked"
    assert outcome(RunLength(6, 0.5)) == "too early"
    early = judge(reading, "training tokens", trained=True, length=RunLength(6, 0.5)).sentence
    assert "75.0% have such a loss and are behind another word" in early


def test_a_run_that_was_too_short_gets_no_verdict():
    row = torch.arange(40) // 2
    straight = RunLength(6, 1.0, (0.0, 3.0, 6.0), (5.0, 4.0, 3.0))
    for outcome in ("failed", "flipped"):
        before, now = planted([outcome] * 40)
        early = judge(read_silent(now, row, before), "training tokens", trained=True, length=RunLength(6, 1 / 3))
        assert early.outcome == "too early"
        assert not early.failed
        assert "every training row" in early.sentence
        assert "So far, after 6 steps (0.33 epochs), of 40 training tokens" in early.sentence
    before, now = planted(["failed"] * 40)
    failed = read_silent(now, row, before)
    assert judge(failed, "training tokens", trained=True, length=straight).outcome == "too early"
    settled = RunLength(6, 1.0, (0.0, 3.0, 6.0), (5.0, 3.1, 3.0))
    assert judge(failed, "training tokens", trained=True, length=settled).outcome == "silent failure"
    before, now = planted(["failed", "flipped"] * 20)
    mixed = read_silent(now, row, before)
    assert judge(mixed, "training tokens", trained=True, length=straight).outcome == "silent failure", "others did"
    assert judge(mixed, "validation tokens", trained=False, length=RunLength(6, 0.1)).outcome != "too early"


def test_the_worst_are_those_whose_competitor_leads_most_in_probability():
    before, now = planted(["failed", "flipped", "failed", "another competitor"])
    now.logp[:] = torch.tensor([-1.5, -0.1, -2.8, -1.0])
    now.margin[0], now.margin[2] = -1.4, -2.7  # p .22 and .91; .06 and .90
    assert worst(now, before).tolist() == [2, 0, 3], "behind the same competitor, or behind another one"
    assert worst(now, before, most=1).tolist() == [2]
    behind, now_behind = planted(["learned too little", "flipped", "lost"])
    assert worst(now_behind, behind).tolist() == []
    assert sorted(worst(now).tolist()) == [0, 2, 3]


def test_ties_belong_to_the_lowest_id_and_a_single_candidate_has_no_competitor():
    reading = TokenReading.of_logits(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), torch.tensor([2]))
    assert (reading.competitor.tolist(), reading.margin.tolist(), reading.is_top1.tolist()) == ([1], [0.0], [True])


def apart(plain, special, length=None):
    """The verdict on tokens with these outcomes, the second of which are special."""
    before, now = planted(plain + special)
    row = torch.arange(len(plain + special)) % 20
    is_plain = torch.arange(len(row)) < len(plain)
    words = read_silent(now.at(is_plain), row[is_plain], before.at(is_plain))
    return judge(read_silent(now, row, before), "training tokens", trained=True, plain=words, length=length)


THIRD, FLIPPED, FAILED = "another competitor", "flipped", "failed"


@pytest.mark.parametrize(
    ("plain", "special", "outcome", "leaves_out"),
    [
        ([THIRD] * 70 + [FLIPPED] * 30, [FLIPPED] * 100, "still outranked", True),  # 65% of all are first choices
        ([FLIPPED] * 100, [THIRD] * 100 + ["learned too little"] * 60, "no failure", True),  # 38% of all are
        ([FAILED] * 20 + [FLIPPED] * 80, [FLIPPED] * 200, "silent failure", True),  # 6.7% of all failed
        ([FLIPPED] * 100, [FAILED] * 60, "silent failure", False),  # the end of the answer is a token, too
        ([FAILED] * 5 + [FLIPPED] * 95, [FLIPPED] * 200, "undecided", True),
        ([FLIPPED] * 100, [FLIPPED] * 100, "no failure", False),
        (["ahead"] * 20, [FLIPPED] * 100, "nothing to judge", False),
        ([], [FLIPPED] * 100, "nothing to judge", False),
    ],
)
def test_special_tokens_carry_no_verdict_that_all_is_well(plain, special, outcome, leaves_out):
    verdict = apart(plain, special)
    assert (verdict.outcome, verdict.leaves_out) == (outcome, leaves_out), verdict.sentence
    assert ("special tokens left out, " in verdict.sentence.replace("left out. Of", "left out, Of")) >= leaves_out


def test_both_figures_are_told_where_special_tokens_change_them():
    told = apart([THIRD] * 70 + [FLIPPED] * 30, [FLIPPED] * 100)
    assert told.sentence.startswith(
        "Still outranked: the loss fell, but most right tokens that were behind at the start still are, special tokens "
        "left out. Of 100 training tokens that were outranked at the start, special tokens left out, 0.0% have a loss "
    )
    assert (
        "and 30.0% are the first choice now (mean NLL of all 100 that are not special in the 20 rows" in told.sentence
    )
    whole = (
        "; with special tokens, such as the end of an answer, 65.0% of 200 are the first choice now, and 0.0% have a"
    )
    assert whole in told.sentence
    assert "mean NLL of all 200 tokens" in told.sentence
    assert "mean NLL of all 200 tokens" not in told.without_loss
    assert "mean NLL of all 100 that are not special" in told.without_loss, "which no page says elsewhere"
    ends = apart([FLIPPED] * 100, [FAILED] * 60).sentence
    assert ends.startswith("Silent failure: of 160 training tokens that were outranked at the start, 37.5% have a loss")
    assert "; special tokens, such as the end of an answer, left out, 100.0% of 100 are the first choice now" in ends
    same = apart([FLIPPED] * 100, [FLIPPED] * 100).sentence
    assert "special" not in same, "they change nothing"
    alone = apart([], [FLIPPED] * 100).sentence
    assert "all 100 training tokens are special tokens, such as the end of an answer. Seen: of 100" in alone


def test_the_end_of_answers_gives_a_run_no_time():
    """What too short a run is, is told by the tokens that are judged."""
    short = RunLength(6, 1.0, (0.0, 3.0, 6.0), (5.0, 4.0, 3.0))
    assert apart([THIRD] * 70 + [FLIPPED] * 30, [FLIPPED] * 100, short).outcome == "too early"


def test_one_token_is_no_tokens():
    before, now = planted(["failed"])
    one = judge(read_silent(now, torch.zeros(1, dtype=torch.int64), before), "training tokens", trained=True).sentence
    assert "of 1 training token that was outranked at the start" in one
    assert "mean NLL of all 1 token in the one row" in one
