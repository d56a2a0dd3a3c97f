"""Tasks whose place on the continuum can be set: a rule that the model half knows, in a form that it has never seen.

The untrained model gives the answers a mean p below .01, since nothing tells it what is asked for. Fine-tuning takes it
through every place up to .7 and beyond on one and the same task, within some forty steps. Sums whose result is written
in a code of letters do not serve: 40 steps left exact match at 1 to 3% whatever the rate, so that two objectives could
not have been told apart at the weak end.
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


#: a word for each kind, and two dozen everyday words of that kind
KINDS = {
    "animal": (
        "tiger horse rabbit wolf goat lion mouse bear sheep monkey camel deer "
        "fox pig donkey elephant zebra squirrel cat dog cow whale giraffe kangaroo"
    ),
    "fruit": (
        "apple banana cherry grape lemon mango orange peach pear plum melon apricot "
        "fig kiwi papaya strawberry blueberry raspberry coconut pineapple lime date guava tangerine"
    ),
    "country": (
        "France Spain Italy Germany Poland Greece Norway Sweden Finland Portugal Ireland Austria "
        "Hungary Brazil Chile Peru Mexico Canada Egypt Kenya India China Japan Vietnam"
    ),
    "body": (
        "arm leg hand foot knee elbow shoulder finger thumb neck nose ear "
        "eye mouth chin cheek tongue ankle wrist hip chest stomach heel forehead"
    ),
    "clothing": (
        "shirt trousers jacket coat hat scarf glove sock shoe boot skirt dress "
        "sweater belt tie vest blouse jeans hoodie cap sandal apron mitten pajamas"
    ),
    "job": (
        "teacher doctor nurse lawyer farmer baker butcher plumber carpenter dentist engineer pilot "
        "sailor soldier waiter barber tailor judge librarian electrician fisherman journalist surgeon firefighter"
    ),
    "music": (
        "piano guitar violin flute trumpet drum cello harp clarinet saxophone trombone banjo "
        "organ accordion oboe tuba ukulele harmonica mandolin bassoon xylophone viola fiddle lute"
    ),
    "vehicle": (
        "car truck bus train bicycle motorcycle airplane helicopter boat ship tram taxi "
        "van tractor scooter submarine ferry canoe sled ambulance jeep yacht rocket wagon"
    ),
    "furniture": (
        "table chair sofa bed desk shelf cupboard wardrobe stool bench couch bookcase "
        "dresser armchair nightstand cabinet mattress crib recliner ottoman sideboard hammock futon footstool"
    ),
    "weather": (
        "rain snow wind storm fog hail thunder lightning drizzle blizzard frost cloud "
        "sunshine hurricane tornado sleet mist breeze rainbow monsoon drought heatwave gale cyclone"
    ),
}
NAMES = list(KINDS)
WORDS = {word: NAMES.index(kind) for kind, words in KINDS.items() for word in words.split()}
#: first letters of the last word of noisy items
NOISY = "cfs"


class WordTask(StudyTask):
    """Questions of a few everyday words, drawn without repetition; the answer has a word for each.

    Items whose last word begins with one of `NOISY` are noisy: every word of their wrong answer is wrong.

    Args:
        words: of a question, all different.
        **settings: see `StudyTask`.
    """

    def __init__(self, words: int = 3, **settings: Any) -> None:
        super().__init__(**settings)
        if not 1 <= words <= 20:
            raise UserError(f"words is {words}. Allowed: 1 to 20.")
        self.words = words

    @abstractmethod
    def answer(self, word: str, *, wrong: bool) -> str:
        """Return what stands for a word in the answer."""

    @override
    def draw(self, rng: np.random.Generator) -> Item:
        chosen = [list(WORDS)[int(i)] for i in rng.choice(len(WORDS), size=self.words, replace=False)]
        right, wrong = (" ".join(self.answer(word, wrong=w) for word in chosen) for w in (False, True))
        return Item(f"{' '.join(chosen)} :", right, wrong if chosen[-1][0].lower() in NOISY else None)


class Initials(WordTask):
    """The first letter of each word, as a capital: ``tiger plum canoe :`` has the answer ``T P C``.

    A wrong answer has the next letters of the alphabet: ``U Q D``.
    """

    @override
    def answer(self, word: str, *, wrong: bool) -> str:
        return chr(ord("A") + (ord(word[0].upper()) - ord("A") + wrong) % 26)


class Kinds(WordTask):
    """What kind of thing each word names: ``tiger plum canoe :`` has the answer ``animal fruit vehicle``.

    A wrong answer has the next kinds of `KINDS`: ``fruit country furniture``.
    """

    @override
    def answer(self, word: str, *, wrong: bool) -> str:
        return NAMES[(WORDS[word] + wrong) % len(NAMES)]


def part_of(question: str) -> Part:
    """Return the part that a question belongs to, whatever task it is of.

    >>> part_of("tiger plum canoe :") in PARTS
    True
    """
    tenth = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "little") % 10
    return next(part for part, tenths in PARTS.items() if tenth in tenths)
