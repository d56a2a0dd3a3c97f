"""The tables of the page and the words beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lightning_sft.sweep.intervals import Interval, interval
from studies.cells import Cell
from studies.findings import differences, judged, scores
from studies.phantoms import analysis
from studies.phantoms.analysis import AMONG, KINDS, MAIN, RUSHED
from studies.phantoms.arms import FULL, adapter_of
from studies.phantoms.design import (
    ALONE,
    EMBEDDINGS,
    EQUAL,
    FAST,
    FLIPPED,
    LEAST,
    MIXED,
    MOST,
    SEARCH_BOUND,
    STAGES,
    STEPS,
    Stage,
)
from studies.phantoms.over_runs import FELL_NOT, Rows, kinds, nll_change, rows_of
from studies.phantoms.watch import CUTS
from studies.tables import NOT_RUN, points, table


def percent(one: Interval | None, low: float = 0.0) -> str:
    """Return a share with its interval, in percent; no end of it lies where no share can be.

    Args:
        one: the share; without an interval its mean alone is told.
        low: what the lower end is cut at; for a change, which may be negative, minus infinity.
    """
    if one is None:
        return "-"
    sign = "" if low == 0 else "+"
    mean = f"{100 * one.mean:{sign}.1f}"
    if one.low is None or one.high is None or one.low == one.high:  # values that are all alike give no interval
        return mean
    return f"{mean} [{100 * max(one.low, low):{sign}.1f}, {100 * min(one.high, 1.0):{sign}.1f}]"


def run_so_far(mine: Sequence[Cell], expected: int) -> str:
    """Return how many runs of an arm are there."""
    return f"{len(mine)} of {expected} run" if mine else NOT_RUN


def _judged_rows(stage: Stage, arm: str, cells: Sequence[Cell]) -> tuple[list[Cell], Rows]:
    mine = analysis.cells_of(cells, stage, stage.blocks[0], arm, "judged")
    return mine, rows_of(mine, replicates=True)


# ---------------------------------------------------------------------- jumps


def jumps_section(cells: Sequence[Cell]) -> str:
    """Return what took part in jumps, by stage and arm."""
    lines = []
    for stage in STAGES.values():
        for arm in stage.arms:
            mine, rows = _judged_rows(stage, arm, cells)
            if len(mine) < stage.replicates:
                lines.append([stage.name, arm, run_so_far(mine, stage.replicates), *["-"] * 6])
                continue
            jumps, planted, cause = rows.count(lambda o: o.jumps), analysis.plant(mine), rows.cause()
            lines.append(
                [
                    stage.name, arm, f"{mine[0].rate:.3g}", str(jumps),
                    str(len({o.number for row in rows.runs for o in row if o.jumps})), percent(rows.took_part()),
                    "-" if cause is None else f"{100 * cause:.1f}", _at_cuts(mine),
                    f"{planted.phantom} of {planted.jumps}" if adapter_of(arm) is None else "-",
                ]
            )  # fmt: skip
    told = (
        "A jump is a change of the order parameter in one step (among sentences: from one reading to the next, four "
        "steps on) that is above ten times the context's median change, and above .02. Nothing need be discontinuous "
        "for that: an even motion of the logits that carries a word past its near-synonym within a few of "
        f"{STEPS} steps gives several. Contexts count whose right word began behind.\n\n"
        "How much of a jump is due to the change of the output rows is computed in two ways: by an exact split, and by "
        "a counterfactual that keeps the rows of the step before under the present hidden states. The rows *took part* "
        "where either gives 5% or more; a jump in which they did not is called a phantom. Where that limit lies "
        "decides "
        "what is found, so the table has other limits beside it. Shares are means over runs with jumps, with 95% "
        "t-intervals over replicates. The runs among sentences are read every four steps, at much higher rates than "
        "the others, so they do not compare with them step for step.\n\n"
        "**Under LoRA the output rows stay bit by bit what they were, which every run asserts. So every jump is a "
        "phantom by construction, and these rows show no more than that jumps need no change of the output rows. What "
        "is said about causes rests on the runs that train all weights.**\n\n"
        "The plant is a control: after the last step the rows of each context's two words are swapped by hand, and "
        "the swap is judged as a jump wherever it changes the order parameter by more than .02 (contexts that began "
        "ahead count, too). If one were called phantom, H1 would be undecided. Whole rows are swapped, so the plant "
        "shows that the instrument is not blind, not that its limit of 5% is right."
    )
    cuts = " / ".join(f"{100 * cut:g}" for cut in CUTS)
    heading = [
        "stage", "arm", "rate", "jumps", "contexts with jumps", "output rows took part (5%), % of jumps",
        "their mean share in the cause, %", f"took part at limits of {cuts}%, % of jumps",
        "plants called phantom",
    ]  # fmt: skip
    return f"## Jumps\n\n{told}\n\n{table(heading, lines)}"


def cut_shares(mine: Sequence[Cell]) -> list[float]:
    """Return the share of jumps in which the output rows took part at each of `CUTS`, mean over runs with jumps."""
    rows = [[c.run.readings.get(f"{EMBEDDINGS}_above_{cut:g}") for cut in CUTS] for c in mine]
    known = [[value for value in row if value is not None] for row in rows]
    whole = [row for row in known if len(row) == len(CUTS)]
    return [statistics.fmean(column) for column in zip(*whole, strict=True)]


def _at_cuts(mine: Sequence[Cell]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in cut_shares(mine)) or "-"


# ---------------------------------------------------------------------- LoRA


def lora_section(cells: Sequence[Cell]) -> str:
    """Return what each arm flips, and how much more all weights do."""
    pilot, lines = STAGES["pilot"], []
    for stage, arm in [(MAIN, arm) for arm in MAIN.arms] + [(RUSHED, arm) for arm in RUSHED.arms]:
        (block,) = stage.blocks
        mine = analysis.cells_of(cells, stage, block, arm, "judged")
        smallest = "-"
        if stage == MAIN and analysis.cells_of(cells, pilot, ALONE, arm, "search"):
            least = analysis.least_rate(cells, pilot, ALONE, arm)
            smallest = "none" if least is None else f"{least:.3g}"
        if len(mine) < stage.replicates:
            lines.append([stage.name, arm, smallest, run_so_far(mine, stage.replicates), "-", "-"])
            continue
        flipped = interval(list(scores(judged(cells, stage.name, block.name), arm, FLIPPED).values()))
        change = percent(nll_change(mine), low=-float("inf"))
        lines.append([stage.name, arm, smallest, f"{mine[0].rate:.3g}", percent(flipped), change])
    told = (
        f"Contexts alone, {STEPS} steps: the share of contexts that began behind whose right word is ahead at the end, "
        "and the change of held-out NLL from start to end, with intervals over replicates. In the stage "
        f"`{MAIN.name}` each arm has the rate that flipped most in the pilot's search while held-out NLL rose by at "
        "most "
        f"{100 * (SEARCH_BOUND - 1):.1f}%. That search is one draw of contexts, half of them of the package's library. "
        f"In the stage `{RUSHED.name}` rates were set beforehand. The smallest rate at which half of the contexts "
        "flipped is of the pilot's search, too."
    )
    heading = [
        "stage", "arm", "smallest rate that flips half", "rate", "flipped, %", "change of held-out NLL, %"
    ]  # fmt: skip
    return "\n\n".join(["## Does LoRA suffice?", told, table(heading, lines), *_what_follows(cells)])


def _what_follows(cells: Sequence[Cell]) -> list[str]:
    """Return what the hypotheses do not ask: how much more all weights flip than each LoRA; [] before all is there."""
    runs = judged(cells, MAIN.name, ALONE.name)
    if any(len(runs.get(arm, {})) < MAIN.replicates for arm in MAIN.arms):
        return []
    told, apart = [], []
    for arm in MAIN.arms:
        if arm == FULL:
            continue
        more = points(interval(list(differences(runs, FLIPPED, FULL, arm).values())))
        nll = (analysis.collateral(runs, FULL) or 0) - (analysis.collateral(runs, arm) or 0)
        told.append(f"{arm}: {more} (held-out NLL {100 * nll:+.2f})")
        apart += [arm] * (abs(nll) > EQUAL)
    highest = max(cell.run.score("phantoms/background") - 1 for cell in cells
                  if cell.stage == MAIN.name and cell.kind == "judged")  # fmt: skip
    parts = [
        f"H2 compares two ranks, {LEAST} and {MOST}. It does not say how LoRA stands beside all weights. For that, all "
        "weights minus each LoRA, in points of flipped contexts and of held-out NLL at the end (in percent of the "
        f"start), by replicate and not adjusted for their number: {'; '.join(told)}. This comparison was added after "
        "the registration, when its runs had been made.",
    ]
    reached = (
        f"In the judged runs no arm came near the bound that rates had been chosen under (the highest change is "
        f"{100 * highest:+.2f}%), so each could have gone on to a higher rate."
        if highest < SEARCH_BOUND - 1
        else "Some judged runs went beyond the bound that rates had been chosen under."
    )
    unequal = (
        f" By the study's own rule two arms are comparable where their held-out NLL differs by at most "
        f"{100 * EQUAL:.1f} points; {' and '.join(apart)} {'is' if len(apart) == 1 else 'are'} further from all "
        "weights "
        "than that."
        if apart
        else ""
    )
    fast = analysis.cells_of(cells, RUSHED, FAST, FULL, "judged")
    beyond = (
        f" At {fast[0].rate:g} all weights flipped {percent(interval([c.run.score(FLIPPED) for c in fast]))}%, with "
        f"held-out NLL at {percent(nll_change(fast), low=-float('inf'))}%; LoRA was run at no other rate than its own."
        if len(fast) == RUSHED.replicates
        else ""
    )
    parts.append(
        f"{reached}{unequal}{beyond} So what can be said is: at rates that one draw allowed, LoRA flips less than all "
        "weights, and no rank of it flips much more than another. Whether LoRA would reach all weights at an equal "
        "cost "
        "on other text was not measured."
    )
    return parts


# ---------------------------------------------------------------------- silent failure


def silent_section(cells: Sequence[Cell]) -> str:
    """Return how often contexts failed silently, by stage, arm and rates; and the search behind the rate of H3."""
    lines = []
    for stage in STAGES.values():
        for arm in stage.arms:
            for kind, words in (("search", "all tried"), ("judged", "own")):
                mine = analysis.cells_of(cells, stage, stage.blocks[0], arm, kind)
                if kind == "search" and (stage.rates_of or not stage.search.points):
                    continue
                rows = rows_of(mine, replicates=kind == "judged")
                if not rows.seen:
                    lines.append([stage.name, arm, words, NOT_RUN, *["-"] * (4 + len(KINDS))])
                    continue
                lines.append([stage.name, arm, words, str(len(mine)), str(rows.contexts), *_shares(rows)])
    told = (
        "Of the contexts whose right word was behind at the start, the share that is behind still at the end although "
        "its loss fell by more than .05 nats: a silent failure. Every run counts, also those at rates that were only "
        "tried. Shares are means over runs. Runs at an arm's own rate are replicates and have a 95% t-interval; those "
        "of a search share one draw of contexts and have none, and neither have the pilot's two. The kinds are parts "
        "of the silent failures: the signal stayed small (kinematic), the drag worsened (structural), both, neither, "
        "or the loss was still falling steeply (stopped early, which H3 leaves out). What did not fail silently "
        "flipped, or its loss did not fall, as happens at the low rates of a search."
    )
    heading = [
        "stage", "arm", "rates", "runs", "contexts", "silent, %", *(f"{kind}, %" for kind in KINDS), "flipped, %",
        f"{FELL_NOT}, %",
    ]  # fmt: skip
    return "\n\n".join(["## How common is silent failure?", told, table(heading, lines), *_rates_among(cells)])


def _shares(rows: Rows) -> list[str]:
    return [
        percent(rows.share(lambda o: o.silent)),
        *(f"{100 * share:.1f}" for share in kinds(rows)),
        percent(rows.share(lambda o: o.outcome == "flipped")),
        percent(rows.share(lambda o: o.outcome == FELL_NOT)),
    ]


def _rates_among(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for arm in AMONG.arms:
        tried = analysis.cells_of(cells, AMONG, MIXED, arm, "search")
        own = analysis.cells_of(cells, AMONG, MIXED, arm, "judged")
        for cell in sorted(tried, key=lambda c: c.rate):
            rows = rows_of([cell], replicates=False)
            if rows.seen:
                chosen = "yes" if own and own[0].rate == cell.rate else ""
                nll = percent(nll_change([cell]), low=-float("inf"))
                silent, *_, flipped, fell_not = _shares(rows)
                lines.append([arm, f"{cell.rate:.3g}", silent, flipped, fell_not, nll, chosen])
    if not lines:
        return []
    told = (
        "How many fail silently depends on the rate, and the rate was chosen by held-out NLL on one draw, among rates "
        "that are a factor of about three apart:"
    )
    heading = ["arm", "rate", "silent, %", "flipped, %", f"{FELL_NOT}, %", "change of held-out NLL, %", "chosen"]
    return [told, table(heading, lines)]
