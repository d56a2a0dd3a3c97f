"""The page: from cells alone, marked where they are missing, and what it shows is what the cells say."""

import os
import re
from pathlib import Path

import pytest

from lightning_sft.errors import UserError
from studies.cells import read_cells, write_cell
from studies.command import least_runs
from studies.continuum.__main__ import PROGRAM
from studies.continuum.design import FIRST, SECOND, STAGES
from studies.continuum.page import sentences, write_page
from studies.registration import FILE, Registration, has_history, registered
from studies.tables import NOT_RUN
from tests.studies.test_analysis import planted
from tests.studies.worlds import cell, simulated

ROOT = Path(__file__).resolve().parents[2]
MAIN = STAGES["confirmatory"]


def page_of(folder: Path, cells: list, registration: Registration | None = None) -> str:
    page = folder / "docs/studies/continuum.md"
    write_page(page, folder / "docs/assets/studies/continuum", cells, registration, ROOT)
    return page.read_text()


def section(text: str, heading: str) -> str:
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_a_page_without_cells_says_nothing_but_that(tmp_path: Path) -> None:
    text = page_of(tmp_path, [])
    assert "Of 24 paired comparisons that answer this, 0 have been run, so nothing is said here yet." in text
    assert "There is no figure yet" in text
    assert not list(tmp_path.rglob("*.svg"))
    for heading in ("Hypotheses", "Both arms", "Other exponents, thresholds and objectives", "What it costs"):
        body = section(text, heading)
        assert NOT_RUN in body
        assert not re.search(r"\| [+-]?\d+\.\d", body.replace(" .7", "").replace(" .05", "")), heading


def test_a_complete_page_says_what_the_cells_say(tmp_path: Path) -> None:
    cells = simulated(MAIN, planted, seed=1)
    text = page_of(tmp_path, cells, Registration("c0ffee", {"scripts": {}}))
    opening = text.split("\n\n")[2]
    assert opening.count("H") >= 3
    assert re.search(r"H1 is supported \(\+3\d\.\d \[\+3\d\.\d, \+3\d\.\d\]\)", opening)
    assert re.search(r"is -\d\d\.\d \[[^]]+\] at mean p 0\.05 under noise;", opening)
    assert re.search(r"\| noisy \| 3 of 3 \| 0\.\d\d ", section(text, "Where the sign changes"))
    assert "< 0.0001" in section(text, "Hypotheses")
    assert text.index("](../assets/studies/continuum/light.svg#only-light)") < text.index("## Hypotheses")
    figures = {p.name: p.read_text() for p in (tmp_path / "docs/assets").rglob("*.svg")}
    assert set(figures) == {"light.svg", "dark.svg"}
    assert "#2b333b" in figures["light.svg"]
    assert "#d5dbe1" in figures["dark.svg"]
    assert "supported" in section(text, "Hypotheses")
    assert "c0ffee" in section(text, "Design")
    assert "exploratory: 0 of" in section(text, "What did not come out, and what has not run")
    assert "400 (8 of 8)" in section(text, "What it costs")


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    cells = simulated(MAIN, planted, seed=1)
    for name in ("a", "b"):
        page_of(tmp_path / name, cells)
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(files) == 3
    assert all((tmp_path / "b" / name).read_bytes() == content for name, content in files.items())


def test_a_block_that_is_not_complete_is_marked_and_shows_no_number(tmp_path: Path) -> None:
    block = MAIN.blocks[0].name
    cells = [cell(MAIN.name, block, arm, r, 0.4321) for arm in (FIRST, SECOND) for r in range(3)]
    text = page_of(tmp_path, cells)
    (line,) = [line for line in text.splitlines() if line.startswith(f"| confirmatory | {block} ")]
    assert "3 of 8 run" in line
    assert "43.2" not in text
    assert not list(tmp_path.rglob("*.svg"))


def test_null_and_contrary_results_stay_on_the_page(tmp_path: Path) -> None:
    text = page_of(tmp_path, simulated(MAIN, lambda block, arm: 0.4, seed=3))
    ending = section(text, "What did not come out, and what has not run")
    assert all(f"- {name} is undecided" in ending for name in ("H1", "H2", "H3"))
    assert "H1 is undecided" in sentences(simulated(MAIN, lambda block, arm: 0.4, seed=3))[2]


def test_a_script_that_changed_after_it_was_registered_is_said(tmp_path: Path) -> None:
    registration = Registration("c0ffee", {"scripts": {"studies/continuum/analysis.py": "another digest"}})
    assert "**Changed since then: `studies/continuum/analysis.py`.**" in page_of(tmp_path, [], registration)


