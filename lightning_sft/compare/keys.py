"""Log keys as scores: which direction is better, the worst value there is, how they are written, which stand first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

#: names that earlier versions of ObjectiveSweep used
OLD_NAMES = {"val_nll": "val/nll", "val_mean_p": "val/mean_p", "val_accuracy": "val/token_accuracy"}
#: last parts of keys that are shares or probabilities, where more is better
_MORE = re.compile(
    r"(exact_match|pass_at_\d+|token_accuracy|task_accuracy|mean_p|accuracy|flip|flipped|top1_share|stop_share)"
)
#: likewise where less is better
_LESS = re.compile(r"(calibration_error|changed)")
#: what a validation of `SFTModule` reads by itself
_VALIDATED = re.compile(r"val/([^/]+/)?(loss|nll|perplexity|mean_p|token_accuracy|exact_match|pass_at_\d+)")
#: columns of the table, in their order, as far as runs have them: pattern of the key, heading
COLUMNS = (
    (re.compile(r"val/exact_match"), "exact match"),
    (re.compile(r"val/task_accuracy"), "task accuracy"),
    (re.compile(r"val/nll"), "NLL"),
    (re.compile(r"val/mean_p"), "mean p"),
    (re.compile(r"(val|capability)/calibration_error"), "calibration error"),
    (re.compile(r"silent/\w+/share"), "silent share"),
    (re.compile(r"silent/\w+/displaced"), "behind another word"),
    (re.compile(r"silent/\w+/unlearned"), "behind, loss not lower"),
    (re.compile(r"drift/.+/kl"), "drift"),
    (re.compile(r"val/stop_share"), "stop share"),
    (re.compile(r"val/answer_tokens"), "tokens of an answer"),
)
#: last parts of keys that are written as numbers from 0 to 1, as everywhere else, though they are shares
_PLAIN = ("mean_p", "calibration_error")


@dataclass(frozen=True)
class Score:
    """A log key as a score.

    Attributes:
        key: of the log.
        higher: whether more is better.
        bound: its worst value; None where there is no worst.
        share: a share or probability.
    """

    key: str
    higher: bool
    bound: float | None
    share: bool

    def show(self, value: float | None) -> str:
        """Return a value for people: a share in percent, probabilities and losses as numbers; ``-`` for none."""
        if value is None or not math.isfinite(value):
            return "-"
        return f"{100 * value:.1f}%" if self.is_percent else f"{value:.{self._digits}f}"

    def change(self, value: float | None, *, signed: bool = True) -> str:
        """Return a difference for people: of shares in points of percent."""
        if value is None or not math.isfinite(value):
            return "-"
        scaled, digits = (100 * value, 1) if self.is_percent else (value, self._digits)
        return f"{scaled:{'+' if signed else ''}.{digits}f}"

    @property
    def is_percent(self) -> bool:
        """Whether it is written in percent, and a difference in points."""
        return self.share and not self.key.endswith(_PLAIN)

    @property
    def _digits(self) -> int:
        """Decimals of what is not in percent."""
        return 1 if self.key.endswith("answer_tokens") else 3 if self.share else 4

    @property
    def unit(self) -> str:
        """What a difference is counted in."""
        if self.is_percent:
            return f"points of {self.words}"
        return f"nats of {self.words}" if self.key.endswith(("nll", "kl")) else f"of {self.words}"

    @property
    def words(self) -> str:
        """The key in words."""
        heading = heading_of(self.key)
        return heading if heading != self.key else self.key.removeprefix("val/").replace("_", " ")


def score_of(select: str) -> Score:
    """Return a log key as a score; ``:max`` or ``:min`` behind it says what is better, where its name does not.

    >>> score_of("val/nll").higher, score_of("val/exact_match").higher, score_of("my/score:max").higher
    (False, True, True)
    """
    key, _, said = select.partition(":")
    key = OLD_NAMES.get(key, key)
    last = key.rpartition("/")[2]
    if _MORE.fullmatch(last):
        score = Score(key, True, 0.0, True)
    elif _LESS.fullmatch(last) or key.startswith("silent/"):
        score = Score(key, False, 1.0, True)
    else:
        score = Score(key, False, None, False)
    if said and (said == "max") != score.higher:
        score = Score(key, said == "max", None, score.share)
    return score


def is_validated(select: str) -> bool:
    """Return whether a log key is read by validation itself, of all rows or of a named set, without a callback.

    >>> is_validated("val/nll"), is_validated("val/judged/exact_match"), is_validated("drift/general/kl")
    (True, True, False)
    """
    return _VALIDATED.fullmatch(score_of(select).key) is not None


def heading_of(key: str) -> str:
    """Return a column's heading; the name of a guard set or of watched rows is part of it."""
    for pattern, heading in COLUMNS:
        if pattern.fullmatch(key):
            middle = key.split("/")[1] if key.startswith(("drift/", "silent/")) else ""
            return f"{heading} ({middle})" if middle else heading
    return key


def columns(keys: Iterable[str], first: str) -> list[str]:
    """Return the keys that a table shows, in order, ``first`` in front."""
    known = sorted(set(keys))
    found = [key for pattern, _ in COLUMNS for key in known if pattern.fullmatch(key)]
    return list(dict.fromkeys([first, *found]))
