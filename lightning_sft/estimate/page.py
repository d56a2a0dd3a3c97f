"""The tables of `lightning estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_sft.estimate.levers import Lever
from lightning_sft.estimate.run import PlannedRun
from lightning_sft.estimate.spread import CONTEXT, GIB, SPARE, UNMEASURED, DeviceMemory, Strategy, fits
from lightning_sft.units import count

#: GiB of usual GPUs, of which the smallest that will do is named
USUAL = (16, 24, 40, 48, 80, 141)


def describe(run: PlannedRun, found: Sequence[Lever], gib: float | None) -> str:
    """Return the page: what a device holds, under which strategy, whether it fits, what to change.

    Args:
        run: as configured.
        found: what can be changed.
        gib: memory of a device; None names the smallest usual GPU that will do.
    """
    memory, held = run.memory, run.held()
    plan = run.step
    parameters = f"{count(memory.parameters[0])} parameters, {count(memory.parameters[1])} of them train"
    batch = f"{plan.rows} x {plan.length:,} tokens a micro-batch, {run.accumulate} a step"
    place = f"{run.devices} {'GPU' if run.gpu else 'CPU rank'}{'s' if run.devices > 1 else ''}"
    lines = [f"{plan.model.name}: {parameters}", f"{batch}; {run.strategy} on {place}", ""]
    strategies: list[Strategy] = ["single"] if run.devices == 1 else ["ddp", "fsdp2"]
    if run.strategy not in strategies:
        strategies.append(run.strategy)
    lines += _strategies(run, strategies, gib)
    lines += ["", verdict(held, gib, gpu=run.gpu)]
    if found:
        lines += ["", *_levers(found, held, gib, gpu=run.gpu)]
        first = first_to_pull(found, held, gib, gpu=run.gpu)
        if first is not None:
            enough = gib is not None and first.held is not None and fits(first.held, gib, gpu=run.gpu)
            alone = "" if enough or gib is None else ", not enough by itself"
            lines.append(f"{'First' if enough else f'What saves most{alone}'}: {first.name}: {first.how}")
    lines += ["", *_notes(run, strategies)]
    return "\n".join(lines)


def verdict(held: DeviceMemory, gib: float | None, *, gpu: bool) -> str:
    """Return whether it fits, in a sentence."""
    peak = f"peak {_gib(held.peak)} GiB a device"
    if gib is not None:
        return f"{peak}: {'fits' if fits(held, gib, gpu=gpu) else 'does NOT fit'} into {gib:g} GiB."
    enough = next((size for size in USUAL if fits(held, size, gpu=gpu)), None)
    what = (
        "more than a device of 141 GiB has"
        if enough is None
        else f"the smallest usual GPU that will do has {enough} GiB"
    )
    return f"{peak}: {what}."


def first_to_pull(found: Sequence[Lever], held: DeviceMemory, gib: float | None, *, gpu: bool) -> Lever | None:
    """Return the first change that suffices, else the one that saves most; None where none is needed or helps."""
    if gib is not None and fits(held, gib, gpu=gpu):
        return None
    seen = held.peak - 0.005 * GIB  # what saves less than the table can show is no advice
    tried = [(lever, lever.held) for lever in found if lever.held is not None and lever.held.peak < seen]
    if gib is not None:
        for lever, after in tried:
            if fits(after, gib, gpu=gpu):
                return lever
    return min(tried, key=lambda pair: pair[1].peak)[0] if tried else None


def to_dict(run: PlannedRun, gib: float | None) -> dict[str, Any]:
    """Return plain data: bytes on a device, by what holds them."""
    held = run.held()
    verdicts = {} if gib is None else {"gib": gib, "fits": fits(held, gib, gpu=run.gpu)}
    return {"strategy": run.strategy, "devices": run.devices, **vars(held), **verdicts}


def _strategies(run: PlannedRun, strategies: Sequence[Strategy], gib: float | None) -> list[str]:
    names = ["weights", "gradients", "states", "activations", "head", "peak"]
    if run.reference != "none":
        names.insert(3, "reference")
    if run.devices > 1:
        names.insert(-1, "gathered")
    head = ["GiB a device", *names, *([] if gib is None else [f"fits {gib:g}"])]
    rows = []
    for strategy in strategies:
        held = run.held(strategy)
        numbers = [_gib(getattr(held, name)) for name in names]
        ending = [] if gib is None else ["yes" if fits(held, gib, gpu=run.gpu) else "no"]
        rows.append([f"{strategy}{' *' if strategy in UNMEASURED else ''}", *numbers, *ending])
    return table([head, *rows])


def _levers(found: Sequence[Lever], held: DeviceMemory, gib: float | None, *, gpu: bool) -> list[str]:
    head = ["change, each by itself", "peak", "saves", *([] if gib is None else [f"fits {gib:g}"]), "price"]
    rows = []
    for lever in found:
        if lever.held is None:
            rows.append([lever.name, "?", "?", *([] if gib is None else ["?"]), lever.why_not.split(". ")[0]])
            continue
        ending = [] if gib is None else ["yes" if fits(lever.held, gib, gpu=gpu) else "no"]
        saved = _gib(held.peak - lever.held.peak)
        rows.append([lever.name, _gib(lever.held.peak), saved, *ending, f"{lever.price} ({lever.how})"])
    return table([head, *rows])


def _notes(run: PlannedRun, strategies: Sequence[Strategy]) -> list[str]:
    notes = ["The peak is less than the sum of its row: activations go as gradients come."]
    if run.gpu:
        notes.append(
            f"GPUs: {CONTEXT / GIB:.1f} GiB for CUDA itself and {SPARE:.0%} left free are assumptions, not measured."
        )
    if not run.memory.states_known:
        notes.append("The optimizer did not say what it keeps: two fp32 numbers a trained weight are assumed.")
    if any(strategy in UNMEASURED for strategy in strategies):
        notes.append("* by its description alone; no run was held against it.")
    return notes


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns set under each other: the first and the last to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = {0, *(i for i, name in enumerate(rows[0]) if name == "price")}
    return [
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
