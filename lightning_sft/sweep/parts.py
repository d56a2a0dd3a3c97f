"""Held-out rows dealt out in parts: one to select by, one for each seed to be judged by, read in the same passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_sft._lightning import to_device, validating
from lightning_sft.errors import UserError
from lightning_sft.metrics.answers import answer_spans, read_answers
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.models.access import find_causal_lm, find_tokenizer
from lightning_sft.models.generation import end_tokens
from lightning_sft.models.mode import eval_mode
from lightning_sft.scores import IGNORED, TokenScores
from lightning_sft.sweep.batches import held_out
from lightning_sft.sweep.trial import Values

_SUMS = ("tokens", "nll", "p", "hits", "answers", "exact")


class PartsObserver:
    """Reads the validation set with the module's own ``validation_step``, each part of its rows apart.

    Values, lists of a number a part: ``val/nll``, ``val/mean_p``, ``val/token_accuracy``, and ``val/exact_match`` where
    answers are complete; exact over tokens, answers and ranks, nan for a part without any.

    Args:
        trainer: in a fit.
        module: its module, whose ``validation_step`` returns token scores.
        parts: how many; rows are dealt out at random, the same way each time.
        batches: the most validation batches of a rank; None is all of them.

    Attributes:
        answer_tokens: mean number of supervised tokens of a row of this rank.

    Raises:
        UserError: there is no validation data, or there are fewer rows than parts.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, parts: int, batches: int | None = None) -> None:
        with isolate_rng():
            self._batches = held_out(trainer, batches)
        self._parts = parts
        self._ends = end_tokens(find_causal_lm(module), find_tokenizer(module))
        own = {int(row) for n, batch in enumerate(self._batches) for row in _rows(batch, n).unique() if row >= 0}
        rows = sorted(_of_all_ranks(own))  # so that every rank deals alike, and none stops alone
        if len(rows) < parts:
            raise UserError(
                f"There are {len(rows)} held-out rows, and {parts} parts of them are needed: one to select rates by, "
                "and one for each seed. Give more validation rows or val_batches, or fewer seeds."
            )
        order = np.random.default_rng(len(rows)).permutation(len(rows))
        self._part_of = torch.zeros(rows[-1] + 1, dtype=torch.int64)
        self._part_of[torch.tensor(rows)[torch.from_numpy(order)]] = torch.arange(len(rows)) % parts
        labels = (batch["labels"] for batch in self._batches)
        self.answer_tokens = sum(int((one[:, 1:] != IGNORED).sum()) for one in labels) / max(len(own), 1)

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Return the averages of each part; a collective."""
        sums = torch.zeros(self._parts, len(_SUMS), dtype=torch.float64, device=wide_device(module.device))
        with isolate_rng(), eval_mode(module), torch.no_grad(), validating(trainer):
            for number, batch in enumerate(self._batches):
                own = to_device(trainer, batch)
                output = trainer.strategy.validation_step(own, number)
                scores = output.get("scores") if isinstance(output, Mapping) else None
                if not isinstance(scores, TokenScores):
                    raise UserError(f"{type(module).__name__}.validation_step returns no token scores to compare by.")
                self._add(sums, own, number, scores)
        total = trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        tokens, nll, p, hits, answers, exact = total.unbind(1)
        values = {"val/nll": nll / tokens, "val/mean_p": p / tokens, "val/token_accuracy": hits / tokens}
        if bool(answers.any()):
            values["val/exact_match"] = exact / answers
        return {key: value.tolist() for key, value in values.items()}

    def _add(self, sums: Tensor, batch: Any, number: int, scores: TokenScores) -> None:
        part_of = self._part_of.to(sums.device)
        labels = batch["labels"]
        part = part_of[_rows(batch, number).to(sums.device)[:, 1:][labels[:, 1:].to(sums.device) != IGNORED]]
        logp = wide(scores.logp)
        columns = (torch.ones_like(logp), -logp, logp.exp(), wide(scores.require("is_top1")))
        sums[:, :4].index_add_(0, part, torch.stack(columns, dim=1))
        spans = answer_spans(labels, self._ends)
        of_answer = torch.zeros(len(spans.complete), dtype=torch.int64, device=sums.device)
        of_answer[spans.answer.to(sums.device)] = part
        reading = read_answers(scores, spans)
        exact = reading.exact.to(sums)
        judged = of_answer[spans.complete.to(sums.device)]
        sums[:, 4:].index_add_(0, judged, torch.stack([torch.ones_like(exact), exact], dim=1))


def _of_all_ranks(rows: set[int]) -> set[int]:
    """Return the rows that the ranks read together."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return rows
    everyone: list[set[int]] = [set() for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, rows)
    return set().union(*everyone)


def _rows(batch: Any, number: int) -> Tensor:
    """Return the row of each position, (batch, length); of batches that do not say it, all are the batch's number."""
    labels: Tensor = batch["labels"]
    rows: Tensor | None = batch.get("row")
    if rows is None:
        return torch.full_like(labels, number)
    return rows if rows.ndim == labels.ndim else rows[:, None].expand_as(labels)
