"""What small models are pretrained on, and the tasks that they are fine-tuned to: WordNet 3.0 and plain arithmetic."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import override

from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.types import Example
from lightning_sft.errors import UserError
from studies.cure.texts import wordnet

Part = Literal["pretrain", "train", "val", "judged"]
#: tenths of all entries: those that models are pretrained on, that runs train on, that a rate may be chosen by, and
#: that runs are judged by
PARTS: dict[Part, range] = {"pretrain": range(0, 5), "train": range(5, 8), "val": range(8, 9), "judged": range(9, 10)}
#: the lexicographer files of nouns, in WordNet's order from 3 on
KINDS = (
    "thing", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip
#: words of a definition; longer ones are left out
LONGEST = 14
TASKS = ("spelling", "sentences", "kinds", "words", "sums", "initials")


@dataclass(frozen=True)
class Entry:
    """A word of WordNet.

    Attributes:
        word: of lower-case letters.
        definition: without its examples.
        kind: of a noun; "" of other words.
        example: a sentence; "" without one.
    """

    word: str
    definition: str
    kind: str
    example: str


def part_of(text: str) -> Part:
    """Return the part that a text belongs to.

    >>> part_of("12 + 30") in PARTS
    True
    """
    tenth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % 10
    return next(part for part, tenths in PARTS.items() if tenth in tenths)


@functools.cache
def entries(part: Part) -> tuple[Entry, ...]:
    """Return the entries of a part: one a synset, by its first word that is one word of letters, in WordNet's order."""
    found = []
    for name in ("noun", "verb", "adj"):
        for line in (wordnet() / f"data.{name}").read_text(encoding="latin-1").splitlines():
            head, _, gloss = line.partition(" | ")
            fields = head.split(" ")
            if not fields[0] or not gloss.isascii():  # the licence at the beginning
                continue
            count = int(fields[3], 16)
            words = [word for word in fields[4 : 4 + 2 * count : 2] if re.fullmatch(r"[a-z]{3,}", word)]
            definition = gloss.partition('"')[0].strip().rstrip(";").strip()
            if not words or len(definition.split()) not in range(2, LONGEST + 1) or part_of(definition) != part:
                continue
            kind = KINDS[int(fields[1]) - 3] if name == "noun" else ""
            example = re.search(r'"([^"]+)"', gloss)
            found.append(Entry(words[0], definition, kind, example[1] if example else ""))
    return tuple(found)


class Definitions(DataSource):
    """Words with their definitions, the text that models are pretrained on.

    Args:
        size: number of rows.
        part: of the entries.
        seed: of the order.
    """

    name = "definitions"

    def __init__(self, size: int, part: Part = "pretrain", seed: int = 0) -> None:
        self.size, self.part, self.seed = size, part, seed

    @override
    def examples(self, answers: bool = True) -> Iterator[Example]:
        pool = entries(self.part)
        for i, n in enumerate(np.random.default_rng([self.seed, 1]).integers(len(pool), size=self.size)):
            text = f"{pool[n].word}: {pool[n].definition}"
            yield Example(messages=(), plain=("", text), where=f"{self.name}[{i}]")


class TaskRows(DataSource):
    """Rows of a task.

    - ``spelling``: a word, letter by letter. ``sentences``: WordNet's example sentences, every token trained.
    - ``kinds``: a noun with its definition, and which of 26 kinds it is of. ``words``: a definition, and its word.
    - ``sums``: of two numbers below 100. ``initials``: of three words.

    Args:
        task: its name.
        size: number of rows.
        part: of the entries, or of the sums; what stands in one stands in no other.
        seed: of the draw.

    Raises:
        UserError: an unknown task.
    """

    def __init__(self, task: str, size: int, part: Part = "train", seed: int = 0) -> None:
        if task not in TASKS:
            raise UserError(f"The task is {task!r}. Allowed: {', '.join(TASKS)}.")
        self.task, self.size, self.part, self.seed, self.name = task, size, part, seed, task

    def pairs(self) -> list[tuple[str, str]]:
        """Return prompt and answer of each row."""
        rng = np.random.default_rng([self.seed, TASKS.index(self.task), tuple(PARTS).index(self.part)])
        if self.task == "sums":
            return [self._sum(rng) for _ in range(self.size)]
        pool = [entry for entry in entries(self.part) if self._fits(entry)]
        if self.task == "initials":
            drawn = rng.integers(len(pool), size=(self.size, 3))
            return [self._initials([pool[n].word for n in three]) for three in drawn]
        return [self._pair(pool[n]) for n in rng.integers(len(pool), size=self.size)]

    @override
    def examples(self, answers: bool = True) -> Iterator[Example]:
        for i, pair in enumerate(self.pairs()):
            yield Example(messages=(), plain=pair, where=f"{self.name}[{i}]")

    def _fits(self, entry: Entry) -> bool:
        return bool(entry.example) if self.task == "sentences" else self.task != "kinds" or bool(entry.kind)

    def _pair(self, entry: Entry) -> tuple[str, str]:
        if self.task == "sentences":
            return "", entry.example
        if self.task == "kinds":
            return f"{entry.word}: {entry.definition}. kind:", f" {entry.kind}"
        if self.task == "words":
            return f"{entry.definition}. word:", f" {entry.word}"
        return f"{entry.word}, letter by letter:", "".join(f" {letter}" for letter in entry.word)

    def _sum(self, rng: np.random.Generator) -> tuple[str, str]:
        while True:
            a, b = (int(n) for n in rng.integers(100, size=2))
            if part_of(f"{a} + {b}") == self.part:
                return f"{a} + {b} =", f" {a + b}"

    @staticmethod
    def _initials(words: list[str]) -> tuple[str, str]:
        return f"{' '.join(words)}, initials:", "".join(f" {word[0]}" for word in words)
