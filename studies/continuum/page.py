"""The page of the study, written from its cells alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import write_text
from studies.cells import Cell, require_one_version
from studies.continuum import analysis
from studies.continuum.design import FIRST, HYPOTHESES, JUDGED, MARGIN, REGISTERED, RULES, SECOND, STAGES, STEPS
from studies.continuum.figure import draw
from studies.findings import judged
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.registration import Registration
from studies.tables import NOT_RUN, cell_text, pictures, points, table

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
    one = ", ".join(f"{name} is {v.verdict} ({points(v.finding.difference)})" for name, v in verdicts.items())
    cross = analysis.block_crossing(cells, STAGES["confirmatory"], "initials", True)
    third = "Where the sign changes is not fitted: fewer than two levels are complete."
    if cross is not None:
        third = f"Under noise, the sign of the difference changes at mean p {_place(cross)}."
    return [asked, f"{one[0].upper()}{one[1:]}.", third]


def _place(cross: analysis.Crossing) -> str:
    if cross.low is None or cross.high is None:
        return "that the data do not bound (the slope is not different from 0)"
    return f"{cross.at:.2f} [{cross.low:.2f}, {cross.high:.2f}]"


def _hypotheses(cells: Sequence[Cell]) -> str:
    verdicts = analysis.hypotheses(cells, STAGES["confirmatory"])
    rows = [
        [v.name, HYPOTHESES[v.name], cell_text(v.finding), "-" if v.p_holm is None else f"{v.p_holm:.4f}", v.verdict]
        for v in verdicts
    ]
    again = analysis.repeated(cells, STAGES["second_task"])
    p = "-" if again.p_holm is None else f"{again.p_holm:.4f}, alone"
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
            means = [f"{100 * row.means[arm]:.1f}" if whole else "-" for arm in (FIRST, SECOND)]
            diverged = sum(row.diverged.values())
            rows.append(
                [
                    name, row.block, "-" if place is None else f"{place:.3f}", *means, cell_text(row.exact),
                    cell_text(row.sampled), cell_text(row.controlled), str(diverged) if whole else "-",
                ]
            )  # fmt: skip
    told = (
        f"Both arms on every kind of rows, {JUDGED} judged items a replicate. The last column but one gives {FIRST} "
        "one decoding temperature fitted on other judged items: a win of -p that is sharpness alone is gone there. "
        "Pilot rows are no evidence."
    )
    heading = ["stage", "block", "mean p", FIRST, SECOND, "D", "D of pass@1", f"the same, {FIRST} tempered", "diverged"]
    return f"## Both arms\n\n{told}\n\n{table(heading, rows)}"


def _crossings(cells: Sequence[Cell]) -> str:
    rows = []
    for noisy in (True, False):
        cross = analysis.block_crossing(cells, STAGES["confirmatory"], "initials", noisy)
        rows.append(["noisy" if noisy else "clean", NOT_RUN if cross is None else _place(cross)])
    told = "Mean p at which a line through D over the levels crosses 0, with Fieller's 95% interval over replicates."
    return f"## Where the sign changes\n\n{told}\n\n{table(['rows', 'crossing'], rows)}"


def _exploratory(cells: Sequence[Cell]) -> str:
    stage, rows = STAGES["exploratory"], []
    for block in stage.blocks:
        arms = analysis.many_to_one(cells, stage, block)
        if not any(row.finding.values for row in arms):
            rows.append([block.name, f"all {len(arms)}", "-", NOT_RUN, "-"])
            continue
        for row in arms:
            p = "-" if row.p_holm is None else f"{row.p_holm:.4f}"
            mean = f"{100 * row.mean:.1f}" if row.mean is not None and row.finding.complete else "-"
            rows.append([block.name, row.arm, mean, cell_text(row.finding), p])
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
            reached = [t for t in analysis.tokens_to_best_of_first(runs, arm) if t is not None]
            until = f"{statistics.median(reached):.0f} ({len(reached)} of {len(done)})" if reached else "never"
            rows.append([block.name, arm, f"{seconds:.0f}", f"{tokens:.0f}", until])
    heading = ["block", "arm", "seconds", "tokens", f"tokens to the best of {FIRST} (median of runs that reach it)"]
    told = (
        "Seconds are those of training steps, two runs side by side with one thread each; tokens are supervised ones."
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
            "rows and on rows of which three in ten have a wrong answer, always the same wrong answer for the same "
            "item. Items of the way to a level, of training and of judging never meet. The second task names the kind "
            "of three words: `animal fruit vehicle`.",
            f"Primary outcome: {REGISTERED['primary outcome']}.",
            f"Decision rule: {REGISTERED['decision rule']}",
            f"Rates: {REGISTERED['rates']}",
            f"Rules: {REGISTERED['rules']}",
            "What the intervals cover: order, training rows and judged items. What they do not: another checkpoint of "
            "the same mean p, another model, another task, another length of training.",
            code_words(cells),
        ]
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
