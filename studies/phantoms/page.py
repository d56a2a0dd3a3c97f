"""The page of the study, written from its cells alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import write_text
from lightning_sft.sweep.intervals import Interval
from studies.cells import Cell, require_one_version
from studies.findings import differences, judged
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.phantoms import analysis
from studies.phantoms.analysis import AMONG, MAIN, RUSHED, Verdict
from studies.phantoms.arms import FASTER_RATE, FULL
from studies.phantoms.design import (
    ALONE,
    CONTEXTS,
    FAST,
    FAST_RATE,
    FLIPPED,
    HYPOTHESES,
    LEAST,
    MIXED,
    MOST,
    REGISTERED,
    ROWS,
    STAGES,
    STEPS,
    TIMES,
)
from studies.phantoms.doubts import doubts_section
from studies.phantoms.figure import draw
from studies.phantoms.over_runs import rows_of, upper_end
from studies.phantoms.sections import cut_shares, jumps_section, lora_section, percent, silent_section
from studies.phantoms.watch import CUTS
from studies.registration import Registration
from studies.tables import NOT_RUN, p_text, pictures, points, table

HEAD = "<!-- written by `python -m studies.phantoms page` from the cells in data/phantoms; edit nothing here -->"
#: another limit from which on the output rows are said to have taken part in a jump; one of `CUTS`
LOWER = 0.02
WORTHLESS = (
    "**The instrument failed its control: planted changes of the geometry were called phantom. What stands below on "
    "phantoms is worthless.**"
)


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
    shown = pictures(draw(cells, figures), page, "Contexts that flipped and that failed silently, by arm")
    parts = [
        f"{HEAD}\n\n# Are jumps phantoms, does LoRA suffice, and how common is silent failure?",
        *([WORTHLESS] if analysis.plant(judged_by_plant(cells)).phantom else []),
        " ".join(sentences(cells)),
        shown or "There is no figure yet: no stage of the registered runs is complete.",
        _hypotheses(cells),
        jumps_section(cells),
        lora_section(cells),
        silent_section(cells),
        *doubts_section(cells),
        _costs(cells),
        _design(cells, registration, root),
        _not_done(cells),
    ]
    write_text(page, "\n\n".join(parts) + "\n")


# ---------------------------------------------------------------------- in a hurry


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return three sentences for someone in a hurry; of what is not complete they say only that."""
    asked = (
        "When a word overtakes its near-synonym in a jump, did the output rows change or the hidden states that they "
        "are "
        "read with; does LoRA flip what full fine-tuning flips; and how often does the loss fall while the right word "
        "stays behind?"
    )
    verdicts = analysis.hypotheses(cells)
    if any(v.verdict == "not complete" for v in verdicts):
        stages = (MAIN, RUSHED, AMONG)
        want = sum(len(stage.arms) * stage.replicates for stage in stages)
        have = len([c for c in cells if c.kind == "judged" and c.stage in [stage.name for stage in stages]])
        return [
            asked,
            f"Of {want} judged runs that answer this, {have} are there, so nothing is said here yet.",
            "Hypotheses, outcome and decision rule stand below.",
        ]
    h1, h2, h3 = verdicts
    fast = rows_of(analysis.cells_of(cells, RUSHED, FAST, FULL, "judged"), replicates=True)
    among = rows_of(analysis.cells_of(cells, AMONG, MIXED, FULL, "judged"), replicates=True)
    return [
        asked,
        f"With the contexts alone and all weights trained at {FAST_RATE:g}, the output rows made up 5% or more of "
        f"{_held(h1)} of {fast.count(lambda o: o.jumps)} jumps ({_more_of_jumps(cells)}H1 {h1.verdict}), but among "
        f"sentences of {among.count(lambda o: o.embeddings)} of {among.count(lambda o: o.jumps)}; {LEAST} minus {MOST} "
        f"is {points(h2.finding.difference)} points of flipped contexts (H2 {h2.verdict}), while all weights flip "
        f"{_full_more(cells)} points more than any rank, at rates chosen under one bound on held-out NLL.",
        f"Among other sentences, under NLL at the rate with the best held-out NLL, {_held(h3)} of the contexts that "
        f"began behind stayed behind although their loss fell (H3 {h3.verdict}); pairs were picked for being near.",
    ]


