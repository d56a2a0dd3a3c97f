"""What two readers held against the finished page, who were asked to break it, in numbers of the cells."""

from __future__ import annotations

from collections.abc import Sequence

from studies.cells import Cell
from studies.cure.texts import pairs
from studies.phantoms import analysis
from studies.phantoms.analysis import AMONG, MAIN, RUSHED
from studies.phantoms.arms import FULL
from studies.phantoms.design import ALONE, CONTEXTS, FAST, MIXED, STAGES
from studies.phantoms.over_runs import Rows, rows_of

#: the highest rate that the pilot tells about, where words jump
HIGHEST = 3.2e-5


def doubts_section(cells: Sequence[Cell]) -> list[str]:
    """Return what stands against the verdicts; [] before they are there."""
    if any(v.verdict == "not complete" for v in analysis.hypotheses(cells)):
        return []
    lines = [_h1_contexts(cells), _h1_rate(cells), *_history(), _h3_settled(cells), _h3_rate(), _draws(cells)]
    text = "\n".join(f"- {line}" for line in lines if line)
    head = "Two readers had the page and the cells and were asked to break it. This is what they found and what stands."
    return [f"## What stands against it\n\n{head}\n\n{text}"]


def _counted(rows: Rows, shipped: bool) -> str:
    took = rows.count(lambda o: o.embeddings * (o.shipped == shipped))
    return f"{took} of {rows.count(lambda o: o.jumps * (o.shipped == shipped))}"


def _h1_contexts(cells: Sequence[Cell]) -> str:
    pilot = STAGES["pilot"]
    tried = analysis.cells_of(cells, pilot, ALONE, FULL, "search")
    told = []
    for cell in sorted(tried, key=lambda c: c.rate):
        rows = rows_of([cell], replicates=False)
        if cell.rate <= HIGHEST and rows.count(lambda o: o.jumps):
            told.append(
                f"{_counted(rows, shipped=True)} and {_counted(rows, shipped=False)} at {cell.rate:.3g}"
            )  # fmt: skip
    if not told:
        return ""
    return (
        "H1 is about sentences of WordNet. The pilot also had contexts of the package's library, and where it saw the "
        "output rows take part, it was there. Jumps in which they did, of the library's and of WordNet's contexts: "
        f"{'; '.join(told)}. The library's contexts were left out of registered runs before registration, because "
        "those "
        "that it holds for judging are of the same words as those for designing. An earlier pilot of 45 runs was given "
        "up; its cells were not kept."
    )


def _h1_rate(cells: Sequence[Cell]) -> str:
    rows = rows_of(analysis.cells_of(cells, RUSHED, FAST, FULL, "judged"), replicates=True)
    flipped = rows.share(lambda o: o.outcome == "flipped")
    assert flipped is not None
    return (
        "The statement of H1 calls its rate the lowest at which every word flips. That was so in the pilot's draw; in "
        f"the judged runs {100 * flipped.mean:.1f}% flipped."
    )


def _history() -> list[str]:
    return [
        "While the kept pilot ran and before anything was registered, H1 was moved from less than a half to less than "
        "a "
        "tenth, and contexts whose loss was falling still were taken out of H3. The script that reads a run changed "
        "with it: 30 of the pilot's cells are of the script before, 35 of the registered one, and all name one commit. "
        "The tables use nothing that differs between the two."
    ]


def _h3_settled(cells: Sequence[Cell]) -> str:
    rows = rows_of(analysis.cells_of(cells, AMONG, MIXED, FULL, "judged"), replicates=True)
    early, silent = rows.count(lambda o: o.outcome == "stopped early"), rows.count(lambda o: o.silent)
    return (
        f"H3 leaves out contexts whose loss was falling still at the end, which were {early} of the {silent} silent "
        "failures. It could hardly have left out more: the rate falls to 0, so that a loss which falls in proportion "
        "to "
        "it counts as settled. And a context whose loss is falling still counts as failed, not as stopped early, where "
        "another loss of the run, above its own at the start, was below it after three quarters of the steps; the "
        "registered words do not mention that rule of the package. So read the share as *behind still, although the "
        "loss fell*, not as what longer training would leave."
    )


def _h3_rate() -> str:
    return (
        "H3 depends on the rate (the table above) and on how words were picked: pairs that were more than 5 nats "
        "behind "
        "in an adapted model had been left out, and each sentence was shown four times."
    )


def _draws(cells: Sequence[Cell]) -> str:
    judged = [c for c in cells if c.kind == "judged" and c.stage in (MAIN.name, RUSHED.name, AMONG.name)]
    own = {o.number for c in judged for o in analysis.outcomes(c.run)}
    searched = {
        o.number
        for c in cells
        if c.kind == "search" and c.stage == AMONG.name
        for o in analysis.outcomes(c.run)
    }  # fmt: skip
    pool = sum(pair.pool == "judged" for pair in pairs())
    return (
        "The three stages share their draws, so the hypotheses are not tested on three independent samples. "
        f"{MAIN.replicates} draws of {CONTEXTS} are {len(own)} different contexts, of {pool} pairs of words in the "
        "pool; "
        "words recur between draws. The draw on which the rates among sentences were chosen has words in common with "
        "the "
        f"judged ones, and {len(own & searched)} whole {'context' if len(own & searched) == 1 else 'contexts'}. Rates "
        "were "
        "chosen there by the loss on other text, not by what became of contexts."
    )
