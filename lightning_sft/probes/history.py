"""Readings of one probe over a run, bounded in length, and the jumps of its order parameter."""

from __future__ import annotations

import math
import statistics
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

#: Readings that a history holds at most. Beyond it every second one is dropped, so that checkpoints stay small.
MOST_READINGS = 2048


@dataclass
class ProbeHistory:
    """Readings of one probe, in order; lists of one length.

    Attributes:
        step: optimizer steps done.
        p_correct: probability of the correct token.
        p_competitor: probability of the competitor.
        loss: cross-entropy of the correct token, nats.
        phi: order parameter.
        signal: S.
        drag: D.
        geometry_share: share of the embeddings in the change of Phi since the reading before, by the exact split; None
            where unknown (the first reading of a run or of a resumed one).
        counterfactual_share: the same by the counterfactual; 0 where no embedding can move; None where it was not
            computed.
    """

    step: list[int] = field(default_factory=list)
    p_correct: list[float] = field(default_factory=list)
    p_competitor: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    phi: list[float] = field(default_factory=list)
    signal: list[float] = field(default_factory=list)
    drag: list[float] = field(default_factory=list)
    geometry_share: list[float | None] = field(default_factory=list)
    counterfactual_share: list[float | None] = field(default_factory=list)

    def thin(self) -> None:
        """Drop every second reading, but never the last.

        A change of Phi over a dropped reading keeps the shares of the larger of its two parts, so that a jump stays
        the jump that it was.
        """
        kept = kept_readings(len(self.step))
        for before, now in pairwise(kept):
            if now - before == 2 and _size(self.phi, now - 1) > _size(self.phi, now):
                self.geometry_share[now] = self.geometry_share[now - 1]
                self.counterfactual_share[now] = self.counterfactual_share[now - 1]
        for column in fields(self):
            values = getattr(self, column.name)
            values[:] = [values[i] for i in kept]


def kept_readings(count: int) -> list[int]:
    """Return the indices of the readings that thinning keeps: every second one from the first, and the last."""
    return sorted({*range(0, count, 2), count - 1} - {-1})


def _size(phi: Sequence[float], i: int) -> float:
    """Return the size of the change of Phi at reading ``i``; 0 where it is not finite."""
    change = abs(phi[i] - phi[i - 1])
    return change if math.isfinite(change) else 0.0


@dataclass(frozen=True)
class JumpSettings:
    """What counts as a jump of Phi.

    Attributes:
        jump_factor: a jump is a change of Phi above this many times the median change of the probe.
        jump_floor: and above this.
        phantom_share: a jump is phantom if the embeddings' share in it is below this, by the split and by the
            counterfactual alike.
    """

    jump_factor: float = 10.0
    jump_floor: float = 0.02
    phantom_share: float = 0.05


@dataclass(frozen=True)
class Jump:
    """A sudden change of Phi.

    Attributes:
        step: optimizer step of the reading after it.
        size: the change.
        geometry_share: embeddings' share by the exact split; None if unknown.
        counterfactual_share: embeddings' share by the counterfactual; None if not computed.
        phantom: whether the embeddings had (nearly) no part in it; None if unknown, as it is without the
            counterfactual: the split alone cannot see rows that moved through the probabilities.
    """

    step: int
    size: float
    geometry_share: float | None
    counterfactual_share: float | None
    phantom: bool | None


def find_jumps(history: ProbeHistory, settings: JumpSettings) -> tuple[Jump, ...]:
    """Return the changes of Phi that stand out of the probe's own; changes to or from NaN are none."""
    changes = {i: b - a for i, (a, b) in enumerate(zip(history.phi, history.phi[1:], strict=False), start=1)}
    finite = {i: change for i, change in changes.items() if math.isfinite(change)}
    if not finite:
        return ()
    least = max(settings.jump_factor * statistics.median(map(abs, finite.values())), settings.jump_floor)
    jumps = []
    for i, change in finite.items():
        if abs(change) > least:
            split, cause = history.geometry_share[i], history.counterfactual_share[i]
            took_part = any(share is not None and share >= settings.phantom_share for share in (split, cause))
            phantom = False if took_part else None if cause is None else True
            jumps.append(Jump(history.step[i], change, split, cause, phantom))
    return tuple(jumps)


class JumpMeter:
    """Tells after each reading whether Phi just jumped, by the rule of `find_jumps`, without going over the history."""

    def __init__(self) -> None:
        self._sizes: list[float] = []  # of all changes so far, sorted
        self._readings = 0

    def jumped(self, history: ProbeHistory, settings: JumpSettings) -> bool:
        """Return whether the last change is a jump; call it once after each reading."""
        count = len(history.phi)
        if count == self._readings + 1 and self._readings:
            new = [count - 1]
        else:  # the first call, a resumed or a thinned history
            self._sizes = []
            new = list(range(1, count))
        self._readings = count
        for i in new:
            if math.isfinite(history.phi[i] - history.phi[i - 1]):
                insort(self._sizes, _size(history.phi, i))
        if count < 2 or not self._sizes:
            return False
        middle = len(self._sizes) // 2
        median = (self._sizes[middle] + self._sizes[~middle]) / 2
        return _size(history.phi, count - 1) > max(settings.jump_factor * median, settings.jump_floor)
