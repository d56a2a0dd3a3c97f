"""Stages on a toy model: checkpoints, missing cells, what is refused, two runs side by side, the cell run again."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.compare.design import Arm, Design, RunSpec
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.files import write_text
from studies import study as study_module
from studies.again import compared
from studies.cells import processor, read_cells, write_cell
from studies.command import rates_found
from studies.continuum import small
from studies.continuum.design import FIRST, SAMPLED, SCORE, SECOND, STAGES, Block
from studies.continuum.runs import Study
from studies.side_by_side import run_missing
from tests.studies.worlds import result

KEYS = (SCORE, SAMPLED)
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"steps": 4, "look": 2, "rows": 4, "judged": 20, "curve": 8, "levels": 64, "most": 200, "probe": 20,
         "rate": 3e-3, "targets": {"weak": 0.05, "strong": 0.1}}  # fmt: skip
STAGE = replace(
    STAGES["pilot"], blocks=(Block("initials", "weak", True),), search=RateSearch(1e-4, 1e-2, 3, 0, 0), generated=4
)


def at_rate(design: Design, spec: RunSpec) -> RunResult:
    """A run that would be best at 1e-3."""
    assert spec.rate is not None
    exact = 0.5 if spec.rate == pytest.approx(1e-3) else 0.1
    return replace(result(exact + 0.1 * (spec.arm == SECOND)), digest=design.digest_of(spec), key=spec.key)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Runs that are only pretended, and which were asked for."""
    asked: list[RunSpec] = []

    def run(design: Design, spec: RunSpec, folder: Path) -> RunResult:
        asked.append(spec)
        return at_rate(design, spec)

    monkeypatch.setattr(study_module, "run_apart", run)
    return asked


@pytest.fixture
def study(toy_folder: Path, tmp_path: Path) -> Study:
    return Study(ROOT, tmp_path / "cells", tmp_path / "work", str(toy_folder), lambda line: None, SMALL)


def test_a_stage_from_its_checkpoint_to_its_cells(study: Study, pretended: list[RunSpec]) -> None:
    study.run_stage(STAGE)
    cells = read_cells(study.cells)
    (level,) = [c for c in cells if c.kind == "level"]
    assert level.run.readings["val/mean_p"] >= 0.05
    assert 0 < level.run.readings["p at 10%"] < 1
    assert level.run.steps > 0
    assert study.checkpoint("initials", "weak").is_dir()
    searched = {(c.arm, c.rate) for c in cells if c.kind == "search"}
    assert len(searched) == 6, "equal trials"
    judged = [c for c in cells if c.kind == "judged"]
    assert {(c.arm, c.replicate) for c in judged} == {(arm, r) for arm in (FIRST, SECOND) for r in (0, 1)}
    assert {c.rate for c in judged} == {1e-3}, "each arm at the rate that the search found"
    assert {c.seed for c in judged if c.replicate == 0} != {c.seed for c in judged if c.replicate == 1}
    assert not {c.seed for c in judged} & {c.seed for c in cells if c.kind == "search"}
    assert all(c.facts["model"] == level.facts["model"] for c in judged)
    assert str(study.work) not in str(judged[0].settings), "no folder of this machine"
    assert judged[0].processor

    pretended.clear()
    study.run_stage(STAGE)
    assert not pretended, "all is there"
    gone = next(study.cells.rglob("*judged1*"))
    gone.unlink()
    study.run_stage(STAGE)
    assert len(pretended) == 1
    assert gone.exists(), "only what is missing is run"

    _judged_at_the_rates_of(study, pretended)
    _refusals(study, pretended)
    _run_again(study)


