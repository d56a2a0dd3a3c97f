"""What the page of the study says in words: the answer in a hurry, what was decided, and what it means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lightning_sft.advice.evidence import RATES_HERE
from studies.cells import Cell
from studies.rates import analysis
from studies.rates.analysis import losses, units
from studies.rates.design import MAIN, OTHERS
from studies.rates.rules import ADVISED, BAND, FORMULA, TUNED


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return a few sentences for someone in a hurry; of what is not complete they say only that."""
    asked = (
        "Finders read a learning rate off a short test. Does the rate that they name end a run with a lower loss on "
        "unseen rows than a rule that costs nothing?"
    )
    if not _complete(cells):
        have, want = len(units(cells, MAIN)), len(MAIN.blocks) * MAIN.replicates
        return [asked, f"Of {want} registered units {have} are there, so nothing is said here yet."]
    by_name = {one.rule.name: one for one in losses(cells)}
    shown = {name: percent(by_name[name].mean) for name in (BAND, TUNED, FORMULA, ADVISED)}
    return [
        asked,
        f"On small models the rate that our band recommends loses {shown[BAND]}% of what the best rate gains; "
        f"constants tuned on two other tasks of the same model {shown[TUNED]}%, the published formula by width "
        f"{shown[FORMULA]}%, and what `lightning advise` suggested when this was registered {shown[ADVISED]}%.",
        decision(cells),
    ]


def decision(cells: Sequence[Cell]) -> str:
    """Return what the registered rule decides about `lightning advise` and the finders."""
    h1, h2, _ = analysis.hypotheses(cells)
    if h1.verdict == h2.verdict == "supported":
        return "**By the registered rule the band wins.**"
    general = [one for one in losses(cells) if one.rule.kind == "finder" or one.rule.name == FORMULA]
    least = min(general, key=lambda one: one.mean)
    return (
        f"**By the registered rule the band does not win** (H1 {h1.verdict}, H2 {h2.verdict}), so nothing recommends "
        f"it. Of the finders and the published formula, '{least.rule.name}' loses least: {percent(least.mean)}%."
    )


def percent(share: float) -> str:
    """Return a share in percent."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def remarks(cells: Sequence[Cell]) -> str:
    """Return the section on what the registered runs mean."""
    heading = "## What it means, and what it does not"
    if not _complete(cells):
        return f"{heading}\n\nNothing is said before all registered units are there."
    by_name = {one.rule.name: one for one in losses(cells)}
    worst = {name: percent(by_name[name].worst) for name in (BAND, TUNED, ADVISED)}
    times = ", ".join(f"{task} {ratio:.1f}" for task, ratio in lora_times(cells).items())
    lines = [
        "- `lightning advise` and `LearningRateSweep` do not use the band. The rule called `advise` here is the one "
        "that "
        f"it had when this was registered; it loses {percent(by_name[ADVISED].mean)}%. In runs of 60 steps the rate "
        "that "
        "it named failed, so `advise` names a lower one since, and says what that one loses in these runs: "
        f"{RATES_HERE.what}",
        f"- The differences are wide because blocks differ: in its worst block the band loses {worst[BAND]}%, the "
        f"pilot's constants {worst[TUNED]}%, the rule of `advise` {worst[ADVISED]}%. That the band has no bad "
        f"block was seen after the runs, and was not what was registered{_elsewhere(cells)}.",
        f"- A tenth of the rate at the training loss's minimum, which is what `advise` took, fails under LoRA "
        f"({percent(by_name[ADVISED].lora)}% lost, all weights {percent(by_name[ADVISED].full)}%): its rate over the "
        f"best one is {lora_ratios(cells, ADVISED)} (geometric means of seeds).",
        f"- Ten times the rate for LoRA is no law on these models. Best rate under LoRA over that of all weights "
        f"(geometric means of seeds): {times}.",
        "- The quarter runs cost more than two and a half whole runs; they are what a search over short runs is worth, "
        "not a free lunch.",
    ]
    return heading + "\n\n" + "\n".join(lines)


def _elsewhere(cells: Sequence[Cell]) -> str:
    """Return what the band loses in its worst block of the other sizes, as the end of a sentence; "" without any."""
    found = [one for one in losses(cells, OTHERS) if one.rule.name == BAND]
    return f"; on the other sizes its worst block loses {percent(found[0].worst)}%" if found else ""


def lora_ratios(cells: Sequence[Cell], rule: str) -> str:
    """Return a rule's rate over the best one under LoRA, by task of the confirmatory stage, in words."""
    taken = next(one.rule for one in losses(cells) if one.rule.name == rule)
    logs: dict[str, list[float]] = {}
    for unit in units(cells, MAIN):
        if unit.block.lora and (rate := unit.rate(taken)) is not None:
            logs.setdefault(unit.block.task, []).append(math.log(rate / unit.best))
    return ", ".join(f"{math.exp(statistics.fmean(row)):.2f} ({task})" for task, row in logs.items())


def lora_times(cells: Sequence[Cell]) -> dict[str, float]:
    """Return for each task of the confirmatory stage the best rate under LoRA over that of all weights."""
    logs: dict[tuple[str, bool], list[float]] = {}
    for unit in units(cells, MAIN):
        logs.setdefault((unit.block.task, unit.block.lora), []).append(math.log(unit.best))
    mean = {key: statistics.fmean(row) for key, row in logs.items()}
    return {task: math.exp(mean[task, True] - mean[task, False]) for task, lora in mean if lora}


def _complete(cells: Sequence[Cell]) -> bool:
    return len(units(cells, MAIN)) == len(MAIN.blocks) * MAIN.replicates
