"""WordNet's synonyms, read from its database files where they are installed (Debian: wordnet-base)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from lightning_sft.errors import UserError

PLACES = ("/usr/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/WordNet-3.0/dict")
PARTS = ("noun", "verb", "adj", "adv")
# WordNet's own rules of detachment, for all parts of speech at once
ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"),
    ("est", "e"),
)  # fmt: skip


def find_wordnet() -> Path | None:
    """Return the folder of WordNet's database (``WNSEARCHDIR`` or a usual place), or None."""
    places = [os.environ.get("WNSEARCHDIR"), *PLACES]
    return next((Path(p) for p in places if p and (Path(p) / "data.noun").is_file()), None)


@functools.lru_cache(maxsize=2)
def _senses(folder: Path) -> dict[str, frozenset[tuple[str, str]]]:
    """Return the synsets of every lemma: (part of speech, offset)."""
    found: dict[str, set[tuple[str, str]]] = {}
    for part in PARTS:
        path = folder / f"data.{part}"
        if not path.is_file():
            raise UserError(f"{str(folder)!r} is no WordNet database: it has no file data.{part}.")
        for line in path.read_text(encoding="latin-1").splitlines():
            fields = line.split(" ")
            if not fields[0]:  # the licence at the beginning
                continue
            count = int(fields[3], 16)
            for word in fields[4 : 4 + 2 * count : 2]:
                lemma = word.partition("(")[0].lower()  # "galore(ip)" says where an adjective stands
                found.setdefault(lemma, set()).add((part, fields[0]))
    return {lemma: frozenset(senses) for lemma, senses in found.items()}


def _lemmas(word: str, known: dict[str, frozenset[tuple[str, str]]]) -> Iterator[str]:
    word = word.lower()
    for ending, instead in (("", ""), *ENDINGS):
        lemma = word[: len(word) - len(ending)] + instead
        if word.endswith(ending) and lemma in known:
            yield lemma


def are_synonyms(a: str, b: str, folder: Path) -> bool:
    """Return whether two different words, or base forms of theirs, share a synset.

    Args:
        a: a word.
        b: a word.
        folder: of the database files.

    Raises:
        UserError: the folder holds no WordNet database.
    """
    known = _senses(folder)
    first, second = set(_lemmas(a, known)), set(_lemmas(b, known))
    return not first & second and any(known[x] & known[y] for x in first for y in second)
