"""`lightning report`: one page about runs, from what they logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.usage import VerbParser
from lightning_sft.progress import SOON, waiting
from lightning_sft.report.page import write_report
from lightning_sft.report.run import open_runs

#: the page's name in the folder of the only run
PAGE = "report.html"


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser(
        "report",
        "RUN [RUN ...] [--output FILE]",
        "The page opens anywhere, without a network. RUN is a folder that `lightning fit` has made.",
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; several are compared on one page")
    made.add_argument(
        "--output",
        metavar="FILE",
        help=f"the page to write. Default: {PAGE} in the run's folder, or in the current folder for several runs",
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Write the page and say where it is.

    Raises:
        UserError: a folder that is no run, or a place that cannot be written to.
    """
    given = parser().parse_args(list(arguments))
    with waiting(f"Reading {', '.join(given.runs)} ...", after=SOON):
        runs = open_runs(given.runs)
        default = runs[0].folder / PAGE if len(runs) == 1 else Path(PAGE)
        written = write_report(runs, Path(given.output).expanduser() if given.output else default)
    print(f"Written to {written}")
