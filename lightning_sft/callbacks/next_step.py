"""What to train next: callbacks suggest it, and the end of a run says which suggestions count most."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from lightning.pytorch import Trainer

from lightning_sft._lightning import callbacks_of
from lightning_sft.callbacks.run_clock import epochs_done
from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.metrics.capability_reading import CapabilityReading
from lightning_sft.metrics.run_length import PASSES
from lightning_sft.places import RUN_SETTINGS, near, newest_settings
from lightning_sft.units import are, plural

#: below this share of exact training answers a run is asked to go on, though nothing failed silently
FEW_EXACT = 0.5


@dataclass(frozen=True)
class NextStep:
    """What to try after a run.

    Attributes:
        why: what speaks for it, in a sentence; all that there is to say, where there is no command.
        command: what to type; empty where there is none.
        measured: whether the trained model speaks for it, and not only what was read before training: this counts more.
        only_longer: whether it is the same run, which goes on.
        compares: whether it is a comparison, which takes many runs.
        reads: whether it only tells more of this run's model, or of the next one.
        against: whether what was read before training speaks against the objective that this run had.
    """

    why: str
    command: str
    measured: bool
    only_longer: bool = False
    compares: bool = False
    reads: bool = False
    against: bool = False

    @property
    def heading(self) -> str:
        """What stands above the command in the list that closes a run."""
        if not self.command:
            return self.why
        kind = "Go on" if self.only_longer else "Read more rows" if self.reads else "Train again"
        return f"{kind}: {self.why}:"


def next_steps_of(trainer: Trainer) -> list[NextStep]:
    """Return what a run suggests at its end, the first being what to do; a callback's is its attribute ``next_step``.

    What the trained model speaks for stands alone, but for going on, which leaves room for another objective. After a
    run that was too short to tell, going on comes first, and then another objective that the reading before training
    speaks for; no comparison, whose runs would be as short. Where neither is so, and most answers are not exact yet,
    going on comes first as well. What only reads more comes last. A run does not go on under an objective that the
    reading before training speaks against.
    """
    found = (getattr(callback, "next_step", None) for callback in callbacks_of(trainer))
    steps = [step for step in found if isinstance(step, NextStep)]
    return [*_runs(trainer, [step for step in steps if not step.reads]), *(step for step in steps if step.reads)]


def _runs(trainer: Trainer, steps: Sequence[NextStep]) -> list[NextStep]:
    if (other := next((step for step in steps if step.against), None)) is not None:
        return [other, *(step for step in steps if step.measured and not step.only_longer)]
    if (measured := next((step for step in steps if step.measured), None)) is not None:
        return [measured, *(step for step in steps if step is not measured and measured.only_longer)]
    if (longer_run := next((step for step in steps if step.only_longer), None)) is not None:
        return [longer_run, *(step for step in steps if not (step.only_longer or step.compares))]
    inexact = _to_exact_answers(trainer)
    return [*([] if inexact is None else [inexact]), *steps[:1]]


def _to_exact_answers(trainer: Trainer) -> NextStep | None:
    """Return how the run goes on where most training answers are not exact, and the loss of their tokens fell."""
    for callback in callbacks_of(trainer):
        start, end = getattr(callback, "start", None), getattr(callback, "end", None)
        if isinstance(start, CapabilityReading) and isinstance(end, CapabilityReading):
            few = end.all.exact_match is not None and end.all.exact_match < FEW_EXACT
            folder, more = run_folder(trainer), longer(trainer)
            if few and more and end.judged.nll < start.judged.nll and _has_settings(folder):
                exact = end.all.exact_answers
                why = f"{exact} of {plural(end.all.answers, 'training answer')} {are(exact)} exact so far"
                command = _going_on(folder, more)
                return NextStep(why, command, measured=False, only_longer=True)
    return None


def _going_on(folder: Path, more: Sequence[str]) -> str:
    """Return the command by which the run of a folder goes on."""
    return shlex.join(["lightning", "fit", str(near(folder)), *more])


def _has_settings(folder: Path | None) -> TypeGuard[Path]:
    """Return whether a command has started the run of a folder."""
    return folder is not None and (folder / RUN_SETTINGS).is_file()


def ends_with_commands(trainer: Trainer) -> bool:
    """Return whether a callback closes the run with commands to type, so that others need not print theirs."""
    return any(getattr(callback, "next_commands", None) is not None for callback in callbacks_of(trainer))


def longer(trainer: Trainer) -> list[str]:
    """Return options that let a run go on: for three epochs, or twice as long.

    Empty where neither steps nor epochs end it, or where no checkpoint is kept to go on from.

    Args:
        trainer: of the run.
    """
    if not trainer.checkpoint_callbacks:
        return []
    epochs = epochs_done(trainer)
    times = 2.0 if math.isnan(epochs) else max(2.0, PASSES / max(epochs, 1e-9))
    options = []
    if trainer.max_steps not in (None, -1):
        options += ["--max_steps", str(math.ceil(times * trainer.global_step))]
    passes = math.ceil(times * (trainer.max_epochs or 0) if math.isnan(epochs) else times * epochs - 1e-9)
    if trainer.max_epochs not in (None, -1) and trainer.max_epochs < passes:
        options += ["--max_epochs", str(passes)]
    return options


def after_verdicts(
    outcomes: Collection[str],
    folder: Path | None,
    contexts: str,
    more: Sequence[str] = (),
    model: str | None = None,
    *,
    watch_more: str = "",
    loss_rose: bool = False,
) -> tuple[NextStep | None, str]:
    """Return what to try after the verdicts on silent failure, and as a line for a log; nothing where all is well.

    Args:
        outcomes: of the verdicts.
        folder: of the run; None without one.
        contexts: name of the file there that holds the worst contexts.
        more: options that let the run go on, see `longer`.
        model: what the run's model began as, with which an audit compares it; None if unknown.
        watch_more: how the next run watches more training rows, see `to_watch_more`; empty where this one watched all.
        loss_rose: the loss of the trained tokens rose.
    """
    if "too early" in outcomes and "silent failure" not in outcomes:
        return _slower(folder) if loss_rose else _go_on(folder, more)
    if "still outranked" in outcomes:
        return _further(folder, more, loss_rose)
    if not {"silent failure", "overconfident"} & set(outcomes):
        return _read_more(folder, model, watch_more) if "undecided" in outcomes and watch_more else (None, "")
    if "silent failure" in outcomes:
        objective, pairs = "RunnerUpMargin", None if folder is None else folder / contexts
        why = "the loss fell while right words stay behind their competitors, and a margin between them may help"
    else:
        objective, pairs = "LabelSmoothing", None
        why = "the model is surer than it is right, and smoothed labels may help"
    if not _has_settings(folder):
        given = "" if pairs is None else f"pairs={str(pairs)!r}"
        return None, f"Next: SFTModule(..., objective={objective}({given}))"
    command = f"lightning fit {shlex.quote(str(near(newest_settings(folder))))} --objective {objective}"
    command += "" if pairs is None else f" --objective.pairs {shlex.quote(str(near(pairs)))}"
    return NextStep(why, command, measured=True), _in_lines(why, command)


def _go_on(folder: Path | None, more: Sequence[str]) -> tuple[NextStep | None, str]:
    """Return how a run goes on that was too short to tell."""
    if not more:
        return None, ""
    if not _has_settings(folder):
        return None, "To tell, train longer."
    why = "this was too short to tell whether it fails silently, and it goes on from its last step"
    command = _going_on(folder, more)
    return NextStep(why, command, measured=False, only_longer=True), _in_lines(why, command)


def _slower(folder: Path | None) -> tuple[NextStep | None, str]:
    """Return what to try where the loss rose, which to go on would make worse."""
    return _in_words("The loss of the training rows rose: train again at a lower learning rate.", folder)


def _further(folder: Path | None, more: Sequence[str], loss_rose: bool) -> tuple[NextStep | None, str]:
    """Return what to try where most right words are not the first choice yet."""
    if loss_rose:
        return _slower(folder)
    if not more or not _has_settings(folder):
        return _in_words("To get the right words ahead, train longer or at a higher learning rate.", folder)
    why = "most right words are not the first choice yet, and more steps, or a higher learning rate, push them further"
    command = _going_on(folder, more)
    return NextStep(why, command, measured=True, only_longer=True), _in_lines(why, command)


def _read_more(folder: Path | None, model: str | None, watch_more: str) -> tuple[NextStep | None, str]:
    """Return how to read more training rows, of the finished model or in the next run."""
    if not _has_settings(folder):
        return None, "To tell, watch more rows in the next run: SilentFailureMonitor(train_rows=...)."
    if model is not None:
        why = f"an audit of this model reads more training rows; the next run watches more with {watch_more}"
        command = shlex.join(["lightning", "audit", str(near(folder)), "--before", model, "--after", "last",
                              "--set", "train"])  # fmt: skip
    elif watch_more.startswith("--"):
        why = "too few training rows were watched to tell whether it fails silently"
        command = f"lightning fit {shlex.quote(str(near(newest_settings(folder))))} {watch_more}"
    else:
        return _in_words(f"To tell, watch more rows in the next run, with {watch_more}.", folder, reads=True)
    return NextStep(why, command, measured=False, reads=True), _in_lines(why, command)


def _in_words(text: str, folder: Path | None, *, reads: bool = False) -> tuple[NextStep | None, str]:
    """Return what has no command: for the list that closes a run which a command has started, and for a log."""
    return NextStep(text, "", measured=not reads, reads=reads) if _has_settings(folder) else None, text


def _in_lines(why: str, command: str) -> str:
    """Return a command below what it is for, as the report looks for them."""
    return f"To try next, since {why}:\nNext: {command}"
