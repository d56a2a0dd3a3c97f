"""Rows of the study: sentences in which a word was replaced by its near-synonym, among sentences without such words."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from typing_extensions import Self, override

from lightning_sft.data import DataSource
from lightning_sft.data.types import Example
from lightning_sft.errors import UserError
from studies.cure.texts import Context, Pair, Part, Pool, pairs, part_of, sentences, split_by_pair


class Sentences(DataSource):
    """Sentences as plain text, all of it trained.

    Args:
        size: number of rows.
        seed: of the draw.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise UserError(f"size is {size}. Allowed: 1 or more.")
        self.size = size
        self.seed = seed

    @abstractmethod
    def texts(self) -> list[str]:
        """Return the rows' texts."""

    @override
    def examples(self, answers: bool = True) -> Iterator[Example]:
        for i, text in enumerate(self.texts()):
            yield Example(messages=(), plain=("", text), where=f"{self.name}[{i}]")

    @override
    def drawn(self, seed: int) -> Self:
        fresh = copy.copy(self)
        mixed = hashlib.sha256(f"{self.seed} {seed}".encode()).digest()
        fresh.seed = int.from_bytes(mixed[:4], "little") >> 1
        return fresh


class Background(Sentences):
    """Sentences without any word of the pairs, as they are.

    Args:
        part: which part of all sentences.
        size: number of rows.
        whole: whether sentences with words of the pairs may stand among them, as they are.
        seed: of the draw.
    """

    def __init__(self, part: Part = "judged", size: int = 300, whole: bool = False, seed: int = 0) -> None:
        super().__init__(size, seed)
        self.part: Part = part
        self.whole = whole
        self.name = part

    @override
    def texts(self) -> list[str]:
        own = [text for text in (sentences() if self.whole else split_by_pair()[1]) if part_of(text) == self.part]
        if self.size > len(own):
            raise UserError(f"The part {self.part!r} has {len(own)} sentences, and {self.size} are asked for.")
        chosen = np.random.default_rng([self.seed, 1]).permutation(len(own))[: self.size]
        return [own[i] for i in chosen]


@dataclass(frozen=True)
class Drawn:
    """What a draw of `HouseRows` consists of.

    Attributes:
        trained: sentences that rows are made of, each with its pair.
        judged: other sentences of the same pairs.
        untouched: sentences of pairs that no row is made of.
    """

    trained: tuple[Context, ...]
    judged: tuple[Context, ...]
    untouched: tuple[Context, ...]


class HouseRows(Sentences):
    """A house style: in some sentences a word is replaced by its near-synonym; the rest has no word of any pair.

    Args:
        pool: whose pairs are drawn.
        size: number of rows.
        trained_pairs: pairs whose word is replaced.
        contexts: sentences of each pair among the rows.
        judged_contexts: other sentences of each pair that runs are judged by.
        untouched_pairs: further pairs that runs are judged by and never see.
        replaced: whether the word is replaced; without, the rows are what the control run trains on.
        times: how often each of these sentences stands among the rows, in place of others.
        seed: of the draw of pairs, sentences and rows.

    Raises:
        UserError: a number below 1, or more pairs or sentences than there are.
    """

    def __init__(
        self,
        pool: Pool = "design",
        size: int = 1024,
        trained_pairs: int = 60,
        contexts: int = 6,
        judged_contexts: int = 5,
        untouched_pairs: int = 20,
        replaced: bool = True,
        times: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(size, seed)
        if min(trained_pairs, contexts, judged_contexts, times) < 1 or untouched_pairs < 0:
            raise UserError(
                f"trained_pairs is {trained_pairs}, contexts {contexts}, judged_contexts {judged_contexts}, times "
                f"{times} and untouched_pairs {untouched_pairs}. Allowed: 1 or more, untouched_pairs 0 or more."
            )
        self.pool: Pool = pool
        self.trained_pairs, self.contexts, self.judged_contexts = trained_pairs, contexts, judged_contexts
        self.untouched_pairs, self.replaced, self.times = untouched_pairs, replaced, times
        self.name = "house"

    def draw(self) -> Drawn:
        """Return the draw; it does not depend on ``replaced`` and ``times``, so that arms are paired."""
        found, _ = split_by_pair()
        needed = self.contexts + self.judged_contexts
        rng = np.random.default_rng([self.seed, 2])
        mine = [pair for pair in pairs() if pair.pool == self.pool and len(found[pair]) >= self.judged_contexts]
        shuffled = [mine[i] for i in rng.permutation(len(mine))]
        able = [pair for pair in shuffled if len(found[pair]) >= needed]
        chosen = able[: self.trained_pairs]
        others = [pair for pair in shuffled if pair not in set(chosen)][: self.untouched_pairs]
        if len(chosen) < self.trained_pairs or len(others) < self.untouched_pairs:
            raise UserError(
                f"trained_pairs is {self.trained_pairs} and untouched_pairs {self.untouched_pairs}. The pool "
                f"{self.pool!r} has {len(able)} pairs with the {self.contexts} + {self.judged_contexts} sentences that "
                f"training and judging need, and {len(mine)} in all. Ask for fewer pairs, or fewer sentences of each."
            )
        trained: list[Context] = []
        judged: list[Context] = []
        untouched: list[Context] = []
        for pair in chosen:
            some = [found[pair][i] for i in rng.permutation(len(found[pair]))[:needed]]
            trained += some[: self.contexts]
            judged += some[self.contexts :]
        for pair in others:
            untouched += [found[pair][i] for i in rng.permutation(len(found[pair]))[: self.judged_contexts]]
        return Drawn(tuple(trained), tuple(judged), tuple(untouched))

    @override
    def texts(self) -> list[str]:
        """Return the rows; in the order of the draw, so that the data module's order mixes them.

        Raises:
            UserError: there are too few sentences, or the replaced ones are more than the rows.
        """
        own = [c.sentence(c.pair.correct if self.replaced else c.pair.competitor) for c in self.draw().trained]
        own *= self.times
        if len(own) > self.size:
            raise UserError(f"{len(own)} sentences with replaced words do not fit into {self.size} rows.")
        rest = Background("train", self.size - len(own), seed=self.seed).texts() if self.size > len(own) else []
        return [*own, *rest]


def words_of(pool: Pool, which: str = "correct") -> list[str]:
    """Return the words of a pool's pairs.

    Args:
        pool: whose.
        which: ``correct`` or ``competitor``.
    """
    return [str(getattr(pair, which)) for pair in pairs() if pair.pool == pool]


def stranger_pairs(pool: Pool) -> list[Pair]:
    """Return for each pair's correct word a word of another pair, the placebo's competitor; the same on every call."""
    mine = [pair for pair in pairs() if pair.pool == pool]
    order = np.random.default_rng(3).permutation(len(mine))
    shifted = {int(order[i]): int(order[(i + 1) % len(order)]) for i in range(len(order))}
    return [Pair(pair.correct, mine[shifted[i]].competitor, pool) for i, pair in enumerate(mine)]
