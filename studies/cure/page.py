"""The page of the study, written from its cells alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import write_text
from studies.cells import Cell, require_one_version
from studies.cure import adapted, analysis
from studies.cure.design import (
    ADAPT_STEPS,
    AHEAD,
    ARMS,
    BOUND,
    CONTROL,
    CURE,
    FIRST,
    HYPOTHESES,
    MARGIN,
    PLACEBO,
    REGISTERED,
    ROWS,
    STAGES,
    WEIGHT,
    WEIGHTED,
    Block,
)
from studies.cure.figure import draw
from studies.findings import Finding, differences, finding, judged
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.registration import Registration
from studies.tables import NOT_RUN, cell_text, pictures, points, table

HEAD = "<!-- written by `python -m studies.cure page` from the cells in data/cure; edit nothing here -->"
MAIN = STAGES["confirmatory"]
FIRST_OF_ALL = "style/first"


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
    shown = pictures(draw(cells, MAIN, figures), page, "Unseen sentences with the right word ahead, by arm")
    parts = [
        f"{HEAD}\n\n# What makes a rare word overtake its near-synonym?",
        " ".join(sentences(cells)),
        shown or "There is no figure yet: no density of the confirmatory runs is complete.",
        _hypotheses(cells),
        *(_arms(cells, name, block) for name, stage in STAGES.items() for block in stage.blocks),
        _costs(cells),
        _design(cells, registration, root),
        _not_done(cells),
    ]
    write_text(page, "\n\n".join(parts) + "\n")


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return three sentences for someone in a hurry; of what is not complete they say only that."""
    asked = (
        "A house style asks for a rarer word where the model prefers its near-synonym, and few tokens of the training "
        "text say so: which change of the objective lets the right word overtake, at equal collateral on other text?"
    )
    claims = {block.name: analysis.claim(analysis.hypotheses(cells, MAIN, block)) for block in MAIN.blocks}
    if all(claim.startswith("nothing yet") for claim in claims.values()):
        want = len(MAIN.blocks) * len(MAIN.arms) * MAIN.replicates
        have = len([c for c in cells if c.stage == MAIN.name and c.kind == "judged"])
        return [
            asked,
            f"Of {want} judged runs that answer this, {have} are there, so nothing is said here yet.",
            "Hypotheses, outcome and decision rule stand below.",
        ]
    told = "; ".join(f"{block.name}: {allowed(cells, block)}" for block in MAIN.blocks)
    differences = [
        f"{v.name} {v.verdict}, {points(v.finding.difference)} points ({block.name})"
        for block in MAIN.blocks
        for v in analysis.hypotheses(cells, MAIN, block)
        if v.verdict != "not complete"
    ]
    shares = [text for block in MAIN.blocks if (text := _shares(cells, block))]
    return [asked, f"{told[0].upper()}{told[1:]}.", f"{' '.join(shares)} {CURE}: {'; '.join(differences)}.".strip()]


def allowed(cells: Sequence[Cell], block: Block) -> str:
    """Return what the verdicts of a block allow to be said.

    What is registered has no words for H1 and H2 without H3, and its function then says that weighting cures, although
    H2 says that the margin does more. Here it is said as it is; the function stays as it was registered.
    """
    verdicts = analysis.hypotheses(cells, MAIN, block)
    found = {v.name: v.verdict for v in verdicts}
    if found["H1"] == found["H2"] == "supported" and found["H3"] != "supported":
        other = "is not told apart from it" if found["H3"] == "undecided" else "does even more"
        cost = between(cells, block, WEIGHTED).difference
        cheaper = (
            ", which had less collateral, so that part of that difference may be its price"
            if cost is not None and cost.low is not None and cost.low > 0
            else ""
        )
        placebo = points(analysis.arm_row(cells, MAIN, block, PLACEBO).minus_first.difference)
        return (
            f"the margin does more than {FIRST}, and than {FIRST} with a weight{cheaper}; a margin over a word of "
            f"another pair {other} ({placebo} points over "
            f"{FIRST}, no hypothesis), so that it takes the near-synonym itself is not shown"
        )
    return analysis.claim(verdicts)


def between(cells: Sequence[Cell], block: Block, other: str) -> Finding:
    """Return by how much more collateral the margin had than another arm, by replicate."""
    runs = judged(cells, MAIN.name, block.name)
    ours, theirs = analysis.collateral(runs, CURE), analysis.collateral(runs, other)
    return finding({r: ours[r] - theirs[r] for r in ours if r in theirs}, MAIN.replicates)


def _start(cells: Sequence[Cell], block: Block) -> str:
    """Return the share before the first step in words; "" where runs have not read it."""
    runs = judged(cells, MAIN.name, block.name).get(CONTROL, {}).values()
    read = [run.curve[0].values[AHEAD] for run in runs if len(run.curve) > 1 and AHEAD in run.curve[0].values]
    return f", {100 * statistics.fmean(read):.1f}% before the first step" if read else ""


