"""All sets of a run: which rows belong to which, read, kept apart and encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain

from lightning_sft.data.build import BuildOptions, BuiltSet, build
from lightning_sft.data.encode import Encoder
from lightning_sft.data.sets import RawSet, read, split_off, without_leaks
from lightning_sft.data.sources import DataSource
from lightning_sft.errors import UserError

Keys = tuple[set[bytes], set[bytes]]
"""Digests of the rows of a set, and of their prompts."""


class SetLibrary:
    """The sets ``train``, ``val``, ``test`` and ``predict``, built on demand and kept.

    Args:
        sources: the sources of each set; a source's index counts through all sets.
        val_split: a fraction or a number of rows that ``val`` takes from ``train``.
        seed: seed of ``val_split``.
        system: system prompt for conversations that bring none.
        options: how rows become a set.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[DataSource]],
        val_split: int | float | None = None,
        seed: int = 0,
        system: str | None = None,
        options: BuildOptions | None = None,
    ) -> None:
        self.sources_of = sources
        self.val_split = val_split
        self.seed = seed
        self.system = system
        self.options = options or BuildOptions()
        self.fingerprint = ""
        """A digest of the training rows and their order, after they are built."""
        self._raw: dict[str, RawSet] = {}
        self._keys: dict[str, Keys] = {}
        self._built: dict[str, BuiltSet] = {}

    @property
    def sources(self) -> list[DataSource]:
        """Every source by its index."""
        return list(chain.from_iterable(self.sources_of.values()))

    def has(self, what: str) -> bool:
        """Return whether the settings name rows for a set."""
        return bool(self.sources_of[what]) or (what == "val" and self.val_split is not None)

    def __contains__(self, what: str) -> bool:
        """Return whether a set is built."""
        return what in self._built

    def __getitem__(self, what: str) -> BuiltSet:
        """Return a built set."""
        return self._built[what]

    def build(self, what: str, encoder: Encoder) -> BuiltSet:
        """Read and encode a set; the examples of ``train`` are let go, only their digests are kept.

        Raises:
            UserError: see `read`, `split_off` and `build`; or every row also stands in an earlier set.
        """
        raw, leaked, dropped = self._without_leaks(what)
        built = build(raw, [source.name for source in self.sources], encoder, self.options, what)
        built.report.leaked, built.report.leaked_dropped = leaked, dropped
        self._built[what] = built
        self._known(what)
        del self._raw[what]
        if what == "train":
            self.fingerprint = hashlib.blake2b(b"".join(e.key for e in built.examples), digest_size=16).hexdigest()
            built.examples.clear()
        return built

    def _read(self, what: str) -> RawSet:
        """Return the rows of one set, with those of ``val_split`` taken out of train."""
        if what not in self._raw:
            names = list(self.sources_of)
            first = sum(len(self.sources_of[name]) for name in names[: names.index(what)])
            if what == "val" and self.val_split is not None:
                self._read("train")
            else:
                self._raw[what] = read(
                    self.sources_of[what], first, self.options.on_bad_row, self.system, what != "predict"
                )
            if what == "train" and self.val_split is not None:
                self._raw["train"], self._raw["val"] = split_off(self._raw["train"], self.val_split, self.seed)
        return self._raw[what]

    def _without_leaks(self, what: str) -> tuple[RawSet, int, int]:
        """Return the rows of a set, how many of them stand in an earlier set, and how many were dropped for it."""
        raw = self._read(what)
        earlier = {"val": ("train",), "test": ("train", "val")}.get(what, ())
        drops = [source.drop_leaks for source in self.sources]
        needed = any(drops[s] for s in set(raw.sources))
        known = [self._known(e) for e in earlier if self.has(e) and (needed or e in self._raw or e in self._keys)]
        keys, prompts = (set().union(*(sets[i] for sets in known)) for i in (0, 1))
        kept, leaked = without_leaks(raw, keys, prompts, drops)
        if not kept.examples:
            raise UserError(
                f"All {len(raw.examples)} rows of {what} also stand in {' or '.join(earlier)} and were dropped. Give "
                "the tasks different seeds, or make their range larger."
            )
        return kept, leaked, len(raw.examples) - len(kept.examples)

    def _known(self, what: str) -> Keys:
        """Return what stands in a set, kept when its rows are let go."""
        if what not in self._keys:
            examples = self._read(what).examples
            self._keys[what] = {example.key for example in examples}, {example.prompt_key for example in examples}
        return self._keys[what]
