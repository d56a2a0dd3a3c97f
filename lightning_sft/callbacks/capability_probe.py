"""CapabilityProbe: where the model stands on the task before training, and where after."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import callbacks_of, data_parallel_size_and_rank
from lightning_sft.advice.advice import CONFIG
from lightning_sft.advice.comparison import JUDGED, too_few_to_compare
from lightning_sft.advice.measure import measure, why_unreadable
from lightning_sft.advice.rows import ReadingRows, rows_of_datamodule, rows_of_loader
from lightning_sft.advice.rules import advise, doubts_of, few_answers
from lightning_sft.callbacks.next_step import NextStep, ends_with_commands
from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.errors import UserError
from lightning_sft.figures.capability import capability_figure
from lightning_sft.figures.loggers import log_figure, log_text
from lightning_sft.figures.probes import can_show
from lightning_sft.metrics.capability_reading import ENOUGH_ROWS, FILE, CapabilityReading, CutOffs, save_reading
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.places import RUN_SETTINGS

#: what an architecture or a loader may say to being read; a probe that was brought along then lets the fit be
UNREADABLE = (UserError, RuntimeError, TypeError, ValueError, AttributeError, LookupError)


class CapabilityProbe(Callback):
    """Read what the model thinks of the supervised tokens of the training data, before the first step and after fit.

    The mean of the targets' probability before training, special tokens left out, is the place on the capability
    continuum, which decides which objectives to try first; the log says which, and why. The same tokens are read again
    after the last step. The pass is made in evaluation mode and draws no random number: a run with the probe follows
    the run without it.

    Keys: ``capability/mean_p`` with ``_low`` and ``_high`` (a 95% bootstrap interval over rows), ``capability/nll``,
    ``top1_share``, ``share_unlikely`` (p < 0.1), ``share_known`` (p > 0.55), ``entropy``, ``calibration_error``,
    ``exact_match``; the same under ``capability/source/<name>/``, ``capability/content/`` (without special tokens, by
    which the place is judged), ``capability/special/`` and ``capability/end/`` (tokens that end an answer). In
    TensorBoard the figure ``capability/figure`` and the text ``capability/advice``. All of it, with histograms and
    quantiles, is in ``capability.json`` beside the run, from which `Thresholded` takes percentiles; a run without a
    logger has no such file. In ``lightning validate`` the validation rows are read, for the keys alone.

    Rows come from our data module, or from the dataset of the training loader, spread evenly over it.

    Args:
        rows: rows to read; None is all of them.
        most_share: the most of a fit's cost that both readings together may take: fewer rows are read in short fits,
            but no less than 20. None: no limit.
        weak: mean p at and below which the model is called weak on the task. The cut-offs are ours; no paper has any.
        strong: mean p at and above which it is called strong.
        enabled: False turns it off where it would be brought along.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Raises:
        UserError: less than one row, a share out of range, or cut-offs out of order.
    """

    #: whether a run whose rows cannot be read is an error: not where the callback was brought along
    required = True

    def __init__(
        self,
        rows: int | None = 200,
        most_share: float | None = 0.05,
        weak: float = 0.10,
        strong: float = 0.70,
        enabled: bool = True,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if rows is not None and rows < 1:
            raise UserError(f"CapabilityProbe got rows={rows}. Allowed: 1 or more, or null for all rows.")
        if most_share is not None and not 0 < most_share <= 1:
            raise UserError(
                f"CapabilityProbe got most_share={most_share}. Allowed: above 0, up to 1; null is no limit."
            )
        self.rows = rows
        self.most_share = most_share
        self.cut_offs = CutOffs(weak, strong)
        self.enabled = enabled
        self._model = model
        self._tokenizer = tokenizer
        self._rows: ReadingRows | None = None
        self._limit: int | None = None  # rows of the reading before training, which the one after it reads again
        self.start: CapabilityReading | None = None
        self.end: CapabilityReading | None = None
        self.seconds: float | None = None  # that the last reading took
        self.next_step: NextStep | None = None

    @classmethod
    def where_possible(cls) -> CapabilityProbe:
        """Return one that reads where it can and says where it cannot, as `SFTModule` brings it along."""
        probe = cls()
        probe.required = False
        return probe

    # ------------------------------------------------------------------ hooks

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._works(trainer):
            return
        if trainer.ckpt_path and self.start is not None:  # a resumed run: the start was long ago
            return
        if self.start is None and trainer.global_step > 0:
            return
        self.read_start(trainer, pl_module)
        self._report(trainer, pl_module, self.start)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._works(trainer) or self.start is None or trainer.global_step == 0:
            return
        required, self.required = self.required, False  # a fit that is done is never lost for it
        self.end = self._read(trainer, pl_module, "train")
        self.required = required
        self._report(trainer, pl_module, self.end)
        self._rows = None

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "validate" or not self._works(trainer):
            return
        reading = self._read(trainer, pl_module, "val")
        if reading is not None:
            pl_module.log_dict(reading.scalars(), batch_size=1)
            rank_zero_info("\n".join(_of_validation(reading, trained=bool(trainer.ckpt_path))))

    def _works(self, trainer: Trainer) -> bool:
        fast: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        return self.enabled and not trainer.barebones and not fast

    # ------------------------------------------------------------------ reading

    def read_start(self, trainer: Trainer, pl_module: LightningModule) -> CapabilityReading | None:
        """Return the reading before training, taken now if it has not been; a collective.

        Raises:
            UserError: the rows cannot be read, and the callback was asked for.
        """
        if self.start is None:
            self.start = self._read(trainer, pl_module, "train")
        return self.start

    def _read(self, trainer: Trainer, pl_module: LightningModule, what: str) -> CapabilityReading | None:
        try:
            if (why := why_unreadable(trainer)) is not None:
                raise UserError(why)
            model = model_to_read(pl_module, self._model)
            tokenizer = tokenizer_to_use(pl_module, self._tokenizer)
            rows = self._find_rows(trainer, tokenizer, what)
            outer = pl_module if self._model is None else self._model
            since = time.perf_counter()
            reading = measure(trainer, outer, model, tokenizer, rows, self.cut_offs)
            self.seconds = time.perf_counter() - since
            return reading
        except UNREADABLE as error:
            if self.required:
                raise
            what_failed = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            rank_zero_info(f"CapabilityProbe reads nothing here: {what_failed}{error}")
            return None

    def _find_rows(self, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, what: str) -> ReadingRows:
        if self._rows is None or what != "train":
            limit = self.rows
            if what == "train":
                limit = self._limit = self._limit or self._affordable(trainer)
            rows = rows_of_datamodule(getattr(trainer, "datamodule", None), what, tokenizer, limit)
            if rows is None:
                rows = rows_of_loader(trainer.train_dataloader if what == "train" else trainer.val_dataloaders, limit)
            if what != "train":
                return rows
            self._rows = rows
        return self._rows

    def _affordable(self, trainer: Trainer) -> int | None:
        """Return the most rows to read: forward and backward of a row cost at least two forward passes."""
        steps = trainer.estimated_stepping_batches
        datamodule, loader = getattr(trainer, "datamodule", None), trainer.train_dataloader
        batch_size = getattr(datamodule, "batch_size", None) or getattr(loader, "batch_size", None)
        if self.most_share is None or steps == float("inf") or not isinstance(batch_size, int):
            return self.rows
        ranks, _ = data_parallel_size_and_rank(trainer)
        trained = int(steps) * trainer.accumulate_grad_batches * batch_size * ranks
        affordable = max(ENOUGH_ROWS, int(self.most_share * trained))
        return affordable if self.rows is None else min(self.rows, affordable)

    # ------------------------------------------------------------------ reporting

    def _report(self, trainer: Trainer, pl_module: LightningModule, reading: CapabilityReading | None) -> None:
        if reading is None or self.start is None:
            return
        step, advice = trainer.global_step, advise(self.start)
        options = _options(trainer, advice.compare)
        for logger in trainer.loggers:
            logger.log_metrics(reading.scalars(), step=step)
        if can_show(trainer):
            log_figure(trainer, "capability/figure", capability_figure(self.start, self.end), step)
        if self.end is None:
            log_text(trainer, "capability/advice", advice.markdown(options or CONFIG, wraps=True), step)
            told = options if _is_news(self.start, pl_module, trainer) else None
            picked = getattr(getattr(pl_module, "auto", None), "choice", None) is not None
            if told is not None and not picked and ends_with_commands(trainer):
                command = advice.command(told)
                against = advice.speaks_against(getattr(pl_module, "objective", None))
                self.next_step = NextStep(advice.reason, command, False, compares=advice.compare, against=against)
                told = None
            self._tell(self.start, told, advises=not picked)  # what was picked has been told, and why
        else:
            told = f"Capability on the same tokens after the fit: {self.end.in_short(explains=False)}"
            rank_zero_info("\n".join([told, *doubts_of(self.end)]))
        folder = run_folder(trainer) if trainer.is_global_zero else None
        if folder is not None:
            content = advice.to_dict(options or CONFIG)
            doubts = {} if self.end is None else {"doubts_after": doubts_of(self.end)}
            save_reading(folder / FILE, self.start, self.end, advice=content, step=step, **doubts)

    def _tell(self, reading: CapabilityReading, options: str | None, advises: bool = True) -> None:
        found = f"Capability on {reading.all.rows} training rows: {reading.in_short()}"
        rank_zero_info(f"{found}\n{advise(reading).text(options)}" if advises else found)

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.start is None else {"start": self.start.to_dict(), "rows": self._limit}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "start" in state_dict:
            self.start, self._limit = CapabilityReading.from_dict(state_dict["start"]), state_dict["rows"]


def reading_before(trainer: Trainer, pl_module: LightningModule) -> CapabilityReading | None:
    """Return the reading before training of a fit that has not begun, by the run's own probe; a collective.

    Raises:
        UserError: the rows cannot be read.
    """
    own = next((c for c in callbacks_of(trainer) if isinstance(c, CapabilityProbe)), None) or CapabilityProbe()
    required, own.required = own.required, True
    try:
        return own.read_start(trainer, pl_module)
    finally:
        own.required = required


def _of_validation(reading: CapabilityReading, *, trained: bool) -> Iterator[str]:
    """Yield what a validation by itself says of a reading, line by line; its table has the figures of all tokens.

    Args:
        reading: of validation rows.
        trained: whether the model is a run's checkpoint: which objective to train it with was decided.
    """
    yield f"Capability on {reading.all.rows} validation rows: {reading.in_short(totals=False)}"
    if (few := few_answers(reading.all)) is not None:
        yield few
    if trained:
        yield from doubts_of(reading)
        return
    yield f"Before this model is trained on such rows: {advise(reading).text(None)}"


def _options(trainer: Trainer, compares: bool) -> str | None:
    """Return the options of a command that name this run; None for one that no command has started.

    Args:
        trainer: of the run.
        compares: whether the command judges by validation rows.
    """
    folder = run_folder(trainer) if trainer.is_global_zero else None
    config = None if folder is None else folder / RUN_SETTINGS
    if config is None or not config.is_file():
        return None
    sets = getattr(getattr(trainer, "datamodule", None), "sets", None)
    lacks = compares and sets is not None and not sets.has("val")
    return shlex.quote(str(config)) + (f" {JUDGED}" if lacks else "")


def _is_news(reading: CapabilityReading, module: LightningModule, trainer: Trainer) -> bool:
    """Return whether the advice is another objective than the run trains under, or a comparison that has the rows."""
    advice, report = advise(reading), getattr(getattr(trainer, "datamodule", None), "report", {})
    if advice.compare:
        return not too_few_to_compare(reading.rows_of_set, getattr(report.get("val"), "rows", None))
    return str(advice.pick.build()) != str(getattr(module, "objective", None))
