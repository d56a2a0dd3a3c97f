"""Comparisons that several workers share, on a journal and in SQLite, with workers that are killed."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.plan import Job, make_plan
from lightning_sft.compare.report import make_report
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.words import to_json_text
from lightning_sft.compare.work import work
from lightning_sft.errors import UserError
from tests.compare.worlds import Memory, design, world

optuna = pytest.importorskip("optuna", reason="the extra sweep")

from lightning_sft.compare.queue import JOB, RESULT  # noqa: E402
from lightning_sft.compare.shared import SharedLedger  # noqa: E402
from lightning_sft.compare.status import status  # noqa: E402
from lightning_sft.compare.storage import Leases, retried, shown  # noqa: E402

KINDS = ("journal:{0}/compare.log", "sqlite:///{0}/compare.db")


def quiet(line: str) -> None:
    """Say nothing."""


def ledger(url: str, folder: Path, **settings: Any) -> SharedLedger:
    return SharedLedger(url, "toy", folder, **{"beat": 0.4, "poll": 0.05, "patience": 5.0, **settings})


def expected() -> str:
    of, alone = design("A", "B"), Memory()
    return to_json_text(make_report(of, work(of, alone, world(of), quiet), alone.kept))


@contextmanager
def worker(url: str, folder: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.compare.shared_worker", url, str(folder), how]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def two_workers_one_killed(url: str, tmp_path: Path) -> None:
    with worker(url, tmp_path / "one", "begins") as one:
        seen = lines(one)
        assert next(seen).startswith("starts")
        with worker(url, tmp_path / "two", "joins") as two:
            other = lines(two)
            first = next(other)
            for line in seen:
                if line.startswith("starts judged"):  # the second run of a replicate may follow in its place
                    break
            one.send_signal(signal.SIGKILL)
            one.wait()
            told = [first, *other]
            assert two.wait(timeout=60) == 0
    assert told[-1] == "done\n"
    of, last = design("A", "B"), ledger(url, tmp_path / "three")
    assert last.join() == of
    plan = make_plan(of, last.results())
    assert not plan.jobs
    assert to_json_text(make_report(of, plan, last.results())) == expected()
    handed = Counter(key for trial in last._trials() for key in trial.user_attrs if key.startswith(RESULT))
    wanted = {RESULT + of.digest_of(spec) for spec in _specs(of, plan)}
    assert handed.keys() == wanted, "none is lost, and none is there that nobody wanted"
    said = status(url)
    assert "toy: 18 of 18 runs done." in said
    assert said.count(" runs") >= 3


def _specs(of: Any, plan: Any) -> list[RunSpec]:
    found = [RunSpec("judged", i, arm, rate) for arm, rate in plan.rates.items() for i in range(of.replicates)]
    return found + [RunSpec("search", 0, arm, rate) for arm, rates in plan.search.tried.items() for rate in rates]


@pytest.mark.parametrize("kind", KINDS, ids=["journal", "sqlite"])
def test_two_workers_of_which_one_is_killed_say_what_one_says(kind: str, tmp_path: Path) -> None:
    two_workers_one_killed(kind.format(tmp_path), tmp_path)


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this test's own, on a socket in its folder; as root, under its package's user."""
    pytest.importorskip("psycopg2", reason="the driver of PostgreSQL")
    programs = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), shutil.which("pg_ctl")]
    control = next((str(program) for program in programs if program), None)
    user = "postgres" if os.geteuid() == 0 else None
    if control is None or (user and user not in {entry.pw_name for entry in pwd.getpwall()}):
        pytest.skip("needs PostgreSQL's server programs, and its user where tests run as root")
    with tempfile.TemporaryDirectory() as place:
        if user:
            shutil.chown(place, user)
        start = ["-o", f"-k {place} -c listen_addresses=", "-l", f"{place}/log"]
        for what in (["initdb", "-o", "--auth=trust --username=tests"], ["start", "-w", *start]):
            subprocess.run([control, *what, "-s", "-D", f"{place}/data"], check=True, user=user, cwd=place)
        try:
            yield f"postgresql+psycopg2://tests@/postgres?host={place}"
        finally:
            stop = [control, "stop", "-m", "immediate", "-s", "-D", f"{place}/data"]
            subprocess.run(stop, check=True, user=user, cwd=place)


