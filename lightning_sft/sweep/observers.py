"""Observers: read probes or the validation set between the steps of a trial, without side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightning_sft._lightning import to_device, validating
from lightning_sft.errors import UserError
from lightning_sft.metrics.order_parameter import AnswerGeometry, answer_geometry, order_parameter, probabilities
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.models.access import input_embeddings
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.models.mode import eval_mode
from lightning_sft.probes.competitors import lacks_competitors, name_competitors
from lightning_sft.probes.encode import EncodedProbes, encode_probes
from lightning_sft.probes.forward import layer_rows, read_probes, within_shards
from lightning_sft.probes.probe import Probe
from lightning_sft.scores import TokenScores
from lightning_sft.sweep.batches import held_out
from lightning_sft.sweep.trial import Values


class ProbeObserver:
    """Reads all near-synonym probes in one forward pass.

    Values, a number a probe: ``margin`` (z_c - z_s), ``loss`` (NLL of the correct token), ``rank`` (its place in the
    vocabulary, 1 is the first choice) and, if asked for, ``phi`` under the input embeddings.

    Args:
        probes: the probes.
        module: the LightningModule, or the module that holds the language model.
        phi: read the order parameter, too: two (vocab, dim) products a probe unless the embeddings are frozen.
        tokenizer: None looks for the module's own.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        module: nn.Module,
        phi: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._outer = module
        self._model = model_to_read(module)
        self._tokenizer = tokenizer_to_use(module, tokenizer)
        encoded = encode_probes(probes, self._tokenizer)
        self.encoded: EncodedProbes = encoded.to(input_embeddings(self._model).device)
        self._phi = phi
        self._plain: bool | None = None
        self._geometry: AnswerGeometry | None = None

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Read the probes now; under FSDP2 a collective."""
        values: Values = {}

        def body() -> None:
            with trainer.precision_plugin.forward_context():
                reading = read_probes(self._model, self.encoded, plain=self._plain)
            self._plain = reading.plain
            if lacks_competitors(self.encoded):  # the first reading comes before any trial
                self.encoded = name_competitors(self.encoded, reading.logits, self._model, self._tokenizer)
            ranks = synonym_rank(reading.logits, self.encoded.correct, self.encoded.competitor)
            values.update(margin=ranks.margin.tolist(), loss=ranks.loss.tolist(), rank=ranks.rank.tolist())
            if self._phi:
                values["phi"] = order_parameter(probabilities(reading.logits), self._look()).phi.tolist()

        within_shards(self._outer, self._model, body)
        return values

    def _look(self) -> AnswerGeometry:
        layer = self._model.get_input_embeddings()
        if self._geometry is None or any(p.requires_grad for p in layer.parameters()):
            self._geometry = answer_geometry(layer_rows(layer), self.encoded.correct, self.encoded.competitor)
        return self._geometry


class HeldOutObserver:
    """Reads the validation set with the module's own ``validation_step``, every ``every``-th time it is asked.

    Values, each a list of one: ``val_nll`` and, from modules whose step returns token scores, ``val_mean_p`` and
    ``val_accuracy``, exact over tokens and ranks. From other modules it is the mean of the returned losses.

    Args:
        trainer: in a fit.
        batches: the most validation batches of a rank; None is all of them.

    Raises:
        UserError: there is no validation data.
    """

    def __init__(self, trainer: Trainer, batches: int | None = None) -> None:
        with isolate_rng():
            self._batches = held_out(trainer, batches)

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Return the averages over the held-out batches; a collective."""
        sums = torch.zeros(4, dtype=torch.float64, device=wide_device(module.device))
        exact = False
        with isolate_rng(), eval_mode(module), torch.no_grad(), validating(trainer):
            for number, batch in enumerate(self._batches):
                output = trainer.strategy.validation_step(to_device(trainer, batch), number)
                part, exact = _sums(output, module)
                sums += part
        total = trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        count, nll, p, hits = total.tolist()
        if not count:
            return {"val_nll": [float("nan")]}
        values = {"val_nll": [nll / count]}
        return {**values, "val_mean_p": [p / count], "val_accuracy": [hits / count]} if exact else values


def _sums(output: Any, module: LightningModule) -> tuple[Tensor, bool]:
    """Return (count, NLL, p, hits) of one batch, and whether they are sums over tokens."""
    scores = output.get("scores") if isinstance(output, Mapping) else None
    if isinstance(scores, TokenScores):
        logp = wide(scores.logp)
        hits = scores.is_top1.sum() if scores.is_top1 is not None else torch.zeros((), device=logp.device)
        count = torch.tensor(len(scores), device=logp.device)
        return torch.stack([count.to(logp), -logp.sum(), logp.exp().sum(), hits.to(logp)]), True
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise UserError(
            f"{type(module).__name__}.validation_step returned {type(output).__name__}, so a sweep cannot read a "
            "validation loss. Return the loss, or a dict with 'loss'; or let the sweep read the training loss."
        )
    value = wide(loss.detach()).mean()
    return torch.stack([torch.ones_like(value), value, *torch.zeros_like(value).expand(2)]), False
