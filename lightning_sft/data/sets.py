"""The rows of train, validation and test before they are tokens: read, split, kept apart, set aside."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_sft.data.codes import NO_MISTAKES
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.types import BadRow, Example
from lightning_sft.errors import UserError
from lightning_sft.files import append_text

OnBadRow = Literal["error", "skip"]


@dataclass
class RawSet:
    """The rows of one set as examples, each with the index of its source."""

    examples: list[Example]
    sources: list[int]
    rejected: list[BadRow]


def read(
    sources: Sequence[DataSource], first: int, on_bad_row: OnBadRow, system: str | None = None, answers: bool = True
) -> RawSet:
    """Read every row of ``sources``.

    Args:
        sources: the sources of one set.
        first: index of the first of them among all sources.
        on_bad_row: ``error`` raises at the first bad row, ``skip`` sets it aside.
        system: system prompt where neither row nor source has one.
        answers: whether rows must have an answer.

    Raises:
        UserError: a bad row under ``error``, or a source without rows.
    """
    raw = RawSet([], [], [])
    for number, source in enumerate(sources, first):
        before, bad = len(raw.examples), len(raw.rejected)
        for row in source.examples(answers):
            if isinstance(row, BadRow):
                reject(row, raw.rejected, on_bad_row)
            else:
                raw.examples.append(row.with_system(source.system or system))
                raw.sources.append(number)
        if len(raw.examples) == before:
            skipped = raw.rejected[bad:]
            reason = (
                f"all of its {len(skipped)} rows are bad, the first at {describe(skipped[0])}"
                if skipped
                else "it is empty"
            )
            raise UserError(f"The source {source.name!r} has no rows: {reason}. Check its path, format and columns.")
    return raw


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
    held_out[np.random.default_rng([seed, rows]).permutation(rows)[:count]] = True
    stay, out = RawSet([], [], raw.rejected), RawSet([], [], [])
    for example, source, is_out in zip(raw.examples, raw.sources, held_out.tolist(), strict=True):
        part = out if is_out else stay
        part.examples.append(example)
        part.sources.append(source)
    return stay, out


def without_leaks(
    raw: RawSet, keys: Collection[bytes], prompts: Collection[bytes], drops: Sequence[bool]
) -> tuple[RawSet, int]:
    """Return a set without the rows that also stand in earlier sets, and how many such rows there were.

    Args:
        raw: the rows.
        keys: digests of the rows of the earlier sets.
        prompts: digests of their prompts.
        drops: for each source whether its leaks are dropped; there a known prompt is enough. Others are only counted.
    """
    kept, leaked = RawSet([], [], raw.rejected), 0
    for example, source in zip(raw.examples, raw.sources, strict=True):
        is_leak = example.prompt_key in prompts if drops[source] else example.key in keys
        leaked += is_leak
        if not (is_leak and drops[source]):
            kept.examples.append(example)
            kept.sources.append(source)
    return kept, leaked


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
