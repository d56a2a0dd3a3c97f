"""The list of settings that ships is what the parsers say."""

from dataclasses import replace

import pytest

from lightning_sft.cli.front.help import SCREEN
from lightning_sft.cli.front.listing import from_json, listing
from lightning_sft.cli.front.names import CLASSES, OPTIONS, SETTINGS
from lightning_sft.cli.front.words import LORA, WORDS
from lightning_sft.cli.listing import make_listing


def test_it_equals_the_parsers() -> None:
    made, shipped = make_listing(), listing()
    assert from_json(made.to_json()) == made
    hint = "run: python -m lightning_sft.cli.listing"
    assert made.settings.keys() == shipped.settings.keys(), hint
    assert made.verbs == shipped.verbs, hint
    same = {package for package, version in made.versions.items() if shipped.versions.get(package) == version}
    for base, classes in made.classes.items():
        ours = {name: c for name, c in classes.items() if c.package in same}
        theirs = {name: c for name, c in shipped.classes[base].items() if c.package in same}
        assert ours == theirs, hint
    if "lightning" in same:
        assert made.settings == shipped.settings, hint


@pytest.mark.parametrize("names", [WORDS, SETTINGS], ids=["short words", "names elsewhere"])
def test_names_lead_to_settings(names: dict[str, str]) -> None:
    known = listing()
    for key in names.values():
        above = key.rpartition(".")[0]
        options = {o for c in known.of_class(above).values() for o in c.options} if above in known.settings else set()
        assert key in known.settings or key == "output" or key.rpartition(".")[2] in options, key


def test_names_of_classes_and_options_exist() -> None:
    known = listing()
    for base, names in CLASSES.items():
        assert set(names.values()) <= known.classes[base].keys()
    for base, names in OPTIONS.items():
        options = {option for c in known.classes[base].values() for option in c.options}
        assert set(names.values()) <= options, base
    assert LORA.keys() <= set(known.classes["PeftConfig"]["LoraConfig"].options)


def test_the_screen_shows_settings() -> None:
    shown = [key for keys in SCREEN.values() for key in keys]
    assert len(shown) == len(set(shown))
    assert 40 <= len(shown) <= 50
    for key in shown:
        assert key in listing().settings or key in ("output", "report", "model.optimizer.lr"), key


def test_another_version_of_a_library_is_not_judged() -> None:
    known = listing()
    lora = known.classes["PeftConfig"]["LoraConfig"]
    assert known.is_exact(lora) == (known.versions["peft"] == __import__("peft").__version__)
    assert not replace(known, versions={**known.versions, "peft": "0.0.1"}).is_exact(lora)
