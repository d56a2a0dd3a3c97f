"""The temperature control: what sampling from a model gives once its temperature is fitted.

-p sharpens predictions. Where it wins at temperature 1, that may be entropy alone, and NLL with one decoding
temperature would do as well.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_sft.metrics.answers import answer_spans
from lightning_sft.models.access import backbone, find_causal_lm, find_tokenizer
from lightning_sft.models.generation import end_tokens
from lightning_sft.scores import IGNORED

TEMPERATURES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.3)


class TemperatureControl(Callback):
    """Log ``control/pass_at_1``: pass@1 of the judged answers at a temperature fitted on other answers.

    Every second answer fits the temperature (the one of `TEMPERATURES` with the highest pass@1) that the others are
    judged at, and the other way round, so that no answer is judged at a temperature that it helped to choose.
    ``control/temperature`` is the mean of the two, ``control/pass_at_1_as_is`` the same reading at temperature 1.
    It needs padded batches, one answer a row.

    Args:
        named: the validation set whose answers are judged.
    """

    only_reads = True

    def __init__(self, named: str = "judged") -> None:
        self.named = named
        self._sources: tuple[int, ...] = ()
        self._logp: list[Tensor] = []
        self._ends: list[int] = []

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logp = []
        sets: Any = trainer.datamodule.named_sets["val"]  # type: ignore[attr-defined]
        self._sources = next(one.sources for one in sets if one.name == self.named)
        self._ends = end_tokens(find_causal_lm(pl_module), find_tokenizer(pl_module))

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        mine = torch.isin(batch["source"], torch.tensor(self._sources, device=batch["source"].device))
        if not mine.any():
            return
        ids, mask, labels = (batch[key][mine] for key in ("input_ids", "attention_mask", "labels"))
        model = find_causal_lm(pl_module)
        hidden = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state
        # the logits of supervised positions alone: those of the others are most of the work
        logits = model.get_output_embeddings()(hidden[:, :-1][labels[:, 1:] != IGNORED])
        self._logp.append(answer_logps(logits, labels, self._ends))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self._logp:
            return
        passes = torch.cat(self._logp).exp()
        self._logp = []
        if len(passes) < 2:
            return
        judged, temperature = cross_fitted(passes)
        values = {"pass_at_1": judged, "temperature": temperature}
        as_is = float(passes[:, TEMPERATURES.index(1.0)].mean())
        pl_module.log_dict({f"control/{k}": v for k, v in {**values, "pass_at_1_as_is": as_is}.items()}, batch_size=1)


def answer_logps(logits: Tensor, labels: Tensor, ends: list[int]) -> Tensor:
    """Return the log-probability of each complete answer at each temperature, (answers, temperatures), float64.

    Args:
        logits: of the supervised positions in the order of ``labels``, (positions, vocabulary).
        labels: unshifted, (batch, length).
        ends: ids of the tokens that end generation.
    """
    spans = answer_spans(labels, ends)
    at = labels[:, 1:] != IGNORED
    rows, targets = logits.float(), labels[:, 1:][at]
    columns = []
    for temperature in TEMPERATURES:
        scaled = rows / temperature
        logp = scaled.gather(1, targets[:, None])[:, 0] - scaled.logsumexp(1)
        total = torch.zeros(len(spans.complete), dtype=torch.float64, device=logits.device)
        columns.append(total.index_add_(0, spans.answer, logp.double() * spans.judged))
    return torch.stack(columns, 1)[spans.complete]


def cross_fitted(passes: Tensor) -> tuple[float, float]:
    """Return pass@1 at temperatures fitted on the other half of the answers, and the mean of the two temperatures.

    Args:
        passes: probability of each answer at each of `TEMPERATURES`, (answers, temperatures).
    """
    halves = (passes[::2], passes[1::2])
    chosen = [int(half.mean(0).argmax()) for half in halves]
    judged = torch.cat([halves[1][:, chosen[0]], halves[0][:, chosen[1]]])
    return float(judged.mean()), sum(TEMPERATURES[i] for i in chosen) / 2
