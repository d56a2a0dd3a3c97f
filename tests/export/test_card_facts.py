"""What a model card says of the run: passes over the data, counted as people count them."""

from typing import Any

import pytest

from lightning_sft.export.model_card import _epochs


def checkpoint(ready: int, done: int, ever: int, last: bool) -> dict[str, Any]:
    """A checkpoint of Lightning's: `ready` epochs begun, of the last of them `done` batches, of all of them `ever`."""
    progress = {"current": {"completed": done}, "total": {"completed": ever}, "is_last_batch": last}
    loop = {"epoch_progress": {"current": {"ready": ready}}, "epoch_loop.batch_progress": progress}
    return {"epoch": ready - 1, "loops": {"fit_loop": loop}}


@pytest.mark.parametrize(
    ("one", "epochs"),
    [
        (checkpoint(4, 19, 76, last=True), 4),
        (checkpoint(1, 19, 19, last=True), 1),
        (checkpoint(3, 10, 50, last=False), 2.5),
        (checkpoint(1, 5, 5, last=False), "less than 1"),
    ],
)
def test_passes_over_the_data_are_counted_from_one(one: dict[str, Any], epochs: object) -> None:
    assert _epochs(one) == {"epochs": epochs}


def test_a_checkpoint_without_loops_says_nothing_of_them() -> None:
    assert _epochs({"epoch": 3}) == {}
