"""An encoded set as arrays and plain data for the cache, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_sft.data.codes import Code
from lightning_sft.data.spool import Chosen, GrowingArray, pieces
from lightning_sft.data.storage.cache import Entry
from lightning_sft.data.storage.dataset import BuiltSet, SetReport, TokenDataset
from lightning_sft.data.types import BadRow, Example

EXAMPLES = "examples"
NEWLINE = ord("\n")


def pack(built: BuiltSet, names: Sequence[str], first: int, with_examples: bool) -> Entry:
    """Return a set as an entry of the cache.

    Args:
        built: the set.
        names: names of the set's sources.
        first: index of the first of them among all sources, on which nothing stored depends.
        with_examples: whether to store the examples, too.

    Raises:
        TypeError: the examples do not survive JSON.
    """
    dataset, report = built.dataset, built.report
    arrays: dict[str, NDArray[Any]] = {
        "ids": dataset.ids,
        "trained": dataset.trained,
        "lengths": dataset.lengths,
        "ends": dataset.ends,
        "sources": dataset.sources - first if first else dataset.sources,
        "full_lengths": report.full_lengths,
        "trained_tokens": report.trained,
        "kept": built.kept,
    }
    if dataset.weights is not None:
        arrays["weights"] = dataset.weights
    if with_examples:
        arrays[EXAMPLES] = _to_json(built.examples)
    meta = {
        "rejected": [[row.where, row.reason, row.text, row.code.value] for row in report.rejected],
        "dropped": report.dropped,
        "truncated": report.truncated,
        "source_rows": [[names.index(name), rows] for name, rows in report.source_rows.items()],
        "masks": report.masks,
        "unused": report.unused,
        "negative": report.negative,
        "contexts": report.contexts,
        "fingerprint": built.fingerprint,
    }
    return Entry(arrays, meta)


def unpack(entry: Entry, names: Sequence[str], first: int, examples: Sequence[Example] = ()) -> BuiltSet:
    """Return the set that `pack` was given.

    Args:
        entry: what was stored.
        names: names of the set's sources.
        first: index of the first of them among all sources.
        examples: the rows that were encoded, where the entry does not hold them.
    """
    arrays, meta = entry.arrays, entry.meta
    kept = arrays["kept"]
    dataset = TokenDataset.from_arrays(
        arrays["ids"],
        arrays["trained"],
        arrays["lengths"],
        arrays["ends"],
        arrays["sources"] + first if first else arrays["sources"],
        entry.folder,
        arrays.get("weights"),
    )
    report = SetReport(
        rows=len(kept),
        rejected=[_bad_row(*row) for row in meta["rejected"]],
        dropped=meta["dropped"],
        truncated=meta["truncated"],
        lengths=arrays["lengths"],
        full_lengths=arrays["full_lengths"],
        trained=arrays["trained_tokens"],
        masks=meta["masks"],
        unused=meta["unused"],
        negative=meta["negative"],
        contexts=meta["contexts"],
        source_rows={names[index]: rows for index, rows in meta["source_rows"]},
    )
    made_of: Sequence[Example] = Chosen(examples, kept) if len(examples) else []
    if EXAMPLES in arrays:
        made_of = StoredExamples(arrays[EXAMPLES])
    return BuiltSet(dataset, made_of, report, kept, meta["fingerprint"])


class StoredExamples(Sequence[Example]):
    """Examples in JSON lines, each read when it is asked for.

    Args:
        lines: (bytes,) the text.
    """

    def __init__(self, lines: NDArray[np.uint8]) -> None:
        self.lines = lines

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each line ends, (rows,)."""
        at = [np.flatnonzero(self.lines[p] == NEWLINE) + p.start for p in pieces(len(self.lines), 1 << 22)]
        return np.concatenate(at) if at else np.empty(0, np.int64)

    @override
    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    @override
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return Chosen(self, np.arange(len(self))[index])
        number = range(len(self))[index]
        start = int(self._ends[number - 1]) + 1 if number else 0
        return _example(self.lines[start : int(self._ends[number])].tobytes())


def _to_json(examples: Sequence[Example]) -> NDArray[np.uint8]:
    """Return examples as JSON lines, (bytes,)."""
    lines = GrowingArray(np.uint8)
    for example in examples:
        line = json.dumps(
            {
                "messages": example.messages,
                "flags": example.flags,
                "prompt_messages": example.prompt_messages,
                "tools": example.tools,
                "plain": example.plain,
                "where": example.where,
                "template_kwargs": example.template_kwargs,
                "weight": example.weight,
                "unused": example.unused,
            }
        ).encode()
        if _example(line) != example:
            raise TypeError(f"{example.where} does not survive JSON")
        lines.extend(np.frombuffer(line + b"\n", np.uint8))
    return lines.finish()


def _example(line: bytes) -> Example:
    fields: dict[str, Any] = json.loads(line)
    for name in ("messages", "flags", "tools", "plain", "unused"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Example(**fields)


def _bad_row(where: str, reason: str, text: str, code: str) -> BadRow:
    """Return a stored row as it was: its constructor would cut reason and text a second time."""
    row = object.__new__(BadRow)
    row.__dict__.update(where=where, reason=reason, text=text, code=Code(code))
    return row
