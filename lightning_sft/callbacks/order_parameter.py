"""OrderParameterLogger: signal, drag and order parameter of near-synonym probes, and a verdict on the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft.callbacks.probe_reading import ProbeCallback
from lightning_sft.figures.loggers import log_figure
from lightning_sft.figures.probes import can_show, order_curves
from lightning_sft.metrics.order_parameter import order_parameter, probabilities, purity
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.probes.embedding_track import EmbeddingTrack, Moved, UnembeddingMemory, embedding_layers
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.probes.forward import ProbeReading
from lightning_sft.probes.history import JumpMeter, ProbeHistory, kept_readings
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import Verdict, VerdictSettings, judge
from lightning_sft.probes.verdict_report import as_text, verdict_row, write_report

Matrix = Literal["auto", "input", "output"]


class OrderParameterLogger(ProbeCallback):
    """Log Phi, S and D of every probe and the causes of their changes; report a verdict at the end of fit.

    Keys, as means over the near-synonym probes: ``order/phi``, ``order/signal``, ``order/drag``, their ``scaled_``
    forms, ``order/p_correct``, ``order/p_competitor``; from the second reading on ``order/readout`` and
    ``order/geometry`` (the exact split of the change of Phi), ``order/geometry_share``, ``order/jump`` (share of
    probes that just jumped), and, where embeddings can move, ``order/counterfactual_hidden`` and
    ``order/counterfactual_embeddings``. The same under ``order/control/``, ``order/train/``, ``order/test/`` and
    ``order/<probe>/``. With untied embeddings the unembedding's values follow under ``.../output_phi`` and so on.

    At the end of fit: a verdict table in the log and, in ``<log dir>/order_parameter``, as text, JSON and CSV, and a
    figure ``order/curves``. The formulas are reconstructed from the abstract of arXiv 2606.07559.

    Args:
        probes: ``"library"``, ``"library:train"``, ``"library:test"``, a YAML or JSON-lines file, or probes.
        every_n_steps: optimizer steps between readings.
        name: distinguishes two instances: part of their log keys, their files and their state in checkpoints.
        log_per_probe: log the scalars of every probe, beside the aggregated ones. Those that a callback or a schedule
            monitors are logged in any case.
        matrix: whose rows the overlaps are of: ``"input"`` or ``"output"`` embeddings; ``"auto"``: the input's, and
            the output's too where they are not tied. Verdicts rest on the first.
        center: subtract the mean row first.
        with_purity: also log Tr rho^2, which costs a dim x dim matrix a probe.
        counterfactual: where the output embeddings can move, keep a copy of them between readings, and separate what
            they did from what the hidden states did.
        figures: draw the curves.
        verdict: thresholds of the verdicts; None is the defaults.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.
    """

    area = "order"

    def __init__(
        self,
        probes: str | Sequence[Probe] = "library",
        every_n_steps: int = 10,
        name: str = "",
        log_per_probe: bool = False,
        matrix: Matrix = "auto",
        center: bool = False,
        with_purity: bool = False,
        counterfactual: bool = True,
        figures: bool = True,
        verdict: VerdictSettings | None = None,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(probes, every_n_steps, name, log_per_probe, model, tokenizer)
        self.matrix: Matrix = matrix
        self.center = center
        self.with_purity = with_purity
        self.counterfactual = counterfactual
        self.figures = figures
        self.verdict_settings = verdict or VerdictSettings()
        self.verdicts: dict[str, Verdict] = {}
        self.forget()

    @override
    def forget(self) -> None:
        self.histories = {p.name: ProbeHistory() for p in self.probes}
        self.training_loss: list[float | None] = []  # mean of the micro-batches before each reading
        self._meters = [JumpMeter() for _ in self.probes]
        self._ranks: list[float] = []  # at the last reading
        self._forget_tensors()

    @override
    def thin(self) -> None:
        self.training_loss = [self.training_loss[i] for i in kept_readings(len(self.training_loss))]
        for history in self.histories.values():
            history.thin()
        super().thin()

    def _forget_tensors(self) -> None:
        self._tracks: dict[str, EmbeddingTrack] = {}
        self._memory: UnembeddingMemory | None = None
        self._frozen = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget_tensors()
        super().on_train_start(trainer, pl_module)

    # ------------------------------------------------------------------ reading

    @override
    def take_reading(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        values = super().take_reading(trainer, pl_module)
        loss = self.mean_batch_loss(trainer)
        if len(self.training_loss) < len(self.steps):
            self.training_loss.append(loss)
        return values

    @override
    def read(
        self, model: PreTrainedModel, encoded: EncodedProbes, reading: ProbeReading, *, repeated: bool
    ) -> Mapping[str, Tensor]:
        layers, output_moves = embedding_layers(model, self.matrix)
        if self._memory is None:
            self._tracks = {key: EmbeddingTrack(layer, self.center) for key, layer in layers.items()}
            self._memory = UnembeddingMemory(model, keep=self.counterfactual and output_moves and reading.plain)
        p = probabilities(reading.logits)
        # what the present hidden states would give under the earlier unembedding
        kept = self._memory.probabilities(reading, output_moves=output_moves) if self.counterfactual else None
        result: dict[str, Tensor] = {}
        for key, track in self._tracks.items():
            geometry = track.look(encoded)
            values = order_parameter(p, geometry)._asdict()
            moved = track.compare(p, kept, output_moves=output_moves)
            if self.with_purity:
                values["purity"] = purity(p, track.rows(), center=self.center)
            if moved is not None:
                values |= moved.values()
            if key == next(iter(self._tracks)):
                values["p_correct"] = p.gather(1, encoded.correct[:, None])[:, 0]
                values["p_competitor"] = p.gather(1, encoded.competitor[:, None])[:, 0]
                ranks = synonym_rank(reading.logits, encoded.correct, encoded.competitor)
                self._ranks = ranks.rank.tolist()
                if not repeated:
                    self._remember(values, ranks.loss, moved)
                jumped = self._just_jumped(p)
                if len(self.steps) > 1:
                    values["jump"] = jumped
            result |= {key + name: value for name, value in values.items()}
            track.keep(p)
        self._memory.refresh()
        self._frozen = all(track.frozen for track in self._tracks.values())
        return result

    def _remember(self, values: Mapping[str, Tensor], loss: Tensor, moved: Moved | None) -> None:
        """Append a reading to the histories."""
        columns = {name: values[name].tolist() for name in ("p_correct", "p_competitor", "phi", "signal", "drag")}
        columns["loss"] = loss.tolist()
        shares = moved.shares() if moved is not None else {}
        for i, history in enumerate(self.histories.values()):
            history.step.append(self.steps[-1])
            for name, column in columns.items():
                getattr(history, name).append(column[i])
            for name in ("geometry_share", "counterfactual_share"):
                getattr(history, name).append(shares[name][i] if name in shares else None)

    def _just_jumped(self, like: Tensor) -> Tensor:
        pairs = zip(self._meters, self.histories.values(), strict=True)
        return like.new_tensor([float(meter.jumped(history, self.verdict_settings)) for meter, history in pairs])

    # ------------------------------------------------------------------ the end

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if trainer.barebones:
            return
        self._judge()
        rows = [verdict_row(p, self.histories[p.name], self.verdicts[p.name]) for p in self.probes]
        text = as_text(rows, frozen=self._frozen)
        rank_zero_info(text)
        folder = self.folder(trainer)
        if trainer.is_global_zero and folder is not None:
            folder = folder / "-".join(filter(None, ("order_parameter", self.name)))
            settings, verdicts = self.verdict_settings, list(self.verdicts.values())
            write_report(folder, rows, verdicts, self.histories, settings, text, self.training_loss)
        if self.figures and can_show(trainer):
            tag = "/".join(filter(None, (self.area, self.name, "curves")))
            log_figure(trainer, tag, order_curves(self.histories, self.verdicts), trainer.global_step)
        self._forget_tensors()

    def _judge(self) -> None:
        training = [loss for loss in self.training_loss if loss is not None]
        # nothing was trained on before the first reading; its place is taken by the first loss there is
        filled = [training[0] if loss is None else loss for loss in self.training_loss] if training else []
        for i, (name, history) in enumerate(self.histories.items()):
            others = [h.loss for other, h in self.histories.items() if other != name]
            losses = [*others, *([filled] if filled else [])]
            rank = self._ranks[i] if self._ranks else None
            self.verdicts[name] = judge(history, losses, self.verdict_settings, rank=rank)

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        histories = {name: asdict(history) for name, history in self.histories.items()}
        return {
            "competitors": self.competitors(),
            "steps": list(self.steps),
            "histories": histories,
            "training_loss": list(self.training_loss),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if list(state_dict["histories"]) != list(self.histories):
            rank_zero_warn(
                "The checkpoint's order parameters belong to other probes than this run's, so their history starts "
                "anew. Resume with the same probes to continue it."
            )
            return
        self._competitors = list(state_dict.get("competitors", []))
        self.steps = list(state_dict["steps"])
        self.training_loss = list(state_dict["training_loss"])
        self.histories = {name: ProbeHistory(**history) for name, history in state_dict["histories"].items()}
