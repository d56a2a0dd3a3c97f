"""Contexts of a run, drawn afresh for each replicate, and the rows that are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lightning_sft.data.types import Example
from lightning_sft.errors import UserError
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.probe import Probe
from studies.cure.rows import Background, Sentences
from studies.cure.texts import Pool, pairs, split_by_pair

#: shipped contexts of a pool: the same pairs stand in both, in other contexts
SPLITS: dict[Pool, str] = {"design": "train", "judged": "test"}


@dataclass(frozen=True)
class Taught:
    """A context whose answer is taught.

    Attributes:
        probe: context, right word, and the near-synonym that it must overtake.
        after: the text behind the answer.
        shipped: whether it is one of the package's own contexts, or a sentence of WordNet.
    """

    probe: Probe
    after: str
    shipped: bool

    @property
    def number(self) -> int:
        """What the context is known by over runs: 32 bits of a digest of its text and words."""
        text = "\n".join((self.probe.context, self.probe.correct, self.probe.competitor))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    @property
    def words(self) -> frozenset[str]:
        """The two answers."""
        return frozenset((self.probe.correct, self.probe.competitor))


class ProbeRows(Sentences):
    """Contexts with their right word: the answers alone, or as sentences among other sentences.

    No word stands in two contexts of a draw, so that what is taught for one says nothing on another.

    Args:
        pool: whose contexts are drawn.
        mined: sentences of WordNet.
        shipped: contexts of the package's library.
        size: number of rows.
        times: how often each context stands among the rows; 0: the rows are the contexts, each once, and only the
            answer is trained.
        seed: of the draw.

    Raises:
        UserError: a number out of range, or more contexts than there are or fit.
    """

    def __init__(
        self, pool: Pool = "design", mined: int = 8, shipped: int = 8, size: int = 16, times: int = 0, seed: int = 0
    ) -> None:
        super().__init__(size, seed)
        if min(mined, shipped, times) < 0 or mined + shipped < 1:
            raise UserError(
                f"mined is {mined}, shipped {shipped} and times {times}. Allowed: 0 or more, and at least one context."
            )
        count = mined + shipped
        if count * max(times, 1) > size or (times == 0 and count != size):
            raise UserError(
                f"{count} contexts, {times} times each, do not make {size} rows. Allowed: with times 0 as many rows as "
                "contexts, else at least times as many rows as contexts."
            )
        self.pool: Pool = pool
        self.mined, self.shipped, self.times = mined, shipped, times
        self.name = "probes"

    def draw(self) -> tuple[Taught, ...]:
        """Return the contexts of the draw, shipped ones first.

        Raises:
            UserError: the pool has fewer.
        """
        rng = np.random.default_rng([self.seed, 5])
        library = [Taught(p, ".", shipped=True) for p in load_probes(f"library:{SPLITS[self.pool]}")
                   if p.kind == "synonym"]  # fmt: skip
        found, _ = split_by_pair()
        sentences = []
        for pair in pairs():
            usable = [c for c in found[pair] if c.before == c.before.strip()]
            if pair.pool == self.pool and usable:
                one = usable[int(rng.integers(len(usable)))]
                probe = Probe(one.before, pair.correct, pair.competitor)
                sentences.append(Taught(probe, one.after, shipped=False))
        taken: set[str] = set()
        chosen = _apart(library, self.shipped, rng, taken) + _apart(sentences, self.mined, rng, taken)
        if len(chosen) < self.shipped + self.mined:
            raise UserError(
                f"The pool {self.pool!r} has {len(library)} shipped contexts and {len(sentences)} pairs with "
                f"sentences, and {self.shipped} and {self.mined} without a word in common are asked for. Ask for fewer."
            )
        return tuple(chosen)

    @override
    def texts(self) -> list[str]:
        """Return whole sentences: those of the contexts, ``times`` each, and others without such words."""
        own = [f"{t.probe.context} {t.probe.correct}{t.after}" for t in self.draw()] * self.times
        rest = self.size - len(own)
        return own + (Background("train", rest, seed=self.seed).texts() if rest else [])

    @override
    def examples(self, answers: bool = True) -> Iterator[Example]:
        if self.times:
            yield from super().examples(answers)
            return
        for i, taught in enumerate(self.draw()):
            yield Example(
                messages=(), plain=(taught.probe.context, f" {taught.probe.correct}"), where=f"{self.name}[{i}]"
            )


def _apart(some: Sequence[Taught], count: int, rng: np.random.Generator, taken: set[str]) -> list[Taught]:
    """Return so many of some contexts in a drawn order, none with a word that is taken; theirs are taken then."""
    chosen: list[Taught] = []
    for i in rng.permutation(len(some)):
        if len(chosen) < count and not some[i].words & taken:
            chosen.append(some[i])
            taken |= some[i].words
    return chosen
