"""The page of the study, written from its cells alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.compare.statistics import LEVEL
from lightning_sft.files import write_text
from studies.cells import Cell, require_one_version
from studies.continuum import analysis
from studies.continuum.design import (
    CONTROLLED,
    FIRST,
    HYPOTHESES,
    JUDGED,
    MARGIN,
    REGISTERED,
    RULES,
    SECOND,
    STAGES,
    STEPS,
    Block,
    Stage,
)
from studies.continuum.figure import draw
from studies.findings import Finding, differences, finding, judged
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.registration import Registration
from studies.tables import NOT_RUN, cell_text, p_text, pictures, points, table

#: share of supervised tokens that are the first choice, of judged items
TOKENS_RIGHT = "val/judged/token_accuracy"
#: of a checkpoint that a block starts from
START_EXACT = "val/exact_match"
HEAD = "<!-- written by `python -m studies.continuum page` from the cells in data/continuum; edit nothing here -->"


def write_page(page: Path, figures: Path, cells: Sequence[Cell], registration: Registration | None, root: Path) -> None:
    """Write page and figures.

    Args:
        page: its file.
        figures: folder of figures.
        cells: of the study.
        registration: what is registered; None before it is.
        root: of the checkout, to see whether registered scripts were changed.

    Raises:
        UserError: cells of two versions of the package in one stage.
    """
    require_one_version(cells)
    main = STAGES["confirmatory"]
    shown = pictures(draw(cells, main, "initials", figures), page, "D over mean p")
    parts = [
        f"{HEAD}\n\n# Does the better objective depend on what the model knows?",
        " ".join(sentences(cells)),
        shown or "There is no figure yet: no block of the confirmatory runs is complete.",
        _hypotheses(cells),
        _blocks(cells),
        _crossings(cells),
        _exploratory(cells),
        _rules(cells),
        _costs(cells),
        _design(cells, registration, root),
        _not_done(cells),
    ]
    write_text(page, "\n\n".join(parts) + "\n")


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return three sentences for someone in a hurry; of what is not complete they say only that."""
    verdicts = {v.name: v for v in analysis.hypotheses(cells, STAGES["confirmatory"])}
    asked = (
        f"After equal fine-tuning at each one's own rate, does {SECOND} (-p) beat {FIRST} in exact match only where "
        "the model already knows the task?"
    )
    if verdicts["H1"].verdict == "not complete":
        done = sum(len(v.finding.values) for v in verdicts.values())
        total = sum(v.finding.expected for v in verdicts.values())
        return [
            asked,
            f"Of {total} paired comparisons that answer this, {done} have been run, so nothing is said here yet.",
            "Hypotheses, outcome and decision rule stand below.",
        ]
    told = ", ".join(f"{name} is {v.verdict} ({points(v.finding.difference)})" for name, v in verdicts.items())
    blocks = [block for block in STAGES["confirmatory"].blocks if block.level in ("weak", "strong")]
    ahead = [
        block.name for block in blocks if _is_above_0(analysis.block_row(cells, STAGES["confirmatory"], block).exact)
    ]
    won = f"It is ahead in: {'; '.join(ahead)}." if ahead else "So no block shows it ahead."
    return [
        asked,
        f"D, the points by which {SECOND} is ahead, is {'; '.join(_leads(cells, block) for block in blocks)}. {won}",
        f"{told[0].upper()}{told[1:]}; H1 and H2 say how D changes with what the model knows, not its sign.",
    ]


def _is_above_0(one: Finding) -> bool:
    return one.difference is not None and one.difference.low is not None and one.difference.low > 0


def _leads(cells: Sequence[Cell], block: Block) -> str:
    """Return in words who is ahead in a block that is complete."""
    exact, place = analysis.block_row(cells, STAGES["confirmatory"], block).exact, analysis.mean_p(cells, block)
    rows = "under noise" if block.noisy else "on clean rows"
    at = f"{points(exact.difference)} at mean p {place:.2f} {rows}"
    return at if exact.p is not None and exact.p <= LEVEL else f"{at} (not told apart)"


def _place(cross: analysis.Crossing) -> str:
    if cross.low is None or cross.high is None:
        return "that the data do not bound (the slope is not different from 0)"
    return f"{cross.at:.2f} [{cross.low:.2f}, {cross.high:.2f}]"


def _hypotheses(cells: Sequence[Cell]) -> str:
    verdicts = analysis.hypotheses(cells, STAGES["confirmatory"])
    rows = [[v.name, HYPOTHESES[v.name], cell_text(v.finding), p_text(v.p_holm), v.verdict] for v in verdicts]
    again = analysis.repeated(cells, STAGES["second_task"])
    p = "-" if again.p_holm is None else f"{p_text(again.p_holm)}, alone"
    rows.append(["H1 again", "the same on another task (kinds)", cell_text(again.finding), p, again.verdict])
    told = f"D is the exact match of {SECOND} minus that of {FIRST}, in points, with 95% t-intervals over replicates."
    return f"## Hypotheses\n\n{told}\n\n{table(['', 'hypothesis', 'difference', 'p (Holm)', 'verdict'], rows)}"


