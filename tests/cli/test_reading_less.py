"""What a run of a comparison's search leaves out, and when it leaves out nothing."""

from typing import Any

import pytest
from lightning.pytorch import Callback

from lightning_sft.cli.compare.reading_less import reading_less

OURS, THEIRS = "lightning_sft.callbacks.", "lightning.pytorch.callbacks."


def content(*callbacks: str, model: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    named = [{"class_path": path, "init_args": {}} for path in callbacks]
    settings = {"max_steps": 20, "val_check_interval": 7, "num_sanity_val_steps": -1, **trainer}
    return {"model": {"objective": "NLL", **(model or {})}, "data": {}, "trainer": {**settings, "callbacks": named}}


def names(given: dict[str, Any]) -> list[str]:
    return [callback["class_path"].rpartition(".")[2] for callback in given["trainer"]["callbacks"]]


def test_it_is_validated_once_without_instruments() -> None:
    given = content(f"{OURS}DriftMonitor", f"{THEIRS}LearningRateMonitor", f"{OURS}GenerationMonitor")
    less = reading_less(given, instruments=False)
    assert less["trainer"]["num_sanity_val_steps"] == 0
    assert less["trainer"]["check_val_every_n_epoch"] > 10**5
    assert names(less) == ["LearningRateMonitor", "CapabilityProbe", "GenerationMonitor", "SilentFailureMonitor"]
    off = [callback["init_args"] for callback in less["trainer"]["callbacks"][1:]]
    assert off == [{"enabled": False}, {"samples": 0, "limit": 0}, {"enabled": False}]
    assert less["trainer"]["max_steps"] == 20
    assert names(given) == ["DriftMonitor", "LearningRateMonitor", "GenerationMonitor"], "what was given stays"


class Watcher(Callback):
    """A user's own callback that changes nothing."""

    only_reads = True


def test_a_callback_that_says_it_only_reads_is_an_instrument() -> None:
    given = content(f"{__name__}.Watcher", f"{THEIRS}LearningRateMonitor")
    assert names(reading_less(given, instruments=False))[0] == "LearningRateMonitor"
    assert names(reading_less(given, instruments=True)) == ["Watcher", "LearningRateMonitor"]
    assert reading_less(given, instruments=True)["trainer"]["num_sanity_val_steps"] == 0


def test_a_set_that_is_read_now_and_then_is_read_at_the_one_validation() -> None:
    val = {"judged": {"sources": ["a.jsonl"], "every": 4}, "curve": "b.jsonl"}
    less = reading_less({**content(), "data": {"val": val}}, instruments=False)
    assert less["data"]["val"] == {"judged": {"sources": ["a.jsonl"], "every": 1}, "curve": "b.jsonl"}
    assert val["judged"] == {"sources": ["a.jsonl"], "every": 4}, "what was given stays"


def test_instruments_stay_where_one_of_them_selects() -> None:
    less = reading_less(content(f"{OURS}DriftMonitor"), instruments=True)
    assert names(less) == ["DriftMonitor"]
    assert less["trainer"]["num_sanity_val_steps"] == 0


def test_the_probe_by_which_an_objective_is_picked_stays() -> None:
    probe = f"{OURS}CapabilityProbe"
    assert names(reading_less(content(probe, model={"objective": "auto"}), instruments=False))[0] == "CapabilityProbe"


@pytest.mark.parametrize(
    "given",
    [
        content(f"{THEIRS}EarlyStopping"),
        content(f"{OURS}BestCheckpoint"),
        content("my_project.Watcher", f"{OURS}DriftMonitor"),
        content(max_time="00:01:00:00"),
        content(model={"lr_scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"}}),
        {**content(), "model": {"class_path": "my_project.Module", "init_args": {}}},
        {**content(), "data": {"class_path": "my_project.Data", "init_args": {}}},
    ],
    ids=["early stopping", "best checkpoint", "a stranger", "wall time", "plateau", "a module", "a data module"],
)
def test_what_acts_on_validations_keeps_all_of_them(given: dict[str, Any]) -> None:
    assert reading_less(given, instruments=False) == given
