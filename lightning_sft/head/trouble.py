"""Losses that are not finite: which, and why. Nothing is read from the device before somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_sft.errors import UserError

_SHOWN = 8  # ids named in a message; more would hide the sentence that says what to do

#: what can be not finite, in the order in which one thing brings about the next, and what to do about it
REASONS = (
    ("The weights of the tokens are", "Look at the weights in those rows of the data"),
    ("The hidden states are", "Look at those rows, lower the learning rate, or use bf16"),
    ("The hidden states are finite, but the log-probabilities are", "The unembedding is broken or overflows"),
    ("The log-probabilities are finite, but the losses are", "Look at {objective}"),
)


@dataclass(frozen=True)
class Trouble:
    """What is not finite in one call of a head.

    Attributes:
        found: whether the sum of the losses is not finite, (), bool.
        loss_sum: that sum, ().
        reason: of each token, (tokens,), uint8: 0, or the number of its first reason among ``REASONS``, from 1.
        row: sequence of each token, (tokens,), or None.
        objective: name of the objective.
    """

    found: Tensor
    loss_sum: Tensor
    reason: Tensor
    row: Tensor | None
    objective: str

    def message(self) -> str | None:
        """Say which tokens are not finite, and why; None if all are. Waits for the device."""
        if not bool(self.found):
            return None
        for number, (what, cure) in enumerate(REASONS, 1):
            sick = self.reason == number
            if bool(sick.any()):
                where = "tokens " + shown(sick.nonzero()[:, 0].tolist())
                if self.row is not None:
                    where = f"rows {shown(sorted(set(self.row[sick].tolist())))} of the micro-batch ({where})"
                return f"{what} not finite (NaN or infinite) in {where}. {cure.format(objective=self.objective)}."
        return f"Every loss is finite, but their sum is {float(self.loss_sum)}. Look at {self.objective}."

    def raise_if_found(self) -> None:
        """Raise `UserError` with the message, if anything is not finite. Waits for the device."""
        message = self.message()
        if message is not None:
            raise UserError(message)


def shown(ids: list[int]) -> str:
    """Return ids for a message, the first few of many."""
    listed = ", ".join(map(str, ids[:_SHOWN]))
    return listed if len(ids) <= _SHOWN else f"{listed} and {len(ids) - _SHOWN} more"
