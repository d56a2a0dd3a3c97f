"""The page of the study, written from its cells alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import write_text
from lightning_sft.sweep.intervals import Interval, interval
from studies.cells import Cell, require_one_version
from studies.findings import differences, judged, scores
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.phantoms import analysis
from studies.phantoms.analysis import AMONG, KINDS, MAIN, RUSHED, Outcome, Verdict
from studies.phantoms.arms import FASTER_RATE, FULL, adapter_of
from studies.phantoms.design import (
    ALONE,
    CONTEXTS,
    EMBEDDINGS,
    FAST,
    FAST_RATE,
    FLIPPED,
    HYPOTHESES,
    LEAST,
    MIXED,
    MOST,
    REGISTERED,
    ROWS,
    SEARCH_BOUND,
    STAGES,
    STEPS,
    TIMES,
)
from studies.phantoms.figure import draw
from studies.phantoms.watch import CUTS
from studies.registration import Registration
from studies.tables import NOT_RUN, p_text, pictures, points, table

HEAD = "<!-- written by `python -m studies.phantoms page` from the cells in data/phantoms; edit nothing here -->"
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
        _jumps(cells),
        _lora(cells),
        _silent(cells),
        _costs(cells),
        _design(cells, registration, root),
        _not_done(cells),
    ]
    write_text(page, "\n\n".join(parts) + "\n")


# ---------------------------------------------------------------------- in a hurry


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return three sentences for someone in a hurry; of what is not complete they say only that."""
    asked = (
        "When the preference between a word and its near-synonym changes much in one step, is it the output rows that "
        "changed or what is read with them, does LoRA flip what full fine-tuning flips, and how often does the loss "
        "fall while the word stays behind?"
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
    return [
        asked,
        f"Under full fine-tuning at {FAST_RATE:g} the output rows took part in {_held(h1)} of the jumps (H1 "
        f"{h1.verdict}), and {LEAST} minus {MOST} is {points(h2.finding.difference)} points of flipped contexts, "
        f"at a held-out NLL of {_rise(cells, LEAST)}% and {_rise(cells, MOST)}% against the start (H2 {h2.verdict}).",
        f"Among other sentences {_held(h3)} of contexts failed silently under NLL at the rate with the best held-out "
        f"NLL (H3 {h3.verdict}).",
    ]


def _held(one: Verdict) -> str:
    """Return the share that a hypothesis is about, with its interval over replicates."""
    difference = one.finding.difference
    if difference is None or difference.low is None or difference.high is None:
        return "an unknown share"  # no replicate, or one alone
    if difference.low == difference.high == -one.against:
        return "none"
    moved = Interval(*(value + one.against for value in (difference.mean, difference.low, difference.high)))
    return f"{percent(moved)}%"


def percent(one: Interval | None) -> str:
    """Return a share with its interval, in percent; no end of it lies where no share can be."""
    if one is None:
        return "-"
    if one.low is None or one.high is None:
        return f"{100 * one.mean:.1f}"
    if one.low == one.high:  # values that are all alike give no interval
        return f"{100 * one.mean:.1f} in each"
    return f"{100 * one.mean:.1f} [{100 * max(one.low, 0.0):.1f}, {100 * min(one.high, 1.0):.1f}]"


def judged_by_plant(cells: Sequence[Cell]) -> list[Cell]:
    """Return the runs whose plant H1 rests on."""
    return analysis.cells_of(cells, RUSHED, FAST, FULL, "judged")


def _rise(cells: Sequence[Cell], arm: str) -> str:
    """Return an arm's held-out NLL at the end, in percent above the start."""
    rise = analysis.collateral(judged(cells, MAIN.name, ALONE.name), arm)
    return NOT_RUN if rise is None else f"{100 * (rise - 1):+.1f}"


def _hypotheses(cells: Sequence[Cell]) -> str:
    asked = {
        "H1": "jumps with the output rows in them, less than 10%",
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
        "Shares with 95% t-intervals over replicates, each of which draws its own contexts and rows. They do not cover "
        "which rates the search found. When H1 was registered, two pilots had seen the output rows take part in none "
        "of 16 jumps at 9.5e-6 and in a fifth of those at 3e-5."
    )
    return f"## Hypotheses\n\n{told}\n\n{table(['', 'question', 'found', 'p (Holm)', 'verdict'], rows)}"


# ---------------------------------------------------------------------- jumps


def _jumps(cells: Sequence[Cell]) -> str:
    rows = []
    for name in ("pilot", MAIN.name, RUSHED.name):
        stage = STAGES[name]
        (block,) = stage.blocks
        for arm in stage.arms:
            mine = analysis.cells_of(cells, stage, block, arm, "judged")
            if len(mine) < stage.replicates:
                rows.append([name, arm, _run_so_far(mine, stage.replicates), *["-"] * 6])
                continue
            read = [o for cell in mine for o in analysis.outcomes(cell.run) if o.behind]
            jumps = sum(o.jumps for o in read)
            contexts, took, cause = analysis.jump_share(read)
            planted = analysis.plant(mine)
            rows.append(
                [
                    name, arm, f"{mine[0].rate:.3g}", str(jumps), str(contexts), percent(took),
                    "-" if cause is None else f"{100 * cause:.1f}",
                    f"{planted.phantom} of {planted.jumps}" if adapter_of(arm) is None else "-",
                    _at_cuts(mine),
                ]
            )  # fmt: skip
    told = (
        "A jump is a change of the order parameter in one step that is above ten times the context's median change, "
        "and above .02. Nothing need be discontinuous for that: an even motion of the logits that carries a word past "
        "its near-synonym within a few of 24 steps gives several. Contexts count whose right word began behind. The "
        "embeddings, by which the output rows are meant and what they changed by in that step, took part where their "
        "share is 5% or more by the exact split or by the "
        "counterfactual, which keeps the rows of the step before under the present hidden states; a jump in which they "
        "did not is a phantom. Intervals are over contexts, each counted once. **Under LoRA the embeddings stay bit by "
        "bit what they were, which every run asserts, so every jump is a phantom by construction: these rows prove "
        "nothing beyond that jumps need no change of the geometry. The statement on causes is that of full "
        "fine-tuning.** The plant swaps the rows of each context's two words by hand after the last step, and is "
        "judged as a jump wherever it changes the order parameter by more than .02; none of these may be called "
        "phantom. It exchanges whole rows, so it shows that the instrument is not blind, not where its limit of 5% "
        "lies: the last column gives the share of jumps at other limits."
    )
    heading = [
        "stage", "arm", "rate", "jumps", "contexts with jumps", "embeddings took part, % of jumps",
        "their mean share in the cause, %", "planted changes called phantom", "took part at 1 / 2 / 10%, % of jumps",
    ]  # fmt: skip
    return f"## Jumps\n\n{told}\n\n{table(heading, rows)}"


def _at_cuts(mine: Sequence[Cell]) -> str:
    """Return the share of jumps in which the embeddings took part at other limits, mean over runs with jumps."""
    rows = [[c.run.readings.get(f"{EMBEDDINGS}_above_{cut:g}") for cut in CUTS] for c in mine]
    known = [[value for value in row if value is not None] for row in rows]
    whole = [row for row in known if len(row) == len(CUTS)]
    return " / ".join(f"{100 * statistics.fmean(column):.0f}" for column in zip(*whole, strict=True)) or "-"


# ---------------------------------------------------------------------- LoRA


def _lora(cells: Sequence[Cell]) -> str:
    pilot, rows = STAGES["pilot"], []
    runs = judged(cells, MAIN.name, ALONE.name)
    for arm in MAIN.arms:
        mine = analysis.cells_of(cells, MAIN, ALONE, arm, "judged")
        least = analysis.least_rate(cells, pilot, ALONE, arm)
        searched = analysis.cells_of(cells, pilot, ALONE, arm, "search")
        smallest = "-" if not searched else "none" if least is None else f"{least:.3g}"
        if len(mine) < MAIN.replicates:
            rows.append([arm, smallest, _run_so_far(mine, MAIN.replicates), "-", "-"])
            continue
        flipped = interval(list(scores(runs, arm, FLIPPED).values()))
        rise = analysis.collateral(runs, arm)
        assert rise is not None
        rows.append([arm, smallest, f"{mine[0].rate:.3g}", percent(flipped), f"{100 * (rise - 1):+.2f}"])
    told = (
        f"Contexts alone, {STEPS} steps: the share of contexts that began behind whose right word is ahead at the end, "
        f"each arm at the rate that flips most within a rise of held-out NLL of {100 * (SEARCH_BOUND - 1):.1f}%, with "
        "intervals over replicates; and the smallest rate of the pilot's search at which half of the contexts flipped "
        "(one draw of contexts, exploratory)."
    )
    heading = ["arm", "smallest rate that flips half", "own rate", "flipped, %", "held-out NLL, % above the start"]
    parts = ["## Does LoRA suffice?", told, table(heading, rows), *_full_minus_lora(cells)]
    return "\n\n".join(parts)


def _full_minus_lora(cells: Sequence[Cell]) -> list[str]:
    """Return what the hypotheses do not ask: how much more all weights flip than each LoRA; [] before all is there."""
    runs = judged(cells, MAIN.name, ALONE.name)
    if any(len(runs.get(arm, {})) < MAIN.replicates for arm in MAIN.arms):
        return []
    told = [
        f"{arm}: {points(interval(list(differences(runs, FLIPPED, FULL, arm).values())))}"
        for arm in MAIN.arms
        if arm != FULL
    ]
    return [
        "Beside the hypotheses, by replicate, all weights minus each of the others in points of flipped contexts, not "
        f"adjusted for their number: {'; '.join(told)}. The last column says at what held-out NLL: where it is below 0 "
        "the contexts' own kind of text, sentences of WordNet, got likelier, and the bound that rates were searched "
        "under was not reached. An arm with a lower number there could have gone on to a higher rate."
    ]


# ---------------------------------------------------------------------- silent failure


def _silent(cells: Sequence[Cell]) -> str:
    rows = []
    for name, stage in STAGES.items():
        (block,) = stage.blocks
        for arm in stage.arms:
            for kind, words in (("search", "all tried"), ("judged", "own")):
                mine = analysis.cells_of(cells, stage, block, arm, kind)
                if kind == "search" and (stage.rates_of or not stage.search.points):
                    continue
                read = [o for cell in mine for o in analysis.outcomes(cell.run)]
                if not read:
                    rows.append([name, arm, words, NOT_RUN, *["-"] * (3 + len(KINDS))])
                    continue
                rows.append([name, arm, words, *_silent_row(mine, read)])
    told = (
        "Of the contexts whose right word was behind at the start, the share that is behind still at the end although "
        "its loss fell by more than .05 nats; every run counts, also those at rates that were only tried. Intervals "
        "are over contexts, each counted once however many runs it was in. The kinds are parts of that share: the "
        "signal stayed small (kinematic), the drag worsened (structural), both, neither, or the loss was still falling "
        "steeply (stopped early, which H3 leaves out). Nearly every loss falls, so what did not fail silently flipped. "
        "By origin: the package's own contexts, which stand in the pilot alone, and sentences of WordNet. The share "
        "over contexts differs from that over replicates where contexts began ahead or were drawn twice."
    )
    heading = [
        "stage", "arm", "rates", "runs", "contexts", "silent, %", *(f"{kind}, %" for kind in KINDS), "shipped / "
        "mined, %"
    ]  # fmt: skip
    return f"## How common is silent failure?\n\n{told}\n\n{table(heading, rows)}"


def _silent_row(mine: Sequence[Cell], read: Sequence[Outcome]) -> list[str]:
    found = analysis.shares(read)
    origins = (analysis.shares(o for o in read if o.shipped == shipped).silent for shipped in (True, False))
    each = " / ".join("-" if one is None else f"{100 * one.mean:.0f}" for one in origins)
    kinds = [f"{100 * found.kinds.get(kind, 0.0):.1f}" for kind in KINDS]
    return [str(len(mine)), str(found.contexts), percent(found.silent), *kinds, each]


def _run_so_far(mine: Sequence[Cell], expected: int) -> str:
    return f"{len(mine)} of {expected} run" if mine else NOT_RUN


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
    told = "Seconds of training steps, and of the whole run with its readings; two runs side by side, one thread each."
    told += processor_words(cells)
    heading = ["stage", "arm", "seconds of steps", "seconds of the run", "tokens"]
    return f"## What it costs\n\n{told}\n\n{table(heading, rows)}"


def _design(cells: Sequence[Cell], registration: Registration | None, root: Path) -> str:
    half = CONTEXTS // 2
    return "\n\n".join(
        [
            "## Design",
            registered_words(registration, root),
            f"One model (SmolLM2-135M-Instruct, float32, tied embeddings), {STEPS} steps of AdamW without weight "
            f"decay. A run draws {CONTEXTS} contexts without a word in common: sentences of WordNet 3.0 up to a word "
            f"that is replaced by a rarer near-synonym, which is right by construction; in the pilot {half} of them, "
            f"and {half} of the package's library. {ALONE.name}: one batch of these contexts, loss on the answer's one "
            f"token over the whole vocabulary, a reading at every step, constant rate. {FAST.name}: the same at "
            f"{FAST_RATE:g} and at {FASTER_RATE:g}, whatever it costs on other text. {MIXED.name}: the whole "
            f"sentences, {TIMES} times each, among {STEPS * ROWS} rows of other sentences, {ROWS} a "
            "step, linear decay.",
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
            lines.append(f"- {v.name}: {v.verdict}{f' ({v.why})' if v.why else ''}.")
    for name, stage in STAGES.items():
        lines += missing_runs(cells, stage)
        if diverged := sum(c.run.outcome != "finished" for c in cells if c.stage == name):
            lines.append(f"- {name}: {diverged} runs diverged, at rates that are too high for their arm.")
    return "## What did not come out, and what has not run\n\n" + ("\n".join(lines) or "Everything has run.")
