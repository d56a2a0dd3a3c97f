"""Numbers out of range are told before torch is imported, and the ranges are those that the classes hold."""

import inspect
import math

import pytest

from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.ranges import OPTIONS, SETTINGS, Range, out_of_range
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.training.schedules import warmup_length

MODEL = "--model.model_name_or_path=no/model"


def test_every_range_is_of_a_setting_that_takes_a_number() -> None:
    known = listing()
    for key in SETTINGS.keys() - {"model.optimizer.lr", "model.optimizer.weight_decay"}:
        assert {"int", "float"} & set(known.settings[key].takes), key
    for verb, ranges in OPTIONS.items():
        for name in ranges:
            assert {"int", "float"} & set(known.verbs[verb][name].takes), (verb, name)


@pytest.mark.parametrize("key", SETTINGS)
def test_a_number_out_of_range_is_refused_and_the_next_is_not(key: str) -> None:
    allowed = SETTINGS[key]
    step = 0.001 if allowed.most == 1 else 1
    low = allowed.least if allowed.above else allowed.least - step
    for number in [low] + ([] if math.isinf(allowed.most) else [allowed.most + step]):
        with pytest.raises(UserError, match=rf"{key} is {number:g}\. Allowed: "):
            check("fit", [MODEL, f"--{key}={number:g}"])
    inside = allowed.least + (step if allowed.above else 0)
    assert check("fit", [MODEL, f"--{key}={inside:g}"]) == []


@pytest.mark.parametrize("key", sorted(key for key in SETTINGS.keys() - {"data.val_split"} if key.startswith("data.")))
def test_the_data_module_holds_the_same_range(key: str) -> None:
    """A share that is held out is refused later, when the number of rows is known."""
    name, allowed = key.removeprefix("data."), SETTINGS[key]
    assert name in inspect.signature(SFTDataModule).parameters
    at = int(allowed.least) + allowed.above
    SFTDataModule(**{name: at})
    with pytest.raises(UserError, match=rf"data\.{name} is {at - 1}"):
        SFTDataModule(**{name: at - 1})


def test_the_warm_up_holds_the_same_ranges() -> None:
    for steps, ratio, fits in (
        (-1, 0.0, False),
        (0, 0.0, True),
        (None, -0.1, False),
        (None, 1.0, True),
        (None, 1.1, False),
    ):
        known = out_of_range("", steps, SETTINGS["model.warmup_steps"]) or out_of_range(
            "", ratio, SETTINGS["model.warmup_ratio"]
        )
        assert (known is None) == fits
        if fits:
            warmup_length(100, steps, ratio)
        else:
            with pytest.raises(UserError):
                warmup_length(100, steps, ratio)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (Range(1), "1 or more"),
        (Range(0, above=True), "above 0"),
        (Range(0, 1), "from 0 to 1"),
        (Range(0, 1, above=True, unit="a share"), "above 0, up to 1 (a share)"),
    ],
)
def test_a_range_is_said_in_words(allowed: Range, words: str) -> None:
    assert str(allowed) == words


@pytest.mark.parametrize("value", [True, "many", "null", None, "1_000", 7])
def test_what_is_no_number_out_of_range_passes(value: object) -> None:
    assert out_of_range("x", value, Range(1, 1000)) is None
