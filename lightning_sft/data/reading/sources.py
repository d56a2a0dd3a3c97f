"""Where examples come from: the contract of a source, and the one for files and hub names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_sft.data.codes import Code
from lightning_sft.data.reading import formats
from lightning_sft.data.reading.columns import without_padding
from lightning_sft.data.reading.conversation import STRICT, OnRepeatedRole, OnUnanswered, Rules
from lightning_sft.data.reading.detect import detect_format
from lightning_sft.data.reading.fields import under_our_names
from lightning_sft.data.reading.readers import read_file
from lightning_sft.data.reading.scorers import Score, Scorer, as_scorer, scored
from lightning_sft.data.types import BadRow, BadRowError, Example, Record
from lightning_sft.errors import UserError, first_line
from lightning_sft.files import file_digest
from lightning_sft.hub import require_on_hub
from lightning_sft.places import data_files
from lightning_sft.progress import counted, progress


class DataSource(ABC):
    """Examples under one name.

    Attributes:
        name: name of the source in per-source readings.
        weight: how often each row is seen in an epoch. 2 shows every row twice, 0.5 shows half of them, another half
            in the next epoch.
        drop_leaks: whether rows of validation and test that also stand in train are dropped, not only counted.
        system: system prompt for conversations that bring none.
    """

    name: str
    weight: float = 1.0
    drop_leaks: bool = False
    system: str | None = None

    @abstractmethod
    def examples(self, answers: bool = True) -> Iterator[Example | BadRow]:
        """Yield every row, the bad ones as `BadRow`; the same rows in the same order each time.

        Args:
            answers: whether rows without an answer are bad rows; for prediction they are not.
        """

    def identity(self) -> list[Any] | None:
        """Return what the examples are made of, as plain data; equal ones mean equal examples.

        With it, encoded rows come from the cache without being read. Without it (None, the default) they are read,
        and the cache is asked for the tokens of just these rows.
        """
        return None

    def score(self, example: Example, answer: str) -> float | None:
        """Return the score of ``answer``, 0 to 1, or None where this source has no scorer."""
        return None

    def drawn(self, seed: int) -> DataSource | None:
        """Return a source of the same kind with other rows, drawn by ``seed``; None where the rows are what they are.

        A comparison asks for it, to give each of its replicates rows of its own. Two sources of one run that differ
        in a seed of their own must differ for the same ``seed``, too.
        """
        return None


class Source(DataSource):
    """Rows from a file, a glob, a folder or a name on the Hugging Face hub.

    Args:
        path: file (JSON, JSONL, CSV, TSV, TXT, Parquet, Arrow; also .gz, .bz2, .xz, .zst), glob, folder (read
            recursively; one written by ``save_to_disk`` of ``datasets`` as such), or hub name.
        format: format of the rows; ``auto`` takes the one whose columns most rows of a file have.
        columns: standard column name -> name in the file, such as ``{prompt: question, completion: answer}``.
        weight: see `DataSource`.
        name: name of the source; default is the last part of the path without suffixes.
        split: split of a hub dataset or a saved ``DatasetDict``.
        subset: configuration name of a hub dataset.
        system: system prompt for rows that bring none.
        score: how generated answers are scored against the reference, white space around both aside: ``exact_match``;
            ``ignore_case``; ``contains``, the reference stands in it as whole words and numbers; ``last_number`` of
            both, by value; ``edit_similarity`` (1 - edits / longer length) and ``jaro_winkler``; or a `Scorer` of
            yours. Rows without an answer are not scored.
        max_rows: read at most so many rows.
        streaming: read a hub dataset as a stream, without keeping its files; ``max_rows`` ends it early.
        max_row_bytes: longer lines, or rows with more characters, are bad rows.
        on_unanswered: see `Rules`; default is the data module's.
        on_repeated_role: see `Rules`; default is the data module's.
    """

    def __init__(
        self,
        path: str,
        format: formats.Format = "auto",
        columns: dict[str, str] | None = None,
        weight: float = 1.0,
        name: str | None = None,
        split: str = "train",
        subset: str | None = None,
        system: str | None = None,
        score: Score | Scorer | None = None,
        max_rows: int | None = None,
        streaming: bool = False,
        max_row_bytes: int = 1 << 22,
        on_unanswered: OnUnanswered | None = None,
        on_repeated_role: OnRepeatedRole | None = None,
    ) -> None:
        if weight <= 0:
            raise UserError(
                f"{path}: weight is {weight}; it must be above 0. Leave the source out to train without it."
            )
        if max_rows is not None and max_rows < 1:
            raise UserError(f"{path}: max_rows is {max_rows}; it must be at least 1.")
        self.path = path
        self.format = format
        self.columns = columns or {}
        self.weight = weight
        self.name = name or re.sub(r"(\.\w+)+$", "", Path(path.rstrip("/")).name) or path
        self.split = split
        self.subset = subset
        self.system = system
        self.scorer = as_scorer(score)
        self.max_rows = max_rows
        self.streaming = streaming
        self.max_row_bytes = max_row_bytes
        self._own_rules = on_unanswered, on_repeated_role
        self.obey(STRICT)

    def obey(self, rules: Rules) -> None:
        """Take rules for conversations that are not in order, where the source has none of its own."""
        unanswered, repeated = self._own_rules
        self.rules = Rules(unanswered or rules.on_unanswered, repeated or rules.on_repeated_role)

    def examples(self, answers: bool = True) -> Iterator[Example | BadRow]:
        """Yield every row of every file, file after file in the order of their names."""
        with progress(f"Reading {self.name}") as advance:
            tables = (counted(table, advance) for table in self._tables())
            yield from islice((row for table in tables for row in self._convert(table, answers)), self.max_rows)

    @override
    def identity(self) -> list[Any] | None:
        """Return the settings that shape the rows, and the content of the files or the fingerprint of a hub dataset.

        None for subclasses and streams, whose rows only reading tells.
        """
        if type(self) is not Source:
            return None
        folder = Path(self.path)
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if _is_saved(folder) else self._files()
        if not files and self.streaming:
            return None
        shape = [
            self.format,
            self.columns,
            self.split,
            self.system,
            self.max_rows,
            self.max_row_bytes,
            *astuple(self.rules),
        ]
        if not files:  # `datasets` makes it of name, configuration, revision and split, and keeps the rows on disk
            return [self.path, *shape, self.subset, str(self._hub_table()._fingerprint)]
        try:
            return [self.path, *shape, [[str(path), file_digest(path)] for path in files]]
        except OSError:
            return None  # reading says what is wrong

    def score(self, example: Example, answer: str) -> float | None:
        """Compare ``answer`` with the reference by the source's scorer."""
        return scored(self.scorer, answer, example.reference)

    def _tables(self) -> Iterator[Iterable[Record | BadRow]]:
        """Yield the rows of each file; a format is detected within one of them."""
        folder = Path(self.path)
        if _is_saved(folder):
            yield self._saved(folder)
        elif files := self._files():
            for path in files:
                yield read_file(path, self._is_row, self.max_row_bytes)
        else:
            yield self._hub()

    def _files(self) -> list[Path]:
        """Return the files that ``path`` stands for; none if it can only be a hub name."""
        return data_files(self.path)

    def _hub_table(self) -> Any:
        """Return the hub's dataset, or a stream of it; its rows lie on disk."""
        require_on_hub(self.path, "dataset")
        import datasets

        try:
            return datasets.load_dataset(self.path, self.subset, split=self.split, streaming=self.streaming)
        except Exception as e:  # datasets raises errors of many libraries here
            raise UserError(
                f"{self.path!r} is neither a file or folder here ({Path.cwd()}) nor a dataset that loads from the "
                f"Hugging Face hub: {first_line(e)}. Check the path, split={self.split!r} and subset={self.subset!r}."
            ) from e

    def _hub(self) -> Iterator[Record]:
        table = self._hub_table()
        plain = without_padding(getattr(table, "features", None))
        for i, row in enumerate(table):
            yield Record(f"{self.path}[{i}]", plain(dict(row)))

    def _saved(self, folder: Path) -> Iterator[Record]:
        import datasets

        table = datasets.load_from_disk(str(folder))
        if isinstance(table, datasets.DatasetDict):
            if self.split not in table:
                raise UserError(f"{folder} has no split {self.split!r}; it has {', '.join(table)}. Set split.")
            table = table[self.split]
        plain = without_padding(table.features)
        for i, row in enumerate(table):
            yield Record(f"{folder}[{i}]", plain(row))

    def _mapped(self, row: dict[str, Any]) -> dict[str, Any]:
        return under_our_names(row, self.columns)

    def _is_row(self, row: dict[str, Any]) -> bool:
        found = formats.detect(self._mapped(row))
        return found is not None if self.format == "auto" else found == self.format

    def _convert(self, table: Iterable[Record | BadRow], answers: bool) -> Iterator[Example | BadRow]:
        rows: Iterable[Record | BadRow] = islice(table, self.max_rows)
        form = str(self.format)
        if self.format == "auto":
            form, rows = detect_format(rows, self._mapped, self.columns, answers)
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            if (size := _size(row.row)) > self.max_row_bytes:
                reason = f"the row has {size} characters, more than max_row_bytes={self.max_row_bytes}"
                yield BadRow(row.where, reason, code=Code.TOO_LARGE)
                continue
            try:
                yield formats.to_example(self._mapped(row.row), form, row.where, answers, self.rules)
            except BadRowError as e:
                reason = str(e)
                if unmapped := [column for column in self.columns.values() if column not in row.row]:
                    reason = f"missing column {', '.join(unmapped)}; the row has {', '.join(row.row) or 'none'}"
                yield BadRow(row.where, reason, str(row.row), e.code)


def _is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of ``datasets`` wrote a folder."""
    return folder.is_dir() and ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists())


def _size(value: object) -> int:
    """Return the characters in all texts of a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0
