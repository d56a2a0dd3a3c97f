"""SynonymRankMonitor: rank of the correct token in the vocabulary, and its margin over the near-synonym."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft.callbacks.probe_reading import ProbeCallback
from lightning_sft.figures.loggers import log_figure
from lightning_sft.figures.probes import can_show, rank_heat_map
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.probes.forward import ProbeReading
from lightning_sft.probes.history import kept_readings
from lightning_sft.probes.probe import Probe


class SynonymRankMonitor(ProbeCallback):
    """Log the rank of every probe's correct token and its logit margin over the competitor.

    Keys, as means over the near-synonym probes: ``synonyms/rank``, ``synonyms/flip`` (the share of probes whose
    correct token is above its competitor), ``synonyms/margin``, ``synonyms/reciprocal_rank``, ``synonyms/loss``; the
    same under ``synonyms/control/``, ``synonyms/train/``, ``synonyms/test/`` and ``synonyms/<probe>/``. At the end of
    fit a heat map of ranks, ``synonyms/ranks``, on loggers that can show one.

    Args:
        probes: ``"library"``, ``"library:train"``, ``"library:test"``, a YAML or JSON-lines file, or probes.
        every_n_steps: optimizer steps between readings.
        name: distinguishes two instances: part of their log keys and their state in checkpoints.
        log_per_probe: log the scalars of every probe, beside the aggregated ones. Those that a callback or a schedule
            monitors are logged in any case.
        figures: draw the heat map.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.
    """

    area = "synonyms"

    def __init__(
        self,
        probes: str | Sequence[Probe] = "library",
        every_n_steps: int = 10,
        name: str = "",
        log_per_probe: bool = False,
        figures: bool = True,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(probes, every_n_steps, name, log_per_probe, model, tokenizer)
        self.figures = figures
        self.ranks: list[list[float]] = []  # a list a reading, in it one rank a probe

    @override
    def read(
        self, model: PreTrainedModel, encoded: EncodedProbes, reading: ProbeReading, *, repeated: bool
    ) -> Mapping[str, Tensor]:
        values = synonym_rank(reading.logits, encoded.correct, encoded.competitor)
        if not repeated:
            self.ranks.append(values.rank.tolist())
        return values._asdict()

    @override
    def forget(self) -> None:
        self.ranks = []

    @override
    def thin(self) -> None:
        self.ranks = [self.ranks[i] for i in kept_readings(len(self.ranks))]
        super().thin()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.figures and not trainer.barebones and can_show(trainer):
            figure = rank_heat_map(self.steps, self.ranks, [p.name for p in self.probes])
            tag = "/".join(filter(None, (self.area, self.name, "ranks")))
            log_figure(trainer, tag, figure, trainer.global_step)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "probes": [p.name for p in self.probes],
            "competitors": self.competitors(),
            "steps": list(self.steps),
            "ranks": list(self.ranks),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["probes"] != [p.name for p in self.probes]:
            rank_zero_warn(
                "The checkpoint's ranks belong to other probes than this run's, so their history starts anew. Resume "
                "with the same probes to continue it."
            )
            return
        self._competitors = list(state_dict.get("competitors", []))
        self.steps, self.ranks = list(state_dict["steps"]), list(state_dict["ranks"])
