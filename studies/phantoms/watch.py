"""What is read in a run: jumps and what moved in them, flips, silent failures, and a planted change of the geometry."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_sft.callbacks import OrderParameterLogger
from lightning_sft.errors import UserError
from lightning_sft.models.instruments import model_to_read
from lightning_sft.probes.forward import read_probes
from lightning_sft.probes.history import Jump, ProbeHistory, find_jumps
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import Verdict, VerdictSettings
from studies.held_out import HeldOutNLL
from studies.phantoms.rows import ProbeRows, Taught

#: outcomes and failure modes as the numbers that cells hold
OUTCOMES = ("flipped", "never behind", "stopped early", "failed", "loss did not fall", "diverged")
MODES: tuple[tuple[str, ...], ...] = ((), ("kinematic",), ("structural",), ("kinematic", "structural"))
SILENT = ("stopped early", "failed")
#: of jumps and verdicts; the package's defaults when this was written, and registered with this file
SETTINGS = VerdictSettings(
    tau=0.05, delta=0.005, fall=0.05, steep=0.5, jump_factor=10.0, jump_floor=0.02, phantom_share=0.05
)
#: shares of a jump's cause from which the embeddings are said to have taken part, beside `SETTINGS.phantom_share`
CUTS = (0.01, 0.02, 0.1)
#: stands for contexts that are drawn once the rows of the run are known
_UNDRAWN = Probe("undrawn", "one", "other")


class Watch(HeldOutNLL, OrderParameterLogger):
    """Read the contexts that a run is taught, and log at its end what became of each of them.

    Keys: ``phantoms/flipped`` and ``phantoms/silent`` and, of the latter, ``phantoms/failed`` without those that
    stopped early: shares of the contexts whose right word was behind at the start; ``phantoms/jumps``, the jumps of
    these contexts, and ``phantoms/embeddings``, the share of those in which the embeddings took part, with
    ``phantoms/embeddings_above_<cut>`` for other shares of the cause than 5% (there only with jumps);
    ``phantoms/planted`` and ``phantoms/planted_phantom``, the changes above a jump's floor that the plant made, and how
    many of these were called phantom or could not be told (there only where embeddings are trained);
    ``phantoms/moved``, the largest change of an entry of the embeddings; ``phantoms/background``, held-out NLL in
    relation to the start; ``phantoms/score``, what rates are selected by; and ``context/<i>/...``, see `of_context`.

    The plant comes after the last step: the embedding rows of each context's two answers change places, by hand, are
    read, and are put back. Where embeddings are tied the split alone calls that a readout jump once the right word
    is certain, and only the counterfactual tells: an instrument that calls it phantom is worthless.

    Args:
        bound: the largest ``phantoms/background``. The score is ``phantoms/flipped`` up to it, and among equal ones
            the further fallen loss; beyond it how far it is exceeded, negative. None: the score is the negative
            held-out NLL.
        every_n_steps: steps between readings.

    Raises:
        UserError: at the end of a run whose embeddings are not trained and are not bit by bit what they were.
    """

    def __init__(self, bound: float | None = None, every_n_steps: int = 1) -> None:
        super().__init__([_UNDRAWN], every_n_steps, figures=False, verdict=SETTINGS)
        self.bound = bound
        self.taught: tuple[Taught, ...] = ()
        self._kept: list[Tensor] = []
        self._nll: list[float] = []  # of every validation

    # ------------------------------------------------------------------ before the first step

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sources: Any = trainer.datamodule.sets.sources_of["train"]  # type: ignore[attr-defined]
        self.taught = next(source for source in sources if isinstance(source, ProbeRows)).draw()
        self.probes = tuple(_named(i, taught) for i, taught in enumerate(self.taught))
        self.forget()
        super().on_fit_start(trainer, pl_module)
        self._kept = [weight.detach().clone() for weight in embedding_weights(model_to_read(pl_module))]

    # ------------------------------------------------------------------ held-out NLL

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._nll.append(self.held_out_nll)

    # ------------------------------------------------------------------ the end

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps[-1] != trainer.global_step:
            self.take_reading(trainer, pl_module)
        self._judge()
        model = model_to_read(pl_module)
        values = self.summary(embeddings_moved(self._kept, model))
        if not self._frozen:
            jumps = self.planted(model)
            values["phantoms/planted"] = len(jumps)
            values["phantoms/planted_phantom"] = sum(jump.phantom is not False for jump in jumps)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self._forget_tensors()
        self._kept = []

    def summary(self, moved: float) -> dict[str, float]:
        """Return what is logged, but for the plant.

        Args:
            moved: the largest change of an entry of the embeddings.

        Raises:
            UserError: the embeddings are not trained, and moved.
        """
        if self._frozen and moved:
            raise UserError(
                f"The embeddings are not trained, and an entry of them moved by {moved:g}. What this study says of "
                "LoRA rests on embeddings that stay bit by bit what they were: find what writes into them."
            )
        values = {"phantoms/moved": moved, "phantoms/background": self._nll[-1] / self._nll[0]}
        behind, silent, failed, flipped, fall = 0, 0, 0, 0, 0.0
        jumps: list[Jump] = []
        for i, (taught, probe) in enumerate(zip(self.taught, self.probes, strict=True)):
            history, verdict = self.histories[probe.name], self.verdicts[probe.name]
            values |= {f"context/{i:02d}/{k}": v for k, v in of_context(taught, history, verdict).items()}
            if is_behind(history):
                jumps += verdict.jumps
                behind += 1
                failed += verdict.outcome == "failed"
                silent += verdict.outcome in SILENT
                flipped += verdict.outcome == "flipped"
                fall += history.loss[0] - history.loss[-1]
        values["phantoms/jumps"] = len(jumps)
        if jumps:
            values["phantoms/embeddings"] = sum(jump.phantom is False for jump in jumps) / len(jumps)
            for cut in CUTS:
                above = sum(embeddings_share(jump) >= cut for jump in jumps)
                values[f"phantoms/embeddings_above_{cut:g}"] = above / len(jumps)
        for name, number in (("flipped", flipped), ("silent", silent), ("failed", failed)):
            values[f"phantoms/{name}"] = number / max(behind, 1)
        nll, fall = (self._nll[0], self._nll[-1]), fall / max(behind, 1)
        values["phantoms/score"] = score(values["phantoms/flipped"], fall, *nll, self.bound)
        return values

    @torch.no_grad()
    def planted(self, model: PreTrainedModel) -> list[Jump]:
        """Return the changes that a change of places of the answers' rows makes; the rows are put back.

        They are told as jumps wherever they are above the floor of one, however much the context moved before.

        Args:
            model: whose embeddings are trained.
        """
        assert self._encoded is not None
        encoded, histories, steps = self._encoded, self.histories, self.steps
        ids = torch.cat([encoded.correct, encoded.competitor])
        others = torch.cat([encoded.competitor, encoded.correct])
        weights = embedding_weights(model)
        rows = [weight[ids].clone() for weight in weights]
        self.histories, self.steps = copy.deepcopy(histories), [*steps, steps[-1] + 1]
        try:
            for weight, own in zip(weights, rows, strict=True):
                weight[others] = own
            self.read(model, encoded, read_probes(model, encoded, plain=self._plain), repeated=False)
            as_jumps = replace(self.verdict_settings, jump_factor=0.0)
            found = [find_jumps(history, as_jumps) for history in self.histories.values()]
            return [jump for jumps in found for jump in jumps if jump.step == self.steps[-1]]
        finally:
            for weight, own in zip(weights, rows, strict=True):
                weight[ids] = own
            self.histories, self.steps = histories, steps


def _named(i: int, taught: Taught) -> Probe:
    probe = taught.probe
    return Probe(probe.context, probe.correct, probe.competitor, name=f"{i:02d}")


def of_context(taught: Taught, history: ProbeHistory, verdict: Verdict) -> dict[str, float]:
    """Return what became of a context, as numbers.

    ``number`` and ``shipped`` are those of `Taught`; ``behind``: the right word was behind at the start; ``outcome``
    and ``mode``: places in `OUTCOMES` and `MODES`; ``fall``: of its loss, nats; ``jumps``; ``embeddings``: jumps in
    which the embeddings took part; ``share``: their mean share in the cause of jumps, by the counterfactual.
    """
    values = {
        "number": taught.number,
        "shipped": taught.shipped,
        "behind": is_behind(history),
        "outcome": OUTCOMES.index(verdict.outcome),
        "mode": MODES.index(tuple(sorted(verdict.modes))),
        "fall": history.loss[0] - history.loss[-1],
        "jumps": len(verdict.jumps),
        "embeddings": sum(jump.phantom is False for jump in verdict.jumps),
    }
    shares = [jump.counterfactual_share for jump in verdict.jumps if jump.counterfactual_share is not None]
    if shares:
        values["share"] = statistics.fmean(shares)
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def embeddings_share(jump: Jump) -> float:
    """Return the embeddings' share in a jump: the larger of the exact split's and the counterfactual's."""
    return max(jump.geometry_share or 0.0, jump.counterfactual_share or 0.0)


