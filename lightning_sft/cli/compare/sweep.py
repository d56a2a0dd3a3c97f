"""`lightning sweep`: workers of a shared comparison, and how far it is."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lightning_sft.cli.compare.finish import finish, quiet, say, told_when_stopped
from lightning_sft.cli.front.needs import missing
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.usage import VerbParser
from lightning_sft.compare.design import Design
from lightning_sft.compare.work import work
from lightning_sft.errors import UserError

ABOUT = """\
  lightning sweep worker --storage journal:/shared/compare.log     run what is missing, beside other workers
  lightning sweep status --storage journal:/shared/compare.log     what is done, by whom, and the time left
  lightning sweep critical --config critical_lr.yaml --storage journal:/shared/lr.log --workers 3
                                                                   one of 3 that bracket a critical rate

`lightning compare ... --storage URL` begins a comparison, and is a worker of it itself. `lightning sweep critical`
takes the settings of `lightning fit`, and ends when the CriticalLearningRateFinder among its callbacks is done."""

#: the addresses of a storage, for the help of its option
STORAGES = (
    "journal:FILE (in a folder that all workers see), sqlite:///FILE (on one machine) or "
    "postgresql+psycopg2://user@host/name (anywhere)"
)


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser("sweep", "{worker,status,critical} [--storage URL] [--KEY VALUE ...]", ABOUT)
    add = made.add_argument
    add(
        "what",
        nargs="?",
        choices=("worker", "status", "critical"),
        help="take part, see how far it is, or search for a critical rate",
    )
    add("--storage", help=f"where the runs are shared out, which worker and status must be given: {STORAGES}")
    add("--name", help="name of the comparison or the search. Default: compare, or what the search's settings say")
    where = "folder in which this worker keeps its files. Default: comparisons, or what the search's settings say"
    add("--output", "--folder", dest="folder", type=Path, help=where)
    add("--isolate", action="store_true", help="of worker: run each in a process of its own")
    add("--workers", type=int, help="of critical: how many workers share the search. Default: 1")
    add_timing(made)
    return made


def add_timing(made: argparse.ArgumentParser) -> None:
    """Add the options of a shared storage."""
    add = made.add_argument
    add(
        "--beat",
        type=float,
        default=15.0,
        help="with --storage: seconds between a worker's signs of life; after five times as long without one, another "
        "worker takes its job",
    )
    add(
        "--patience",
        type=float,
        default=120.0,
        help="with --storage: seconds for which to try again where it cannot be reached",
    )


def main(arguments: list[str]) -> None:
    """Run a worker or a search, or print the status."""
    made = parser()
    asked, rest = made.parse_known_args(arguments)
    require_options("sweep", asked)
    if asked.what == "critical":
        from lightning_sft.cli.compare.critical import search

        search(rest, asked)
        return
    asked.name = asked.name or "compare"
    asked.folder = asked.folder or Path("comparisons")
    if rest:
        made.error(f"unrecognized arguments: {' '.join(rest)}")
    if asked.what is None:
        raise UserError(missing("sweep", "a word that says what to do: worker, status or critical"))
    if not asked.storage:
        raise UserError(missing("sweep", "--storage, the address that the comparison was given"))
    if asked.what == "status":
        from lightning_sft.compare.status import status

        print(status(asked.storage, asked.patience))
        return
    work_on(asked, None)


def work_on(asked: argparse.Namespace, design: Design | None) -> None:
    """Take part in a shared comparison until nothing is left of it, then print what it found.

    Args:
        asked: storage, name, folder and so on.
        design: of a comparison to begin; None joins the one that is there.
    """
    with quiet():
        _work_on(asked, design)


def _work_on(asked: argparse.Namespace, design: Design | None) -> None:
    from lightning_sft.cli.compare.prepare import starts_ranks
    from lightning_sft.cli.compare.trial import runner
    from lightning_sft.compare.shared import SharedLedger
    from lightning_sft.compare.storage import require_storage

    if design is None:
        require_storage(asked.storage)
    folder = asked.folder / asked.name
    ledger = SharedLedger(
        asked.storage, asked.name, folder, beat=asked.beat, poll=min(5.0, asked.beat), patience=asked.patience
    )
    if design is None:
        design = ledger.join()
        require_same_here(design)
    else:
        ledger.begin(design)
    run = runner(design, folder / "work", apart=asked.isolate or starts_ranks(design))
    with told_when_stopped(design, ledger.results):
        plan = work(design, ledger, run, say)
    finish(design, plan, ledger.results(), folder, getattr(asked, "wish", None))


def require_same_here(design: Design) -> None:
    """Raise where this process would run another package, model, data or device than the comparison was begun with.

    Raises:
        UserError: says what differs, with both values.
    """
    from lightning_sft.cli.compare.identity import require_same
    from lightning_sft.cli.compare.prepare import facts_here

    with tempfile.TemporaryDirectory() as place:
        for arm in design.arms:
            file = Path(place) / "arm.yaml"
            file.write_text(arm.config, encoding="utf-8")
            require_same(facts_here(arm, file), arm.facts, arm.name)
