"""ExposureForecast: after how many steps of this run each probe flips, said near its start and graded at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

import lightning_sft.figures.forecast  # noqa: F401  # registers the figure
from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.errors import UserError
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.probe import Probe
from lightning_sft.sweep.forecast.law import ProbeForecast, forecast, rate_for_share
from lightning_sft.sweep.forecast.result import Forecast
from lightning_sft.sweep.forecast.stretches import take_stretches
from lightning_sft.sweep.observers import ProbeObserver
from lightning_sft.sweep.prediction.checks import check_predictable
from lightning_sft.sweep.rates import peak_rate
from lightning_sft.sweep.session import Session
from lightning_sft.units import plural

#: shortest stretch from which a forecast is made
LEAST = 8


class ExposureForecast(SweepCallback):
    """Forecast at which optimizer step of this run each probe flips, or that it will not by the end.

    A flip is over the probe's one competitor: a third word may still be first, so ranks stand beside it.

    Short runs on the run's own rows, with its optimizer, schedule, dropout, clipping and accumulation, say it, with an
    80% interval each; they leave no trace. Of a late flip they say no step but an upper bound, "50 or earlier". Where
    they disagree, or where the loss rises in them, the answer is "cannot predict this". The other way round: the peak
    rate at which ``share`` of the probes flips by the end. While the run goes on, the probes are read, and at its end
    the forecast grades itself: forecast beside seen, and how many intervals held.

    Keys: ``sweep/<name>/told``, ``.../share``, ``.../rate``, and at the end ``.../seen_share``, ``.../median_error``,
    ``.../covered``; a table ``.../report`` and a figure ``.../figure``; all of it in
    ``<run folder>/sweep/<name>.json``.

    Args:
        probes: ``"library"``, ``"library:train"``, ``"library:test"``, a YAML or JSON-lines file, such as the
            ``silent.jsonl`` of a run, or probes.
        stretch: steps of the longest short run. The forecast takes twice as many steps in all; more where the loss
            rises in large steps.
        share: of the probes, whose rate is asked for.
        every: read the probes after so many steps; None: fifty times in the run.
        apply: set that rate and scale the schedule to it, and grade nothing; otherwise only report.
        at_step: the optimizer step before which to forecast; 0 is the start of the run.
        name: part of the log keys, the files and the state in checkpoints.
        keep_callbacks: class names of the run's callbacks that take part in short runs.
        divergence: a short run ends once its loss is above this multiple of its first loss.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Raises:
        UserError: settings that cannot work, or no probe; at the start of the run, a run that cannot be predicted.
    """

    def __init__(
        self,
        probes: str | Sequence[Probe] = "library:train",
        stretch: int = 32,
        share: float = 0.5,
        every: int | None = None,
        apply: bool = False,
        at_step: int = 0,
        name: str = "forecast",
        keep_callbacks: Sequence[str] = (),
        divergence: float = 4.0,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(name, at_step, apply, keep_callbacks, divergence)
        if stretch < LEAST:
            raise UserError(f"stretch is {stretch}. Allowed: {LEAST} optimizer steps or more; 32 is the default.")
        if not 0 < share <= 1:
            raise UserError(f"share is {share}. Allowed: above 0 (the first probe) to 1 (all); 0.5 is half of them.")
        if every is not None and every < 1:
            raise UserError(f"every is {every}. Allowed: 1 or more optimizer steps, or null.")
        self.probes = tuple(load_probes(probes))
        if not self.probes:
            raise UserError("ExposureForecast got no probe. Give at least one, or a file that holds some.")
        self.stretch, self.share, self.every = stretch, share, every
        self.seen: list[int | None] = []
        self._every = 1
        self._observer: ProbeObserver | None = None
        self._ranks: list[float] = []  # of the right words, when they were read last
        self._last = -1  # step after which the probes were read last
        self._model, self._tokenizer = model, tokenizer

    @override
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> Forecast:
        check_predictable(trainer)
        ahead = self._ahead(trainer)
        steps = min(self.stretch, ahead // 2)
        if steps < LEAST:
            raise UserError(
                f"Cannot predict this: {ahead} optimizer steps are left, and a forecast needs {2 * LEAST} at least. "
                f"Give it more (--max_steps {2 * LEAST} or more, --max_epochs), or make the run as it is and look."
            )
        observer = self._read_by(module)
        names = [p.name for p in self.probes]
        facts = {"ahead": ahead, "probes": [repr(p) for p in self.probes]}
        with Session(trainer, module, self.setting(trainer, steps, folder, **facts), [observer]) as session:
            before = session.start([observer])
            start, ranks = before["margin"], before["rank"]
            if all(gap > 0 for gap in start):
                now = float(trainer.global_step)
                told = [
                    ProbeForecast(name, gap, "already ahead", now, now, now, 0.0)
                    for name, gap in zip(names, start, strict=True)
                ]
                spent, peak = 0, peak_rate(trainer)
            else:
                made = take_stretches(session, [observer], start, ahead)
                runs = (made.own, made.coarse, made.fine, made.way, trainer.global_step)
                told = [forecast(name, i, *runs) for i, name in enumerate(names)]
                spent, peak = made.steps, made.peak
        self._every = self.every or max(ahead // 50, 1)
        # at another rate than the forecast's there is nothing to grade
        self.seen = [] if self.apply else [trainer.global_step if gap > 0 else None for gap in start]
        self._last, self._ranks = trainer.global_step, ranks
        return Forecast(
            self.name, trainer.global_step, session.digest, ahead, spent, _rows_per_step(trainer), self.share, peak,
            rate_for_share(told, self.share, peak, trainer.global_step), told, self._every, ranks=ranks,
        )  # fmt: skip

    def _ahead(self, trainer: Trainer) -> int:
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UserError(
                "Cannot predict this: nobody knows how many steps the run has. Set trainer.max_steps or max_epochs."
            )
        return int(total) - trainer.global_step

    def _read_by(self, module: LightningModule) -> ProbeObserver:
        if self._observer is None:
            place = module if self._model is None else self._model
            self._observer = ProbeObserver(self.probes, place, tokenizer=self._tokenizer)
        return self._observer

    # ------------------------------------------------------------------ grading

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seen and trainer.global_step % self._every == 0:
            self._look(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.seen or not isinstance(self.result, Forecast):
            return
        self._look(trainer, pl_module)
        if trainer.global_step < self.result.end:
            rank_zero_warn(
                f"The run ended after {trainer.global_step} of {plural(self.result.end, 'step')}, so the forecast is "
                "not graded."
            )
            return
        self.result = self.result.graded(self.seen, self._ranks)
        log_dir = trainer.log_dir
        self._report(trainer, self.result, None if log_dir is None else Path(log_dir))

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._last:
            return
        self._last = step
        values = self._read_by(module).read(trainer, module)
        gaps, self._ranks = values["margin"], values["rank"]
        self.seen = [step if s is None and gap > 0 else s for s, gap in zip(self.seen, gaps, strict=True)]

    @override
    def state_dict(self) -> dict[str, Any]:
        made = asdict(self.result) if isinstance(self.result, Forecast) else None
        return {**super().state_dict(), "result": made, "seen": list(self.seen)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        made = state_dict["result"]
        if made is not None and [p["probe"] for p in made["probes"]] == [p.name for p in self.probes]:
            rate = made["rate_for_share"]
            probes = [ProbeForecast(**p) for p in made["probes"]]
            self.result = Forecast(**{**made, "probes": probes, "rate_for_share": None if rate is None else (*rate,)})
            self.seen, self._every = list(state_dict["seen"]), self.result.every


def _rows_per_step(trainer: Trainer) -> int | None:
    """Return the rows of an optimizer step over all ranks, None if the loader does not say."""
    size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    size = size or getattr(trainer.train_dataloader, "batch_size", None)
    ranks, _ = data_parallel_size_and_rank(trainer)
    return size * trainer.accumulate_grad_batches * ranks if isinstance(size, int) else None