def is_behind(history: ProbeHistory) -> bool:
    """Return whether the right word was not ahead of its near-synonym before the first step."""
    return history.p_correct[0] <= history.p_competitor[0]


def embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """Return the weights of input and output embeddings, one where they are tied."""
    layers: Sequence[Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: Mapping[int, Tensor] = {id(layer.weight): layer.weight for layer in layers if layer is not None}
    return [weight.detach() for weight in weights.values()]


def embeddings_moved(before: Sequence[Tensor], model: PreTrainedModel) -> float:
    """Return the largest change of an entry of the embeddings; 0 only where every bit is the same."""
    pairs = list(zip(before, embedding_weights(model), strict=True))
    if all(torch.equal(old, now) for old, now in pairs):
        return 0.0
    return max(float((old - now).abs().max()) for old, now in pairs)


def score(flipped: float, fall: float, start: float, end: float, bound: float | None) -> float:
    """Return what rates are selected by; see `Watch`.

    ``fall`` is the mean fall of the loss of contexts that began behind, in nats. It decides among equal shares: where
    no context flips at any rate within the bound, the best rate is the one that comes nearest, not the lowest one.

    >>> score(0.5, 2.0, 4.0, 4.02, 1.01), score(0.5, 2.0, 4.0, 4.02, None)
    (0.502, -4.02)
    >>> round(score(0.5, 2.0, 4.0, 4.4, 1.01), 6)
    -0.09
    """
    if bound is None:
        return -end
    return flipped + min(max(fall, 0.0), 20.0) / 1000 if end <= bound * start else bound - end / start