@pytest.mark.slow
def test_two_workers_in_postgresql(postgres: str, tmp_path: Path) -> None:
    two_workers_one_killed(postgres, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=["journal", "sqlite"])
def test_one_job_one_worker_and_an_interrupted_one_gives_it_back(kind: str, tmp_path: Path) -> None:
    url, of = kind.format(tmp_path), design("A", "B")
    one, two = (ledger(url, tmp_path / name) for name in ("one", "two"))
    one.begin(of)
    two.begin(of)
    jobs = make_plan(of, {}).jobs[:2]
    mine, other = one.claim(jobs), two.claim(jobs)
    assert mine is not None
    assert other is not None
    assert {mine.key, other.key} == {job.key for job in jobs}
    assert two.claim(jobs[:1]) is None, "nothing is left"
    one.leave(mine)
    assert two.claim(jobs[:1]) == mine
    run = world(of)
    result = run(mine.runs[0])
    two._mine.pop(other.key)
    two.keep(result)
    two.done(mine)
    assert one.results() == {result.digest: result}
    assert [t.user_attrs[JOB] for t in one._trials() if t.state.name == "COMPLETE"] == [mine.key]


def test_a_run_that_another_has_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    url, of = KINDS[0].format(tmp_path), design("A", "B")
    late, early = (ledger(url, tmp_path / name) for name in ("late", "early"))
    late.begin(of)
    early.join()
    run, done = world(of), []

    def counted(spec: RunSpec) -> RunResult:
        done.append(spec.key)
        return run(spec)

    claim, first = late.claim, True

    def slow_claim(jobs: Any) -> Any:
        nonlocal first
        if first:  # all is done between this worker's plan and its claim
            first = False
            work(of, early, counted, quiet)
        return claim(jobs)

    late.claim = slow_claim  # type: ignore[method-assign]
    work(of, late, counted, quiet)
    assert Counter(done).most_common(1)[0][1] == 1


def test_a_worker_that_was_taken_for_dead_still_hands_in(tmp_path: Path) -> None:
    url, of = KINDS[0].format(tmp_path), design("A", "B")
    slow, quick = (ledger(url, tmp_path / name) for name in ("slow", "quick"))
    slow.begin(of)
    quick.begin(of)
    job = slow.claim(make_plan(of, {}).jobs[:1])
    assert job is not None
    quick._give_up(slow._mine[job.key], job.key)
    assert quick.claim([job]) == job
    result = world(of)(job.runs[0])
    slow.keep(result)
    slow.done(job)
    assert quick.results() == {result.digest: result}


