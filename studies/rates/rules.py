"""Rules that name a learning rate, from nothing or from what a run's start has shown: pure functions, registered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightning_sft.sweep.suggest import suggest
from studies.rates.design import WARM_UP, Block
from studies.rates.unit import LINE, QUARTER, TRAIN_TEST, VAL_TEST, at_rates

#: of the training loss in `lightning advise`
SMOOTHING = 0.8
#: ten times the rate for LoRA, as "LoRA Without Regret" and others have it
TIMES = 10.0
#: share of its fall that the validation NLL has made at the rate that the band recommends; by the pilot
OF_FALL = 0.9


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: in tables.
        kind: ``free``: costs nothing and was published; ``tuned``: a constant of the pilot; ``finder``: needs steps.
        words: what it says.
        rate: returns its rate from what a unit has read, its block, width, and optimizer steps; None where it has none.
    """

    name: str
    kind: str
    words: str
    rate: Callable[[Mapping[str, float], Block, float, int], float | None]


def _constant(full: float, lora: float | None = None) -> Callable[[Mapping[str, float], Block, float, int], float]:
    return lambda readings, block, width, steps: (full if lora is None else lora) if block.lora else full


def by_width(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float:
    """Return the published formula's rate for Llama models: 5e-5 (2000 / width)^0.781, ten times that for LoRA."""
    return 5e-5 * math.pow(2000 / width, 0.781) * (TIMES if block.lora else 1.0)


def _from_training(name: str) -> Callable[[Mapping[str, float], Block, float, int], float | None]:
    """Return a suggestion of the range test that `lightning advise` runs."""

    def rate(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float | None:
        test = at_rates(readings, TRAIN_TEST)
        return suggest(list(test), list(test.values()), SMOOTHING).values().get(name)

    return rate


def _advised(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float | None:
    """Return what `lightning advise` suggests: the first of three suggestions that the curve has."""
    for name in ("minimum_tenth", "valley", "steepest"):
        if (rate := _from_training(name)(readings, block, width, steps)) is not None:
            return rate
    return None


def _from_validation(name: str) -> Callable[[Mapping[str, float], Block, float, int], float | None]:
    """Return a suggestion of a range test that reads the validation NLL."""

    def rate(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float | None:
        test = at_rates(readings, VAL_TEST)
        return suggest(list(test), list(test.values())).values().get(name)

    return rate


@dataclass(frozen=True)
class Band:
    """Rates that a range test with the validation NLL speaks for, rising.

    Attributes:
        low: at which the run makes, by its end, the progress (sum of rates) that the test had made at ``rate``.
        rate: the one to take: the lowest at which the NLL had made nine tenths of its fall.
        high: at which the NLL was lowest: beyond it a step hurts.
    """

    low: float
    rate: float
    high: float


def band(readings: Mapping[str, float], steps: int) -> Band | None:
    """Return the recommended band, by a range test that reads the validation NLL and the forecast's law of progress.

    Args:
        readings: of a unit.
        steps: of the run.

    Returns:
        None where the test never lowered the validation NLL.
    """
    test = {rate: loss for rate, loss in at_rates(readings, VAL_TEST).items() if math.isfinite(loss)}
    if len(test) < 3:
        return None
    high = min(test, key=test.__getitem__)
    first = next(iter(test.values()))
    if test[high] >= first:
        return None
    enough = first - OF_FALL * (first - test[high])
    rate = next(rate for rate, loss in test.items() if loss <= enough)
    low = sum(other for other in test if other <= rate) / schedule_sum(steps)
    return Band(min(low, rate), rate, high)


def schedule_sum(steps: int) -> float:
    """Return the sum over steps of the rate as a share of its peak: linear warm-up, then linear decay to 0."""
    warm = math.ceil(WARM_UP * steps)
    return sum(t / max(warm, 1) if t < warm else (steps - t) / max(steps - warm, 1) for t in range(steps))


def _of_band(end: str) -> Callable[[Mapping[str, float], Block, float, int], float | None]:
    def rate(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float | None:
        found = band(readings, steps)
        return None if found is None else float(getattr(found, end))

    return rate


def _quarter(readings: Mapping[str, float], block: Block, width: float, steps: int) -> float | None:
    """Return the rate of the grid with the lowest validation NLL after a quarter of the run."""
    return lowest(at_rates(readings, QUARTER))


def line_minimum(readings: Mapping[str, float]) -> float | None:
    """Return the rate at which one step of the run's own optimizer lowers the validation NLL most."""
    return lowest(at_rates(readings, LINE))


def lowest(curve: Mapping[float, float]) -> float | None:
    """Return the rate with the lowest finite reading; None without one."""
    finite = {rate: value for rate, value in curve.items() if math.isfinite(value)}
    return min(finite, key=finite.__getitem__) if finite else None


BAND, TUNED, FORMULA, ADVISED = "band", "pilot's", "by width", "advise"


def rules(tuned: tuple[float, float] | None) -> tuple[Rule, ...]:
    """Return all rules.

    Args:
        tuned: the constants for all weights and for LoRA that the pilot has found; None before it.
    """
    found = (
        Rule("2e-5", "free", "2e-5 for everything", _constant(2e-5)),
        Rule("5e-5", "free", "transformers' default", _constant(5e-5)),
        Rule("1e-4", "free", "1e-4 for everything", _constant(1e-4)),
        Rule("1e-3", "free", "Adam's default in torch", _constant(1e-3)),
        Rule("2e-5, LoRA 2e-4", "free", "ten times for LoRA", _constant(2e-5, 2e-4)),
        Rule("1e-4, LoRA 1e-3", "free", "ten times for LoRA", _constant(1e-4, 1e-3)),
        Rule(FORMULA, "free", "5e-5 (2000 / width)^0.781, LoRA ten times that", by_width),
        Rule("steepest", "finder", "range test, training loss: where it falls most", _from_training("steepest")),
        Rule("minimum / 10", "finder", "range test, training loss", _from_training("minimum_tenth")),
        Rule("valley", "finder", "range test, training loss", _from_training("valley")),
        Rule(ADVISED, "finder", "what `lightning advise` suggests today", _advised),
        Rule("val, minimum / 10", "finder", "range test, validation NLL", _from_validation("minimum_tenth")),
        Rule("val, valley", "finder", "range test, validation NLL", _from_validation("valley")),
        Rule("band, low end", "finder", "range test, validation NLL, law of progress", _of_band("low")),
        Rule(BAND, "finder", "range test, validation NLL: nine tenths of its fall", _of_band("rate")),
        Rule("band, high end", "finder", "range test, validation NLL: its minimum", _of_band("high")),
        Rule("quarter run", "finder", "best of the grid after a quarter of the run, validation NLL", _quarter),
    )
    if tuned is None:
        return found
    full, lora = tuned
    one = math.sqrt(full * lora / TIMES)
    return (
        *found,
        Rule(TUNED, "tuned", f"{full:.2g}, LoRA {lora:.2g}", _constant(full, lora)),
        Rule("pilot's, LoRA x 10", "tuned", f"{one:.2g}, LoRA ten times that", _constant(one, TIMES * one)),
    )
