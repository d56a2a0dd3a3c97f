"""The probe: a context, its correct next word, and the word that competes with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_sft.errors import UserError

NAME = re.compile(r"[\w.+-]+")
#: competitors that a model names
AUTO = ("auto", "nearest")


@dataclass(frozen=True)
class Probe:
    """A context whose next token should be ``correct`` and not ``competitor``.

    Given as text, or as token ids: text need not tokenise back to the ids that a model saw, and answers in data may be
    white space or parts of words. What is given as ids is taken as it is; its text is for people.

    Attributes:
        context: the text before the answer, without a space at its end. Special tokens may stand in it as text, so a
            rendered chat prompt works too.
        correct: the right answer, one token of the tokenizer.
        competitor: the near-synonym that it must overtake, one token; ``"auto"`` takes the strongest wrong candidate
            before training, and ``"nearest"`` that of the 20 strongest whose embedding row is closest to the answer's.
        name: what the logs call it; letters, digits and ``_ . + -``. Made of the two answers if empty.
        kind: ``"synonym"``, or ``"control"`` for an unrelated competitor.
        split: ``"train"`` or ``"test"``: the same pair in disjoint contexts, so that a cure that was trained on the
            one can be judged on the other; None if it does not matter.
        pos: part of speech of the answers, for grouping; free text.
        leading_space: whether the answers follow the context after a space. False for scripts without spaces, or
            directly after a line break.
        context_ids: the context as token ids, with the special tokens in front of it.
        correct_id: the right answer as a token id; it must be there if ``context_ids`` is.
        competitor_id: the competitor as a token id.
    """

    context: str = ""
    correct: str = ""
    competitor: str = ""
    name: str = ""
    kind: Literal["synonym", "control"] = "synonym"
    split: Literal["train", "test"] | None = None
    pos: str | None = None
    leading_space: bool = True
    context_ids: tuple[int, ...] | None = None
    correct_id: int | None = None
    competitor_id: int | None = None

    def __post_init__(self) -> None:
        where = f"The probe {self.correct!r} / {self.competitor!r} in {self.context[-60:]!r}"
        self._check_ids(where)
        for field in ("correct", "competitor"):
            answer = getattr(self, field)
            if getattr(self, f"{field}_id") is None and (not answer or answer != answer.strip()):
                raise UserError(
                    f"{where} has {field}={answer!r}. Allowed: a word without white space around it; whether a space "
                    "precedes it is said by `leading_space`."
                )
        same_ids = self.correct_id is not None and self.correct_id == self.competitor_id
        as_text = self.correct_id is None and self.competitor_id is None
        if same_ids or (as_text and self.correct == self.competitor):
            raise UserError(f"{where} competes with itself. Give it another competitor.")
        given_as_text = self.context_ids is None
        if given_as_text and not self.context.strip():
            raise UserError(f"{where} has no context. Give it the text that the answer continues.")
        if given_as_text and self.leading_space and self.context != self.context.rstrip():
            raise UserError(
                f"{where}: the context ends in white space, and the answers bring a space of their own, so the model "
                "would see two. Strip the context, or say `leading_space: false`."
            )
        if self.name and not NAME.fullmatch(self.name):
            raise UserError(f"{where} is named {self.name!r}. Allowed in log keys: letters, digits and _ . + -.")

    def _check_ids(self, where: str) -> None:
        if self.context_ids is not None:
            object.__setattr__(self, "context_ids", tuple(self.context_ids))  # frozen; a file holds a list
            if not self.context_ids:
                raise UserError(f"{where} has no context. Give context_ids at least one token id.")
            if self.correct_id is None or (self.competitor_id is None and self.competitor not in AUTO):
                raise UserError(
                    f"{where} has context_ids, and its answers are not ids. Give correct_id, and competitor_id or "
                    f"competitor: {' or '.join(AUTO)}."
                )
        ids = [*(self.context_ids or ()), *(i for i in (self.correct_id, self.competitor_id) if i is not None)]
        if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
            raise UserError(f"{where} has token ids that are no whole numbers from 0 on.")


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
            one = probe.correct.strip() or probe.correct_id
            other = probe.competitor.strip() or probe.competitor_id
            base = re.sub(r"[^\w.+-]", "_", f"{one}-{other}")
            number = 1
            while (name := base if number == 1 else f"{base}-{number}") in taken:
                number += 1
            taken[name] += 1
        result.append(replace(probe, name=name))
    return tuple(result)
