"""RunSummary: held-out readings before and after a fit, side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from typing_extensions import override

from lightning_sft._lightning import callbacks_of
from lightning_sft.callbacks.capability_probe import CapabilityProbe
from lightning_sft.callbacks.next_step import ends_with_commands
from lightning_sft.callbacks.run_facts import name_of
from lightning_sft.metrics.capability_reading import ENOUGH_ROWS
from lightning_sft.places import near
from lightning_sft.report.opposite import why_opposite
from lightning_sft.units import plural

#: what people look at first, in this order
_FIRST = ("exact_match", "task_accuracy", "pass_at_1", "nll", "loss", "perplexity", "token_accuracy", "mean_p")
#: what the capability reading calls otherwise
_SAME = {"top1_share": "token_accuracy"}
#: below a table, where a capability reading gives another mean p beside it
_WITH_SPECIAL = "\n{} counts special tokens, too, such as the end of an answer; the capability reading leaves them out."
#: below a table without its loss; another objective's may have the NLL's figure, too, as where all is learned
_ONCE = "\n{}loss has the figures of {}nll, so it stands here once."
#: characters of a key
_WIDTH = 24


class RunSummary(Callback):
    """Keep the first and the last validation of a fit and print them in a table at its end.

    With ``trainer.num_sanity_val_steps: -1`` Lightning's sanity check runs the whole validation before the first
    step; this callback then logs it at step 0, so that curves start where the model started, and the table says what
    the fit changed. Otherwise the first validation of the run stands in the first column. Values under two objectives,
    as after a resume under another one, do not stand in one row.

    Attributes:
        evaluations: print a table after ``validate`` and ``test``, too; the command line sets it, in place of
            Lightning's own table.
    """

    def __init__(self) -> None:
        self.evaluations = False
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.before_step = 0
        self.after_step = 0
        self.before_objective = self.after_objective = ""
        self.took_steps = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.took_steps = True  # a run that was resumed after its end does not come here

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf:
            return
        if trainer.state.fn != "fit":
            self._print_evaluation(trainer)
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        objective = getattr(pl_module, "objective", None)
        self.after, self.after_step = values, trainer.global_step
        self.after_objective = name_of(objective) if isinstance(objective, nn.Module) else ""
        if not self.before:
            self.before, self.before_step = values, trainer.global_step
            self.before_objective = self.after_objective
            if trainer.sanity_checking:
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=0)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_evaluation(trainer)

    def _print_evaluation(self, trainer: Trainer) -> None:
        """Print what a validation or a test by itself has read."""
        folder = trainer.log_dir  # a collective: every rank asks
        if not self.evaluations or trainer.barebones or not trainer.is_global_zero:
            return
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        own = "val/" if trainer.state.fn == "validate" else "test/"
        shown = (key for key in values if key.startswith(own) or (_is_short(key) and not _stands(key, own, values)))
        keys = sorted(shown, key=lambda key: (not key.startswith(own), *_order(key)))
        if not keys:
            return
        width = max(_WIDTH, max(map(len, keys)) + 2)
        print(f"\n{'held out':<{width}}{'value':>14}")
        once = same_loss(values, own)
        for key in keys:
            if not (once and key == f"{own}loss"):
                print(f"{key:<{width}}{_shown(values[key])}", flush=True)
        if once:
            print(_ONCE.format(own, own))
        if values.get("capability/content/mean_p") != values.get("capability/mean_p"):
            print(_WITH_SPECIAL.format(f"{own}mean_p"))
        rows = _rows_of(trainer, own.rstrip("/"))
        if 0 < rows < ENOUGH_ROWS:
            print(f"{plural(rows, 'row')}: few enough that others like them may give quite other values.")
        if len(keys) < len(values):
            print(f"{len(values) - len(keys)} more readings, by source, set or bound: {_shown_by(trainer, folder)}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a collective: every rank asks
        if trainer.barebones or not trainer.is_global_zero or not self.after:
            return
        columns = [(f"step {self.after_step}", self.after)]
        if self.before_step != self.after_step:  # one reading stands once
            columns.insert(0, ("before" if self.before_step == 0 else f"step {self.before_step}", self.before))
        known = self.before_objective and self.after_objective  # a run that took no step has not read the second
        other = bool(known) and self.before_objective != self.after_objective
        print(f"\n{'held out':<{_WIDTH}}" + "".join(f"{head:>14}" for head, _ in columns))
        once = not other and all(same_loss(values) for _, values in columns)
        for key in sorted(self.after, key=_order):
            if once and key == "val/loss":
                continue
            shown = [values.get(key) for _, values in columns]
            if other and key.endswith("/loss"):  # in the units of another objective
                shown[:-1] = [None] * (len(shown) - 1)
            print(f"{key:<{_WIDTH}}" + "".join(map(_shown, shown)))
        if "val/mean_p" in self.after and any(_tells_special_apart(c) for c in callbacks_of(trainer)):
            print(_WITH_SPECIAL.format("val/mean_p"))
        if once:
            print(_ONCE.format("val/", "val/"))
        if len(columns) > 1 and (why := why_opposite(self.before, self.after)) is not None:
            print(f"\n{why}")
        if other and len(columns) > 1:
            print(f"val/loss was {self.before_objective}'s then and is {self.after_objective}'s now: not comparable.")
        if not self.took_steps:
            end, further = _end_of(trainer)
            such = f", such as {further}" if further else ""
            print(f"No step was taken: the run had reached {end} before. Give more to train on{such}.")
        shows = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        if folder and shows and not ends_with_commands(trainer):  # which name it, too
            print(f"\nLook at it: tensorboard --logdir {shlex.quote(str(near(Path(folder))))}")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "before_step": self.before_step,
            "after": self.after,
            "after_step": self.after_step,
            "before_objective": self.before_objective,
            "after_objective": self.after_objective,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.before_step = state_dict["before"], state_dict["before_step"]
        self.after, self.after_step = state_dict["after"], state_dict.get("after_step", 0)
        self.before_objective = state_dict.get("before_objective", "")


def same_loss(values: Mapping[str, float], prefix: str = "val/") -> bool:
    """Return whether a loss is shown by the very figure of the NLL."""
    loss, nll = values.get(f"{prefix}loss"), values.get(f"{prefix}nll")
    return loss is not None and nll is not None and f"{loss:.4f}" == f"{nll:.4f}"


def _tells_special_apart(callback: Callback) -> bool:
    """Return whether a callback has said what the mean p is without special tokens."""
    end = callback.end if isinstance(callback, CapabilityProbe) else None
    return end is not None and end.leaves_out


def _shown_by(trainer: Trainer, folder: str | None) -> str:
    """Return how one looks at what was logged to a folder."""
    if not folder or not trainer.loggers:
        return "a logger would keep them (--logger csv)"
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return f"tensorboard --logdir {shlex.quote(str(near(Path(logger.log_dir))))}"
        if isinstance(logger, CSVLogger):
            return str(near(Path(logger.log_dir) / "metrics.csv"))
    return f"in {near(Path(folder))}"


def _end_of(trainer: Trainer) -> tuple[str, str]:
    """Return what ended a run, as settings, and options by which it would go on twice as far."""
    given = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
    ends = {key: value for key, value in given.items() if value not in (None, -1)}
    further = " ".join(f"--{key} {2 * value}" for key, value in ends.items() if value)
    return " and ".join(f"{key}={value}" for key, value in ends.items()) or "its end", further


def _shown(value: float | None) -> str:
    """Return a value for a column; a perplexity may have more digits than one holds."""
    if value is None:
        return f"{'-':>14}"
    return f"{value:>14.4f}" if abs(value) < 1e8 else f"{value:>14.4g}"


def _order(key: str) -> tuple[int, str]:
    """Return where a reading stands in the table: those that people look at first, then all others by name."""
    name = key.partition("/")[2]
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), key)


def _rows_of(trainer: Trainer, what: str) -> int:
    """Return how many rows a set of our data module has; 0 if that is unknown."""
    report = getattr(getattr(trainer, "datamodule", None), "report", {}).get(what)
    return 0 if report is None else int(report.rows)


def _stands(key: str, own: str, keys: Collection[str]) -> bool:
    """Return whether a callback's reading stands in the table already, as one of the evaluation itself."""
    group, _, name = key.partition("/")
    return group == "capability" and own + _SAME.get(name, name) in keys


def _is_short(key: str) -> bool:
    """Return whether a callback's reading stands in the table: no reading of a part, and no bound of an interval."""
    return (key.count("/") < 2 or key.endswith("/share")) and not key.endswith(("_low", "_high"))
