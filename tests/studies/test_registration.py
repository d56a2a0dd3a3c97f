"""What is registered: in one commit, never changed, before the cells that follow from its hash."""

import subprocess
from pathlib import Path

import pytest

from lightning_sft.compare.design import RunSpec
from lightning_sft.errors import UserError
from studies.cells import read_cells
from studies.command import Program
from studies.continuum.__main__ import PROGRAM as continuum
from studies.continuum.design import REGISTERED, SCRIPTS, STAGES, STUDY, plain
from studies.cure.__main__ import PROGRAM as cure
from studies.phantoms.__main__ import PROGRAM as phantoms
from studies.rates.__main__ import PROGRAM as rates
from studies.registration import FILE, has_history, history_faults, registered, seed_text, write_registration

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "docs/studies/data/continuum"


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *named, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "-q", "-m", name)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    try:
        git(tmp_path, "init", "-q")
    except OSError:
        pytest.skip("there is no git here")
    commit(tmp_path, "data/pilot/a.json", "pilot")
    return tmp_path


def register(repository: Path) -> Path:
    commit(repository, "script.py", "x = 1\n")
    write_registration(repository / "data" / FILE, {"study": "s"}, repository, ["script.py"])
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "Register")
    return repository / "data" / FILE


def test_the_commit_that_brings_the_file_is_found_whatever_comes_after(repository: Path) -> None:
    file = register(repository)
    brought = git(repository, "rev-parse", "HEAD")
    commit(repository, "data/confirmatory/b.json", "cell")
    found = registered(file, repository)
    assert found is not None
    assert found.commit == brought
    assert found.content["study"] == "s"
    assert found.changed(repository) == []
    pilot, later = repository / "data/pilot/a.json", repository / "data/confirmatory/b.json"
    assert history_faults(file, repository, [pilot], [later]) == []
    assert history_faults(file, repository, [later], [pilot]) == [
        f"data/confirmatory/b.json was not committed before {brought}",
        f"data/pilot/a.json was not committed after {brought}",
    ]


def test_a_cell_from_a_branch_that_does_not_know_the_registration_is_not_after_it(repository: Path) -> None:
    start = git(repository, "rev-parse", "HEAD")
    main = git(repository, "rev-parse", "--abbrev-ref", "HEAD")
    file = register(repository)
    git(repository, "checkout", "-q", "-b", "aside", start)
    commit(repository, "data/confirmatory/b.json", "cell")
    git(repository, "checkout", "-q", main)
    git(repository, "merge", "-q", "--no-edit", "aside")
    assert registered(file, repository) is not None, "a merge leaves what is registered as it is"
    assert len(history_faults(file, repository, [], [repository / "data/confirmatory/b.json"])) == 1


def test_a_cell_in_the_registering_commit_itself_comes_too_early(repository: Path) -> None:
    (repository / "data/confirmatory").mkdir()
    (repository / "data/confirmatory/b.json").write_text("cell")
    file = register(repository)
    assert len(history_faults(file, repository, [], [repository / "data/confirmatory/b.json"])) == 1


def test_nothing_registered(repository: Path) -> None:
    file = repository / "data" / FILE
    assert registered(file, repository) is None
    assert history_faults(file, repository, [], []) == []
    assert history_faults(file, repository, [], [repository / "x.json"]) != []


def test_a_file_that_is_not_committed_registers_nothing(repository: Path) -> None:
    write_registration(repository / "data" / FILE, {"study": "s"}, repository, [])
    with pytest.raises(UserError, match="is not committed"):
        registered(repository / "data" / FILE, repository)


@pytest.mark.parametrize("committed", [False, True])
def test_a_changed_registration_is_refused(repository: Path, committed: bool) -> None:
    file = register(repository)
    file.write_text(file.read_text().replace('"s"', '"t"'))
    if committed:
        git(repository, "commit", "-q", "-am", "Change")
    with pytest.raises(UserError, match=r"was changed after the commit .* git checkout"):
        registered(file, repository)


def test_a_changed_script_is_said(repository: Path) -> None:
    file = register(repository)
    (repository / "script.py").write_text("x = 2\n")
    found = registered(file, repository)
    assert found is not None
    assert found.changed(repository) == ["script.py"]


def test_what_is_registered_is_never_rewritten(repository: Path) -> None:
    with pytest.raises(UserError, match="never rewritten"):
        write_registration(register(repository), {"study": "other"}, repository, [])


def test_without_history_nothing_registered_can_be_run(tmp_path: Path) -> None:
    write_registration(tmp_path / FILE, {"study": "s"}, tmp_path, [])
    with pytest.raises(UserError, match="no full git checkout"):
        registered(tmp_path / FILE, tmp_path)


def test_a_shallow_clone_has_no_history(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    register(repository)
    clone = tmp_path_factory.mktemp("clone") / "c"
    git(repository, "clone", "-q", "--depth", "1", f"file://{repository}", str(clone))
    assert has_history(repository)
    assert not has_history(clone)


def test_the_registered_file_holds_all_that_decides(tmp_path: Path) -> None:
    write_registration(tmp_path / FILE, {**REGISTERED, "design": plain()}, ROOT, SCRIPTS)
    text = (tmp_path / FILE).read_text()
    assert text.count("analysis.py") == 1
    for script in SCRIPTS:
        assert (ROOT / script).is_file()
    for word in ("H1", "H2", "H3", "primary outcome", "decision rule", "Holm"):
        assert word in text


# ---------------------------------------------------------------------- this repository's own study


@pytest.mark.skipif(not (CELLS / FILE).exists(), reason="nothing is registered yet")
def test_confirmatory_seeds_follow_from_the_registering_commit() -> None:
    if not has_history(ROOT):
        pytest.skip("no full git checkout: the registering commit cannot be looked up")
    from lightning_sft.compare.design import Arm, Design

    registration = registered(CELLS / FILE, ROOT)
    assert registration is not None
    arms = (Arm("a", ""), Arm("b", ""))  # seeds do not depend on them
    for cell in read_cells(CELLS):
        if cell.kind == "level" or not STAGES[cell.stage].registered:
            assert cell.registered is None, cell.file
            continue
        assert cell.registered == registration.commit, cell.file
        design = Design("x", arms, seed=seed_text(STUDY, registration.commit))
        spec = RunSpec(cell.kind, cell.replicate, cell.arm, cell.rate)  # type: ignore[arg-type]
        assert cell.seed == design.draw(spec).seed, cell.file
        found = registration.content["rates found"].get(cell.block) if STAGES[cell.stage].rates_of else None
        assert found is None or cell.rate == found[cell.arm], cell.file


@pytest.mark.parametrize("program", [continuum, cure, phantoms, rates], ids=lambda program: program.name)
def test_history_shows_pilot_registration_and_cells_in_this_order(program: Program) -> None:
    if not has_history(ROOT):
        pytest.skip("no full git checkout: the order of commits cannot be looked up")
    cells = ROOT / "docs/studies/data" / program.name
    stages = {name: sorted((cells / name).glob("*.json")) for name in program.stages}
    later = [file for name, files in stages.items() if program.stages[name].registered for file in files]
    assert history_faults(cells / FILE, ROOT, stages["pilot"], later) == []