def test_cells_of_two_versions_make_no_page(tmp_path: Path) -> None:
    facts = {"package version": "2.0", "package code": "x"}
    cells = [cell("pilot", "b", FIRST, 0, 0.1), cell("pilot", "b", FIRST, 1, 0.1, facts=facts)]
    with pytest.raises(UserError, match="2 versions of the package"):
        page_of(tmp_path, cells)


# ---------------------------------------------------------------------- the program


def test_the_page_of_this_repository_is_what_its_cells_give(tmp_path: Path) -> None:
    cells = ROOT / "docs/studies/data/continuum"
    if (cells / FILE).exists() and not has_history(ROOT):
        pytest.skip("no full git checkout: the registering commit cannot be looked up")
    page = tmp_path / "docs/studies/continuum.md"
    figures = tmp_path / "docs/assets/studies/continuum"
    write_page(page, figures, read_cells(cells), registered(cells / FILE, ROOT), ROOT)
    assert page.read_text() == (ROOT / "docs/studies/continuum.md").read_text(), "run: python -m studies.continuum page"
    stored = sorted((ROOT / "docs/assets/studies/continuum").glob("*.svg"))
    assert [p.name for p in stored] == sorted(p.name for p in figures.glob("*.svg"))


def test_the_program_says_what_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_cell(tmp_path / "cells", cell("pilot", "b", FIRST, 0, 0.25))
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(SystemExit) as stop:
        PROGRAM.main(["page", f"--cells={tmp_path / 'cells'}", f"--page={tmp_path / 'docs/studies/page.md'}"])
    assert stop.value.code == 2
    assert "was edited" in capsys.readouterr().err


def test_status_says_what_is_left_and_how_long_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cell(tmp_path, cell("pilot", "b", FIRST, 0, 0.25))
    PROGRAM.main(["status", f"--cells={tmp_path}"])
    printed = capsys.readouterr().out
    assert "registered: nothing" in printed
    assert "pilot: 1 cells, at least 56 in all, 0.1 hours for the rest" in printed
    assert least_runs(MAIN) == 6 * 2 * (3 + 2 + 8)
    assert least_runs(MAIN, [block.name for block in STAGES["pilot"].blocks]) == 2 * (2 * (3 + 2) + 6 * 8)


def test_registered_stages_do_not_run_by_scripts_that_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies import command
    from studies.continuum.runs import Study

    monkeypatch.setattr(Study, "run_stage", lambda self, stage, commit, blocks: print(f"runs {stage.name}"))
    scripts = {"studies/continuum/design.py": "another digest"}
    monkeypatch.setattr(command, "registered", lambda *_: Registration("c0ffee", {"scripts": scripts}))
    with pytest.raises(SystemExit):
        PROGRAM.main(["run", f"--cells={tmp_path / 'cells'}", f"--page={tmp_path / 'docs/studies/page.md'}"])
    printed = capsys.readouterr()
    assert printed.out == "runs pilot\n"
    assert "studies/continuum/design.py changed after they were registered" in printed.err
    assert "c0ffee" in printed.err


def test_waiting_stages_are_named_and_start_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies.continuum.runs import Study

    monkeypatch.setattr(Study, "run_stage", lambda self, stage, commit, blocks: print(f"runs {stage.name}"))
    PROGRAM.main(["run", f"--cells={tmp_path / 'cells'}", f"--page={tmp_path / 'docs/studies/page.md'}"])
    printed = capsys.readouterr().out
    assert "runs pilot" in printed
    assert "runs confirmatory" not in printed
    assert "confirmatory: waits for the registering commit" in printed
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_one_block_of_a_stage_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies.continuum.runs import Study

    places = [f"--cells={tmp_path / 'cells'}", f"--page={tmp_path / 'docs/studies/page.md'}"]
    monkeypatch.setattr(Study, "run_stage", lambda self, stage, commit, blocks: print([block.name for block in blocks]))
    name = STAGES["pilot"].blocks[1].name
    PROGRAM.main(["stage", "--stage=pilot", f"--block={name}", *places])
    assert capsys.readouterr().out.startswith(f"['{name}']\n")
    for given, meant in ((["stage", "--stage=pilot", "--block=x"], f"{name}"), (["run", "--block=x"], "--stage NAME")):
        with pytest.raises(SystemExit):
            PROGRAM.main([*given, *places])
        assert meant in capsys.readouterr().err
