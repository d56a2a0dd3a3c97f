"""What a run of a comparison has given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_sft.files import finite

Outcome = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Point:
    """One validation of a run.

    Attributes:
        step: optimizer steps before it.
        tokens: supervised tokens trained on so far.
        seconds: spent in training steps so far, validation left out.
        values: readings by log key.
    """

    step: int
    tokens: int
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class RunResult:
    """What a run has given.

    Attributes:
        digest: of everything that decides the run.
        key: its name within the comparison that ran it.
        outcome: ``finished``; ``diverged``: a loss or a reading that is no number; ``failed``: ``error`` says why.
        error: the first line of what went wrong.
        curve: its validations, the one before the first step included if the configuration asks for it.
        steps: optimizer steps taken.
        tokens: supervised tokens trained on.
        seconds: spent in training steps.
        wall_seconds: from start to end, loading and validation included.
        answer_tokens: mean number of supervised tokens of a judged row.
        rows: digests of the rows that it trained on and was judged by.
        device: that it ran on.
        depends_on: what decides it, by name, so that a later comparison can say why it does not take it.
        judged_rows: how many rows it was judged by; None if unknown.
    """

    digest: str
    key: str
    outcome: Outcome
    error: str | None = None
    curve: tuple[Point, ...] = ()
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    answer_tokens: float | None = None
    rows: dict[str, str] = field(default_factory=dict)
    device: str = ""
    depends_on: dict[str, str] = field(default_factory=dict)
    judged_rows: int | None = None

    @property
    def readings(self) -> dict[str, float]:
        """The last value of each log key, read after the last step."""
        last: dict[str, float] = {}
        for point in self.curve:
            last |= point.values
        return last

    @property
    def start(self) -> dict[str, float]:
        """Readings before the first step."""
        first: dict[str, float] = {}
        for point in self.curve:
            first |= point.values if point.step == 0 else {}
        return first

    def score(self, key: str) -> float:
        """Return a reading; nan where the run diverged, failed, or does not have it."""
        return self.readings.get(key, math.nan) if self.outcome == "finished" else math.nan

    def plain(self) -> dict[str, Any]:
        """Return the result as plain data that strict JSON holds."""
        return dict(finite(asdict(self)))

    @staticmethod
    def of(plain: Mapping[str, Any]) -> RunResult:
        """Return the result of plain data; readings that are null there are no numbers."""
        points = tuple(
            Point(
                p["step"], p["tokens"], p["seconds"], {k: math.nan if v is None else v for k, v in p["values"].items()}
            )
            for p in plain["curve"]
        )
        return RunResult(**{**plain, "curve": points})
