"""Histories stay bounded, and jumps are found reading by reading as they are over the whole history."""

import math
import random
import statistics

import pytest

from lightning_sft.probes.history import JumpMeter, JumpSettings, ProbeHistory, find_jumps, kept_readings


def history(phi, shares=None, causes=None):
    n = len(phi)
    other = [[0.0] * n for _ in range(5)]
    p_c, p_s, loss, signal, drag = other
    return ProbeHistory(
        list(range(n)), p_c, p_s, loss, list(phi), signal, drag, shares or [None] * n, causes or [None] * n
    )


def test_changes_to_and_from_nan_are_no_jumps_and_do_not_hide_others():
    phi = [0.1 + 0.001 * i for i in range(6)] + [math.nan] * 5
    assert find_jumps(history(phi), JumpSettings()) == ()
    phi[3:6] = [0.6, 0.601, 0.602]
    assert [jump.step for jump in find_jumps(history(phi), JumpSettings())] == [3]


def test_a_jump_is_met_reading_by_reading():
    draw = random.Random(0)
    phi = [0.0]
    for i in range(300):
        phi.append(phi[-1] + draw.gauss(0, 0.004) + (0.5 if i % 60 == 30 else 0.0))
    phi[200] = math.nan
    settings, meter, growing = JumpSettings(), JumpMeter(), history(phi[:1])
    assert not meter.jumped(growing, settings)
    met = []
    for i in range(1, len(phi)):
        growing = history(phi[: i + 1])
        changes = [abs(b - a) for a, b in zip(growing.phi, growing.phi[1:], strict=False)]
        least = max(10 * statistics.median(c for c in changes if math.isfinite(c)), 0.02)
        assert meter.jumped(growing, settings) == (math.isfinite(changes[-1]) and changes[-1] > least)
        met += [i] if meter.jumped(growing, settings) else []
    assert met == [31, 91, 151, 211, 271]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
def test_first_and_last_reading_are_kept(count):
    kept = kept_readings(count)
    assert kept == sorted(set(kept))
    assert len(kept) <= count // 2 + 1
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


@pytest.mark.parametrize("at", [4, 5, 9])
def test_a_jump_survives_thinning_with_its_shares(at):
    phi = [0.001 * i for i in range(10)]
    phi[at:] = [value + 0.5 for value in phi[at:]]
    shares: list[float | None] = [None, *[0.0] * 9]
    causes: list[float | None] = [None, *[0.0] * 9]
    shares[at], causes[at] = 0.3, 0.4
    whole = history(phi, shares, causes)
    whole.thin()
    assert whole.step == [0, 2, 4, 6, 8, 9]
    (jump,) = find_jumps(whole, JumpSettings())
    assert (jump.geometry_share, jump.counterfactual_share, jump.phantom) == (0.3, 0.4, False)
    assert jump.step in (at, at + 1)
    assert {len(getattr(whole, name)) for name in ("phi", "loss", "signal", "geometry_share")} == {6}
