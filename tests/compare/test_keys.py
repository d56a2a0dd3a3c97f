"""Log keys as scores: directions, bounds, columns."""

import pytest

from lightning_sft.compare.keys import columns, heading_of, score_of


@pytest.mark.parametrize(
    ("key", "higher", "bound", "share"),
    [
        ("val/exact_match", True, 0.0, True),
        ("val/pass_at_8", True, 0.0, True),
        ("val/mean_p", True, 0.0, True),
        ("val/stop_share", True, 0.0, True),
        ("silent/val/flipped", True, 0.0, True),
        ("silent/val/share", False, 1.0, True),
        ("silent/train/outranked", False, 1.0, True),
        ("capability/calibration_error", False, 1.0, True),
        ("drift/general/changed", False, 1.0, True),
        ("drift/general/kl", False, None, False),
        ("val/nll", False, None, False),
        ("val_accuracy", True, 0.0, True),
        ("my/score:max", True, None, False),
        ("val/nll:max", True, None, False),
    ],
)
def test_directions(key: str, higher: bool, bound: float | None, share: bool) -> None:
    score = score_of(key)
    assert (score.higher, score.bound, score.share) == (higher, bound, share)


def test_columns_are_the_ones_that_runs_have_in_a_fixed_order() -> None:
    keys = ["val/stop_share", "drift/general/kl", "val/nll", "silent/val/share", "silent/val/synonym/share", "val/loss"]
    keys += ["capability/calibration_error", "val/exact_match", "val/mean_p", "capability/mean_p_low"]
    assert columns(keys, "val/nll") == [
        "val/nll",
        "val/exact_match",
        "val/mean_p",
        "capability/calibration_error",
        "silent/val/share",
        "drift/general/kl",
        "val/stop_share",
    ]
    assert [heading_of(key) for key in ("silent/val/share", "drift/own/kl", "my/score")] == [
        "silent share (val)",
        "drift (own)",
        "my/score",
    ]


def test_differences_of_shares_are_points() -> None:
    share, plain = score_of("val/exact_match"), score_of("val/nll")
    assert (share.show(0.513), share.change(0.031), share.change(0.031, signed=False)) == ("51.3%", "+3.1", "3.1")
    assert (plain.show(1.5), plain.change(-0.25), plain.unit) == ("1.5000", "-0.2500", "nats of NLL")
    assert share.unit == "points of exact match"
    assert share.show(float("nan")) == share.change(None) == "-"
