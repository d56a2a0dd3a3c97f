"""What the pages of all studies say in the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from studies.cells import Cell
from studies.registration import Registration
from studies.study import AnyStage


def registered_words(registration: Registration | None, root: Path) -> str:
    """Return by which commit a study is registered, and which of its scripts were changed since."""
    if registration is None:
        return "Nothing is registered yet, and no confirmatory run can start."
    words = f"Registered by the commit `{registration.commit}`, from whose hash confirmatory seeds follow."
    changed = ", ".join(f"`{name}`" for name in registration.changed(root))
    return f"{words} **Changed since then: {changed}.**" if changed else words


def code_words(cells: Sequence[Cell]) -> str:
    """Return which versions of the package ran the cells, each with its stages."""
    stages: dict[str, list[str]] = {}
    for stage, version in sorted({(cell.stage, cell.version) for cell in cells}):
        stages.setdefault(version, []).append(stage)
    told = [f"{', '.join(names)}: {version}" for version, names in stages.items()]
    return f"Cells were run by: {'; '.join(told) or 'none yet'}."


def processor_words(cells: Sequence[Cell]) -> str:
    """Return how many cells were run on which processor, as one more sentence; "" without cells."""
    machines = Counter(cell.processor for cell in cells)
    told = ", ".join(f"{name}: {count}" for name, count in machines.items())
    return f" Cells by processor: {told}." if told else ""


def missing_runs(cells: Sequence[Cell], stage: AnyStage) -> list[str]:
    """Return the line of a list that says how many judged runs of a stage are there; none where all are."""
    want = len(stage.blocks) * len(stage.arms) * stage.replicates
    have = len([cell for cell in cells if cell.stage == stage.name and cell.kind == "judged"])
    return [f"- {stage.name}: {have} of {want} judged runs are there."] if have < want else []
