"""Cells: what was written is read, what was edited, doubled or mixed is refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_sft.errors import UserError
from studies.cells import read_cells, require_one_version, write_cell
from tests.studies.worlds import cell, result


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = cell("pilot", "initials, weak, noisy", "PowerFamily(1)", 3, 0.123456789)
    path = write_cell(tmp_path, made)
    assert path == tmp_path / "pilot/initials-weak-noisy_PowerFamily-1_judged3_1e-05.json"
    assert read_cells(tmp_path) == [made]


def test_a_reading_that_is_no_number_stays_one(tmp_path: Path) -> None:
    write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.0, result=result(math.nan, "diverged").plain()))
    (found,) = read_cells(tmp_path)
    assert found.run.outcome == "diverged"
    assert math.isnan(found.run.readings["val/judged/exact_match"])


@pytest.mark.parametrize(("old", "new"), [('"exact_match": 0.25', '"exact_match": 0.75'), ('"seed": 7', '"seed": 8')])
def test_an_edited_cell_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.25))
    text = path.read_text().replace(old.replace("exact", "val/judged/exact"), new.replace("exact", "val/judged/exact"))
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(UserError, match=r"b_NLL_judged0_1e-05\.json was edited"):
        read_cells(tmp_path)


def test_an_edit_of_the_layout_alone_is_none(tmp_path: Path) -> None:
    path = write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.25))
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert len(read_cells(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x", "digest": "y"}'])
def test_what_is_no_cell_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot/x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json (is no cell|has the format)"):
        read_cells(tmp_path)


def test_two_cells_of_one_run_are_refused(tmp_path: Path) -> None:
    path = write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.25))
    path.with_name("copy.json").write_text(path.read_text())
    with pytest.raises(UserError, match="are cells of one run"):
        read_cells(tmp_path)


def test_a_cell_is_never_replaced(tmp_path: Path) -> None:
    write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.25))
    with pytest.raises(UserError, match="never replaced"):
        write_cell(tmp_path, cell("pilot", "b", "NLL", 0, 0.75))


def test_two_versions_in_one_stage_are_named() -> None:
    one, other = cell("pilot", "b", "NLL", 0, 0.2), cell("pilot", "b", "NLL", 1, 0.3)
    later = replace(other, facts={**other.facts, "package code": "def"})
    require_one_version([one, other])
    require_one_version([one, replace(later, stage="confirmatory")])  # stages stand for themselves
    require_one_version([replace(one, kind="level"), replace(later, kind="level")])  # and so do checkpoints
    with pytest.raises(UserError, match=r"2 versions.*abc \(as pilot/b_NLL_judged0.*def \(as pilot/b_NLL_judged1"):
        require_one_version([one, later])


def test_new_cells_of_another_version_may_not_stand_beside_old_ones() -> None:
    here = {"package version": "1.0", "package code": "def"}
    with pytest.raises(UserError, match=r"Check out the commit that they ran in \(c0ffee\)"):
        require_one_version([cell("pilot", "b", "NLL", 0, 0.2)], here)
    require_one_version([cell("pilot", "b", "NLL", 0, 0.2)], {**here, "package code": "abc"})
