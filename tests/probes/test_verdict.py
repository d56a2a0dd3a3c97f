"""Verdicts on synthetic trajectories of each kind."""

import math

import pytest

from lightning_sft.probes.history import ProbeHistory, find_jumps
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import VerdictSettings, flip_step, judge
from lightning_sft.probes.verdict_report import as_text, verdict_row


def history(margins, losses, drags=None, shares=None, causes=None, every=1, scale=0.64):
    """Readings whose margins z_c - z_s and losses are given; S follows from them."""
    n = len(losses)
    p_c = [math.exp(-loss) for loss in losses]
    p_s = [p * math.exp(-m) for p, m in zip(p_c, margins, strict=True)]
    signal = [(c - s) * scale for c, s in zip(p_c, p_s, strict=True)]
    drag = drags or [0.01] * n
    return ProbeHistory(
        step=[i * every for i in range(n)],
        p_correct=p_c,
        p_competitor=p_s,
        loss=losses,
        phi=[s + d for s, d in zip(signal, drag, strict=True)],
        signal=signal,
        drag=drag,
        geometry_share=shares or [None, *[0.0] * (n - 1)],
        counterfactual_share=causes or [None] * n,
    )


def settling(n=40, start=4.0, end=1.0):
    return [end + (start - end) * math.exp(-i / 4) for i in range(n)]


def test_a_flip_is_the_first_reading_from_which_it_stays_above():
    margins = [-1.0, 0.5, -0.5, 0.2, 0.4, 0.6]
    verdict = judge(history(margins, [3.0, 2.5, 2.2, 1.9, 1.7, 1.5], every=10))
    assert (verdict.outcome, verdict.flip_step, verdict.title) == ("flipped", 30, "flipped at step 30")
    assert verdict.advice == ""


def test_a_flip_past_the_named_word_says_how_many_others_are_ahead():
    overtook = history([-1.0, 0.5], [3.0, 2.5], every=10)
    verdict = judge(overtook, rank=4.0)
    assert (verdict.outcome, verdict.others_ahead) == ("flipped", 3)
    assert verdict.title == "flipped at step 10, 3 other words ahead"
    assert verdict.reason.endswith("; ahead of the named word, but 3 other words are ahead of it")
    assert "train longer" in verdict.advice
    assert judge(overtook, rank=2.0).title == "flipped at step 10, 1 other word ahead"
    assert judge(history([0.5, 1.0], [2.9, 2.5]), rank=3.0).title == "never behind, 2 other words ahead"
    for rank in (1.0, None, math.nan):
        verdict = judge(overtook, rank=rank)
        assert (verdict.title, verdict.advice) == ("flipped at step 10", "")
    ranked = [(Probe("a", "x", "c"), 4.0), (Probe("a", "y", "c"), 2.0)]
    rows = [verdict_row(probe, overtook, judge(overtook, rank=rank)) for probe, rank in ranked]
    (line,) = [line for line in as_text(rows, frozen=False).splitlines() if line.startswith("What may help")]
    assert line.startswith("What may help against other words ahead: the right word is not")
    assert line.endswith(f"[{rows[0]['probe']}, {rows[1]['probe']}]"), "one line for all such probes"
    behind = judge(history([-1.0] * 40, settling()), rank=4.0)
    assert (behind.title, behind.others_ahead) == ("failed: kinematic", None)


def test_a_probe_that_began_ahead_was_never_behind():
    assert judge(history([0.5, 1.0], [0.9, 0.5])).outcome == "never behind"


def test_kinematic_the_loss_settles_above_ln_2_and_the_signal_stays_small():
    verdict = judge(history([-1.0] * 40, settling()))
    assert (verdict.outcome, verdict.modes) == ("failed", ("kinematic",))
    assert verdict.title == "failed: kinematic"
    assert "above ln 2" in verdict.reason
    assert "learning rate" in verdict.advice


def test_structural_the_drag_worsens_while_the_loss_falls_after_a_lead_was_lost():
    losses = settling(end=0.8)
    margins = [-1.0] + [1.5] * 20 + [-0.1] * 19
    verdict = judge(history(margins, losses, drags=[0.01 - 0.002 * i for i in range(40)]))
    assert (verdict.outcome, verdict.modes) == ("failed", ("structural",))
    assert "ahead for a while" in verdict.reason