def _blocks(cells: Sequence[Cell]) -> str:
    rows = []
    for name in ("confirmatory", "second_task", "pilot"):
        stage = STAGES[name]
        for block in stage.blocks:
            row, place = analysis.block_row(cells, stage, block), analysis.mean_p(cells, block)
            whole = row.exact.complete
            runs = judged(cells, stage.name, block.name)
            right = finding(differences(runs, TOKENS_RIGHT, SECOND, FIRST), stage.replicates)
            tempered = finding(differences(runs, CONTROLLED, SECOND, FIRST), stage.replicates)
            arms = [f"{100 * row.means[arm]:.1f} at {_rate(cells, stage, block, arm)}" if whole else "-"
                    for arm in (FIRST, SECOND)]  # fmt: skip
            rows.append(
                [
                    name, row.block, "-" if place is None else f"{place:.3f}", *arms, cell_text(row.exact),
                    cell_text(right), cell_text(row.sampled), cell_text(row.controlled), cell_text(tempered),
                    str(sum(row.diverged.values())) if whole else "-",
                ]
            )  # fmt: skip
    told = (
        f"Exact match of both arms in percent, each at its own rate, {JUDGED} judged items a replicate; D is their "
        "difference. Where an arm has next to no whole answer right, D is little more than the other's score, and the "
        "share of right tokens (exploratory) says more. Three columns follow of pass@1, sampled at temperature 1; with "
        f"one decoding temperature for {FIRST}, fitted on other judged items; and with one for each arm. Where the fit "
        "ends at 0.1, the lowest that is tried, it is nearly greedy decoding. Pilot rows are no evidence."
    )
    heading = [
        "stage", "block", "mean p", FIRST, SECOND, "D", "D of right tokens", "D of pass@1",
        f"the same, {FIRST} tempered", "both tempered", "diverged",
    ]  # fmt: skip
    return f"## Both arms\n\n{told}\n\n{table(heading, rows)}"


def _rate(cells: Sequence[Cell], stage: Stage, block: Block, arm: str) -> str:
    asked = (stage.name, block.name, arm, "judged")
    return next(f"{c.rate:.2g}" for c in cells if (c.stage, c.block, c.arm, c.kind) == asked)


def _crossings(cells: Sequence[Cell]) -> str:
    rows, stage = [], STAGES["confirmatory"]
    for noisy in (True, False):
        blocks = [block for block in stage.blocks if block.noisy == noisy]
        done = sum(analysis.block_row(cells, stage, block).exact.complete for block in blocks)
        cross = analysis.block_crossing(cells, stage, "initials", noisy)
        highest = max((p for block in blocks if (p := analysis.mean_p(cells, block)) is not None), default=1.0)
        place = NOT_RUN if cross is None else _place(cross)
        if cross is not None and cross.at is not None and cross.at > highest:
            place = f"none up to {highest:.2f}, the highest that was run"
        rows.append(["noisy" if noisy else "clean", f"{done} of {len(blocks)}", place])
    told = (
        "Mean p at which a line through D over the levels crosses 0, with Fieller's 95% interval over replicates. No "
        "hypothesis was registered about it. There is always a line through two levels, so the interval does not cover "
        "that D may bend between them."
    )
    return f"## Where the sign changes\n\n{told}\n\n{table(['rows', 'levels', 'crossing'], rows)}"


def _exploratory(cells: Sequence[Cell]) -> str:
    stage, rows = STAGES["exploratory"], []
    for block in stage.blocks:
        arms = analysis.many_to_one(cells, stage, block)
        if not any(row.finding.values for row in arms):
            rows.append([block.name, f"all {len(arms)}", "-", NOT_RUN, "-"])
            continue
        for row in arms:
            mean = f"{100 * row.mean:.1f}" if row.mean is not None and row.finding.complete else "-"
            rows.append([block.name, row.arm, mean, cell_text(row.finding), p_text(row.p_holm)])
    heading = ["block", "arm", "exact match", f"minus {FIRST}", "p (Holm in the block)"]
    told = "Exploratory: no hypothesis was registered for these arms."
    return f"## Other exponents, thresholds and objectives\n\n{told}\n\n{table(heading, rows)}"


def _rules(cells: Sequence[Cell]) -> str:
    rows = []
    for one in analysis.regrets(cells, STAGES["rules"], RULES):
        passes = NOT_RUN if one.passes is None else "within the margin" if one.passes else "not shown to be"
        rows.append([one.rule, f"always {one.constant}", cell_text(one.finding), passes])
    told = (
        f"Exact match of always taking one objective minus the rule's, mean over {len(STAGES['rules'].blocks)} unseen "
        "pairs of task and checkpoint; the rule is not inferior where the upper end is below "
        f"{100 * MARGIN:.0f} points."
    )
    return f"## Rules that choose by themselves\n\n{told}\n\n{table(['rule', 'against', 'regret', 'verdict'], rows)}"


