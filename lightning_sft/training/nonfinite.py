"""Losses that are not finite, or that are exactly zero: noticed by one rank, answered by all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.head.trouble import Trouble
from lightning_sft.scores import IGNORED
from lightning_sft.training.totals import StepTotals

OnNonfinite = Literal["skip", "stop"]
SHOWN = 8  # rows named in a message
PATIENCE = 3  # steps from the start whose loss is exactly 0 before that is said


class LossWatch:
    """Looks at the losses of every optimizer step.

    No rank raises by itself, which would leave the others waiting: what a rank has seen goes into the sums of the
    step, and all ranks answer alike when they have been summed.

    Args:
        action: what follows a loss that is not finite: ``"stop"``: an error on all ranks; ``"skip"``: the step changes
            no weight.

    Attributes:
        quiet: say nothing, as in the trials of a sweep, where such a step is a result.
        steps: steps with a loss that was not finite, so far.
    """

    def __init__(self, action: OnNonfinite) -> None:
        if action not in ("skip", "stop"):
            raise UserError(f"on_nonfinite is {action!r}. Allowed: 'skip' (the step changes nothing) or 'stop'.")
        self.action: OnNonfinite = action
        self.quiet = False
        self.steps = 0
        self._seen: list[str] = []
        self._looked_at: list[tuple[Trouble, Tensor, Tensor | None, Tensor]] = []
        self._zero_steps: int | None = 0  # None once a loss was not 0

    def trial(self) -> None:
        """Take losses that are not finite for a result from here on; a sweep puts this back."""
        self.action, self.quiet = "skip", True

    def forget(self) -> None:
        """Forget the step under way."""
        self._seen, self._looked_at = [], []

    def see(self, output: HeadOutput, batch: Mapping[str, Tensor]) -> None:
        """Remember what to look at if something is wrong with a micro-batch of this rank; the device is not asked."""
        if output.trouble is not None:
            sick = ~(torch.isfinite(output.losses) & torch.isfinite(output.scores.logp))
            self._looked_at.append((output.trouble, sick, batch.get("row"), batch["labels"]))

    def see_extra(self) -> None:
        """Remember that a term of a subclass's own is not finite."""
        self._seen.append("extra_loss is not finite.")

    def answer(self, totals: StepTotals, step: int) -> None:
        """Answer to a complete step, the same on every rank; a collective only if something is wrong.

        Args:
            totals: sums of the step over all ranks.
            step: its number.

        Raises:
            UserError: a loss was not finite and the action is ``"stop"``; on every rank, with what each has seen.
        """
        seen, looked_at = self._seen, self._looked_at
        self.forget()
        if float(totals["nonfinite"]):
            self.steps += 1
            if self.quiet:
                return
            for trouble, sick, rows, labels in looked_at:
                if (found := trouble.message()) is not None:
                    seen.append(f"{found}{_named(sick, rows, labels)}")
            message = f"In optimizer step {step + 1} a loss is not finite. {_over_ranks(seen)}"
            if self.action == "stop":
                raise UserError(f"{message} To leave such steps out and go on, set model.on_nonfinite: skip.")
            rank_zero_warn(f"{message} The step is skipped; it is number {self.steps} of those.")
        elif self._zero_steps is not None and float(totals["supervised"]):
            self._zero_steps = self._zero_steps + 1 if float(totals["loss"]) == 0 else None
            if self._zero_steps == PATIENCE and not self.quiet:
                self._zero_steps = None
                rank_zero_warn(
                    f"The loss has been exactly 0 in the first {PATIENCE} optimizer steps, so nothing is learned. Does "
                    "the objective drop every token, or has the model learned these rows already?"
                )


def _named(sick: Tensor, rows: Tensor | None, labels: Tensor) -> str:
    """Return which rows of the data a micro-batch's losses that are not finite belong to, where it says so."""
    if rows is None:
        return ""
    of_positions = rows if rows.ndim == labels.ndim else rows[:, None].expand_as(labels)
    found = sorted(set(of_positions[:, 1:][labels[:, 1:] != IGNORED][sick].tolist()))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f" Rows of the data: {', '.join(map(str, found[:SHOWN]))}{more}." if found else ""


def _over_ranks(seen: list[str]) -> str:
    """Return what all ranks have seen, each with its number if there are several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return " ".join(seen)
    everyone: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, seen)
    return " ".join(f"Rank {rank}: {' '.join(own)}" for rank, own in enumerate(everyone) if own)
