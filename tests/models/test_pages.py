"""The generated pages: every type and every tuner is on them, nothing ends in a traceback, and they are up to date."""

from pathlib import Path

import pytest

from tests.models.every_architecture import ADAPTERS, END, PAGE, START, examine_architecture, page, tuner_table
from tests.models.tuners import TUNERS
from tests.models.zoo import TYPES


def test_every_type_and_every_tuner_is_on_its_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert rows == TYPES
    assert "TRACEBACK" not in text
    table = ADAPTERS.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == TUNERS


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_page_of_architectures_is_that_of_the_installed_transformers() -> None:
    written = PAGE.read_text(encoding="utf-8").splitlines()
    made = page([examine_architecture(kind) for kind in TYPES]).splitlines()
    moved = [f"page: {old}\n now: {new}" for old, new in zip(written, made, strict=False) if old != new]
    assert not moved, "\n".join(["make architectures writes it anew", *moved])
    assert len(written) == len(made)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_of_adapters_is_that_of_the_installed_peft(tmp_path: Path) -> None:
    table = ADAPTERS.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert table.strip() == tuner_table(tmp_path).strip()