def _costs(cells: Sequence[Cell]) -> str:
    stage, rows = STAGES["confirmatory"], []
    for block in stage.blocks:
        runs = judged(cells, stage.name, block.name)
        for arm in stage.arms:
            done = runs.get(arm, {})
            if len(done) < stage.replicates:
                rows.append([block.name, arm, NOT_RUN, "-", "-"])
                continue
            seconds = statistics.fmean(r.seconds for r in done.values())
            tokens = statistics.fmean(r.tokens for r in done.values())
            until = [math.inf if t is None else t for t in analysis.tokens_to_best_of_first(runs, arm)]
            reached, middle = sum(map(math.isfinite, until)), statistics.median(until)
            when = f"{middle:.0f}" if math.isfinite(middle) else "not in most runs"
            rows.append([block.name, arm, f"{seconds:.0f}", f"{tokens:.0f}", f"{when} ({reached} of {len(done)})"])
    heading = ["block", "arm", "seconds", "tokens", f"tokens to the best of {FIRST} (median; runs that reach it)"]
    told = (
        "Seconds are those of training steps, one thread a run, other programs beside it; tokens are supervised ones. "
        f"{FIRST} reaches its own best by definition, on a curve of 40 items."
    )
    told += processor_words(cells)
    return f"## What it costs\n\n{told}\n\n{table(heading, rows)}"


def _design(cells: Sequence[Cell], registration: Registration | None, root: Path) -> str:
    return "\n\n".join(
        [
            "## Design",
            registered_words(registration, root),
            "One model (SmolLM2-135M-Instruct, all weights trained, float32), one task: the first letters of four "
            "everyday words, `tiger plum canoe drum :` with the answer `T P C D`. Fine-tuning on clean rows brings it "
            "to a mean p of "
            f".05, .3 and .7 on the task; from each of these checkpoints both objectives train {STEPS} steps, on clean "
            "rows and on noisy ones: where the last word begins with c, f or s, three items in ten, every letter of "
            "the answer is shifted by one. Judged answers are always right, so a model that learns both rules has some "
            "70% of them. Items of the way to a level, of training and of judging never meet; their words do, so what "
            "is judged are new combinations. The second task names the kind of three words: `animal fruit vehicle`.",
            _starts(cells),
            f"Primary outcome: {REGISTERED['primary outcome']}.",
            f"Decision rule: {REGISTERED['decision rule']}",
            f"Rates: {REGISTERED['rates']}",
            f"Rules: {REGISTERED['rules']}",
            "What the intervals cover: order, training rows and judged items. What they do not: the choice of rate, "
            "made on one replicate in steps of a factor of 3; another checkpoint of the same mean p, another model, "
            "another task, another length of training. Where an arm had no whole answer right at any rate, its rate is "
            "the one with the lowest NLL, by the rule for ties.",
            "Sums in code were tried first as the task and left, since no objective learned them in so few steps. "
            "Pilot and levels were run from a commit that was rebased before it was published; the digests of code "
            "in their cells say what ran.",
            code_words(cells),
        ]
    )


def _starts(cells: Sequence[Cell]) -> str:
    """Return what the checkpoints could do before, as one sentence; "" before there are any."""
    levels = sorted((c for c in cells if c.kind == "level"), key=lambda c: c.run.readings["val/mean_p"])
    told = [
        f"{c.block.rpartition(', ')[2]} has mean p {c.run.readings['val/mean_p']:.3f} and exact match "
        f"{100 * c.run.readings[START_EXACT]:.0f}% after {c.run.steps} steps"
        for c in levels
        if START_EXACT in c.run.readings
    ]
    return (
        f"The checkpoints, moments of one run under {FIRST}: {'; '.join(told)}." if told else "No checkpoint is made."
    )


def _not_done(cells: Sequence[Cell]) -> str:
    lines = []
    for verdict in analysis.hypotheses(cells, STAGES["confirmatory"]):
        if verdict.verdict in ("undecided", "contradicted"):
            lines.append(f"- {verdict.name} is {verdict.verdict}: {points(verdict.finding.difference)} points.")
    again = analysis.repeated(cells, STAGES["second_task"])
    if again.verdict in ("undecided", "contradicted"):
        lines.append(f"- H1 on the second task is {again.verdict}: {points(again.finding.difference)} points.")
    for one in analysis.regrets(cells, STAGES["rules"], RULES):
        if one.passes is False:
            lines.append(f"- {one.rule} is not shown to be within the margin of always {one.constant}.")
    for stage in STAGES.values():
        lines += missing_runs(cells, stage)
    return "## What did not come out, and what has not run\n\n" + ("\n".join(lines) or "Everything has run.")
