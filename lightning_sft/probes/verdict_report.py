"""The verdict table of a run: as text, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_sft.files import to_json, write_text
from lightning_sft.probes.history import ProbeHistory
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import Verdict, VerdictSettings

NOTE = "Signal, drag and the failure modes are reconstructed from the abstract of arXiv 2606.07559."
FROZEN = "The embeddings did not move, so every jump is a readout jump by construction: 'phantom' says nothing more."
COLUMNS = (
    "probe", "kind", "split", "correct", "competitor", "verdict", "flip_step", "first_positive_phi_step",
    "loss_start", "loss_end", "p_correct_end", "p_competitor_end", "phi_start", "phi_end", "signal_end",
    "drag_start", "drag_end", "jumps", "largest_jump_step", "largest_jump_geometry_share", "phantom_jumps",
    "reason", "advice", "others_ahead_end",
)  # fmt: skip


def verdict_row(probe: Probe, history: ProbeHistory, verdict: Verdict) -> dict[str, Any]:
    """Return one row of the table by column."""
    largest = max(verdict.jumps, key=lambda jump: abs(jump.size), default=None)
    positive = [step for step, phi in zip(history.step, history.phi, strict=True) if phi > 0]
    values = (
        probe.name, probe.kind, probe.split, probe.correct, probe.competitor, verdict.title, verdict.flip_step,
        positive[0] if positive else None,
        history.loss[0], history.loss[-1], history.p_correct[-1], history.p_competitor[-1], history.phi[0],
        history.phi[-1], history.signal[-1], history.drag[0], history.drag[-1], len(verdict.jumps),
        largest.step if largest else None, largest.geometry_share if largest else None,
        sum(bool(jump.phantom) for jump in verdict.jumps), verdict.reason, verdict.advice, verdict.others_ahead,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def as_text(rows: Sequence[Mapping[str, Any]], *, frozen: bool) -> str:
    """Return the table for people: a line a probe, what to try next, and what the words rest on."""
    table = [["probe", "verdict", "loss", "p correct/competitor", "Phi", "jumps (geometry share)"]]
    for row in rows:
        share = row["largest_jump_geometry_share"]
        table.append(
            [
                row["probe"] + (" (control)" if row["kind"] == "control" else ""),
                row["verdict"],
                f"{row['loss_start']:.2f} -> {row['loss_end']:.2f}",
                f"{row['p_correct_end']:.3f} / {row['p_competitor_end']:.3f}",
                f"{row['phi_start']:+.3f} -> {row['phi_end']:+.3f}",
                str(row["jumps"]) + (f" ({share:.2f})" if share is not None else ""),
            ]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    advice: dict[str, list[str]] = {}
    for row in rows:
        if row["advice"]:
            against = "other words ahead" if row["others_ahead_end"] else row["verdict"]  # in one line, however many
            advice.setdefault(f"{against}: {row['advice']}", []).append(row["probe"])
    lines += [f"What may help against {text} [{', '.join(names)}]" for text, names in advice.items()]
    return "\n".join(["Verdicts on the near-synonym probes", *lines, *([FROZEN] if frozen else []), NOTE])


def write_report(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    histories: Mapping[str, ProbeHistory],
    settings: VerdictSettings,
    text: str,
    training_loss: Sequence[float | None],
) -> None:
    """Write ``verdicts.txt``, ``verdicts.csv`` and ``verdicts.json`` (with settings, jumps and all readings)."""
    write_text(folder / "verdicts.txt", text + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "verdicts.csv", table.getvalue())
    entries = [
        {**row, "modes": verdict.modes, "jump_list": [asdict(jump) for jump in verdict.jumps]}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    content = {
        "note": NOTE,
        "settings": asdict(settings),
        "verdicts": entries,
        "readings": {name: asdict(history) for name, history in histories.items()},
        "training_loss": list(training_loss),
    }
    write_text(folder / "verdicts.json", to_json(content, indent=1))
