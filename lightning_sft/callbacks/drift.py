"""DriftMonitor: what a run does to text outside its task."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank, state_key_of
from lightning_sft.errors import UserError, require_log_name
from lightning_sft.guard.texts import GENERAL, GuardBatch, encode_texts, load_texts
from lightning_sft.metrics.drift import StoredDistribution, kl_divergence, kl_lower_bound, log_probabilities, store
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.models.access import input_embeddings
from lightning_sft.models.adapters_off import adapter_layers, adapters_off, base_is_frozen
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.probes.forward import evaluation, within_shards
from lightning_sft.scores import IGNORED

Start = Literal["auto", "adapters_off", "top_k", "copy"]

#: sums of a reading, in the order of the vector that is reduced over ranks
_SUMS = ("tokens", "nll", "kl", "changed")
#: what is logged of each set
READINGS = _SUMS[1:]


class DriftMonitor(Callback):
    """Measure on guard sets, text outside the task, how far the model has moved from where the run started.

    The guard sets are read before the first optimizer step and at every validation of a fit; in a fit without
    validation, at its end. Keys for each set:
    ``drift/<name>/nll`` (mean NLL in nats per token), ``drift/<name>/kl`` (mean of KL(start || now) over the whole
    vocabulary, nats per token) and ``drift/<name>/changed`` (share of tokens whose first choice is no longer the
    start's). Checkpoints and early stopping can monitor them. It works in any LightningModule around a Hugging Face
    causal language model, leaves the trajectory as it is, and shares the texts among data-parallel ranks.

    The start is known in one of three ways:

    - ``"adapters_off"``: the model with its adapters switched off. Exact, no memory, one more forward pass a reading.
      For adapters on a frozen base.
    - ``"top_k"``: the ``top_k`` most likely tokens of each position and the mass of the rest, stored before the first
      step: 8 bytes for each, so 2 MB for the shipped set at 64. ``kl`` is then a lower bound, since all other tokens
      count as one. Kept in checkpoints.
    - ``"copy"``: a frozen copy of the model. Exact, the memory of a second model, one more forward pass a reading; it
      is kept in checkpoints, too, and not possible for sharded models.

    Args:
        sets: guard sets by name: ``"general"`` (193 shipped sentences), a ``.txt`` file with a text in each line, a
            ``.jsonl`` file whose rows have ``text``, or a list of texts.
        start: see above; ``"auto"`` switches adapters off where the base is frozen, else stores ``top_k``.
        top_k: tokens stored for each position under ``"top_k"``.
        max_length: tokens of a text that are read.
        positions: positions that are read at once; logits of (positions, vocab) are held at a time.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Attributes:
        at_start: the readings before the first step, by log key; known from the start of training on.

    Raises:
        UserError: no set, a name that a log key cannot hold, a set without text, or a number below 1.
    """

    def __init__(
        self,
        sets: dict[str, str | list[str]] | None = None,
        start: Start = "auto",
        top_k: int = 64,
        max_length: int = 512,
        positions: int = 512,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        sets = {GENERAL: GENERAL} if sets is None else sets
        if not sets:
            raise UserError("DriftMonitor got no guard set. Give at least one, such as {general: general}.")
        for name in sets:
            require_log_name(name, "DriftMonitor")
        for setting, value in (("top_k", top_k), ("max_length", max_length - 1), ("positions", positions)):
            if value < 1:
                raise UserError(f"DriftMonitor got {setting}={value}. Allowed: 1 or more (max_length: 2 or more).")
        self.texts = {name: load_texts(source, name) for name, source in sets.items()}
        self.start = start
        self.top_k = top_k
        self.max_length = max_length
        self.positions = positions
        self._model = model
        self._tokenizer = tokenizer
        self._batches: dict[str, list[GuardBatch]] = {}
        self._way: Start = "auto"
        self._stored: dict[str, list[StoredDistribution]] = {}
        self._copy: PreTrainedModel | None = None
        self._restored: dict[str, Any] = {}
        self.at_start: dict[str, float] = {}
        self._validated = False

    @property
    @override
    def state_key(self) -> str:
        return state_key_of(self, sets=sorted(self.texts))

    # ------------------------------------------------------------------ hooks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.barebones:
            return
        self._find(pl_module)
        tokenizer = tokenizer_to_use(pl_module, self._tokenizer)
        self._batches = {
            name: encode_texts(texts, tokenizer, name, max_length=self.max_length, positions=self.positions)
            for name, texts in self.texts.items()
        }

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.barebones:
            return
        model = self._find(pl_module)
        self._validated = False
        self._way = self._choose(model)
        if self._restored:
            self._resume(model)
            return
        self._stored, self._copy = {}, None
        if self._way == "copy":
            self._copy = copy.deepcopy(model).requires_grad_(False).eval()
        elif self._way == "top_k":
            within_shards(self._outer(pl_module), model, lambda: self._store(trainer, model))
        self.at_start = self._read(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(self.at_start, step=trainer.global_step)
        if not trainer.enable_validation:
            rank_zero_info(
                "DriftMonitor reads at validations, and this fit has none: the guard sets are read once more at its "
                "end. Add validation rows to see when something is forgotten."
            )

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.barebones or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = True
        pl_module.log_dict(self._read(trainer, pl_module), batch_size=1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read once more where no validation has come; to the loggers alone."""
        if trainer.barebones or self._validated:
            return
        values = self._read(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        rank_zero_info(f"Drift at the end: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}")

    # ------------------------------------------------------------------ the start

    def _choose(self, model: PreTrainedModel) -> Start:
        """Return how the start is known, from the setting and the model."""
        frozen = base_is_frozen(model)
        sharded = any(isinstance(m, FSDPModule) for m in model.modules())
        if self.start == "auto":
            return "adapters_off" if frozen else "top_k"
        if self.start == "adapters_off" and not frozen:
            what = "its base is trained as well" if adapter_layers(model) else "it has no adapter"
            raise UserError(
                f"DriftMonitor cannot take the model with adapters off as the start: {what}. Use start: top_k or copy."
            )
        if self.start == "copy" and sharded:
            raise UserError("DriftMonitor cannot copy a sharded model. Use start: top_k, or adapters_off.")
        return self.start

    def _store(self, trainer: Trainer, model: PreTrainedModel) -> None:
        for name, batches in self._batches.items():
            logps = (log_probabilities(self._logits(trainer, model, batch)) for batch in batches)
            self._stored[name] = [StoredDistribution(*(t.cpu() for t in store(logp, self.top_k))) for logp in logps]

    def _resume(self, model: PreTrainedModel) -> None:
        """Take the start from the checkpoint.

        Raises:
            UserError: the checkpoint was written under another way, or of other texts.
        """
        saved, self._restored = self._restored, {}
        self.at_start = saved.get("at_start", {})  # checkpoints of earlier versions lack it
        positions = [int((b.labels[:, 1:] != IGNORED).sum()) for batches in self._batches.values() for b in batches]
        if saved["way"] != self._way or saved["positions"] != positions:
            raise UserError(
                "The guard sets in the checkpoint are not those of this run: other texts, another tokenizer, or "
                f"another start ({saved['way']} there, {self._way} here). The start of the run is lost without them. "
                "Resume with the same DriftMonitor, or leave it out."
            )
        self._stored = {
            name: [StoredDistribution(*tensors) for tensors in stored] for name, stored in saved["stored"].items()
        }
        if self._way == "copy":
            self._copy = copy.deepcopy(model).requires_grad_(False).eval()
            self._copy.load_state_dict(saved["copy"])

    # ------------------------------------------------------------------ reading

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the readings of all sets by log key; a collective."""
        model = self._find(pl_module)
        device = input_embeddings(model).device
        if self._copy is not None:
            self._copy.to(device)  # type: ignore[arg-type]  # transformers types `to` without devices
        sums: dict[str, Tensor] = {}

        def body() -> None:
            for name in self._batches:
                sums[name] = self._sum(trainer, model, name, device)

        within_shards(self._outer(pl_module), model, body)
        values: dict[str, float] = {}
        for name, own in sums.items():
            total = trainer.strategy.reduce(own, reduce_op="sum")
            assert isinstance(total, Tensor)
            means = dict(zip(_SUMS, (total / total[0]).tolist(), strict=True))
            values |= {f"drift/{name}/{key}": means[key] for key in READINGS}
        return values

    def _sum(self, trainer: Trainer, model: PreTrainedModel, name: str, device: torch.device) -> Tensor:
        """Return this rank's sums over a set, (4,), float64; every rank makes the same number of forward passes."""
        count, rank = data_parallel_size_and_rank(trainer)
        # ranks that split layers or only share a data-parallel rank would count twice: the first of them counts
        weight = count / trainer.world_size
        total = torch.zeros(len(_SUMS), dtype=torch.float64, device=wide_device(device))
        batches = self._batches[name]
        for first in range(0, len(batches), count):
            i = min(first + rank, len(batches) - 1)
            batch = batches[i]
            now = log_probabilities(self._logits(trainer, model, batch))
            targets = _targets(batch).to(device)
            stored = self._stored[name][i] if name in self._stored else None
            if stored is not None:
                stored = StoredDistribution(*(t.to(device) for t in stored))
                kl, top = kl_lower_bound(stored, now), stored.tokens[:, 0].long()
            else:
                with self._adapters_off(model):
                    before = log_probabilities(self._logits(trainer, self._copy or model, batch))
                kl, top = kl_divergence(before, now), before.argmax(-1)
            if first + rank < len(batches):
                nll = -wide(now.gather(-1, targets[:, None])[:, 0])
                changed = wide(now.argmax(-1) != top)
                tokens = torch.ones_like(changed)
                total += weight * torch.stack([tokens.sum(), nll.sum(), kl.sum(), changed.sum()])
        return total

    def _logits(self, trainer: Trainer, model: PreTrainedModel, batch: GuardBatch) -> Tensor:
        """Return the logits that predict the labels, (positions, vocab)."""
        batch = batch.to(input_embeddings(model).device)
        with torch.no_grad(), evaluation(model), trainer.precision_plugin.forward_context():
            output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        logits = output.logits[:, :-1][batch.labels[:, 1:] != IGNORED]
        assert isinstance(logits, Tensor)
        return logits

    def _adapters_off(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        return nullcontext() if self._copy is not None else adapters_off(model)

    def _outer(self, pl_module: LightningModule) -> nn.Module:
        return pl_module if self._model is None else self._model

    def _find(self, pl_module: LightningModule) -> PreTrainedModel:
        return model_to_read(pl_module, self._model)

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        if not self._batches:
            return {}
        batches = [b for batches in self._batches.values() for b in batches]
        return {
            "way": self._way,
            "at_start": self.at_start,
            "positions": [int((b.labels[:, 1:] != IGNORED).sum()) for b in batches],
            "stored": {name: [tuple(part) for part in stored] for name, stored in self._stored.items()},
            "copy": None if self._copy is None else self._copy.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def _targets(batch: GuardBatch) -> Tensor:
    shifted = batch.labels[:, 1:]
    return shifted[shifted != IGNORED]