def _more_of_jumps(cells: Sequence[Cell]) -> str:
    """Return how many jumps it was by a lower limit, and how much on average, in words; "" where cells do not say."""
    mine = analysis.cells_of(cells, RUSHED, FAST, FULL, "judged")
    cause, at_cuts = rows_of(mine, replicates=True).cause(), dict(zip(CUTS, cut_shares(mine), strict=False))
    if cause is None or LOWER not in at_cuts:
        return ""
    return f"{100 * LOWER:g}% or more of {100 * at_cuts[LOWER]:.0f}%, on average {100 * cause:.1f}%; "


def _full_more(cells: Sequence[Cell]) -> str:
    """Return by how many points all weights flip more than LoRA, from the least to the most over ranks."""
    runs = judged(cells, MAIN.name, ALONE.name)
    more = [statistics.fmean(differences(runs, FLIPPED, FULL, arm).values()) for arm in MAIN.arms if arm != FULL]
    return f"{100 * min(more):.0f} to {100 * max(more):.0f}"


def _held(one: Verdict) -> str:
    """Return the share that a hypothesis is about, with its interval over replicates."""
    difference = one.finding.difference
    if difference is None or difference.low is None or difference.high is None:
        return "an unknown share"  # no replicate, or one alone
    if difference.low == difference.high == -one.against:
        return "none"
    moved = Interval(*(value + one.against for value in (difference.mean, difference.low, difference.high)))
    return f"{percent(moved)}%"


def judged_by_plant(cells: Sequence[Cell]) -> list[Cell]:
    """Return the runs whose plant H1 rests on."""
    return analysis.cells_of(cells, RUSHED, FAST, FULL, "judged")


def _hypotheses(cells: Sequence[Cell]) -> str:
    asked = {
        "H1": "jumps of which the output rows make up 5% or more, less than 10%",
        "H2": f"flipped contexts, {LEAST} less than {MOST}",
        "H3": "silent failures among sentences, those that stopped early apart, more than 10%",
    }
    rows = []
    for v in analysis.hypotheses(cells):
        if v.p_holm is None:
            done = len(v.finding.values)
            so_far = f"{done} of {v.finding.expected} run" if done else NOT_RUN
            rows.append([v.name, asked[v.name], so_far, "-", v.verdict])
            continue
        shown = points(v.finding.difference) + " points" if v.name == "H2" else _held(v)
        rows.append(
            [v.name, asked[v.name], shown, f"{p_text(v.p_holm)}", f"{v.verdict} ({v.why})" if v.why else v.verdict]
        )
    told = (
        "Shares with 95% t-intervals over replicates, each of which draws its own contexts and rows. They take the "
        "rates "
        "as given, and say nothing on other words: all draws are from one pool of pairs."
    )
    first = analysis.hypotheses(cells)[0]
    contexts = {o.number for row in rows_of(judged_by_plant(cells), replicates=True).runs for o in row if o.jumps}
    if first.p_holm is not None and _held(first) == "none" and contexts:
        told += (
            f" For H1 every replicate has the share 0, for which there is no t-test: its p is that of the sign test. "
            f"None among {len(contexts)} contexts with jumps leaves up to {100 * upper_end(len(contexts)):.1f}% "
            "possible "
            "(exact 95% interval, if contexts are independent)."
        )
    return f"## Hypotheses\n\n{told}\n\n{table(['', 'question', 'found', 'p (Holm)', 'verdict'], rows)}"


# ---------------------------------------------------------------------- costs, design, the rest


