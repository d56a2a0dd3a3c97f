"""When a run was long enough to speak of failure: every row shown, and others overtook or the loss has settled."""

import math
from itertools import accumulate

import pytest

from lightning_sft.metrics.run_length import RunLength, steepness


def course(rates: list[float], fall: float = 0.0) -> dict[str, tuple[float, ...]]:
    """Readings before each step and after the last, of a loss that falls with the rate, ever less by ``fall``."""
    spent = (0.0, *accumulate(rates))
    return {"spent": spent, "losses": tuple(5 - t if fall == 0 else 5 - (1 - math.exp(-fall * t)) for t in spent)}


LINEAR = [1 - i / 20 for i in range(20)]
CONSTANT = [1.0] * 20


@pytest.mark.parametrize("rates", [LINEAR, CONSTANT], ids=["linear", "constant"])
def test_a_loss_has_settled_by_what_it_learned_and_not_by_its_schedule(rates: list[float]) -> None:
    assert "still falls at 100%" in RunLength(20, 2.0, **course(rates)).too_short(0.0, 0.1)
    assert RunLength(20, 2.0, **course(rates, fall=0.5)).too_short(0.0, 0.1) == ""
    by_steps = steepness(range(21), course(LINEAR)["losses"])
    assert by_steps < 0.5, "over steps, the end of a schedule looks as if the loss had settled"


def test_others_that_overtook_show_that_there_was_time() -> None:
    straight = RunLength(20, 2.0, **course(CONSTANT))
    assert straight.too_short(0.1, 0.1) != ""
    assert straight.too_short(0.11, 0.1) == ""


def test_every_row_must_have_been_shown() -> None:
    assert RunLength(6, 0.99).too_short(1.0, 0.1) == "not every training row has been shown yet"
    assert RunLength(6, 1.0).too_short(1.0, 0.1) == ""
    assert RunLength(6, math.nan).too_short(1.0, 0.1) == "", "where their number is not known, others tell"


def test_three_passes_are_enough_by_themselves() -> None:
    assert RunLength(20, 2.99, **course(LINEAR)).too_short(0.0, 0.1) != ""
    assert RunLength(20, 3.0, **course(LINEAR)).too_short(0.0, 0.1) == "", "a rate that is too low fails silently"


def test_two_readings_alone_do_not_show_that_a_loss_settled() -> None:
    assert RunLength(6, 1.0, (0.0, 1.0), (5.0, 4.0)).too_short(0.0, 0.1) != ""
    assert RunLength(6, 1.0, (0.0, 1.0), (5.0, 5.0)).too_short(0.0, 0.1) == "", "nothing falls"
    assert RunLength(6, 1.0, (0.0, 0.0), (5.0, 4.0)).too_short(0.0, 0.1) == "", "nothing was learned at a rate of 0"


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (RunLength(6, 0.75), "6 steps (0.75 epochs)"),
        (RunLength(1, 1.0), "1 step (1 epoch)"),
        (RunLength(1200), "1,200 steps"),
    ],
)
def test_it_says_how_far_a_run_has_come(length: RunLength, words: str) -> None:
    assert str(length) == words