def test_what_could_not_be_handed_in_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, of = KINDS[0].format(tmp_path), design("A", "B")
    first = ledger(url, tmp_path / "one", patience=0.3)
    first.begin(of)
    run = world(of)

    def gone(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    def cut_off(spec: RunSpec) -> RunResult:
        monkeypatch.setattr(type(first._storage), "set_trial_user_attr", gone)
        monkeypatch.setattr(type(first._storage), "set_trial_state_values", gone)
        return run(spec)

    with pytest.raises(UserError, match=r"could not be reached for 0 s.*kept in .*one/runs; the same command hands"):
        work(of, first, cut_off, quiet)
    monkeypatch.undo()
    again = ledger(url, tmp_path / "one")
    again.begin(of)
    assert len(again.results()) == 1
    other = ledger(url, tmp_path / "two", beat=0.1)
    assert other.join() == of
    plan = work(of, other, run, quiet)
    assert to_json_text(make_report(of, plan, other.results())) == expected()


def test_another_comparison_of_the_same_name_is_refused(tmp_path: Path) -> None:
    url, of = KINDS[0].format(tmp_path), design("A", "B")
    ledger(url, tmp_path).begin(of)
    for change, named in (
        ({"replicates": 5}, "replicates"),
        ({"arms": (of.arms[0], replace(of.arms[1], config="other"))}, "settings of B"),
        (
            {"arms": (of.arms[0], replace(of.arms[1], facts={"model": "2"}))},
            r"the arm B \(model is 2 here and none there\)",
        ),
        ({"arms": (*of.arms, replace(of.arms[0], name="C"))}, "the arm C"),
        ({"arms": of.arms[::-1]}, "the order of its arms"),
    ):
        with pytest.raises(UserError, match=f"differs in {named}.*Give another --name"):
            ledger(url, tmp_path).begin(replace(of, **change))
    with pytest.raises(UserError, match="has no comparison 'other'; it has: toy"):
        SharedLedger(url, "other", tmp_path).join()


def test_addresses(tmp_path: Path) -> None:
    assert shown("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"
    with pytest.raises(UserError, match="Allowed: journal:FILE"):
        ledger("compare.db", tmp_path)
    with pytest.raises(UserError, match="no address of a database"):
        ledger("elephant://host/name", tmp_path)
    with pytest.raises(UserError, match="could not be reached for 0 s"):
        ledger(f"sqlite:///{tmp_path}/no/such/folder.db", tmp_path, patience=0.3)


@pytest.mark.parametrize("kind", KINDS, ids=["journal", "sqlite"])
def test_a_mistyped_storage_does_not_come_into_being(kind: str, tmp_path: Path) -> None:
    right, wrong = kind.format(tmp_path), kind.format(tmp_path).replace("compare.", "compar.")
    ledger(right, tmp_path / "work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"does not exist; did you mean 'compare\.(log|db)'\?"):
        status(wrong)
    with pytest.raises(UserError, match=r"the folder .*elsewhere does not exist, either"):
        status(wrong.replace("compar.", "elsewhere/compare."))
    assert sorted(tmp_path.rglob("*")) == before
    assert "There is no comparison and no search in" in status(right)


@pytest.mark.parametrize("kind", KINDS, ids=["journal", "sqlite"])
def test_a_file_that_is_no_storage_is_named(kind: str, tmp_path: Path) -> None:
    url = kind.format(tmp_path)
    file = Path(url.split(":", 1)[1].removeprefix("///"))
    file.write_text("Dear diary,\nnothing was compared today.\n" * 100)
    before = file.read_bytes()
    with pytest.raises(
        UserError, match=r"compare\.(log' is no journal of Optuna|db', which cannot be used: .*not a database)"
    ):
        status(url)
    assert file.read_bytes() == before


def test_defects_are_not_tried_again() -> None:
    def wrong() -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError):
        retried(wrong, "sqlite:///a.db", 60.0, "here")


def test_leases_expire_by_standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lightning_sft.compare.storage.time.monotonic", lambda: now)
    leases = Leases(10.0)
    assert not leases.expired(1, 5)
    now = 9.0
    assert not leases.expired(1, 6)
    now = 18.0
    assert not leases.expired(1, 6)
    now = 20.0
    assert leases.expired(1, 6)
    assert not leases.expired(2, 6)


def test_a_status_without_optuna_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    file = tmp_path / "there.log"
    with pytest.raises(UserError, match=r"there\.log"):
        status(f"journal:{file}")
    file.touch()
    with pytest.raises(UserError, match=r"--storage needs the package optuna"):
        status(f"journal:{file}")


def test_status_names_what_runs_and_what_failed(tmp_path: Path) -> None:
    url, of = KINDS[0].format(tmp_path), design("A", "B")
    own = ledger(url, tmp_path)
    own.begin(of)
    job = own.claim(make_plan(of, {}).jobs)
    assert isinstance(job, Job)
    spec = job.runs[0]
    own.keep(RunResult(of.digest_of(spec), spec.key, "failed", "UserError: no", wall_seconds=60.0))
    said = status(url)
    assert "toy: 1 of 18 runs done. About 17 min left for 1 worker." in said
    assert f"running: {job.key}, by " in said
    assert "failed: 1 run" in said
    own.leave(job)
    assert json.loads(own._study.user_attrs["design"])["name"] == "toy"
