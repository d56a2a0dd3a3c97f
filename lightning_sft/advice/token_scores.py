"""What a model thinks of the supervised tokens of a batch: a forward pass, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_sft.advice.rows import MODEL_KEYS, Batch
from lightning_sft.errors import UserError
from lightning_sft.head.reference import plain_logits
from lightning_sft.head.types import Unembedding
from lightning_sft.metrics.answers import answer_spans, read_answers
from lightning_sft.metrics.capability import END, EXACT, NO_ANSWER, PLAIN, SPECIAL, WRONG
from lightning_sft.metrics.wide import wide
from lightning_sft.models.access import input_embeddings, vocabulary_size
from lightning_sft.probes.forward import evaluation, whole_unembedding
from lightning_sft.scores import IGNORED, TokenScores

#: logits that are held at a time
_LOGITS = 2**25


@dataclass(frozen=True)
class KindsOfTokens:
    """Which targets are read apart.

    Attributes:
        special: ids of special tokens.
        ends: ids of the tokens that end generation.
    """

    special: Collection[int]
    ends: Collection[int]


class BatchReader:
    """Reads batches with one model; remembers how its logits are made.

    Where they are the hidden states times the unembedding, which is tried on the first batch, they are computed in
    fp32, a chunk of tokens at a time. Elsewhere the model's own are taken, those of a batch at once.

    Args:
        model: the transformers model. Under FSDP2 all ranks read, inside `within_shards`.
        kinds: which targets are read apart.
    """

    def __init__(self, model: PreTrainedModel, kinds: KindsOfTokens) -> None:
        self.model = model
        self.kinds = kinds
        self.chunk = max(16, _LOGITS // vocabulary_size(model))
        self._unembedding: Unembedding | None = None
        self._plain: bool | None = None

    @torch.no_grad()
    def read(self, batch: Batch) -> Tensor:
        """Return a row for each supervised token, (tokens, 8), float64: the columns of `TokenTable`."""
        batch = {key: value.to(input_embeddings(self.model).device) for key, value in batch.items()}
        labels = batch["labels"]
        at = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][at]
        parts = [_statistics(logits, part) for logits, part in self._logits(batch, at, targets)]
        logp, hit, top_p, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        row, source = (_of_tokens(batch[key], labels)[:, 1:][at] for key in ("row", "source"))
        columns = (logp, hit, top_p, entropy, row, source, self._kind(targets), self._answers(labels, logp, hit))
        return torch.stack([wide(column) for column in columns], dim=1)

    def _logits(self, batch: Batch, at: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits, (chunk, vocab), in at least fp32, and the targets that they are for, (chunk,)."""
        most = {None: self.chunk, True: 1, False: len(targets)}[self._plain]  # of the model's own
        first = min(most, len(targets))
        own, hidden = self._forward(batch, at, first)
        if self._plain is None and first:
            self._find_unembedding()
            self._plain = self._unembedding is not None and _agree(own, self._project(hidden[:first]))
            if not self._plain and first < len(targets):
                own, hidden = self._forward(batch, at, len(targets))
        if not self._plain:
            yield own.to(torch.promote_types(own.dtype, torch.float32)), targets
            return
        for start in range(0, max(len(targets), 1), self.chunk):
            span = slice(start, start + self.chunk)
            yield self._project(hidden[span]), targets[span]

    def _forward(self, batch: Batch, at: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """Return the model's own logits of the first ``wanted`` supervised tokens, and the hidden states of all."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0][:, :-1][at]
            seen.append(hidden)
            return (hidden[None, :wanted], *args[1:])

        inputs = {key: batch[key] for key in MODEL_KEYS if key in batch}
        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            with evaluation(self.model):
                output = self.model(**inputs, use_cache=False)
        finally:
            hook.remove()
        return output.logits[0], seen[0]

    def _find_unembedding(self) -> None:
        try:
            self._unembedding = whole_unembedding(self.model)
        except UserError:  # an adapter on the head: there is no one matrix
            self._unembedding = None

    def _project(self, hidden: Tensor) -> Tensor:
        assert self._unembedding is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return plain_logits(hidden.to(self._unembedding.weight.dtype), self._unembedding)

    def _kind(self, targets: Tensor) -> Tensor:
        def among(ids: Collection[int]) -> Tensor:
            return torch.isin(targets, torch.tensor(sorted(ids), dtype=targets.dtype, device=targets.device))

        kind = torch.where(among(self.kinds.special), SPECIAL, PLAIN)
        return torch.where(among(self.kinds.ends), END, kind)

    def _answers(self, labels: Tensor, logp: Tensor, hit: Tensor) -> Tensor:
        """Return for the first token of each complete answer whether all of it is right, (tokens,)."""
        spans = answer_spans(labels, self.kinds.ends)
        found = torch.full_like(spans.answer, NO_ANSWER)
        if not len(found):
            return found
        targets = labels[:, 1:][labels[:, 1:] != IGNORED]
        exact = read_answers(TokenScores(logp, targets, is_top1=hit), spans).exact.to(found.device)
        begins = torch.ones_like(found, dtype=torch.bool)
        begins[1:] = spans.answer[1:] != spans.answer[:-1]
        firsts = begins.nonzero()[:, 0][spans.complete]
        found[firsts] = torch.where(exact, EXACT, WRONG)
        return found


def _of_tokens(facts: Tensor, labels: Tensor) -> Tensor:
    """Return facts of rows, (batch,), or of tokens, (batch, length), as those of tokens."""
    return facts if facts.shape == labels.shape else facts[:, None].expand_as(labels)


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logp, whether the target is the first choice, the first choice's probability, entropy; (chunk,) each."""
    total = logits.logsumexp(-1)
    target = logits.gather(-1, targets[:, None])[:, 0]
    top = logits.amax(-1)
    logp = logits - total[:, None]
    entropy = -(logp.exp() * logp).nan_to_num(nan=0.0).sum(-1)  # 0 * -inf is 0
    return target - total, target >= top, (top - total).exp(), entropy


def _agree(own: Tensor, again: Tensor) -> bool:
    """Return whether logits are the model's own, up to rounding of both."""
    eps = max(4 * torch.finfo(own.dtype).eps, 64 * torch.finfo(again.dtype).eps)
    return own.shape == again.shape and bool((again - own).abs().max() <= eps * max(1.0, float(own.abs().max())))