def _shares(cells: Sequence[Cell], block: Block) -> str:
    """Return the shares of the arms of a block in a sentence; "" before all of them are there."""
    rows = {arm: analysis.arm_row(cells, MAIN, block, arm).readings for arm in ARMS}
    if not all(rows.values()):
        return ""
    percent = {arm: f"{100 * readings[AHEAD]:.1f}%" for arm, readings in rows.items()}
    best = max(readings[AHEAD] for readings in rows.values())
    most = "" if best >= 0.5 else ", so under every arm the near-synonym stays ahead in most of them"
    return (
        f"In {block.name} text the right word is ahead in {percent[CURE]} of unseen sentences under the margin, "
        f"{percent[FIRST]} under {FIRST} and {percent[CONTROL]} without replacements{_start(cells, block)}{most}; the "
        f"first of all words it is in {100 * max(r[FIRST_OF_ALL] for r in rows.values()):.1f}% at most."
    )


def _hypotheses(cells: Sequence[Cell]) -> str:
    rows = []
    for block in MAIN.blocks:
        for v in analysis.hypotheses(cells, MAIN, block):
            p = "-" if v.p_holm is None else f"{v.p_holm:.4f}"
            verdict = f"{v.verdict} ({v.why})" if v.why else v.verdict
            more = cell_text(between(cells, block, v.against))
            rows.append([block.name, v.name, f"{CURE} minus {v.against}", cell_text(v.finding), p, verdict, more])
    told = (
        "Share of unseen sentences with the right word ahead, differences in points with 95% t-intervals over "
        "replicates. The last column is how many points more collateral the margin had, which no rule asks for."
    )
    heading = ["density", "", "difference", "points", "p (Holm)", "verdict", "collateral"]
    return "\n\n".join(["## Hypotheses", told, table(heading, rows), *_reworded(cells)])


def _reworded(cells: Sequence[Cell]) -> list[str]:
    """Return for which densities the opening does not say what the registered function says, and why."""
    told = []
    for block in MAIN.blocks:
        registered = analysis.claim(analysis.hypotheses(cells, MAIN, block))
        if allowed(cells, block) != registered:
            told.append(
                f"{block.name.capitalize()}: the registered claim has no words for H1 and H2 without H3; its function "
                f'says "{registered}", which H2 speaks against. The words at the head of this page were written when '
                "more than half of the runs were there and their shares had been seen. Verdicts are as registered."
            )
    return told


def _arms(cells: Sequence[Cell], name: str, block: Block) -> str:
    stage, rows = STAGES[name], []
    runs = judged(cells, name, block.name)
    for arm in ARMS:
        row = analysis.arm_row(cells, stage, block, arm)
        if not row.readings:
            done = len(row.minus_first.values)
            rows.append([arm, "-", f"{done} of {stage.replicates} run" if done else NOT_RUN, *["-"] * 8])
            continue
        values = row.readings
        equal = {True: "yes", False: "no", None: "-"}[row.at_equal_collateral]
        first_of_all = finding(differences(runs, FIRST_OF_ALL, arm, FIRST), stage.replicates)
        shares = [f"{100 * values[key]:.1f}" for key in ("style/flipped", "style/untouched_ahead")]
        rows.append(
            [
                arm, f"{row.rate:.3g}", f"{100 * values[AHEAD]:.1f}",
                "-" if arm == FIRST else cell_text(row.minus_first), f"{100 * values[FIRST_OF_ALL]:.1f}",
                "-" if arm == FIRST else cell_text(first_of_all), *shares, f"{values['style/margin']:+.2f}",
                "-" if arm == CONTROL else cell_text(row.collateral), equal if arm != CONTROL else "-",
            ]
        )  # fmt: skip
    heading = [
        "arm", "rate", "ahead, %", f"minus {FIRST}", "first of all, %", f"minus {FIRST}", "flipped, %",
        "untouched pairs ahead, %", "margin, nats", "collateral, %", "mean within the bound",
    ]  # fmt: skip
    word = "Pilot, which is no evidence" if name == "pilot" else "Confirmatory"
    over = [c for arm in ARMS if arm != CONTROL for c in analysis.collateral(runs, arm).values()]
    beyond = sum(value > BOUND - 1 for value in over)
    told = f"Intervals in this table are not adjusted. Runs beyond the bound on collateral: {beyond} of {len(over)}."
    return f"## {word}: {block.density}\n\n{told}\n\n{table(heading, rows)}"