def _costs(cells: Sequence[Cell]) -> str:
    rows = []
    for stage in (MAIN, RUSHED, AMONG):
        runs = judged(cells, stage.name, stage.blocks[0].name)
        for arm in stage.arms:
            done = runs.get(arm, {})
            if len(done) < stage.replicates:
                rows.append([stage.name, arm, NOT_RUN, "-", "-"])
                continue
            of = [statistics.fmean(values) for values in zip(*((r.seconds, r.wall_seconds, r.tokens)
                  for r in done.values()), strict=True)]  # fmt: skip
            rows.append([stage.name, arm, *(f"{value:.0f}" for value in of)])
    told = (
        "Seconds of training steps, and of the whole run with its readings; two runs side by side, one thread each. "
        "The "
        f"machine was busier in some hours than in others ({RUSHED.name} does the same work as {MAIN.name} with all "
        "weights), so compare within a stage at most. Tokens include the end token of each row, which the contexts "
        "alone "
        "do not train."
    )
    told += processor_words(cells)
    heading = ["stage", "arm", "seconds of steps", "seconds of the run", "tokens"]
    return f"## What it costs\n\n{told}\n\n{table(heading, rows)}"


def _design(cells: Sequence[Cell], registration: Registration | None, root: Path) -> str:
    half = CONTEXTS // 2
    return "\n\n".join(
        [
            "## Design",
            registered_words(registration, root),
            f"One model (SmolLM2-135M-Instruct, float32, tied embeddings), {STEPS} steps of AdamW (betas .9 and .95, "
            "no "
            "weight decay), gradients clipped at a norm of 1. A run draws "
            f"{CONTEXTS} contexts without a word in common: sentences of WordNet 3.0 up to a word "
            f"that is replaced by a rarer near-synonym, which is right by construction; in the pilot {half} of them, "
            f"and {half} of the package's library. {ALONE.name}: one batch of these contexts, loss on the answer's one "
            f"token over the whole vocabulary, a reading at every step, constant rate. {FAST.name}: the same at "
            f"{FAST_RATE:g} and at {FASTER_RATE:g}, without a bound on what it costs on other text. {MIXED.name}: the "
            f"whole sentences, {TIMES} times each, among {STEPS * ROWS - CONTEXTS * TIMES} rows of other sentences, "
            f"{ROWS} rows a step; the rate rises over a tenth of the steps and falls linearly to 0; a reading every "
            f"{MIXED.every} steps.",
            "Arms: all weights, tied embeddings among them; LoRA on every linear layer at ranks 1, 4, 16 and 64, "
            "lora_alpha twice the rank, without dropout. In place of an arm with a plant, every run that trains the "
            "embeddings ends with one, after its last step: it costs no run, and stands beside that run's own jumps.",
            f"Primary outcome: {REGISTERED['primary outcome']}",
            f"Decision rule: {REGISTERED['decision rule']}",
            f"Rates: {REGISTERED['rates']}",
            "Hypotheses: " + " ".join(f"{name}: {text}" for name, text in HYPOTHESES.items()),
            "What the intervals cover: contexts, rows, order. What they do not: another model, untied embeddings, "
            "longer runs, near-synonyms of more than one token. Order parameter and failure modes are reconstructed "
            "from the abstract of arXiv 2606.07559; the paper's own formulas may differ, and the study is ours.",
            code_words(cells),
        ]
    )


def _not_done(cells: Sequence[Cell]) -> str:
    lines = []
    for v in analysis.hypotheses(cells):
        if v.verdict in ("undecided", "contradicted"):
            p = "" if v.p_holm is None else f", p {p_text(v.p_holm)}"
            lines.append(f"- {v.name}: {v.verdict}{p}{f' ({v.why})' if v.why else ''}.")
    for name, stage in STAGES.items():
        lines += missing_runs(cells, stage)
        if diverged := sum(c.run.outcome != "finished" for c in cells if c.stage == name):
            lines.append(f"- {name}: {diverged} runs diverged, at rates that are too high for their arm.")
    return "## What did not come out, and what has not run\n\n" + ("\n".join(lines) or "Everything has run.")
