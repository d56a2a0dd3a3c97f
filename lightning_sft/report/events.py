"""Curves and texts of a run, read from the files of its loggers."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: under which TensorBoard keeps texts
_TEXT = "/text_summary"
EVENTS = "events.out.tfevents*"
METRICS = "metrics.csv"


@dataclass
class Logs:
    """What loggers wrote.

    Attributes:
        curves: log key -> step -> value; where a resumed run read a step again, the later reading.
        texts: log key -> step -> text.
        first, last: when the first and the last of it were written, seconds since 1970; None if unknown.
        problems: what could not be read, sentences.
    """

    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    first: float | None = None
    last: float | None = None
    problems: list[str] = field(default_factory=list)

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return a curve as (step, value) by rising step; empty without one."""
        return sorted(self.curves.get(key, {}).items())

    def last_value(self, key: str) -> float | None:
        """Return the last finite value of a curve; None without one."""
        finite = [value for _, value in self.curve(key) if math.isfinite(value)]
        return finite[-1] if finite else None

    def first_value(self, key: str) -> float | None:
        """Return the first finite value of a curve; None without one."""
        return next((value for _, value in self.curve(key) if math.isfinite(value)), None)

    def text(self, key: str) -> str | None:
        """Return the latest text; None without one."""
        texts = self.texts.get(key)
        return texts[max(texts)] if texts else None


def read_logs(folder: Path) -> Logs:
    """Read the event files of a folder, or its metrics.csv where there are none."""
    logs = Logs()
    events = sorted(folder.glob(EVENTS), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in events:
        _read_events(path, logs)
    if not logs.curves:
        parts = sorted(folder.glob("metrics_before_resume_*.csv"), key=lambda path: path.stat().st_mtime_ns)
        for path in [*parts, folder / METRICS]:
            if path.is_file():
                _read_csv(path, logs)
    return logs


def _read_events(path: Path, logs: Logs) -> None:
    read = 0
    try:
        for event in _events(path):
            read += 1
            if event.wall_time:
                logs.first = min(logs.first or event.wall_time, event.wall_time)
                logs.last = max(logs.last or event.wall_time, event.wall_time)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    logs.curves.setdefault(value.tag, {})[event.step] = value.simple_value
                elif value.tag.endswith(_TEXT) and value.tensor.string_val:
                    text = value.tensor.string_val[0].decode("utf-8", "replace")
                    logs.texts.setdefault(value.tag.removesuffix(_TEXT), {})[event.step] = text
    except Exception as error:  # the protocol buffers' own errors, and those of the file system
        logs.problems.append(f"{path.name} cannot be read beyond its entry {read} ({type(error).__name__}).")
        return
    written, is_whole = _written(path)
    if read < written:
        logs.problems.append(f"{path.name} is damaged: {read} of its {written} entries are shown.")
    elif not is_whole:
        logs.problems.append(f"{path.name} ends within an entry: it is being written, or was cut off.")


def _written(path: Path) -> tuple[int, bool]:
    """Return how many entries a file has room for by their lengths, and whether it ends with the last of them.

    An entry is its length (8 bytes), a checksum (4), the event, and another checksum (4). TensorBoard's reader stops
    without a word at what it cannot read.
    """
    size, place, count = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while place + 12 <= size:
            file.seek(place)
            end = place + 16 + int.from_bytes(file.read(8), "little")
            if end > size:
                break
            place, count = end, count + 1
    return count, place == size


def _events(path: Path) -> Iterator[Any]:
    """Return the events of a file up to its end, or up to where it was cut off."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    yield from LegacyEventFileLoader(str(path)).Load()


def _read_csv(path: Path, logs: Logs) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                step = int(row.pop("step"))
            except (KeyError, TypeError, ValueError):
                continue  # the last line of a run under way may be half
            for key, text in row.items():
                try:
                    logs.curves.setdefault(key, {})[step] = float(text)
                except (TypeError, ValueError):
                    continue
    logs.curves = {key: curve for key, curve in logs.curves.items() if curve}