def test_both_modes_can_hold():
    verdict = judge(history([-1.0] * 40, settling(), drags=[0.01 - 0.002 * i for i in range(40)]))
    assert verdict.modes == ("kinematic", "structural")
    assert verdict.title == "failed: kinematic and structural"
    assert "learning rate" in verdict.advice
    assert "bulk" in verdict.advice


def test_a_loss_still_falling_steeply_was_stopped_early():
    straight = [4.0 - 0.05 * i for i in range(20)]
    verdict = judge(history([-1.0] * 20, straight))
    assert (verdict.outcome, verdict.modes) == ("stopped early", ())
    assert "train longer" in verdict.advice


def test_a_falling_loss_has_failed_if_other_tokens_fell_below_it_long_ago():
    straight = [4.0 - 0.05 * i for i in range(20)]
    fast = [4.0 * math.exp(-i / 3) for i in range(20)]
    assert judge(history([-1.0] * 20, straight), [fast]).outcome == "failed"
    late = [4.0] * 18 + [1.0, 1.0]
    assert judge(history([-1.0] * 20, straight), [late]).outcome == "stopped early"
    always_low = [0.1] * 20
    assert judge(history([-1.0] * 20, straight), [always_low]).outcome == "stopped early"


def test_without_a_falling_loss_nothing_failed_silently():
    assert judge(history([-1.0] * 5, [2.0, 2.0, 2.1, 2.0, 1.99])).outcome == "loss did not fall"
    assert judge(history([-1.0], [2.0])).outcome == "loss did not fall"


def test_a_diverged_run_is_named():
    assert judge(history([-1.0] * 3, [2.0, 3.0, math.nan])).outcome == "diverged"


def test_a_run_that_broke_has_diverged_even_if_its_last_reading_is_finite():
    verdict = judge(history([-1.0] * 4, [2.0, math.nan, math.nan, 1.0]))
    assert (verdict.outcome, verdict.reason) == ("diverged", "loss nan at step 1")


def test_a_loss_that_rises_again_has_not_settled():
    verdict = judge(history([-1.0] * 11, [3.0, 2.0, 1.0, 0.5, 0.5, 0.6, 0.9, 1.2, 1.6, 2.0, 2.4]))
    assert verdict.outcome == "failed"
    assert "rose again after 0.50 at step 3" in verdict.reason
    assert "settled" not in verdict.reason


def test_thresholds_are_settings():
    verdict = judge(history([-1.0] * 40, settling()), settings=VerdictSettings(tau=-1.0))
    assert verdict.title == "failed: unclassified"


def jumping(share, cause):
    drags = [0.01 * (i % 2) for i in range(20)]  # ordinary changes of 0.01
    drags[12:] = [d + 0.5 for d in drags[12:]]
    shares, causes = [None, *[0.0] * 19], [None] * 20
    shares[12], causes[12] = share, cause
    return history([-1.0] * 20, [4.0] * 20, drags, shares, causes)


@pytest.mark.parametrize(
    ("share", "cause", "phantom"),
    [
        (0.0, None, None),  # the split alone cannot see rows that moved through the probabilities
        (0.04, 0.0, True),
        (0.3, 0.0, False),
        (0.0, 0.9, False),
        (0.3, None, False),
        (None, None, None),
    ],
)
def test_a_jump_is_phantom_only_if_neither_measure_blames_the_embeddings(share, cause, phantom):
    jumps = find_jumps(jumping(share, cause), VerdictSettings())
    assert [(j.step, j.phantom) for j in jumps] == [(12, phantom)]
    assert jumps[0].size == pytest.approx(0.49)


def test_small_or_ordinary_changes_are_no_jumps():
    assert find_jumps(jumping(0.0, None), VerdictSettings(jump_floor=0.6)) == ()
    assert find_jumps(jumping(0.0, None), VerdictSettings(jump_factor=100)) == ()
    assert find_jumps(history([-1.0], [2.0]), VerdictSettings()) == ()


def test_no_flip_without_an_end_above():
    assert flip_step(history([1.0, -1.0], [1.0, 1.0])) is None
    assert flip_step(ProbeHistory()) is None


def test_two_finished_models_show_no_steepness_and_stop_nothing_early():
    two = history([-1.0, -0.6], [3.0, 1.5], drags=[0.03, 0.01])
    assert judge(two).outcome == "stopped early"
    verdict = judge(two, finished=True)
    assert (verdict.outcome, verdict.modes) == ("failed", ("kinematic", "structural"))
    assert "training is over" in verdict.reason
