"""ProbeCallback, the base of the probe callbacks: schedule, one shared forward pass, logging."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import state_key_of
from lightning_sft.callbacks.monitors import monitored_keys
from lightning_sft.errors import UserError
from lightning_sft.models.access import input_embeddings
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.probes.competitors import lacks_competitors, name_competitors, with_competitors
from lightning_sft.probes.encode import EncodedProbes, encode_probes
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.forward import ProbeReading, read_probes, within_shards
from lightning_sft.probes.history import MOST_READINGS, kept_readings
from lightning_sft.probes.probe import Probe
from lightning_sft.scores import TokenScores

# The last forward pass of a run, so that two callbacks with the same probes share it.
_latest: WeakKeyDictionary[Trainer, tuple[object, ProbeReading]] = WeakKeyDictionary()


class ProbeCallback(Callback):
    """Reads probes before the first and after every n-th optimizer step, and after the last.

    The forward pass runs on every rank, in evaluation mode, without gradient, in the run's own precision; training
    modes and random states are restored, so a run with the callback follows the same trajectory as one without.
    Aggregated values, and those of single probes that something monitors, are logged through the module (for checkpoint
    and early-stopping monitors) and straight to the loggers at every reading, whatever ``log_every_n_steps`` says;
    with ``log_per_probe`` the loggers get every probe's.

    A history holds at most 2048 readings; beyond that every second one is dropped.

    Args:
        probes: ``"library"``, ``"library:train"``, ``"library:test"``, a YAML or JSON-lines file, or probes.
        every_n_steps: optimizer steps between readings.
        name: distinguishes two instances: part of their log keys, their files and their state in checkpoints.
        log_per_probe: log the scalars of every probe, beside the aggregated ones. Those that a callback or a schedule
            monitors are logged in any case.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.
    """

    area = ""  # the first part of the log keys

    def __init__(
        self,
        probes: str | Sequence[Probe] = "library",
        every_n_steps: int = 10,
        name: str = "",
        log_per_probe: bool = False,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps is {every_n_steps}; it must be at least 1.")
        self.probes = load_probes(probes)
        self.every_n_steps = every_n_steps
        self.name = name
        self.log_per_probe = log_per_probe
        self._model = model
        self._tokenizer = tokenizer
        self._encoded: EncodedProbes | None = None
        self._plain: bool | None = None
        self._competitors: list[int] = []  # of the run that a checkpoint comes from
        self.steps: list[int] = []
        self._losses = torch.zeros(2)  # sum and number of the micro-batches' losses since the last reading

    @property
    @override
    def state_key(self) -> str:
        return state_key_of(self, name=self.name, every_n_steps=self.every_n_steps)

    # ------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def read(
        self, model: PreTrainedModel, encoded: EncodedProbes, reading: ProbeReading, *, repeated: bool
    ) -> Mapping[str, Tensor]:
        """Take one reading into the history and return scalars a probe, each (probes,).

        Args:
            model: the language model; under FSDP2 its own parameters are gathered, and all ranks are here.
            encoded: the probes on the model's device.
            reading: what it said.
            repeated: the history ends with this very step (a resumed run): take it in without adding to the history.
        """

    @abstractmethod
    def forget(self) -> None:
        """Empty the history."""

    def thin(self) -> None:
        """Drop every second reading of the history, but the last; see `kept_readings`."""
        self.steps = [self.steps[i] for i in kept_readings(len(self.steps))]

    # ------------------------------------------------------------------ hooks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.barebones:
            model_to_read(pl_module, self._model)
            self._encoded = encode_probes(self.probes, tokenizer_to_use(pl_module, self._tokenizer))
            self._plain = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.barebones:
            return
        if self.steps and self.steps[-1] > trainer.global_step:
            self.steps = []
            self.forget()
        self._losses = torch.zeros(2, device=pl_module.device)
        self.take_reading(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.barebones:
            return
        loss = batch_loss(outputs, trainer.accumulate_grad_batches)
        if loss is not None:
            self._losses += torch.stack([loss, torch.ones_like(loss)]).to(self._losses)
        n = self.every_n_steps
        if trainer.global_step // n > self.steps[-1] // n:
            values = self.take_reading(trainer, pl_module)
            pl_module.log_dict(values, logger=False, on_step=True, on_epoch=False, batch_size=1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.barebones and trainer.global_step != self.steps[-1]:
            self.take_reading(trainer, pl_module)

    # ------------------------------------------------------------------ reading

    def take_reading(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Read all probes now, log, and return the aggregated values by log key."""
        assert self._encoded is not None
        model = model_to_read(pl_module, self._model)
        step = trainer.global_step
        repeated = bool(self.steps) and self.steps[-1] == step
        if not repeated:
            if len(self.steps) >= MOST_READINGS:
                self.thin()
            self.steps.append(step)
        encoded = self._encoded = self._encoded.to(input_embeddings(model).device)
        result: dict[str, Tensor] = {}

        def body() -> None:
            nonlocal encoded
            reading = self._shared_forward(trainer, model, encoded)
            if lacks_competitors(encoded):
                encoded = self._encoded = self._with_competitors(model, encoded, reading, pl_module)
                self.probes = encoded.probes
            result.update(self.read(model, encoded, reading, repeated=repeated))

        within_shards(pl_module if self._model is None else self._model, model, body)
        table = {key: value.tolist() for key, value in result.items()}
        prefix = "/".join(filter(None, (self.area, self.name)))
        values = {f"{prefix}/{key}": value for key, value in self.aggregate(table).items()}
        single = {f"{prefix}/{p.name}/{k}": v[i] for i, p in enumerate(self.probes) for k, v in table.items()}
        values |= {key: single[key] for key in monitored_keys(trainer) & single.keys()}
        for logger in trainer.loggers:
            logger.log_metrics(values | (single if self.log_per_probe else {}), step=step)
        return values

    def _with_competitors(
        self, model: PreTrainedModel, encoded: EncodedProbes, reading: ProbeReading, pl_module: LightningModule
    ) -> EncodedProbes:
        """Return the probes with the competitors of the run's start, which a checkpoint keeps."""
        tokenizer = tokenizer_to_use(pl_module, self._tokenizer)
        if len(self._competitors) == len(encoded.probes):
            return with_competitors(encoded, self._competitors, tokenizer)
        return name_competitors(encoded, reading.logits, model, tokenizer)

    def competitors(self) -> list[int]:
        """Return the competitors' ids as checkpoints keep them; a run that goes on does not name others."""
        return [] if self._encoded is None else self._encoded.competitor.tolist()

    def _shared_forward(self, trainer: Trainer, model: PreTrainedModel, encoded: EncodedProbes) -> ProbeReading:
        moved = sum(p._version for p in model.parameters())
        stamp = (id(model), trainer.global_step, moved, encoded.probes)
        latest = _latest.get(trainer)
        if latest is None or latest[0] != stamp:
            with trainer.precision_plugin.forward_context():
                reading = read_probes(model, encoded, plain=self._plain)
            latest = _latest[trainer] = (stamp, reading)
        self._plain = latest[1].plain
        return latest[1]

    def aggregate(self, table: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return means over the near-synonym probes and, where there are some, over controls and over each split."""
        groups = {
            "": [i for i, p in enumerate(self.probes) if p.kind == "synonym"],
            "control/": [i for i, p in enumerate(self.probes) if p.kind == "control"],
            **{
                f"{split}/": [i for i, p in enumerate(self.probes) if p.kind == "synonym" and p.split == split]
                for split in ("train", "test")
            },
        }
        return {
            f"{group}{key}": sum(values[i] for i in members) / len(members)
            for group, members in groups.items()
            for key, values in table.items()
            if members
        }

    def mean_batch_loss(self, trainer: Trainer) -> float | None:
        """Return the mean loss of the micro-batches since the last call, over all ranks; None if there was none."""
        total = trainer.strategy.reduce(self._losses.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        self._losses.zero_()
        return float(total[0] / total[1]) if total[1] else None

    def folder(self, trainer: Trainer) -> Path | None:
        """Return where files go, asked by all ranks; None where nothing is to be written."""
        log_dir = trainer.log_dir
        return None if log_dir is None or trainer.fast_dev_run else Path(log_dir)  # type: ignore[attr-defined]


def batch_loss(outputs: Any, accumulate: int) -> Tensor | None:
    """Return a micro-batch's mean loss in nats per token from the output of a training step, or None.

    With the token scores of [`SFTModule`][lightning_sft.module.SFTModule] it is the negative log-likelihood; else the
    step's own loss, which Lightning has divided by the number of accumulated batches.
    """
    if isinstance(outputs, Mapping):
        scores = outputs.get("scores")
        if isinstance(scores, TokenScores):
            return -scores.logp.mean() if len(scores) else None
        outputs = outputs.get("loss")
    return outputs.detach().float().mean() * accumulate if isinstance(outputs, Tensor) else None