def _costs(cells: Sequence[Cell]) -> str:
    rows = []
    for block in MAIN.blocks:
        runs = judged(cells, MAIN.name, block.name)
        for arm in MAIN.arms:
            done = runs.get(arm, {})
            if len(done) < MAIN.replicates:
                rows.append([block.name, arm, NOT_RUN, "-", "-"])
                continue
            seconds = statistics.fmean(r.seconds for r in done.values())
            tokens = statistics.fmean(r.tokens for r in done.values())
            drift = statistics.fmean(r.readings.get("drift/general/kl", float("nan")) for r in done.values())
            rows.append([block.name, arm, f"{seconds:.0f}", f"{tokens:.0f}", f"{drift:.4f}"])
    told = (
        "Seconds are those of training steps, two runs side by side with one thread each; drift is the KL divergence "
        "from the start on general sentences, nats per token."
    )
    told += processor_words(cells)
    return f"## What it costs\n\n{told}\n\n{table(['density', 'arm', 'seconds', 'tokens', 'drift'], rows)}"


def _design(cells: Sequence[Cell], registration: Registration | None, root: Path) -> str:
    level = next((c for c in cells if c.kind == "level" and c.block == adapted.BLOCK), None)
    start = "The checkpoint is not made yet."
    if level is not None:
        read = level.run.readings
        start = (
            f"It starts with the right word ahead in {100 * read[adapted.AHEAD]:.1f}% of sentences of design pairs; "
            "the weight that gives NLL the gradient of the margin over the strongest competitor is "
            f"{read[adapted.MATCHED]:.2f}; for the margin over given pairs it was not measured again."
        )
    blocks = "; ".join(
        f"{block.name}: {block.contexts} sentences of each of 60 pairs among {block.steps * ROWS} rows, {block.steps} "
        "steps"
        for block in MAIN.blocks
    )
    return "\n\n".join(
        [
            "## Design",
            registered_words(registration, root),
            "One model (SmolLM2-135M-Instruct, all weights trained, float32), example sentences of WordNet 3.0. In "
            "each sentence that is made contested, a word is replaced by a rarer near-synonym that shares a synset, "
            "so the rarer word is right by construction; all other rows have no word of any pair. "
            f"{blocks}. Before any run the model is fine-tuned to other sentences as they are ({ADAPT_STEPS} steps). "
            f"{start}",
            f"Arms: {FIRST}; {FIRST} with a weight on the replaced words; {FIRST} with those sentences "
            "repeated as often as the weight says, up to three quarters of all rows (twice in dense text); NLL "
            f"plus {WEIGHT:g} times a hinge at a margin of {MARGIN:g} nats on the replaced words, over the strongest "
            "competitor, over the word that was replaced, or, as a placebo, over a word of another pair; and a "
            "control run on the same sentences without replacements.",
            f"Primary outcome: {REGISTERED['primary outcome']}",
            f"Collateral: {REGISTERED['collateral']}",
            f"Decision rule: {REGISTERED['decision rule']}",
            f"Claim: {REGISTERED['claim']}",
            f"Rates: {REGISTERED['rates']}",
            f"Weight: {REGISTERED['weighted']}",
            "Hypotheses: " + " ".join(f"{name}: {text}" for name, text in HYPOTHESES.items()),
            "What the intervals cover: sentences, order, and draws from the 99 judged pairs that have enough "
            "sentences. Two replicates share some 37 of their 60 pairs, so for other pairs the intervals are too "
            "narrow. What they do not cover: another model, other text, another length of training, near-synonyms of "
            "more than one token. Pairs share some synset of WordNet, not always the sense of the sentence (sister and "
            "baby, chocolate and coffee), and rarer means fewer examples in WordNet. An undecided H3 is no proof that "
            "both are equal. The phenomenon is that of arXiv 2606.07559, of which only the abstract was at hand; the "
            "study is ours.",
            "Decided by the pilot, on design pairs: the arm that the claim is about, and the last refinement of rates "
            "(all cells of the pilot name the commit before that). Each rate rests on one replicate; the rates of the "
            "margin over given pairs stood as close to the bound as any. The placebo is no inert one: its hinge, too, "
            "pushes the right word up, at a rate 1.8 times as high.",
            "Only the dense block was run; that was decided after the registration and before any confirmatory run had "
            "ended.",
            code_words(cells),
        ]
    )


def _not_done(cells: Sequence[Cell]) -> str:
    lines = []
    for block in MAIN.blocks:
        for v in analysis.hypotheses(cells, MAIN, block):
            if v.verdict in ("undecided", "contradicted"):
                why = f" ({v.why})" if v.why else ""
                lines.append(f"- {block.name}, {v.name}: {v.verdict}{why}, {points(v.finding.difference)} points.")
    for stage in STAGES.values():
        lines += missing_runs(cells, stage)
    return "## What did not come out, and what has not run\n\n" + ("\n".join(lines) or "Everything has run.")
