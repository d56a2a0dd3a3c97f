"""`lightning compare`: arms at their own rates, over paired replicates, into one sentence and a table."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.compare.finish import finish, quiet, say, told_when_stopped
from lightning_sft.cli.compare.sweep import add_timing, work_on
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.usage import VerbParser
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.facts import why_unused
from lightning_sft.compare.ledger import RUNS, FolderLedger, read_results
from lightning_sft.compare.plan import Plan, Results, make_plan
from lightning_sft.compare.power import Resolution
from lightning_sft.compare.work import work
from lightning_sft.errors import UserError

ABOUT = """\
Every arm finds its own learning rate by as many trials as every other, on rows that are not judged. All are then
trained on the same replicates: a seed, with training rows and judged rows drawn afresh. All other options are settings
of `lightning fit`, the same for all arms.

  lightning compare mine.yaml --objectives "NLL,PowerFamily(1),EAFT" --trainer.max_steps 200
  lightning compare mine.yaml --arm full model.adapter=null --arm lora model.adapter=peft.LoraConfig

The same command again goes on where it was interrupted, and does nothing new when all is done."""


def parser() -> VerbParser:
    """Return the parser of our own options."""
    made = VerbParser(
        "compare", "[FILE.yaml ...] (--objectives NAMES | --arm NAME KEY=VALUE ...) [--KEY VALUE ...]", ABOUT
    )
    add = made.add_argument
    add("--objectives", help='arms by objective: "NLL,PowerFamily(1),EAFT"; the first is what others are compared with')
    add("--arm", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help="an arm by its settings; repeatable")
    add("--replicates", type=int, default=8, help="judged runs of each arm (8)")
    add(
        "--select", default="auto", help="log key that selects rates and is judged; KEY:max or KEY:min for unknown ones"
    )
    add("--low", type=float, default=1e-6, help="lowest rate of the first grid (1e-6)")
    add("--high", type=float, default=1e-2, help="highest (1e-2)")
    add("--points", type=int, default=5, help="rates of the first grid (5); 0: every arm keeps its configured rate")
    add("--refine", type=int, default=1, help="rounds of two further rates around each arm's best (1)")
    add("--grow", type=int, default=3, help="the most rates added at either end while a best is there (3)")
    add("--search_replicates", type=int, default=1, help="replicates that rates are selected on (1)")
    add("--seed", default="0", help="a text that all seeds follow from")
    add("--name", default="compare", help="of the comparison")
    add(
        "--output", "--folder", dest="folder", type=Path, default=Path("comparisons"), help="where comparisons are kept"
    )
    add("--storage", help="a shared queue for several workers: journal:FILE, sqlite:///FILE, postgresql://...")
    add("--retry_failed", action="store_true", help="try runs again that ended with an error")
    add("--isolate", action="store_true", help="a process of its own for each run")
    add("--power", action="store_true", help="say which difference the replicates resolve, and run nothing")
    add_timing(made)
    add("--wish", type=float, help="the difference you would act on, such as 0.02 (2 points)")
    add("--spread", type=float, help="with --power: the standard deviation of paired differences, if you know it")
    return made


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own options, and the settings of ``fit``."""
    asked, rest = parser().parse_known_args(list(arguments))
    require_options("compare", asked)
    if asked.storage and asked.retry_failed:
        raise UserError(
            "--retry_failed is for the runs of one folder: in a --storage other workers count them already. Begin a "
            "comparison of another --name there."
        )
    if not asked.name or "/" in asked.name:
        raise UserError(f"--name is {asked.name!r}. Allowed: a word; it names the comparison's folder.")
    return asked, rest


def main(arguments: list[str]) -> None:
    """Run a comparison, or what is missing of it, and print what it found."""
    asked, rest = parse(arguments)
    with quiet():
        _run(asked, rest)


def _run(asked: argparse.Namespace, rest: list[str]) -> None:
    from lightning_sft.cli.compare.prepare import make_design, starts_ranks
    from lightning_sft.cli.compare.trial import runner

    design = make_design(asked, rest)
    folder = asked.folder / asked.name
    if asked.power:
        print(resolution(design, read_results(folder / RUNS), asked.spread, asked.wish).text())
        return
    if asked.storage:
        work_on(asked, design)
        return
    with FolderLedger(folder, retry_failed=asked.retry_failed).opened() as ledger:
        for line in why_unused(design, ledger.results()):
            say(line)
        run = runner(design, folder / "work", apart=asked.isolate or starts_ranks(design))
        with told_when_stopped(design, ledger.results):
            plan = work(design, ledger, run, say)
        finish(design, plan, ledger.results(), folder, asked.wish)


def resolution(design: Design, results: Results, spread: float | None, wish: float | None) -> Resolution:
    """Return what a design resolves, by the spread that is given or that earlier runs have shown."""
    if spread is None:
        plan = make_plan(design, results)
        names = [arm.name for arm in design.arms]
        found = []
        for name in names[1:]:
            pairs = _pairs(design, plan, results, names[0], name)
            found += [statistics.stdev(pairs)] if len(pairs) > 1 else []
        spread = max(found, default=None)
    return Resolution(design.replicates, len(design.arms), spread, wish)


def _pairs(design: Design, plan: Plan, results: Results, first: str, other: str) -> list[float]:
    """Return the paired differences of replicates that have finished already."""
    if first not in plan.rates or other not in plan.rates:
        return []
    found = []
    for i in range(design.replicates):
        both = [results.get(design.digest_of(RunSpec("judged", i, a, plan.rates[a]))) for a in (other, first)]
        scores = [r.score(plan.score.key) for r in both if r is not None]
        found += [scores[0] - scores[1]] if len(scores) == 2 and all(map(math.isfinite, scores)) else []
    return found
