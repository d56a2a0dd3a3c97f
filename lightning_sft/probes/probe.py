"""The probe: a context, its correct next word, and the word that competes with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_sft.errors import UserError

NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Probe:
    """A context whose next token should be ``correct`` and not ``competitor``.

    Attributes:
        context: the text before the answer, without a space at its end. Special tokens may stand in it as text, so a
            rendered chat prompt works too.
        correct: the right answer, one token of the tokenizer.
        competitor: the near-synonym that it must overtake, one token.
        name: what the logs call it; letters, digits and ``_ . + -``. Made of the two answers if empty.
        kind: ``"synonym"``, or ``"control"`` for an unrelated competitor.
        split: ``"train"`` or ``"test"``: the same pair in disjoint contexts, so that a cure that was trained on the
            one can be judged on the other; None if it does not matter.
        pos: part of speech of the answers, for grouping; free text.
        leading_space: whether the answers follow the context after a space. False for scripts without spaces, or
            directly after a line break.
    """

    context: str
    correct: str
    competitor: str
    name: str = ""
    kind: Literal["synonym", "control"] = "synonym"
    split: Literal["train", "test"] | None = None
    pos: str | None = None
    leading_space: bool = True

    def __post_init__(self) -> None:
        where = f"The probe {self.correct!r} / {self.competitor!r} in {self.context[-60:]!r}"
        for field in ("correct", "competitor"):
            answer = getattr(self, field)
            if not answer or answer != answer.strip():
                raise UserError(
                    f"{where} has {field}={answer!r}. Allowed: a word without white space around it; whether a space "
                    "precedes it is said by `leading_space`."
                )
        if self.correct == self.competitor:
            raise UserError(f"{where} competes with itself. Give it another competitor.")
        if not self.context.strip():
            raise UserError(f"{where} has no context. Give it the text that the answer continues.")
        if self.leading_space and self.context != self.context.rstrip():
            raise UserError(
                f"{where}: the context ends in white space, and the answers bring a space of their own, so the model "
                "would see two. Strip the context, or say `leading_space: false`."
            )
        if self.name and not NAME.fullmatch(self.name):
            raise UserError(f"{where} is named {self.name!r}. Allowed in log keys: letters, digits and _ . + -.")


def named(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Return the probes with a name each: their own, or ``correct-competitor``, numbered from the second on.

    Raises:
        UserError: there is no probe, or two bear the same name.
    """
    if not probes:
        raise UserError("There are no probes. Give at least one, or `probes: library`.")
    taken = Counter(p.name for p in probes if p.name)
    doubles = sorted(name for name, count in taken.items() if count > 1)
    if doubles:
        raise UserError(f"More than one probe is named {doubles[0]!r}. Names are log keys: give each its own.")
    result = []
    for probe in probes:
        name = probe.name
        if not name:
            base = re.sub(r"[^\w.+-]", "_", f"{probe.correct}-{probe.competitor}")
            number = 1
            while (name := base if number == 1 else f"{base}-{number}") in taken:
                number += 1
            taken[name] += 1
        result.append(replace(probe, name=name))
    return tuple(result)
