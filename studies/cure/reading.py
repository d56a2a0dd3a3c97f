"""What a run is judged by: in how many unseen sentences the right word is ahead of its near-synonym."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_sft.models.access import find_causal_lm, find_tokenizer
from studies.cure.near import last_logits, token_of
from studies.cure.rows import HouseRows
from studies.cure.texts import Context, Pair
from studies.held_out import HeldOutNLL


class HouseStyle(HeldOutNLL):
    """Log at every validation how the run's own draw of unseen sentences stands, a mean over pairs.

    Keys: ``style/ahead`` (share of sentences with the right word's logit above its near-synonym's), ``style/first``
    (share with the right word first of the whole vocabulary), ``style/margin`` (of the two logits, nats),
    ``style/flipped`` (ahead now and behind before the first step), ``style/untouched_ahead`` (the same as the first, of
    pairs that the run never sees), and ``style/score``: what rates are selected by.

    Args:
        bound: the largest background NLL at equal collateral, nats per token. ``style/score`` is ``style/ahead`` up to
            it, and beyond it how far the NLL is above it, negative. None: ``style/score`` is the negative NLL, for the
            control run.
        batch_size: sentences that are read at once.
    """

    only_reads = True

    def __init__(self, bound: float | None = None, batch_size: int = 64) -> None:
        self.bound = bound
        self.batch_size = batch_size
        self._start: list[float] | None = None

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sources: Any = trainer.datamodule.sets.sources_of["train"]  # type: ignore[attr-defined]
        house = next(source for source in sources if isinstance(source, HouseRows))
        drawn = house.draw()
        gaps, first = self._read(pl_module, drawn.judged)
        others, _ = self._read(pl_module, drawn.untouched)
        pairs = [context.pair for context in drawn.judged]
        ahead = [float(gap > 0) for gap in gaps]
        values = {
            "ahead": by_pair(pairs, ahead),
            "first": by_pair(pairs, first),
            "margin": by_pair(pairs, gaps),
            "untouched_ahead": by_pair([c.pair for c in drawn.untouched], [float(gap > 0) for gap in others]),
        }
        if trainer.sanity_checking:
            self._start = ahead
        if self._start is not None:
            flipped = [float(now > before) for now, before in zip(ahead, self._start, strict=True)]
            values["flipped"] = by_pair(pairs, flipped)
        values["score"] = score(values["ahead"], self.held_out_nll, self.bound)
        known = {f"style/{key}": value for key, value in values.items() if not math.isnan(value)}
        pl_module.log_dict(known, batch_size=1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["start"]

    @torch.no_grad()
    def _read(self, pl_module: LightningModule, contexts: Sequence[Context]) -> tuple[list[float], list[float]]:
        """Return for each sentence the margin of the two logits, and whether the right word is first of all."""
        model, tokenizer = find_causal_lm(pl_module), find_tokenizer(pl_module)
        gaps: list[float] = []
        first: list[float] = []
        for i in range(0, len(contexts), self.batch_size):
            some = contexts[i : i + self.batch_size]
            logits = last_logits(model, tokenizer, [context.before for context in some])
            right, other = (self._tokens(tokenizer, some, which, logits) for which in ("correct", "competitor"))
            gap = logits.gather(1, right) - logits.gather(1, other)
            gaps += gap[:, 0].tolist()
            first += (logits.argmax(1) == right[:, 0]).double().tolist()
        return gaps, first

    @staticmethod
    def _tokens(tokenizer: Any, contexts: Sequence[Context], which: str, like: Tensor) -> Tensor:
        ids = [[token_of(tokenizer, getattr(c.pair, which))] for c in contexts]
        assert all(one != [-1] for one in ids), "pairs.json was made for another tokenizer"
        return torch.tensor(ids, device=like.device)


def by_pair(pairs: Sequence[Pair], values: Sequence[float]) -> float:
    """Return the mean over pairs of their means; nan without any."""
    rows: dict[Pair, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        rows.setdefault(pair, []).append(value)
    return statistics.fmean(statistics.fmean(row) for row in rows.values()) if rows else math.nan


def score(ahead: float, nll: float, bound: float | None) -> float:
    """Return what rates are selected by; see `HouseStyle`.

    >>> score(0.4, 4.0, 4.1), score(0.4, 4.0, None)
    (0.4, -4.0)
    >>> round(score(0.9, 4.3, 4.1), 6)
    -0.2
    """
    if bound is None:
        return -nll
    return ahead if nll <= bound else bound - nll
