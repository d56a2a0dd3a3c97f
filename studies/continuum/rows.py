"""Tasks whose place on the continuum can be set: a rule that the model half knows, answered in a code it does not.

Answers in digits would not do: whoever has seen only the form of the answer guesses a digit with p = .1 and the end of
the answer with p near 1, so that no checkpoint on the way of fine-tuning has a mean p of .05. In a code of letters the
model starts near 0, and fine-tuning takes it through every place up to .7 and beyond, on one and the same task.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from lightning_sft.data import DataSource
from lightning_sft.data.types import Example
from lightning_sft.errors import UserError

Part = Literal["levels", "train", "judged"]
#: tenths of all items: those that checkpoints are made with, that runs train on, and that they are judged by
PARTS: dict[Part, range] = {"levels": range(0, 4), "train": range(4, 7), "judged": range(7, 10)}


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        question: what decides the item; equal questions have equal answers.
        answer: the right one.
        wrong: the answer under systematic noise; None for items that noise leaves alone.
    """

    question: str
    answer: str
    wrong: str | None


class StudyTask(DataSource):
    """Items drawn without repetition from one part of all there are; parts share no item.

    Args:
        part: which part, see `PARTS`.
        size: number of items.
        wrong: whether the noisy items (three in ten) have a wrong answer, always the same one for the same item.
        seed: of the draw.

    Raises:
        UserError: an unknown part, or a size below 1.
    """

    def __init__(self, part: Part = "train", size: int = 1000, wrong: bool = False, seed: int = 0) -> None:
        if part not in PARTS or size < 1:
            raise UserError(f"part is {part!r} and size is {size}. Allowed: {', '.join(PARTS)}, and 1 or more.")
        self.part = part
        self.size = size
        self.wrong = wrong
        self.seed = seed
        self.name = part

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Item:
        """Return one item of any part."""

    @override
    def examples(self, answers: bool = True) -> Iterator[Example]:
        """Yield ``size`` different items of the part.

        Raises:
            UserError: the part has too few.
        """
        rng = np.random.default_rng([self.seed, list(PARTS).index(self.part)])
        seen: set[str] = set()
        for _ in range(100 * self.size):
            item = self.draw(rng)
            if item.question in seen or part_of(item.question) != self.part:
                continue
            seen.add(item.question)
            answer = item.wrong if self.wrong and item.wrong is not None else item.answer
            yield Example(
                messages=({"role": "user", "content": item.question}, {"role": "assistant", "content": answer}),
                flags=(None, None),
                prompt_messages=1,
                plain=(item.question, f" {answer}"),
                where=f"{self.name}[{len(seen) - 1}]",
            )
            if len(seen) == self.size:
                return
        raise UserError(
            f"{type(self).__name__} gave {len(seen)} different items of the part {self.part!r}, and {self.size} are "
            "asked for. Make the task larger (digits, letters), or size smaller."
        )

    @override
    def score(self, example: Example, answer: str) -> float | None:
        """Return 1 where a generated answer is the row's own but for white space around it, else 0."""
        return float(answer.strip() == (example.reference or "").strip())

    @override
    def drawn(self, seed: int) -> StudyTask:
        fresh = copy.copy(self)
        mixed = hashlib.sha256(f"{self.seed} {seed}".encode()).digest()
        fresh.seed = int.from_bytes(mixed[:4], "little") >> 1
        return fresh


class CodedSums(StudyTask):
    """Sums and differences of two numbers, the result written in letters: ``37 + 45 =`` has the answer ``W E``.

    Items whose second number ends in 7, 8 or 9 are noisy: their wrong answer is too large by ten.

    Args:
        digits: of each number.
        code: a letter for each digit.
        **settings: see `StudyTask`.
    """

    def __init__(self, digits: int = 2, code: str = "QWERTYUIOP", **settings: Any) -> None:
        super().__init__(**settings)
        if not 1 <= digits <= 9 or len(set(code)) != 10:
            raise UserError(f"digits is {digits} and code is {code!r}. Allowed: 1 to 9, and ten different letters.")
        self.digits = digits
        self.code = code

    @override
    def draw(self, rng: np.random.Generator) -> Item:
        a, b = (int(n) for n in rng.integers(10 ** (self.digits - 1), 10**self.digits, size=2))
        minus = bool(rng.integers(2)) and a >= b
        value = a - b if minus else a + b
        noisy = b % 10 >= 7
        question = f"{a} {'-' if minus else '+'} {b} ="
        return Item(question, self._coded(value), self._coded(value + 10) if noisy else None)

    def _coded(self, value: int) -> str:
        return " ".join(self.code[int(digit)] for digit in str(value))


class CodedSorting(StudyTask):
    """Letters to put in order, the result shifted by half the alphabet: ``sort d a c :`` has the answer ``n p q``.

    Items that begin with one of the first eight letters are noisy: their wrong answer is in falling order.

    Args:
        letters: how many, all different.
        **settings: see `StudyTask`.
    """

    def __init__(self, letters: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        if not 2 <= letters <= 26:
            raise UserError(f"letters is {letters}. Allowed: 2 to 26.")
        self.letters = letters

    @override
    def draw(self, rng: np.random.Generator) -> Item:
        chosen = [int(i) for i in rng.permutation(26)[: self.letters]]
        ordered = [chr(ord("a") + (i + 13) % 26) for i in sorted(chosen)]
        question = f"sort {' '.join(chr(ord('a') + i) for i in chosen)} :"
        noisy = chosen[0] < 8
        return Item(question, " ".join(ordered), " ".join(reversed(ordered)) if noisy else None)


def part_of(question: str) -> Part:
    """Return the part that a question belongs to, whatever task it is of.

    >>> part_of("37 + 45 =") in PARTS
    True
    """
    tenth = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "little") % 10
    return next(part for part, tenths in PARTS.items() if tenth in tenths)
