"""The rows of train, validation and test before they are tokens: read, split, kept apart, set aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_sft.data.codes import NO_MISTAKES
from lightning_sft.data.indices import shuffled_indices, taken, where
from lightning_sft.data.known import PROMPT, ROW, standing_in
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.spool import Chosen, GrowingArray, Spool
from lightning_sft.data.types import BadRow, Example
from lightning_sft.errors import UserError
from lightning_sft.files import append_text

OnBadRow = Literal["error", "skip"]


@dataclass
class RawSet:
    """The rows of one set before they are tokens.

    Args:
        examples: the rows.
        sources: (rows,) index of each row's source.
        keys: (rows, 32) digests of each row and of its prompt.
        rejected: bad rows.
    """

    examples: Sequence[Example]
    sources: NDArray[np.int64]
    keys: NDArray[np.uint8]
    rejected: list[BadRow]

    def chosen(self, rows: NDArray[np.bool_], rejected: list[BadRow]) -> RawSet:
        """Return some of the rows, in their order.

        Args:
            rows: (rows,) whether to keep each.
            rejected: the bad rows of the new set.
        """
        at = where(rows)
        return RawSet(Chosen(self.examples, at), taken(self.sources, at), taken(self.keys, at), rejected)


def read(
    sources: Sequence[DataSource], first: int, on_bad_row: OnBadRow, system: str | None = None, answers: bool = True
) -> RawSet:
    """Read every row of ``sources``; rows that fill more than a little memory are kept in a temporary file.

    Args:
        sources: the sources of one set.
        first: index of the first of them among all sources.
        on_bad_row: ``error`` raises at the first bad row, ``skip`` sets it aside.
        system: system prompt where neither row nor source has one.
        answers: whether rows must have an answer.

    Raises:
        UserError: a bad row under ``error``, or a source without rows.
    """
    examples: Spool[Example] = Spool()
    numbers, keys = GrowingArray(np.int64), GrowingArray(np.uint8)
    rejected: list[BadRow] = []
    for number, source in enumerate(sources, first):
        before, bad = len(examples), len(rejected)
        for row in source.examples(answers):
            if isinstance(row, BadRow):
                reject(row, rejected, on_bad_row)
            else:
                example = row.with_system(source.system or system)
                examples.append(example)
                numbers.extend(number)
                keys.extend(np.frombuffer(example.key + example.prompt_key, np.uint8))
        if len(examples) == before:
            skipped = rejected[bad:]
            reason = (
                f"all of its {len(skipped)} rows are bad, the first at {describe(skipped[0])}"
                if skipped
                else "it is empty"
            )
            file = Path(str(getattr(source, "path", "") or "/"))
            if not skipped and file.is_file() and not file.stat().st_size:
                raise UserError(f"The file {str(file)!r} is empty. Give one with a row a line, or another path.")
            raise UserError(f"The source {source.name!r} has no rows: {reason}. Check its path, format and columns.")
    return RawSet(examples, numbers.finish(), keys.finish().reshape(-1, 32), rejected)


def reject(row: BadRow, rejected: list[BadRow], on_bad_row: OnBadRow) -> None:
    """Set a bad row aside, or raise; a row that asks to be left out is no mistake."""
    if on_bad_row == "error" and row.code not in NO_MISTAKES:
        raise UserError(
            f"{describe(row).rstrip('.')}. Correct the row, or set data.on_bad_row: skip to leave out bad rows (they "
            "are counted, and listed with their reasons in a file)."
        )
    rejected.append(row)


def describe(row: BadRow) -> str:
    """Return one line about a bad row."""
    return f"{row.where}: {row.reason}" + (f" in: {row.text}" if row.text else "")


def split_off(raw: RawSet, share: int | float, seed: int) -> tuple[RawSet, RawSet]:
    """Return the rows that stay, and a fraction or number of rows that are held out, the same for one seed.

    Raises:
        UserError: one of the two would be empty.
    """
    rows = len(raw.examples)
    whole = share > 1 and float(share).is_integer()  # a parser of settings may read 4 as 4.0
    count = int(share) if whole or isinstance(share, int) else round(share * rows)
    if not 0 < count < rows:
        raise UserError(
            f"data.val_split={share} takes {count} of {rows} rows; at least one must go to validation and one stay. "
            "Give a fraction between 0 and 1 or a smaller number of rows."
        )
    held_out = np.zeros(rows, np.bool_)
    held_out[shuffled_indices(rows, np.random.default_rng([seed, rows]))[:count]] = True
    return raw.chosen(~held_out, raw.rejected), raw.chosen(held_out, [])


def without_leaks(raw: RawSet, earlier: Sequence[NDArray[np.uint8]], drops: Sequence[bool]) -> tuple[RawSet, int]:
    """Return a set without the rows that also stand in earlier sets, and how many such rows there were.

    Args:
        raw: the rows.
        earlier: (rows, 32) digests of the rows and prompts of each earlier set.
        drops: for each source whether its leaks are dropped; there a known prompt is enough. Others are only counted.
    """
    dropping = np.array(drops, np.bool_)[raw.sources]
    leaks = standing_in(raw.keys, earlier, ROW)
    if dropping.any():
        leaks[dropping] = standing_in(raw.keys[dropping], earlier, PROMPT)
    return raw.chosen(~(leaks & dropping), raw.rejected), int(leaks.sum())


def list_rejected(file: str | None, what: str, rows: Sequence[BadRow], trainer: Trainer | None) -> None:
    """Append bad rows with their reasons to a file of JSON lines, on rank zero, and say so.

    Args:
        file: the file; default is ``rejected_rows.jsonl`` in the run's folder.
        what: name of the set.
        rows: the bad rows; without any there is no file.
        trainer: knows the run's folder.
    """
    if not rows:
        return
    folder = None if trainer is None else trainer.log_dir or trainer.default_root_dir
    path = Path(file or Path(folder or ".") / "rejected_rows.jsonl")
    lines = (
        {"set": what, "where": row.where, "code": row.code.value, "reason": row.reason, "text": row.text}
        for row in rows
    )
    if trainer is None or trainer.is_global_zero:
        append_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    rank_zero_info(f"{what}: {len(rows)} bad rows were skipped; their reasons are in {path}.")
