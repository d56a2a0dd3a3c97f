"""One set of tokens over a run: how it was read at first, how it is read now, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sft.metrics.silent import SilentReading, TokenReading, failed_silently, read_silent, worst
from lightning_sft.metrics.wide import wide
from lightning_sft.probes.token_sample import TokenSample

#: what a token's reading is summed up as over ranks: log-probability, margin, competitor, and how often it was read
SUMS = 4


class WatchedSet:
    """Tokens of one set.

    Args:
        name: part of the log keys.
        sample: the tokens.
        trained: whether they are trained on.
        groups: sources that are reported together, by the part of the log key that stands for them.
        is_whole: whether the sample was drawn from all rows of the set.

    Attributes:
        before: the first reading; None where there is none.
        now: the last one.
        step: optimizer steps before the last one.
        course: at each reading, the learning rates spent before it and the mean NLL, nats, of the tokens that were
            outranked at first, special ones left out where there are others; see `RunLength`.
        near: whether the competitor of the first reading is a near-synonym of the target, (tokens,), bool.
        special: whether the target is a special token, (tokens,), bool; see `tell_apart`.
    """

    def __init__(
        self,
        name: str,
        sample: TokenSample,
        *,
        trained: bool,
        groups: Mapping[str, Sequence[int]] | None = None,
        is_whole: bool = False,
    ) -> None:
        self.name, self.sample, self.trained, self.is_whole = name, sample, trained, is_whole
        none = torch.zeros(len(sample), dtype=torch.bool)
        self._groups = {
            key: torch.isin(sample.source, torch.tensor(list(of), dtype=torch.long))
            for key, of in (groups or {}).items()
        }
        self.before: TokenReading | None = None
        self.now: TokenReading | None = None
        self.step = -1
        self.course: list[tuple[float, float]] = []
        self.near, self.special = none, none
        self._known, self._seen = none, none

    def tell_apart(self, special_ids: Sequence[int]) -> None:
        """Tell special tokens, by their ids, apart from the others."""
        self.special = torch.isin(self.sample.targets(), torch.tensor(list(special_ids), dtype=torch.long))

    def sums(self, device: torch.device | str) -> Tensor:
        """Return zeros to `add` readings to, (4, tokens), float64."""
        return torch.zeros(SUMS, len(self.sample), dtype=torch.float64, device=device)

    def see(self, sums: Tensor, step: int) -> None:
        """Take a reading, as sums over all ranks, for the last one. Tokens that nobody read are left out of it."""
        sums = sums.clone().cpu()
        logp, margin, competitor, times = sums
        self._seen = times > 0
        logp, margin, competitor = (v / times.clamp(min=1) for v in (logp, margin, competitor))
        self.now, self.step = TokenReading(logp, margin, competitor.round().nan_to_num(-1).long()), step

    def remember(self) -> None:
        """Take the last reading for the first."""
        self.before, self._known = self.now, self._seen

    def keep(self, spent: float) -> None:
        """Keep the last reading's mean NLL of the tokens outranked at first: without special ones if there are others.

        Args:
            spent: learning rates of all steps before it, summed up.
        """
        if self.before is None or self.now is None:
            return
        behind = self._used() & ~self.before.is_top1
        plain = behind & ~self.special
        behind = plain if bool(plain.any()) else behind
        if bool(behind.any()):
            self.course.append((spent, -float(self.now.logp[behind].mean())))

    def rivals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens outranked at first: their numbers, ids, and competitors' ids, (tokens,) each."""
        assert self.before is not None
        behind = (self._known & ~self.before.is_top1 & (self.before.competitor >= 0)).nonzero()[:, 0]
        return behind, self.sample.targets()[behind], self.before.competitor[behind]

    # ------------------------------------------------------------------ what came of it

    def reading(self, min_fall: float, chosen: Tensor | None = None, *, intervals: bool = True) -> SilentReading | None:
        """Return the reading of the chosen tokens, (tokens,) bool or None for all; None if there is none of them."""
        if self.now is None:
            return None
        used = self._used() if chosen is None else self._used() & chosen
        if not bool(used.any()):
            return None
        before = None if self.before is None else self.before.at(used)
        return read_silent(self.now.at(used), self.sample.row[used], before, min_fall, intervals=intervals)

    def plain_reading(self, min_fall: float, *, intervals: bool = True) -> SilentReading | None:
        """Return the reading of the tokens that are not special, perhaps of none; None where no token is special."""
        if self.now is None or not bool((self._used() & self.special).any()):
            return None
        used = self._used() & ~self.special
        before = None if self.before is None else self.before.at(used)
        return read_silent(self.now.at(used), self.sample.row[used], before, min_fall, intervals=intervals)

    def scalars(self, min_fall: float) -> dict[str, float]:
        """Return what is logged, by the log key below ``silent/``."""
        values: dict[str, float] = {}
        for key, chosen in {"": None, **self._groups}.items():
            reading = self.reading(min_fall, chosen, intervals=False)
            if reading is not None:
                values |= {f"{self.name}/{key}{name}": value for name, value in reading.scalars().items()}
        plain = self.plain_reading(min_fall, intervals=False)
        if plain is not None:
            values |= {f"{self.name}/content/{name}": value for name, value in plain.scalars().items()}
        close = self.reading(min_fall, self.near, intervals=False)
        if close is not None:
            # which competitor a token has depends on the token, so confidence says nothing about this choice of tokens
            kept = {name: v for name, v in close.scalars().items() if name not in ("expected", "excess")}
            values |= {f"{self.name}/synonym/{name}": value for name, value in kept.items()}
        return values

    def failures(self, most: int, min_fall: float) -> list[int]:
        """Return the tokens whose loss fell and that are still outranked, by number, those furthest behind first."""
        if self.now is None or self.before is None:
            return []
        used = self._used().nonzero()[:, 0]
        order = worst(self.now.at(used), self.before.at(used), most, min_fall)
        return [int(i) for i in used[order]]

    def failed(self, min_fall: float) -> Tensor:
        """Return which tokens failed silently, (tokens,), bool."""
        if self.now is None or self.before is None:
            return torch.zeros(len(self.sample), dtype=torch.bool)
        return failed_silently(self.before, self.now, min_fall) & self._used()

    def _used(self) -> Tensor:
        return self._seen if self.before is None else self._seen & self._known

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any] | None:
        """Return the first reading as plain data; None without one."""
        if self.before is None:
            return None
        b = self.before
        return {
            "tokens": self.sample.digest(),
            "logp": b.logp,
            "margin": b.margin,
            "competitor": b.competitor.to(torch.int32),
            "known": self._known,
            "near": self.near,
            "course": torch.tensor(self.course, dtype=torch.float64).reshape(-1, 2),
        }

    def load(self, state: Mapping[str, Any]) -> bool:
        """Take the first reading from a checkpoint; return whether it is one of these tokens."""
        if state["tokens"] != self.sample.digest():
            return False
        self.before = TokenReading(state["logp"], state["margin"], state["competitor"].long())
        self._known, self.near = state["known"], state["near"]
        self.course = [(float(spent), float(nll)) for spent, nll in state.get("course", ())]
        return True


def add(sums: Tensor, place: Tensor, reading: TokenReading, weight: float = 1.0) -> None:
    """Add readings of tokens to sums, (4, tokens), in place.

    Args:
        sums: see `WatchedSet.sums`.
        place: which tokens, (some,), int64.
        reading: of those tokens.
        weight: below 1 where several ranks read the same.
    """
    columns = (reading.logp, reading.margin, reading.competitor, torch.ones_like(reading.logp))
    sums.index_add_(1, place, weight * torch.stack([wide(c) for c in columns]))
