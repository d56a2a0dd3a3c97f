"""`model.objective: auto`: the objective that the advice on the run's own reading picks, once a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sft.advice.choice import Choice
from lightning_sft.advice.rules import advise
from lightning_sft.errors import UserError
from lightning_sft.metrics.capability_reading import CapabilityReading
from lightning_sft.objectives import Objective
from lightning_sft.units import probability


class AutoObjective:
    """Whether a run picks its objective by itself, and what it has picked.

    It takes objectives of a token's own log-probability alone, which need no reference model: those are the ones that
    can be put in place when the model has been built and placed.

    Args:
        asked: whether the run was asked to.

    Attributes:
        choice: what was picked; None before.
        reading: what it was picked by.
    """

    def __init__(self, asked: bool) -> None:
        self.asked = asked
        self.choice: Choice | None = None
        self.reading: CapabilityReading | None = None

    @property
    def is_open(self) -> bool:
        """Whether the objective is still to be picked."""
        return self.asked and self.choice is None

    def pick(self, reading: CapabilityReading | None) -> Objective:
        """Return the objective that a reading speaks for, and log which and why.

        Args:
            reading: before training; the same on every rank.

        Raises:
            UserError: there is no reading.
        """
        if reading is None:
            raise UserError(
                "model.objective is auto, and the training rows could not be read, so nothing says where the model "
                "stands. Name an objective, such as NLL."
            )
        advice = advise(reading)
        self.choice, self.reading = advice.pick, reading
        rank_zero_info(
            f"model.objective: auto takes {advice.pick.short()}: mean p is {probability(reading.judged.mean_p)} "
            f"({reading.standing}). {advice.headline}{'' if advice.trap is None else ' ' + advice.trap}"
        )
        return advice.pick.build()

    def content(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps, plain data; None where the objective was named."""
        if not self.asked:
            return None
        choice, reading = self.choice and self.choice.to_dict(), self.reading and self.reading.to_dict()
        return {"choice": choice, "reading": reading}

    def kept(self, saved: Mapping[str, Any], *, trains: bool) -> Objective | None:
        """Return the objective that a checkpoint's run picked, so that this run does not pick again.

        Args:
            saved: what the checkpoint holds of the run, under ``state.KEY``; empty for a stranger's.
            trains: whether the run goes on.

        Returns:
            The objective; None where this run does not ask, or the checkpoint's did not pick and nothing is trained.

        Raises:
            UserError: the run goes on, and the checkpoint's objective was named.
        """
        if not self.is_open:
            return None
        found = saved.get("auto")
        if found is None:
            if trains:
                raise UserError(
                    "model.objective is auto, which picks once, before the first step; the checkpoint was trained "
                    f"under {saved.get('objective', 'an objective that it does not name')}. Name that objective to go "
                    "on, or start a new run from its weights: `lightning-sft export` writes a model folder for "
                    "--model.model_name_or_path."
                )
            return None
        if found["choice"] is None:  # written before the first step, as by Lightning's BatchSizeFinder
            return None
        self.choice = Choice.from_dict(found["choice"])
        self.reading = CapabilityReading.from_dict(found["reading"])
        return self.choice.build()
