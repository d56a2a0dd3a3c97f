"""SilentFailureMonitor: does the loss fall while the right tokens stay behind, on the user's own data."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft.callbacks.next_step import NextStep, ends_with_commands
from lightning_sft.callbacks.silent_course import RunCourse
from lightning_sft.callbacks.silent_ending import tell_verdicts, verdict_on
from lightning_sft.callbacks.silent_reader import TokenReader
from lightning_sft.callbacks.silent_rows import from_datamodule, from_loaders, tell_refused, to_watch_more
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.metrics.silent_verdict import SilentVerdict
from lightning_sft.models.instruments import tokenizer_to_use
from lightning_sft.probes.contexts import failed_contexts
from lightning_sft.probes.files import SILENT
from lightning_sft.probes.watched_set import WatchedSet

_SPENT = "learning rates spent"  # beside the names of sets in a checkpoint


class SilentFailureMonitor(Callback):
    """Tell silent failure on a run's own data: the loss falls, and the right token stays behind the same competitor.

    A fixed sample of training rows and of validation rows is read before the first step and at every validation of a
    fit: for each supervised token its log-probability, the strongest other candidate and its margin over that. Keys,
    for ``<set>`` in ``train`` and ``val``:

    - ``silent/<set>/outranked``, ``expected`` and ``excess``: the share of tokens that are not the first choice, what a
      calibrated model would show, and the difference;
    - ``silent/<set>/share``: of the tokens outranked at the start, those whose NLL fell by more than ``min_fall`` and
      that are still outranked by the same competitor; ``displaced``: likewise, by another one; ``unlearned``: those
      still outranked whose NLL did not fall as far; ``flipped``: those that are the first choice now. These four sum
      to 1. ``lost``: of the first choices at the start, those that are none any more;
    - by source and by named validation set, where there are several; under ``silent/<set>/content/`` the tokens that
      are not special, where some are; under ``silent/<set>/synonym/`` those whose competitor at the start was a
      near-synonym.

    At the end of the fit come a verdict in a sentence, the next command, and the worst contexts: as a table
    ``silent/contexts``, and in ``silent.jsonl`` in the run's folder, which the probe callbacks and the ``pairs`` of
    ``RunnerUpMargin`` take as it is.

    `SFTModule` brings it along. There, validation rows are read by the validation itself; training rows, and all rows
    in other modules, by forward passes of its own, which leave the trajectory as it is. Other modules need loaders over
    datasets of known length whose batches have ``input_ids`` and unshifted ``labels``.

    Args:
        train_rows: training rows of the sample; 0 is none. They cost a forward pass at each validation, so None, the
            default, is 3% of the rows of a validation, from 8 to 128; 32 without validation and on other data modules.
        val_rows: rows of each validation set, the same way.
        tokens: the most tokens of a set that are looked at.
        min_fall: nats by which a token's NLL must have fallen.
        max_share: the largest ``share`` on training rows that is no failure; see `judge`.
        min_overlap: least cosine of the embedding rows of near-synonyms.
        wordnet: folder of WordNet's database, which then decides in place of the cosine; ``"auto"``: where it is
            installed; ``"none"``: never.
        contexts: the most contexts of a set that are written.
        batch_size: rows of one forward pass of its own.
        enabled: False turns it off where it would be brought along.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Attributes:
        watched: the sets, with their first and last readings.
        verdicts: on each set, after a fit.

    Raises:
        UserError: a number out of range; or, at the start of a fit with a monitor that was asked for, no row of the run
            can be watched.
    """

    leaves_gradients = True  # it only reads the rate

    def __init__(
        self,
        train_rows: int | None = None,
        val_rows: int = 256,
        tokens: int = 4096,
        min_fall: float = 0.1,
        max_share: float = 0.1,
        min_overlap: float = 0.5,
        wordnet: str = "auto",
        contexts: int = 100,
        batch_size: int = 8,
        enabled: bool = True,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        for name, value, least in (("train_rows", train_rows, 0), ("val_rows", val_rows, 0), ("tokens", tokens, 1),
                                   ("contexts", contexts, 0), ("batch_size", batch_size, 1)):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"SilentFailureMonitor got {name}={value}. Allowed: {least} or more.")
        if train_rows == val_rows == 0:
            raise UserError("SilentFailureMonitor got no rows to watch. Set train_rows or val_rows, or enabled: false.")
        for name, share in (("max_share", max_share), ("min_overlap", min_overlap)):
            if not 0 <= share <= 1:
                raise UserError(f"SilentFailureMonitor got {name}={share}. Allowed: 0 to 1.")
        if not 0 <= min_fall < math.inf:
            raise UserError(f"SilentFailureMonitor got min_fall={min_fall}. Allowed: nats, 0 or more.")
        self.train_rows, self.val_rows, self.tokens = train_rows, val_rows, tokens
        self.min_fall, self.max_share, self.min_overlap, self.wordnet = min_fall, max_share, min_overlap, wordnet
        self.contexts, self.batch_size, self.enabled = contexts, batch_size, enabled
        self.required = True  # the one that SFTModule brings along is not
        self.watched: list[WatchedSet] = []
        self.verdicts: dict[str, SilentVerdict] = {}
        self._model, self._tokenizer = model, tokenizer
        self._reader: TokenReader | None = None
        self._restored: dict[str, Any] = {}
        self._course = RunCourse()
        self.next_step: NextStep | None = None
        self._last_line = ""

    # ------------------------------------------------------------------ hooks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watched, self.verdicts, self.next_step = [], {}, None
        if trainer.barebones or not self.enabled:
            self._reader = None
            return
        self._reader = TokenReader(pl_module, self._model, self.batch_size)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SFTDataModule):  # other loaders are not there yet
            self.watched = from_datamodule(data, self.train_rows, self.val_rows, self.tokens)
            if not self._reader.can_call:
                self.watched = [s for s in self.watched if self._in_validation(s)]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reader = self._reader
        if reader is None:
            return
        if not isinstance(getattr(trainer, "datamodule", None), SFTDataModule):
            self.watched, refused = from_loaders(trainer, self.train_rows, self.val_rows, self.tokens)
            tell_refused(refused, must_watch=self.required and not self.watched)
        for watched in self.watched:
            reader.tell_apart(watched, self._tokenizer_of(pl_module))
        self._course.begin(trainer, float(self._restored.pop(_SPENT, 0.0)))
        if self._resume() or not self.watched:
            return
        if trainer.global_step > 0:
            rank_zero_info(
                "The checkpoint holds no reading of these tokens from the start of the run, so silent failure, flips "
                "and lost leads cannot be told; silent/.../outranked and excess are logged alone."
            )
            return
        for watched in self.watched:
            if watched.now is None and reader.can_call:  # else a complete sanity check has read it
                reader.read(trainer, watched)
            if watched.now is not None:
                watched.remember()
                watched.keep(0.0)
                if reader.can_call:
                    reader.find_near_synonyms(watched, self._tokenizer_of(pl_module), self.min_overlap, self.wordnet)
        self._log_apart(trainer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._course.step(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._reader is None or not self._course.reaches_middle(trainer):
            return
        for watched in self.watched:
            if watched.trained:
                self._reader.read(trainer, watched)
                watched.keep(self._course.spent)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = not trainer.sanity_checking or trainer.num_sanity_val_steps == math.inf
        for watched in filter(self._in_validation, self.watched):
            if self._reader is not None and trainer.state.fn == "fit" and whole:
                self._reader.begin_validation(watched)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for watched in filter(self._in_validation, self.watched):
            if self._reader is not None:
                self._reader.take_batch(watched, outputs, batch)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._reader is None or trainer.state.fn != "fit" or not self.watched:
            return
        for watched in self.watched:
            if self._in_validation(watched):
                self._reader.end_validation(trainer, watched)
            elif not trainer.sanity_checking:
                self._reader.read(trainer, watched)
        if not trainer.sanity_checking:
            for watched in self.watched:
                watched.keep(self._course.spent)
            pl_module.log_dict(self._scalars(), batch_size=1)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._reader is not None:
            self._reader.leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._reader is not None:
            self._reader.leave()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._reader is None or not self.watched:
            return
        late = [s for s in self.watched if not self._in_validation(s) and s.step != trainer.global_step]
        for watched in late:
            self._reader.read(trainer, watched)
            watched.keep(self._course.spent)
        if late:  # no validation has read and logged them
            self._log_apart(trainer)
        self._report(trainer, pl_module)

    def _in_validation(self, watched: WatchedSet) -> bool:
        """Return whether a set is read by the validation itself."""
        return self._reader is not None and self._reader.validates and not watched.trained

    def _log_apart(self, trainer: Trainer) -> None:
        """Log to the loggers alone, where no validation carries the values."""
        values = self._scalars()
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _scalars(self) -> dict[str, float]:
        return {f"silent/{key}": v for watched in self.watched for key, v in watched.scalars(self.min_fall).items()}

    # ------------------------------------------------------------------ the end

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch_more = ""
        for watched in self.watched:
            length = self._course.length(trainer, watched)
            verdict = verdict_on(watched, self.min_fall, self.max_share, length)
            if verdict is not None:
                self.verdicts[watched.name] = verdict
            if watched.trained:
                watch_more = to_watch_more(watched, asked_for=self.required)
        sources = getattr(getattr(trainer, "datamodule", None), "source_names", ())
        tokenizer = self._tokenizer_of(pl_module)
        lines = failed_contexts(self.watched, tokenizer, sources, self.contexts, self.min_fall)
        self.next_step, self._last_line = tell_verdicts(trainer, self.verdicts, lines, SILENT, watch_more)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say it once more in one line, after all others have spoken, where no command closes the run."""
        line, self._last_line = self._last_line, ""
        if stage == "fit" and line and trainer.is_global_zero and not ends_with_commands(trainer):
            print(line, flush=True)

    # ------------------------------------------------------------------ small things

    def _tokenizer_of(self, pl_module: LightningModule) -> PreTrainedTokenizerBase | None:
        try:
            return tokenizer_to_use(pl_module, self._tokenizer)
        except UserError:
            return None  # contexts are ids; their texts are for people

    def _resume(self) -> bool:
        """Take the first readings from the checkpoint; return whether there were some of these tokens."""
        restored, self._restored = self._restored, {}
        return any([s.name in restored and s.load(restored[s.name]) for s in self.watched])

    @override
    def state_dict(self) -> dict[str, Any]:
        states = {watched.name: state for watched in self.watched if (state := watched.state()) is not None}
        return {**states, _SPENT: self._course.spent} if states else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
