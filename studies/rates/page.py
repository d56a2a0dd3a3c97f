"""The page of the study, written from its cells alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import write_text
from lightning_sft.sweep.intervals import Interval
from studies.cells import Cell, require_one_version
from studies.page_parts import code_words, missing_runs, processor_words, registered_words
from studies.rates import analysis
from studies.rates.analysis import Loss, Unit, losses, units
from studies.rates.design import (
    HYPOTHESES,
    JUDGED,
    MAIN,
    OTHERS,
    PILOT,
    RANGE,
    REGISTERED,
    ROWS,
    STAGES,
    STEPS,
    VAL,
    Stage,
)
from studies.rates.figure import draw
from studies.rates.models import PARAMETERS, SIZES
from studies.rates.remarks import percent, remarks, sentences
from studies.rates.rules import BAND, band, line_minimum
from studies.rates.unit import GRID, HIGH, LOW, REFINE
from studies.registration import Registration
from studies.tables import NOT_RUN, p_text, pictures, points, table

HEAD = "<!-- written by `python -m studies.rates page` from the cells in data/rates; edit nothing here -->"
#: a rate this many times above the best one is what the charge against finders is about
TOO_HIGH = 10.0


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
    shown = pictures(draw(cells, figures), page, "Lost of the possible gain, by rule")
    parts = [
        f"{HEAD}\n\n# Does a measured learning rate beat rules that cost nothing?",
        " ".join(sentences(cells)),
        shown or "There is no figure yet: the registered runs are not complete.",
        _limits(),
        _hypotheses(cells),
        _losses(cells, MAIN, "What each rule loses"),
        remarks(cells),
        _charge(cells),
        _best(cells),
        _laws(cells),
        _losses(cells, OTHERS, "Two other sizes, one seed each"),
        _losses(cells, PILOT, "The pilot"),
        _costs(cells),
        _design(cells, registration, root),
        _not_done(cells),
    ]
    write_text(page, "\n\n".join(parts) + "\n")


def _limits() -> str:
    names = ", ".join(f"{name} (width {width}, {layers} layers)" for name, (width, layers) in SIZES.items())
    return (
        "## What small models can tell, and what they cannot\n\n"
        f"The models are {names}; they were pretrained here for a minute or two, know little, and take {STEPS} steps "
        f"of {ROWS} rows. **What such a page can show is whether a way to find a rate follows the task and the adapter "
        "at all, and how badly it fails. It cannot show which constant is right for a model of billions:** best rates "
        "fall with width and with the length of a run, so 2e-5 and 1e-4 are far too low here and lose by construction. "
        "That a constant loses here is no charge against it elsewhere. A rule that scales with width, and a finder, "
        "make a statement on any model, and can be charged with it."
    )


def _hypotheses(cells: Sequence[Cell]) -> str:
    rows = []
    for v in analysis.hypotheses(cells):
        shown = NOT_RUN
        if isinstance(v.effect, Interval):
            shown = f"{points(v.effect)} points"
        elif v.effect is not None:
            shown = f"correlation {v.effect:+.2f}"
        rows.append([v.name, HYPOTHESES[v.name], shown, p_text(v.p_holm), v.verdict])
    told = (
        "Differences in the share of the possible gain that is lost, with 95% t-intervals over the 8 blocks (task x "
        "adapter), each the mean of 3 seeds."
    )
    return f"## Hypotheses\n\n{told}\n\n{table(['', 'hypothesis', 'found', 'p (Holm)', 'verdict'], rows)}"


def _losses(cells: Sequence[Cell], stage: Stage, heading: str) -> str:
    found = losses(cells, stage)
    if not found:
        return f"## {heading}\n\nNo unit of this stage has run."
    have = len(units(cells, stage))
    rows = [_loss_row(one) for one in sorted(found, key=lambda one: one.mean)]
    told = (
        f"Stage `{stage.name}`, {have} of {len(stage.blocks) * stage.replicates} units. Lost: of what the best rate of "
        "the same block and seed gains on the judged rows, in percent; 100 where the run diverges, or the rule names "
        "no rate. Nats: the excess of NLL a token, of runs that did not diverge."
    )
    head = ["rule", "kind", "what it says", "lost, %", "full", "LoRA", "worst block", "rate / best", "nats"]
    return f"## {heading}\n\n{told}\n\n{table(head, rows)}"


def _loss_row(one: Loss) -> list[str]:
    name = f"**{one.rule.name}**" if one.rule.name == BAND else one.rule.name
    ratio = "-" if one.ratio is None else f"{one.ratio:.2g}"
    shares = [percent(share) for share in (one.mean, one.full, one.lora, one.worst)]
    return [name, one.rule.kind, one.rule.words, *shares, ratio, "-" if math.isnan(one.nats) else f"{one.nats:.3f}"]


def _charge(cells: Sequence[Cell]) -> str:
    some = units(cells, MAIN)
    if not some:
        return "## Do finders name rates that are far too high?\n\nNo unit has run."
    rows = []
    for one in losses(cells):
        if one.rule.kind != "finder":
            continue
        rates = [(u, u.rate(one.rule)) for u in some]
        known = [rate / u.best for u, rate in rates if rate is not None]
        high = sum(ratio > TOO_HIGH for ratio in known)
        low = sum(ratio < 1 / TOO_HIGH for ratio in known)
        dead = sum(math.isnan(u.nll(rate)) for u, rate in rates if rate is not None)
        rows.append([one.rule.name, str(len(some) - len(known)), str(high), str(low), str(dead)])
    told = (
        "The old charge is that they indicate 1e-3 where 1e-5 is best. Of each finder: in how many of "
        f"{len(some)} units it names no rate, one more than {TOO_HIGH:.0f} times above the best, one more than "
        f"{TOO_HIGH:.0f} times below it, and one at which the run diverges (the loss rises above four times its start, "
        "or is no number)."
    )
    head = ["finder", "no rate", "too high", "too low", "diverges"]
    return f"## Do finders name rates that are far too high?\n\n{told}\n\n{table(head, rows)}"


def _best(cells: Sequence[Cell]) -> str:
    rows = []
    for stage in (MAIN, OTHERS):
        for block in stage.blocks:
            mine = [unit for unit in units(cells, stage) if unit.block == block]
            if mine:
                rows.append(_best_row(mine))
    told = (
        "By block: the best rates of its seeds; NLL of the judged rows before, and at the best rate (means); the band "
        "of the first seed (low end, recommended rate, high end); and the rate at which one step of the optimizer "
        "lowers the validation NLL most."
    )
    head = ["block", "best rates", "NLL before", "at the best rate", "band", "line minimum"]
    return f"## Best rates\n\n{told}\n\n{table(head, rows) if rows else 'No unit has run.'}"


def _best_row(mine: Sequence[Unit]) -> list[str]:
    first = band(mine[0].readings, mine[0].steps)
    least = statistics.fmean(unit.curve[unit.best] for unit in mine)
    return [
        mine[0].block.name,
        ", ".join(f"{unit.best:.2g}" for unit in mine),
        f"{statistics.fmean(unit.start for unit in mine):.2f}",
        f"{least:.2f}",
        "-" if first is None else f"{first.low:.2g}, {first.rate:.2g}, {first.high:.2g}",
        ", ".join(f"{line_minimum(unit.readings) or math.nan:.2g}" for unit in mine),
    ]


def _laws(cells: Sequence[Cell]) -> str:
    some = [*units(cells, MAIN), *units(cells, OTHERS)]
    if not some:
        return "## What tells the best rate\n\nNo unit has run."
    found = analysis.predictors(some)
    rows = [
        [f"**{name}** (registered)" if name == "line minimum" else name, *(f"{row[g]:+.2f}" for g in row)]
        for name, row in found.items()
    ]
    told = (
        f"Spearman's correlation with the best rate over {len(some)} units of both stages: of what can be read before "
        "the first step, and of what short runs say. **One quantity and its direction were registered (H3, on the "
        "confirmatory stage alone); the other rows are case studies.** The column 'all' mixes full fine-tuning with "
        "LoRA, whose best rates differ: there the number of trained parameters, which does little more than tell the "
        f"two apart, reaches {found['trainable parameters']['all']:+.2f}, and the registered quantity "
        f"{found['line minimum']['all']:+.2f}. So H3 holds largely because the quantity sees that difference; how well "
        "it does within one way of training stands in the other two columns, which were not registered. Statistics of "
        "the embeddings are the same for all runs of one model, so they can vary with the size alone. Units of a block "
        "are no independent points, and nothing here reaches beyond such models."
    )
    return f"## What tells the best rate\n\n{told}\n\n{table(['quantity', 'all', 'full', 'LoRA'], rows)}"


def _costs(cells: Sequence[Cell]) -> str:
    rows = [
        [name, str(len(mine)), f"{statistics.median(mine):.0f}"]
        for name in STAGES
        if (mine := [c.run.wall_seconds for c in cells if c.stage == name and c.kind == "judged"])
    ]
    models = [
        [c.block, f"{c.run.readings[PARAMETERS] / 1e6:.2f} M", f"{c.run.start['val/nll']:.2f}",
         f"{c.run.readings['val/nll']:.2f}", f"{c.run.wall_seconds:.0f}"]
        for c in cells if c.kind == "level"
    ]  # fmt: skip
    told = (
        f"A free rule costs nothing, a range test {RANGE} steps, the quarter runs {len(GRID) + 2 * REFINE} times "
        f"{STEPS // 4} steps, where the run itself has {STEPS}. The machine was shared and busy, so the median seconds "
        f"of a unit say little.{processor_words(cells)}"
    )
    shown = table(["stage", "units", "seconds"], rows) if rows else "No unit has run."
    made = table(["model", "parameters", "NLL before pretraining", "after", "seconds"], models) if models else ""
    return f"## What it costs\n\n{told}\n\n{shown}\n\n{made}".rstrip()


def _design(cells: Sequence[Cell], registration: Registration | None, root: Path) -> str:
    found = analysis.tuned(cells)
    constant = "the pilot is not complete" if found is None else f"{found[0]:.2g}, LoRA {found[1]:.2g}"
    return "\n\n".join(
        [
            "## Design",
            registered_words(registration, root),
            "Models: Llama architecture, tied embeddings, a vocabulary of some 2000 tokens, pretrained on words and "
            "their definitions of WordNet 3.0. Tasks, whose rows stand in no pretraining text: `kinds` (a noun with "
            "its definition: which of 26 kinds is it of?), `words` (a definition: which word?), `sums` (of two numbers "
            "below 100), `initials` (of three words); the pilot has `spelling` and `sentences`. AdamW without weight "
            "decay, warm-up of a tenth, linear decay, gradients clipped at 1, float32; all weights, or LoRA of rank 8 "
            "and alpha 16 on every linear layer.",
            f"A unit is one fit, in which all trials start from the same weights with the same rows in the same order: "
            f"{len(GRID)} rates from {GRID[0]:.0e} by factors of four, then twice two rates around the best, half-way "
            f"on a log scale, so that the best is known to a factor of {4**0.25:.2f}; range tests from {LOW:.0e} "
            f"to {HIGH:.2g}. Finders read the training loss, or {VAL} validation rows; what is lost is read on "
            f"{JUDGED} other rows.",
            "The band, by a range test that reads the validation NLL: its high end is the rate at which the NLL was "
            "lowest; the rate to take is the lowest at which the NLL had made nine tenths of its fall (chosen on the "
            "pilot); the low end is the rate at which the whole run makes the progress (sum of rates) that the test "
            "had made there, which is the law that [forecasts](../how_to/forecast.md) rest on. No near-synonym probe "
            "stands in these tasks, so no forecast of flips narrows it. A run is as long as the test, so the low end "
            "is hardly tested. The pilot's constants are geometric means of its best rates: "
            f"{constant}. They are a yardstick: nobody has them for free.",
            "Rules of thumb: transformers' default of 5e-5; 2e-5 and 1e-4 of common recipes, ten times that for LoRA "
            '("LoRA Without Regret", Thinking Machines 2025); and the formula of the same authors\' cookbook with its '
            "exponent for Llama.",
            f"Primary outcome: {REGISTERED['primary outcome']}",
            f"Decision rule: {REGISTERED['decision rule']}",
            "What the intervals cover: tasks and adapters like these. What they do not: larger models, longer runs, "
            "other optimizers, other batch sizes.",
            code_words(cells),
        ]
    )


def _not_done(cells: Sequence[Cell]) -> str:
    lines = [f"- {v.name}: {v.verdict}." for v in analysis.hypotheses(cells) if v.verdict != "supported"]
    for stage in STAGES.values():
        lines += missing_runs(cells, stage)
    every = [unit for stage in STAGES.values() for unit in units(cells, stage)]
    ends = [unit.block.name for unit in every if unit.best in (min(unit.curve), max(unit.curve))]
    if ends:
        lines.append(
            f"- The grid does not grow: in {len(ends)} of {len(every)} units ({', '.join(ends)}) the best rate is at "
            "its end, so a better one may lie beyond."
        )
    lines.append("- No block on a real model: the cost of a grid there was beyond this study's budget.")
    return "## Null results, and what is not done\n\n" + "\n".join(lines)