def _judged_at_the_rates_of(study: Study, pretended: list[RunSpec]) -> None:
    """A registered stage judges at the rates that the pilot found, by seeds of its own, and searches nothing."""
    pretended.clear()
    later = replace(STAGE, name="confirmatory", registered=True, rates_of="pilot", replicates=3)
    study.run_stage(later, "c0ffee")
    assert {spec.kind for spec in pretended} == {"judged"}
    assert {spec.rate for spec in pretended} == {1e-3}
    assert len(pretended) == 2 * 3
    cells = read_cells(study.cells)
    seeds = [{c.seed for c in cells if c.stage == stage and c.kind == "judged"} for stage in ("pilot", "confirmatory")]
    assert not seeds[0] & seeds[1]
    assert rates_found(cells) == {STAGE.blocks[0].name: {FIRST: 1e-3, SECOND: 1e-3}}
    for cell in cells:
        if cell.stage == "confirmatory" or (cell.kind == "judged" and cell.arm == SECOND):
            (study.cells / cell.file).unlink()
    with pytest.raises(UserError, match=r"takes the rates of .* from the stage 'pilot', which is not complete"):
        study.run_stage(later, "c0ffee")
    study.run_stage(STAGE)


def _refusals(study: Study, pretended: list[RunSpec]) -> None:
    """Cells that others may not stand beside."""
    pretended.clear()
    (judged, *_) = [c for c in read_cells(study.cells) if c.kind == "judged"]
    path = study.cells / judged.file
    other = next(p for p in study.cells.rglob("*judged*") if p != path)
    kept, content = path.read_text(), other.read_text()
    for changed, message in (
        (replace(judged, seed=1), "was run with the seed 1"),
        (replace(judged, settings={**judged.settings, "trainer": {}}), r"other settings .* trainer\.accelerator was"),
        (replace(judged, facts={**judged.facts, "package code": "old"}), "2 versions of the package"),
    ):
        path.unlink()
        write_cell(study.cells, changed)
        other.unlink()  # so that something is missing
        with pytest.raises(UserError, match=message):
            study.run_stage(STAGE)
        write_text(path, kept)
        write_text(other, content)
    # a checkpoint that is another one than the cells stand on
    other.unlink()
    card = study.checkpoint("initials", "weak") / "README.md"
    before = card.read_text()
    card.write_text("edited")
    with pytest.raises(UserError, match="Runs from both would stand in one table"):
        study.run_stage(STAGE)
    card.write_text(before)
    write_text(other, content)
    assert not pretended


def _run_again(study: Study) -> None:
    """The named cell, from a checkpoint that is made anew elsewhere."""
    told: list[str] = []
    work = study.work.with_name("again")
    same = small.run_small(ROOT, study.cells, work, study.model, told.append, SMALL)
    assert same
    assert "reproduced to the digits printed" in told[-1]
    assert (work / "levels/initials, weak").is_dir()


def test_a_run_again_that_differs_is_said() -> None:
    from tests.studies.worlds import cell

    stored = cell("pilot", small.BLOCK.name, FIRST, 0, 0.5)
    lines, same = compared(replace(stored, processor=processor()), result(0.5001), [0.5, 0.6], KEYS)
    assert not same
    assert "NOT reproduced" in lines[-1]
    lines, same = compared(stored, result(0.56), [0.5, 0.6], KEYS)
    assert same
    assert "on another processor" in lines[-1]
    assert not compared(stored, result(0.0), [0.5, 0.501, 0.502], KEYS)[1]


def test_no_cell_to_run_again(study: Study) -> None:
    told: list[str] = []
    assert small.run_small(ROOT, study.cells, study.work, study.model, told.append) is None
    assert "none to run again" in told[0]


def test_a_registered_stage_needs_its_commit(study: Study) -> None:
    with pytest.raises(UserError, match="takes its seeds from the commit that registers it"):
        study.run_stage(STAGES["confirmatory"])


def test_a_missing_model_package_is_named(study: Study) -> None:
    study.model = "pkg://no_such_package/model.gguf"
    with pytest.raises(UserError, match="no_such_package"):
        study.run_stage(STAGE)
    assert not read_cells(study.cells)


def test_a_model_that_starts_above_the_level_is_refused(study: Study) -> None:
    study.small = {**SMALL, "targets": {"weak": 0.0001}}
    with pytest.raises(UserError, match=r"starts at a mean p of 0\.00\d, and the level is 0\.0001"):
        study.ensure_level("initials", "weak")


