"""A line where the mean p and the NLL of the same tokens move in opposite directions."""

import pytest

from lightning_sft.report.opposite import why_opposite


@pytest.mark.parametrize(
    ("nll", "p", "says"),
    [
        (-1.0, -0.1, "x/mean_p fell although x/nll fell"),
        (1.0, 0.1, "x/mean_p rose although x/nll rose"),
        (-1.0, 0.1, None),
        (1.0, -0.1, None),
        (-1.0, -0.0001, None),
        (-0.0001, -0.1, None),
    ],
)
def test_only_opposite_directions_that_a_table_shows_are_explained(nll: float, p: float, says: str | None) -> None:
    told = why_opposite({"x/nll": 3.0, "x/mean_p": 0.5}, {"x/nll": 3.0 + nll, "x/mean_p": 0.5 + p}, "x/")
    assert (told is None) == (says is None)
    assert says is None or str(told).startswith(says)


def test_without_both_readings_nothing_is_said() -> None:
    assert why_opposite({"val/nll": 3.0}, {"val/nll": 1.0, "val/mean_p": 0.1}) is None
