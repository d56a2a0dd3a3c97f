"""Numbers that a setting cannot be, whatever its type: told before torch is imported, and by the verbs themselves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_sft.errors import UserError


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        least: the smallest.
        most: the largest.
        above: whether ``least`` itself is too small.
        unit: what is counted, for the message.
    """

    least: float
    most: float = math.inf
    above: bool = False
    unit: str = ""

    def has(self, number: float) -> bool:
        """Return whether a number lies in the range."""
        return (number > self.least if self.above else number >= self.least) and number <= self.most

    def __str__(self) -> str:
        """What is allowed, in words."""
        if math.isinf(self.most):
            words = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        else:
            words = f"{'above' if self.above else 'from'} {self.least:g}{', up' if self.above else ''} to {self.most:g}"
        return f"{words}{self.unit and f' ({self.unit})'}"


_ONE, _NONE, _SOME, _ALL = Range(1), Range(0), Range(0, above=True), Range(-1, unit="-1 is no limit")
_BATCHES = Range(0, unit="a number of batches, or a share such as 0.1")

#: setting -> its range; null, where a setting takes it, is always allowed
SETTINGS: dict[str, Range] = {
    "data.batch_size": _ONE,
    "data.val_batch_size": _ONE,
    "data.max_length": _ONE,
    "data.num_proc": _ONE,
    "data.num_workers": _NONE,
    "data.seed": _NONE,
    "data.pad_to_multiple_of": _ONE,
    "data.val_split": Range(0, above=True, unit="a share such as 0.05, or a number of rows; null holds none out"),
    "model.max_new_tokens": _ONE,
    "model.optimizer.lr": _NONE,
    "model.optimizer.weight_decay": _NONE,
    "model.warmup_steps": _NONE,
    "model.warmup_ratio": Range(0, 1, unit="a share of all optimizer steps"),
    "trainer.accumulate_grad_batches": _ONE,
    "trainer.check_val_every_n_epoch": _ONE,
    "trainer.gradient_clip_val": _NONE,
    "trainer.limit_train_batches": _BATCHES,
    "trainer.limit_val_batches": _BATCHES,
    "trainer.limit_test_batches": _BATCHES,
    "trainer.limit_predict_batches": _BATCHES,
    "trainer.log_every_n_steps": _NONE,
    "trainer.max_epochs": _ALL,
    "trainer.max_steps": _ALL,
    "trainer.num_nodes": _ONE,
    "trainer.num_sanity_val_steps": Range(-1, unit="-1 is the whole validation"),
}
#: verb -> its own option -> its range
OPTIONS: dict[str, dict[str, Range]] = {
    "advise": {"rows": _ONE, "steps": _ONE, "range_steps": Range(4), "range_low": _SOME, "range_high": _SOME},
    "audit": {"rows": _ONE, "top": _NONE, "min_fall": _NONE, "fail_above": Range(0, 1, unit="a share")},
    "chat": {
        "max_new_tokens": _ONE,
        "top_k": _ONE,
        "top_p": Range(0, 1, above=True),
        "min_p": Range(0, 1, above=True),
        "repetition_penalty": _SOME,
        "temperature": Range(0, above=True, unit="without it answers are greedy"),
    },
    "compare": {
        "replicates": Range(2, unit="an interval needs two"),
        "search_replicates": _ONE,
        "low": _SOME,
        "high": _SOME,
        "refine": _NONE,
        "grow": _NONE,
        "beat": _SOME,
        "patience": _NONE,
        "wish": _SOME,
        "spread": _SOME,
    },
    "estimate": dict.fromkeys(("devices", "length"), _ONE)
    | dict.fromkeys(("device_memory", "tokens_per_second"), _SOME),
    "inspect": {"rows": _NONE},
    "mine-probes": {"top": _ONE, "min_overlap": Range(-1, 1), "min_probability": Range(0, 1), "limit": _ONE},
    "score": {"top": _NONE},
    "sweep": {"workers": _ONE, "beat": _SOME, "patience": _NONE},
}


def out_of_range(name: str, value: object, allowed: Range) -> str | None:
    """Return what is wrong with a value; None if it is in the range, or no number at all.

    Args:
        name: of the setting, as the user knows it.
        value: a number, or its text.
        allowed: its range.
    """
    try:
        number = float(str(value).replace("_", ""))
    except ValueError:
        return None
    return None if isinstance(value, bool) or allowed.has(number) else f"{name} is {value}. Allowed: {allowed}."


def require_options(verb: str, given: Any) -> None:
    """Raise if one of a verb's own options is out of its range.

    Args:
        verb: whose options.
        given: a namespace with them.

    Raises:
        UserError: the first that is.
    """
    for name, allowed in OPTIONS[verb].items():
        said = out_of_range(f"--{name}", getattr(given, name), allowed)
        if said is not None:
            raise UserError(said)
