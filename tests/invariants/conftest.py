"""What the runs of this folder share."""

from pathlib import Path

import pytest

from tests.running import write_rows
from tests.toys import save_toy


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and as many rows as the module's ``ROWS``."""
    place = tmp_path_factory.mktemp("place")
    save_toy(place / "toy", "gpt_neox")  # computes in float64 throughout
    write_rows(place / "rows.jsonl", request.module.ROWS)
    return place
