"""What the sums of an optimizer step say, once they are whole."""

from __future__ import annotations

from torch import Tensor

from lightning_sft.objectives.base import Denominator

#: which sum of a step a denominator is
SUM_OF = {"all": "supervised", "kept": "kept", "weights": "weights", "sequences": "sequences"}

#: what the names of the objective's own sums begin with
OBJECTIVE = "objective/"


class StepTotals(dict[str, Tensor]):
    """Sums over one whole optimizer step: every micro-batch, every rank.

    They are on the CPU, so that reading them waits for nothing; the objective's own stay on their device.
    """

    def denominator(self, kind: Denominator) -> float:
        """Return the number that the step's gradient is divided by."""
        return float(self[SUM_OF[kind]])

    def loss(self, kind: Denominator) -> float:
        """Return the mean loss: of the supervised tokens, or weighted as the gradient is; nan without any."""
        total = float(self["supervised" if kind == "kept" else SUM_OF[kind]])
        return float(self["loss"]) / total if total else float("nan")

    def objective(self) -> dict[str, Tensor]:
        """Return the objective's own sums."""
        return {k.removeprefix(OBJECTIVE): v for k, v in self.items() if k.startswith(OBJECTIVE)}

    def mean(self, key: str) -> float:
        """Return a sum divided by the number of supervised tokens; nan without any."""
        tokens = float(self["supervised"])
        return float(self[key]) / tokens if tokens else float("nan")

    def __missing__(self, key: str) -> Tensor:
        raise KeyError(f"{key!r} is not among the sums of an optimizer step: {sorted(self)}")
