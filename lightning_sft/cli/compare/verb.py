"""`lightning compare`: arms at their own rates, over paired replicates, into one sentence and a table."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.compare.finish import finish, quiet, say, told_when_stopped
from lightning_sft.cli.compare.sweep import STORAGES, add_timing, work_on
from lightning_sft.cli.front.about import COMPARE
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.usage import VerbParser
from lightning_sft.cli.verbs import OWN_VERBS
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.facts import why_unused
from lightning_sft.compare.ledger import RUNS, FolderLedger, read_results
from lightning_sft.compare.plan import Plan, Results, make_plan
from lightning_sft.compare.power import Resolution
from lightning_sft.compare.work import work
from lightning_sft.errors import UserError


def parser() -> VerbParser:
    """Return the parser of our own options."""
    made = VerbParser("compare", OWN_VERBS["compare"].usage, COMPARE)
    add = made.add_argument
    add("--objectives", help='arms by objective, such as "NLL,PowerFamily(1)"; the first is what the others are '
        "compared with. Default: none, and --arm names the arms")  # fmt: skip
    add("--arm", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help="NAME KEY=VALUE ...: an arm by its "
        "name and settings of `lightning fit`; once for each arm. Default: none, and --objectives names the "
        "arms")  # fmt: skip
    add("--replicates", type=int, default=8, help="judged runs of each arm, 2 or more")
    add("--select", default="auto", help="log key by which learning rates are chosen and arms are judged. For a key of "
        "your own, KEY:max or KEY:min. auto takes val/exact_match for short answers, if a run gets one right; "
        "otherwise val/nll")  # fmt: skip
    add(
        "--points", type=int, default=5, help="learning rates of the first grid; 0: every arm keeps its configured rate"
    )
    add("--low", type=float, default=1e-6, help="lowest learning rate of the first grid")
    add("--high", type=float, default=1e-2, help="highest learning rate of the first grid")
    add("--grow", type=int, default=3, help="the most rates added at either end of the grid while a best rate is there")
    add("--refine", type=int, default=1, help="rounds in which each arm tries two more rates around its best")
    add("--search_replicates", type=int, default=1, help="replicates on which learning rates are chosen; they are not "
        "judged")  # fmt: skip
    add("--power", action="store_true", help="run nothing; say which difference these replicates can find")
    add("--wish", type=float, help="the difference that you would act on, such as 0.02 (2 points): also says how many "
        "replicates that takes. Default: not told")  # fmt: skip
    add("--spread", type=float, help="with --power: the standard deviation of paired differences. Default: that of the "
        "replicates that have run, if any")  # fmt: skip
    add("--seed", default="0", help="any text; all seeds follow from it")
    add("--name", default="compare", help="name of the comparison, and of its folder below --output")
    add("--output", "--folder", dest="folder", type=Path, default=Path("comparisons"), help="folder in which "
        "comparisons are kept")  # fmt: skip
    add("--retry_failed", action="store_true", help="try runs again that ended with an error")
    add("--isolate", action="store_true", help="run each in a process of its own, so that one that is killed for its "
        "memory is only a failed run")  # fmt: skip
    add("--storage", help=f"share the runs with other workers: {STORAGES}. Default: not shared")
    add_timing(made)
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

    folder = asked.folder / asked.name
    try:
        design = make_design(asked, rest)
    except UserError as error:
        if asked.power and (arms := arms_asked_for(asked)) > 1:
            told = Resolution(asked.replicates, arms, asked.spread, asked.wish).text()
            print(f"{told}\n\nThe comparison itself would stop before its first run:\n{error}")
            return
        raise
    if asked.power:
        print(resolution(design, read_results(folder / RUNS), asked.spread, asked.wish).text())
        return
    if asked.storage:
        work_on(asked, design)
        return
    with FolderLedger(folder, retry_failed=asked.retry_failed).opened() as ledger:
        unused = why_unused(design, ledger.results())
        for line in [*unused, *_replaced(folder, unused)]:
            say(line)
        run = runner(design, folder / "work", apart=asked.isolate or starts_ranks(design))
        with told_when_stopped(design, ledger.results):
            plan = work(design, ledger, run, say)
        finish(design, plan, ledger.results(), folder, asked.wish)


def _replaced(folder: Path, unused: Sequence[str]) -> list[str]:
    """Return that the report of an earlier comparison will be replaced, where none of this one's runs are in it."""
    if not unused or not (folder / "report.md").exists():
        return []
    return [
        f"The report of the earlier comparison in {folder} is replaced at the end. To keep it, stop this and give "
        "another --name."
    ]


def arms_asked_for(asked: argparse.Namespace) -> int:
    """Return how many arms are named, whether or not they can be run.

    Raises:
        UserError: ``--objectives`` cannot be read.
    """
    from lightning_sft.cli.compare.arms import objective_arms

    return len(objective_arms(asked.objectives) if asked.objectives else []) + len(asked.arm or [])


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
