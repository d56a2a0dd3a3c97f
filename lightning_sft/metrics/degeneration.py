"""When answers go bad while the loss falls, and when a loss is too good to be one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sft.metrics.wide import wide

#: rise of the share of repeated 4-grams, and fall of the share of answers that end, which no noise of 8 answers makes
REPEATS, STOPS = 0.25, 0.5
#: share of the entropy of a uniform guess above which a model guesses; a pretrained one has 0.2 or less in its answers
GUESSES = 0.3
#: a mean answer shorter than this many tokens is an empty one for the most part
EMPTY = 0.5
#: share of the model's own entropy below which its NLL is implausible; the targets of a model that predicts what it
#: says have about its entropy, and an NLL of a tenth of it where one token is likely and many others share the rest
IMPLAUSIBLE = 0.02
#: nats; an entropy below is not known well enough from some hundred predictions
KNOWN = 0.05
#: micro-batches at the beginning and at the end of training whose losses are compared
WINDOW = 8


class AnswerHealth:
    """Remembers the best answers of each set, and says when they have collapsed since.

    Answers have collapsed where far more of their 4-grams are repeats than at the best earlier reading, where far fewer
    end by themselves, or where most have become empty. A first reading has nothing to be compared with, and the answers
    of a model that guesses, as one with random weights does, are no standard, nor are empty ones.
    """

    def __init__(self) -> None:
        self.best: dict[str, dict[str, float]] = {}
        self.told: dict[str, list[str]] = {}

    def complaints(self, name: str, means: Mapping[str, float], entropy: float, vocabulary: int) -> list[str]:
        """Return what has collapsed since the best reading of a set, and was fine at the last one; remember this one.

        Args:
            name: of the set.
            means: ``repetition``, ``stop_share`` and ``answer_tokens``.
            entropy: mean entropy of the model's predictions in the answers, nats.
            vocabulary: number of tokens that the model chooses from.
        """
        now = {key: means[key] for key in ("repetition", "stop_share", "answer_tokens")}
        standard = entropy <= GUESSES * math.log(vocabulary) and now["answer_tokens"] >= 2 * EMPTY
        best = self.best.get(name, now)
        found: dict[str, str] = {}
        if now["repetition"] >= best["repetition"] + REPEATS:
            found["repetition"] = f"{_percent(now['repetition'])} of their 4-grams are repeats"
        if now["stop_share"] <= best["stop_share"] - STOPS:
            found["stop_share"] = f"{_percent(now['stop_share'])} of them end by themselves"
        if now["answer_tokens"] < EMPTY and best["answer_tokens"] >= 2 * EMPTY:
            found["answer_tokens"] = f"they have {now['answer_tokens']:.1f} tokens on average"
        before = {"repetition": _percent, "stop_share": _percent, "answer_tokens": "{:.1f}".format}
        new = [
            f"{text} ({before[key](best[key])} at best before)"
            for key, text in found.items()
            if key not in self.told.get(name, [])
        ]
        self.told[name] = list(found)
        if standard:
            betters = {"repetition": min, "stop_share": max, "answer_tokens": max}
            self.best[name] = {key: better(best[key], now[key]) for key, better in betters.items()}
        return new


def implausible(nll: float, entropy: float | None) -> str | None:
    """Return what is wrong with an NLL, None if nothing is.

    Args:
        nll: mean over tokens, nats.
        entropy: the lowest mean entropy of the model's own predictions that was seen so far, nats; None: not known.
    """
    if nll == 0:
        return "is exactly 0"
    if entropy is not None and entropy >= KNOWN and nll < IMPLAUSIBLE * entropy:
        return (
            f"is {nll:.2g}, far below the {entropy:.2g} nats by which the model's own predictions have been uncertain"
        )
    return None


class LossTrend:
    """Mean losses of the first and of the last micro-batches of a fit, on this rank."""

    def __init__(self) -> None:
        self._first: list[Tensor] = []
        self._last: deque[Tensor] = deque(maxlen=WINDOW)

    def add(self, total: Tensor, tokens: float) -> None:
        """Add a micro-batch: the sum of its losses, (), and how many they are."""
        total = total.detach().float().reshape(())
        sums = torch.stack([total, torch.full_like(total, tokens)])  # filled there: no copy from the host
        if len(self._first) < WINDOW:
            self._first.append(sums)
        self._last.append(sums)

    def sums(self, device: torch.device | str) -> Tensor:
        """Return sum and tokens of the first micro-batches, and of the last, (4,), float64, to be added over ranks.

        Args:
            device: of the module; the sums are on the one where its float64 sums are kept.
        """
        parts = [torch.stack(list(some)).sum(0) if some else torch.zeros(2) for some in (self._first, self._last)]
        return wide(torch.cat([part.to(device) for part in parts]))

    def state_dict(self) -> dict[str, Any]:
        """Return the first losses, as plain data."""
        return {"first": [sums.tolist() for sums in self._first]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the first losses of an earlier fit."""
        self._first = [torch.tensor(sums) for sums in state["first"]]
        self._last.clear()


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
