"""Rows as the model will see them, as text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sft.data.storage.dataset import Row, SetReport
from lightning_sft.held_out import too_few
from lightning_sft.units import plural

if TYPE_CHECKING:
    from lightning_sft.data.datamodule import SFTDataModule

GREEN, RESET = "\x1b[1;32m", "\x1b[0m"
OPEN, CLOSE = "\u27e6", "\u27e7"
REJECTED_SHOWN = 5


def inspect(datamodule: SFTDataModule, tokenizer: Any, rows: int = 3, color: bool = False) -> str:
    """Describe the training and validation rows, and show the first rows of training token by token.

    Args:
        datamodule: the data; it is read and tokenised here, no model is needed.
        tokenizer: the model's tokenizer.
        rows: how many rows to show.
        color: show trained tokens in green; else they stand between white square brackets.

    Returns:
        Text of several lines.
    """
    datamodule.tokenizer = tokenizer
    datamodule.setup("fit")
    blocks = summaries(datamodule.report)
    mark = f"{GREEN}green{RESET}" if color else f"between {OPEN} and {CLOSE}"
    blocks.append(f"Trained tokens are {mark}.")
    dataset, report = datamodule.dataset("train"), datamodule.report["train"]
    for index in range(min(rows, len(dataset))):
        row = dataset[index]
        trained, length, full = int(row.trained.sum()), len(row.ids), int(report.full_lengths[index])
        cut = f", truncated from {full}" if full > length else ""
        share = f"{trained} trained ({trained / length:.1%})"
        head = f"train row {index}, source {datamodule.source_names[row.source]}: {length} tokens{cut}, {share}"
        blocks.append(f"{head}\n{show(tokenizer, row.ids, row.trained, color, training_weights(datamodule, row))}")
    return "\n\n".join(blocks) + "\n"


def summaries(report: Mapping[str, SetReport]) -> list[str]:
    """Return a text about each set that was built: rows, tokens, lengths, leaks, columns that nothing reads."""
    return [_summary(what, of_set) for what, of_set in report.items()]


def show(
    tokenizer: Any,
    ids: np.ndarray[Any, Any],
    trained: np.ndarray[Any, Any],
    color: bool,
    weights: np.ndarray[Any, Any] | None = None,
) -> str:
    """Return token ids as text with the trained ones marked, and behind those of another weight than 1 their weight."""
    opening, closing = (GREEN, RESET) if color else (OPEN, CLOSE)
    counts = np.where(trained, 1.0 if weights is None else weights, 0.0)
    cuts = [0, *(np.flatnonzero(counts[1:] != counts[:-1]) + 1).tolist(), len(ids)]
    text = ""
    for start, end in pairwise(cuts):
        part = tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False)
        weight = float(counts[start])
        text += f"{opening}{part}{closing}" + (f"\u00d7{weight:g}" if weight != 1 else "") if trained[start] else part
    return text


def training_weights(datamodule: SFTDataModule, row: Row) -> np.ndarray[Any, Any] | None:
    """Return the weights of a row's tokens as training will see them, (length,); None for 1."""
    of_sources = datamodule.loss_weights.of_sources(datamodule.source_names)
    if of_sources is None:
        return row.weights
    own = np.ones(len(row.ids), np.float32) if row.weights is None else row.weights
    return own * np.float32(of_sources[row.source])


def _summary(what: str, report: SetReport) -> str:
    lengths = report.lengths
    low, middle, high, top = (int(np.percentile(lengths, q)) for q in (0, 50, 90, 100))
    sources = ", ".join(f"{name} {rows}" for name, rows in report.source_rows.items())
    lines = [
        f"{what}: {plural(report.rows, 'row')} ({sources})",
        f"  tokens: {report.tokens}, of which {report.trained_share:.1%} trained",
        f"  length: shortest {low}, median {middle}, 90% up to {high}, longest {top}",
        f"  truncated {report.truncated}, dropped as too long {report.dropped}, skipped as bad {len(report.rejected)}",
    ]
    if what == "val" and (few := too_few(report.rows)):
        lines.append(f"  few: {few}")
    if report.packs:
        lines.append(f"  packed: {plural(report.packs, 'pack')}, {report.pack_efficiency:.1%} full")
    if what != "train":
        lines.append(f"  leaks: {_leaks(what, report)}")
    lines.append(f"  what is trained is known from: {_counted(report.masks)}")
    if report.unused:
        lines.append(f"  not used: {_counted(report.unused)}")
    lines += [f"  contexts of {file}: {found} of {given} found" for file, (found, given, _) in report.contexts.items()]
    if report.codes:
        lines.append(f"  skipped by cause: {_counted(report.codes)}")
    lines += [f"  skipped {row.where}: {row.code.value}: {row.reason}" for row in report.rejected[:REJECTED_SHOWN]]
    return "\n".join(lines)


def _leaks(what: str, report: SetReport) -> str:
    """Say how many rows of a set also stand in an earlier one, and whether they are dropped or kept."""
    earlier, kept = "train" if what == "val" else "train or val", report.leaked - report.leaked_dropped
    if not report.leaked:
        return f"no row also stands in {earlier}"
    stand = "1 row also stands" if report.leaked == 1 else f"{report.leaked} rows also stand"
    if not kept:
        return f"{stand} in {earlier}; dropped from {what}"
    some = f"{report.leaked_dropped} dropped from {what}, {kept} kept" if report.leaked_dropped else "not dropped"
    return f"{stand} in {earlier}; {some}"


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in rows.items())
