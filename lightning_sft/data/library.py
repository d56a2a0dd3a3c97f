"""All sets of a run: which rows belong to which, read, kept apart and encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.encoding.build import BuildOptions, build
from lightning_sft.data.encoding.contexts import contexts_identity
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.encoding.weights import tell
from lightning_sft.data.indices import stretches
from lightning_sft.data.known import ROW, fingerprint, standing_in
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.sets import RawSet, read, split_off, without_leaks
from lightning_sft.data.spool import Chosen, spooling_in
from lightning_sft.data.storage.cache import Cache, Entry
from lightning_sft.data.storage.dataset import BuiltSet
from lightning_sft.data.storage.digests import digest, encoding_digest, rows_digest
from lightning_sft.data.storage.stored import EXAMPLES, pack, unpack
from lightning_sft.data.types import Example
from lightning_sft.errors import UserError

EARLIER = {"train": (), "val": ("train",), "test": ("train", "val"), "predict": ()}
"""Set -> the sets in which its rows must not stand."""


class SetLibrary:
    """The sets ``train``, ``val``, ``test`` and ``predict``, built on demand and kept.

    Rows are read, encoded and written one by one: a set may be larger than memory. With a cache, one process does so
    for all, and the others map what it wrote.

    Args:
        sources: the sources of each set; a source's index counts through all sets.
        val_split: a fraction or a number of rows that ``val`` takes from ``train``.
        seed: seed of ``val_split``.
        system: system prompt for conversations that bring none.
        options: how rows become a set.
        cache: where encoded sets are kept; by default nowhere.

    Attributes:
        launch: a name that the ranks of one run share, so that one of them reads rows that only reading tells, such as
            those of a stream; None where each process is on its own.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[DataSource]],
        val_split: int | float | None = None,
        seed: int = 0,
        system: str | None = None,
        options: BuildOptions | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.sources_of = sources
        if val_split is not None and sources.get("val"):
            raise UserError(f"Both data.val and data.val_split={val_split} are given. Leave one of them out.")
        self.val_split = val_split
        self.seed = seed
        self.system = system
        self.options = options or BuildOptions()
        self.cache = cache or Cache(None)
        self._raw: dict[str, RawSet] = {}
        self._keys: dict[str, NDArray[np.uint8]] = {}
        self._built: dict[str, BuiltSet] = {}
        self._ahead: dict[str, BuiltSet] = {}
        self.launch: str | None = None

    @property
    def sources(self) -> list[DataSource]:
        """Every source by its index."""
        return list(chain.from_iterable(self.sources_of.values()))

    @property
    def fingerprint(self) -> str:
        """A digest of the training rows and their order, after they are built."""
        return self._built["train"].fingerprint

    def has(self, what: str) -> bool:
        """Return whether the settings name rows for a set."""
        return bool(self.sources_of[what]) or (what == "val" and self.val_split is not None)

    def __contains__(self, what: str) -> bool:
        """Return whether a set is built."""
        return what in self._built

    def __getitem__(self, what: str) -> BuiltSet:
        """Return a built set."""
        return self._built[what]

    def examples(self, what: str) -> Sequence[Example]:
        """Return what each row of a built set was made of; the rows of ``train`` were let go, and are read again.

        Raises:
            UserError: its sources give other rows by now.
        """
        built = self._built[what]
        if len(built.examples):
            return built.examples
        with spooling_in(self.cache.root):
            raw = self._read(what)
        for name in set(self._built) & set(self._raw):
            del self._raw[name]
        kept = built.kept[built.kept < len(raw.examples)]
        if fingerprint(raw.keys, kept) != built.fingerprint:
            raise UserError(f"The sources of {what} changed while they were read. Start again.")
        return Chosen(raw.examples, kept)

    def build(self, what: str, encoder: Encoder) -> BuiltSet:
        """Encode a set, or take it from the cache; the examples of ``train`` are let go, only their digests are kept.

        Raises:
            UserError: see `read`, `split_off` and `build`; or every row also stands in an earlier set.
        """
        key = self._key_of_sources(what, encoder)
        with spooling_in(self.cache.root):
            if key is not None:
                self._built[what] = self._from_sources(what, encoder, key)
            elif self.launch is None or self.cache.root is None:
                self._built[what], _ = self._from_rows(what, encoder)
            elif what in self._ahead:
                self._built[what] = self._ahead.pop(what)
            else:
                self._built[what] = self._read_once(what, encoder)
        for name in {what, *self._built} & set(self._raw):
            del self._raw[name]
        tell(self._built[what].report, what)
        return self._built[what]

    def _from_sources(self, what: str, encoder: Encoder, key: str) -> BuiltSet:
        """Return a set that its sources determine; they are read only if the cache does not have it."""
        keeps_examples = what != "train"
        storable = True

        def make() -> Entry:
            nonlocal storable
            built = self._encode(what, self._read(what), encoder)
            entry = self._packed(what, built, keeps_examples)
            storable = not keeps_examples or EXAMPLES in entry.arrays
            entry.arrays["keys"] = self._known(what)
            if self._is_split_off(what):
                entry.arrays["train_keys"] = self._known("train")
            return entry

        entry = self.cache.get(key, make, lambda: storable and key == self._key_of_sources(what, encoder))
        examples = self._raw[what].examples if keeps_examples and what in self._raw else ()
        built = unpack(entry, *self._origin(what), examples)
        self._keys[what] = entry.arrays["keys"]  # mapped: those that were read are let go
        if "train_keys" in entry.arrays:
            self._keys.setdefault("train", entry.arrays["train_keys"])
        built.report.leaked = int(standing_in(self._keys[what], self._known_earlier(what, needed=False), ROW).sum())
        return built

    def _packed(self, what: str, built: BuiltSet, with_examples: bool) -> Entry:
        """Return a set for the cache; without its examples, too, if they hold what JSON does not, such as a date."""
        try:
            return pack(built, *self._origin(what), with_examples=with_examples)
        except TypeError:
            return pack(built, *self._origin(what), with_examples=False)

    def _from_rows(self, what: str, encoder: Encoder, shared: bool = False) -> tuple[BuiltSet, str | None]:
        """Return a set whose rows must be read to be known, and the key under which the cache now has their tokens.

        Args:
            what: the set.
            encoder: rows -> tokens.
            shared: whether other ranks are to find in the cache all that they need.
        """
        with_examples = shared and what != "train"
        raw, leaked, dropped = self._without_leaks(what)
        self._known(what)

        def make() -> Entry:
            return self._packed(what, self._encode(what, raw, encoder), with_examples)

        key = None
        if self.cache.root is not None:
            rows = rows_digest(raw.examples, raw.sources, raw.rejected)
            key = self._key(what, encoder, ["rows and examples" if with_examples else "rows", rows])
        entry = make() if key is None else self.cache.get(key, make, lambda: True)
        built = unpack(entry, *self._origin(what), raw.examples if what != "train" else ())
        built.report.leaked, built.report.leaked_dropped = leaked, dropped
        return built, key

    def _read_once(self, what: str, encoder: Encoder) -> BuiltSet:
        """Return a set that the first rank to come reads; the others wait for it, and find its tokens in the cache."""
        mine: BuiltSet | None = None

        def make() -> Entry:
            nonlocal mine
            mine, key = self._from_rows(what, encoder, shared=True)
            if what == "train" and self.val_split is not None:  # while nobody else can begin to read the same rows
                self._ahead["val"] = self._read_once("val", encoder)
            return Entry(
                {"keys": self._known(what)},
                {"key": key, "leaked": mine.report.leaked, "leaked_dropped": mine.report.leaked_dropped},
            )

        found = self.cache.get(f"{what}-launch-{self.launch}", make, lambda: True)
        if mine is not None:
            return mine
        entry = None if found.meta["key"] is None else self.cache.find(found.meta["key"])
        if entry is None or (what != "train" and EXAMPLES not in entry.arrays):  # a task's items, which score answers
            return self._from_rows(what, encoder)[0]
        self._keys.setdefault(what, found.arrays["keys"])
        built = unpack(entry, *self._origin(what))
        built.report.leaked, built.report.leaked_dropped = found.meta["leaked"], found.meta["leaked_dropped"]
        return built

    def forget_launch(self) -> None:
        """Remove what ranks told each other; called on one rank of each machine when all have read it."""
        for what in self._built:
            self.cache.remove(f"{what}-launch-{self.launch}")

    def _encode(self, what: str, raw: RawSet, encoder: Encoder) -> BuiltSet:
        return build(raw, [source.name for source in self.sources], encoder, self.options, what)

    def _key_of_sources(self, what: str, encoder: Encoder) -> str | None:
        """Return the key of a set that its sources determine; None if only reading tells, or nothing is kept."""
        sources = self.sources_of["train" if self._is_split_off(what) else what]
        if self.cache.root is None or any(source.drop_leaks for source in sources):
            return None
        identities = [source.identity() for source in sources]
        if None in identities:
            return None
        split = [self.val_split, self.seed] if self.val_split is not None and what in ("train", "val") else None
        return self._key(what, encoder, ["sources", identities, self.system, split])

    def _key(self, what: str, encoder: Encoder, rows: list[Any]) -> str | None:
        """Return the key of a set in the cache; None if something it depends on cannot be told from another."""
        contexts = contexts_identity(encoder.loss_weights.contexts) if what == "train" else []
        try:
            made_by = [encoding_digest(), encoder.identity(), self.options.identity(), contexts]
            return f"{what}-{digest([*made_by, rows])[:32]}"
        except TypeError:
            return None

    def _is_split_off(self, what: str) -> bool:
        return what == "val" and self.val_split is not None

    def _origin(self, what: str) -> tuple[list[str], int]:
        """Return the names of a set's sources, and the index of the first of them."""
        if self._is_split_off(what):
            what = "train"
        names = list(self.sources_of)
        first = sum(len(self.sources_of[name]) for name in names[: names.index(what)])
        return [source.name for source in self.sources_of[what]], first

    def _read(self, what: str) -> RawSet:
        """Return the rows of one set, with those of ``val_split`` taken out of train."""
        if what not in self._raw:
            if self._is_split_off(what):
                self._read("train")
            else:
                sources, (_, first) = self.sources_of[what], self._origin(what)
                self._raw[what] = read(sources, first, self.options.on_bad_row, self.system, what != "predict")
            if what == "train" and self.val_split is not None:
                self._raw["train"], self._raw["val"] = split_off(self._raw["train"], self.val_split, self.seed)
        return self._raw[what]

    def _without_leaks(self, what: str) -> tuple[RawSet, int, int]:
        """Return the rows of a set, how many of them stand in an earlier set, and how many were dropped for it."""
        raw = self._read(what)
        drops = [source.drop_leaks for source in self.sources]
        earlier = self._known_earlier(what, needed=any(drops[s] for s, _, _ in stretches(raw.sources)))
        kept, leaked = without_leaks(raw, earlier, drops)
        if not len(kept.examples):
            raise UserError(
                f"All {len(raw.examples)} rows of {what} also stand in {' or '.join(EARLIER[what])} and were dropped. "
                "Give the tasks different seeds, or make their range larger."
            )
        return kept, leaked, len(raw.examples) - len(kept.examples)

    def _known_earlier(self, what: str, needed: bool) -> list[NDArray[np.uint8]]:
        """Return the digests of the sets before ``what``: if needed, of all, else of those read."""
        earlier = [name for name in EARLIER[what] if self.has(name)]
        return [self._known(name) for name in earlier if needed or name in self._raw or name in self._keys]

    def _known(self, what: str) -> NDArray[np.uint8]:
        """Return digests of what stands in a set, (rows, 32), kept when its rows are let go: of a row, its prompt."""
        if what not in self._keys:
            self._keys[what] = self._read(what).keys
        return self._keys[what]
