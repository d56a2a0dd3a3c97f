"""How watched tokens are read through the model of a run: by passes of its own, or in the validation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.data import SFTDataModule
from lightning_sft.metrics.silent import TokenReading
from lightning_sft.metrics.wide import wide_device
from lightning_sft.models.access import backbone, input_embeddings
from lightning_sft.models.generation import special_ids
from lightning_sft.models.instruments import model_to_read
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.trials import checked_head
from lightning_sft.probes.forward import evaluation, within_shards
from lightning_sft.probes.near_synonyms import near_synonyms
from lightning_sft.probes.token_sample import read_rows
from lightning_sft.probes.watched_set import WatchedSet, add
from lightning_sft.scores import IGNORED, TokenScores


class TokenReader:
    """Reads watched sets.

    Args:
        module: the LightningModule.
        given: the module that holds the language model; None looks for it in the LightningModule.
        batch_size: rows of one forward pass.

    Attributes:
        validates: whether validation rows are read by the validation itself: our module on our data module.
        can_call: whether the model can be called outside of the strategy's own steps.
    """

    def __init__(self, module: LightningModule, given: nn.Module | None, batch_size: int) -> None:
        self._outer = module if given is None else given
        self._batch_size = batch_size
        scorer = getattr(module, "scorer", None)
        self._own = scorer if given is None and isinstance(scorer, TokenScorer) else None
        self._model = model_to_read(module, given) if self._own is None else self._own.causal_lm
        self._scorer = self._own
        self.validates = self._own is not None and isinstance(
            getattr(module.trainer, "datamodule", None), SFTDataModule
        )
        self.can_call = bool(getattr(getattr(module, "strategy_adapter", None), "callable_inside", True))
        self._sums: Tensor | None = None  # of the validation under way

    def read(self, trainer: Trainer, watched: WatchedSet) -> None:
        """Read a set by forward passes that leave no trace, each rank other rows; a collective."""
        scorer, sample = self._any_scorer(), watched.sample
        device = input_embeddings(self._model).device
        sums = watched.sums(wide_device(device))
        count, rank = data_parallel_size_and_rank(trainer)
        weight = count / trainer.world_size  # ranks that split layers read the same rows
        batches = sample.batches(self._batch_size)

        def body() -> None:
            with evaluation(scorer), trainer.precision_plugin.forward_context():
                for first in range(0, len(batches), count):
                    numbers = batches[min(first + rank, len(batches) - 1)]  # every rank makes as many passes
                    reading = read_rows(scorer, [sample.rows[i] for i in numbers], device)
                    if first + rank < len(batches):
                        add(sums, torch.cat([sample.tokens_of(i) for i in numbers]).to(sums.device), reading, weight)

        # what stands above the part that is called is gathered here, and that part by its own forward
        within_shards(self._outer, scorer if self._own else backbone(self._model), body)
        watched.see(_reduced(trainer, sums), trainer.global_step)

    def _any_scorer(self) -> TokenScorer:
        if self._scorer is None:
            sharded = any(isinstance(p, DTensor) for p in self._model.parameters())
            self._scorer = TokenScorer(self._model, "reference" if sharded else checked_head("auto", self._model))
        return self._scorer

    def tell_apart(self, watched: WatchedSet, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Tell a set's special tokens apart from the others; without a tokenizer none is known."""
        watched.tell_apart([] if tokenizer is None else special_ids(self._model, tokenizer))

    def find_near_synonyms(
        self, watched: WatchedSet, tokenizer: PreTrainedTokenizerBase | None, min_overlap: float, wordnet: str
    ) -> None:
        """Find out whose competitor of the first reading is a near-synonym; see `near_synonyms`. A collective."""

        def body() -> None:
            tokens, targets, rivals = watched.rivals()
            with evaluation(self._model):
                close = near_synonyms(self._model, tokenizer, targets, rivals, min_overlap, wordnet)
            watched.near = torch.zeros_like(watched.near).index_fill(0, tokens[close], True)

        within_shards(self._outer, self._model, body)

    # ------------------------------------------------------------------ in the validation's own pass

    def begin_validation(self, watched: WatchedSet) -> None:
        """Let the validation that begins name competitors."""
        assert self._own is not None
        self._own.with_competitors = True
        self._sums = watched.sums(wide_device(input_embeddings(self._model).device))

    def take_batch(self, watched: WatchedSet, outputs: Any, batch: Mapping[str, Tensor]) -> None:
        """Take what a validation step has returned, if it was let name competitors."""
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else None
        if self._sums is None or not isinstance(scores, TokenScores) or scores.competitor is None:
            return
        row, position = places(batch)
        found, place = watched.sample.find(row.to(self._sums.device), position.to(self._sums.device))
        add(self._sums, place, TokenReading.of_scores(scores).at(found.to(scores.logp.device)))

    def end_validation(self, trainer: Trainer, watched: WatchedSet) -> None:
        """Take the validation that ends for the last reading, if it named competitors; a collective."""
        sums, self._sums = self._sums, None
        if sums is not None:
            watched.see(_reduced(trainer, sums), trainer.global_step)

    def leave(self) -> None:
        """Let the head name no competitors any more."""
        self._sums = None
        if self._own is not None:
            self._own.with_competitors = False


def places(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the row in its set and the position in that row of each scored token of a batch, (tokens,), in order.

    Args:
        batch: of `SFTDataModule`, in any layout.
    """
    labels, row = batch["labels"][:, 1:], batch["row"]
    scored = labels != IGNORED
    if "loss_weight" in batch:
        scored = scored & (batch["loss_weight"][:, 1:] != 0)
    rows = (row[:, None].expand_as(labels) if row.ndim == 1 else row[:, 1:])[scored]
    if "position_ids" in batch:
        return rows, batch["position_ids"][:, 1:][scored]
    return rows, torch.arange(1, labels.shape[1] + 1, device=labels.device).expand_as(labels)[scored]


def _reduced(trainer: Trainer, sums: Tensor) -> Tensor:
    total = trainer.strategy.reduce(sums, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total