def test_the_way_to_a_level_goes_over_those_below(study: Study) -> None:
    study.small = {**SMALL, "targets": {"weak": 0.05, "middle": 0.08, "strong": 0.1}}
    study.ensure_level("initials", "strong")
    found = {c.block: c for c in read_cells(study.cells)}
    assert list(found) == ["initials, middle", "initials, strong", "initials, weak"]
    assert found["initials, strong"].facts["start"] == "initials, middle"
    assert found["initials, weak"].facts["start"] == study.model.rpartition("/")[2]


def test_every_registered_design_is_one_that_compare_takes(study: Study) -> None:
    """All arms of all stages parse, and pairs share seeds over blocks."""
    seeds = set()
    for name in ("confirmatory", "exploratory", "rules"):
        stage = STAGES[name]
        design = study.design(stage, stage.blocks[0], "c0ffee")
        assert design.arms[0].name == FIRST
        assert sorted(arm.name for arm in design.arms) == sorted(stage.arms)
        seeds.add(design.draw(RunSpec("judged", 3, stage.arms[0], 1e-5)).seed)
    assert len(seeds) == 1


# ---------------------------------------------------------------------- two at a time


def designed(names: str) -> dict[str, Design]:
    arms = (Arm(FIRST, "a: 1"), Arm(SECOND, "a: 2"))
    search = RateSearch(1e-4, 1e-2, 3, 0, 0)
    return {name: Design(name, arms, 2, search=search, select=SCORE) for name in names}


def kept_runs(designs: dict[str, Design], run: Callable[[str, RunSpec], RunResult], **known: Any) -> list[str]:
    kept: list[str] = []
    results: Any = {**known}
    try:
        run_missing(designs, results, run, lambda name, spec, _: kept.append(f"{name} {spec.key}"))
    except BaseException as error:
        error.kept = kept  # type: ignore[attr-defined]
        raise
    return kept


def test_two_runs_side_by_side_and_each_once() -> None:
    designs, lock, now, most = designed("ab"), threading.Lock(), 0, 0

    def run(name: str, spec: RunSpec) -> RunResult:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return at_rate(designs[name], spec)

    kept = kept_runs(designs, run)
    assert most == 2
    assert len(kept) == len(set(kept)) == 2 * (6 + 4)


def test_a_run_that_fails_stops_the_study_and_loses_nothing_else() -> None:
    designs = designed("a")

    def run(name: str, spec: RunSpec) -> RunResult:
        if spec.rate == pytest.approx(1e-3) and spec.arm == SECOND:
            return RunResult("", spec.key, "failed", error="no memory")
        return at_rate(designs[name], spec)

    with pytest.raises(UserError, match=r"search 0 PowerFamily\(1\) 0.001: no memory") as caught:
        kept_runs(designs, run)
    assert 3 <= len(caught.value.kept) <= 5  # type: ignore[attr-defined]


def test_a_signal_finishes_what_is_under_way() -> None:
    designs, before = designed("a"), signal.getsignal(signal.SIGTERM)

    def run(name: str, spec: RunSpec) -> RunResult:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return at_rate(designs[name], spec)

    with pytest.raises(SystemExit) as stop:
        kept_runs(designs, run)
    assert stop.value.code == 128 + signal.SIGTERM
    assert 1 <= len(stop.value.kept) <= 2  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_real_runs_of_a_toy_in_processes_of_their_own(study: Study) -> None:
    study.run_stage(STAGE)
    judged = [c for c in read_cells(study.cells) if c.kind == "judged"]
    assert len(judged) == 4
    for cell in judged:
        readings = cell.run.readings
        assert readings["val/task_accuracy"] == readings["val/curve/exact_match"] == 0.0
        assert readings["control/pass_at_1_as_is"] == pytest.approx(readings["val/judged/pass_at_1"], rel=1e-4)
        assert readings["control/pass_at_1"] > 0
        assert [p.step for p in cell.run.curve] == [2, 4]
        assert cell.run.tokens > 0
