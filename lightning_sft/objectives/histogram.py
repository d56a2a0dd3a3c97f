"""A measured histogram of p: how it is written, read and asked for a percentile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from lightning_sft.errors import UserError
from lightning_sft.files import to_json, write_text

FORMAT = "lightning_sft.histogram.v1"
#: of the file that `CapabilityProbe` writes beside a run
CAPABILITY = "lightning_sft.capability.v1"


def save_histogram(path: str | Path, edges: Sequence[float], counts: Sequence[float]) -> None:
    """Write a histogram of the base model's p over the supervised tokens of a training set.

    The file is JSON: ``{"format": "lightning_sft.histogram.v1", "quantity": "p", "edges": [...], "counts": [...]}``.

    Args:
        path: the file; its folder must exist.
        edges: bounds of the bins, rising, within [0, 1]; one more than ``counts``.
        counts: tokens in each bin, >= 0.

    Raises:
        UserError: edges and counts make no histogram.
    """
    edges, counts = _check(str(path), edges, counts)
    content = {"format": FORMAT, "quantity": "p", "edges": edges, "counts": counts}
    write_text(Path(path), to_json(content) + "\n")


def load_histogram(path: str | Path) -> tuple[list[float], list[float]]:
    """Read what `save_histogram` wrote, or the p before training of a run's ``capability.json``.

    Returns:
        The edges, (bins + 1), and the counts, (bins,).

    Raises:
        UserError: the file is missing or is no such histogram.
    """
    wanted = (
        "the capability.json of a run, or a JSON file as `lightning_sft.objectives.save_histogram` writes it, with "
        f'"format": "{FORMAT}"'
    )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"The histogram {str(path)!r} cannot be read ({error}). Needed: {wanted}.") from error
    if isinstance(content, dict) and content.get("format") == CAPABILITY:
        from lightning_sft.metrics.capability_reading import load_reading  # with its room comes torchmetrics

        histogram = load_reading(path).all.fine_p_histogram
        return _check(str(path), histogram.edges, histogram.counts)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"The file {str(path)!r} is no histogram of p. Needed: {wanted}.")
    return _check(str(path), content.get("edges"), content.get("counts"))


def percentile_of(edges: Sequence[float], counts: Sequence[float], percentile: float) -> float:
    """Return the value below which ``percentile`` percent of the counted tokens lie, linear inside a bin.

    The error is at most the width of the bin that holds it.
    """
    wanted, below = percentile / 100.0 * sum(counts), 0.0
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        if count and below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below += count
    return edges[-1]


def _numbers(values: object) -> TypeGuard[Sequence[float]]:
    """Return whether ``values`` is a sequence of finite numbers."""
    return isinstance(values, Sequence) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _check(name: str, edges: object, counts: object) -> tuple[list[float], list[float]]:
    """Return both as floats; raise UserError unless they make a histogram over [0, 1] with at least one token."""
    if _numbers(edges) and _numbers(counts):
        rising = all(low < high for low, high in pairwise(edges))
        within = len(edges) == len(counts) + 1 >= 2 and edges[0] >= 0 and edges[-1] <= 1
        if rising and within and min(counts) >= 0 and sum(counts) > 0:
            return [float(e) for e in edges], [float(c) for c in counts]
    raise UserError(
        f"{name!r} holds no histogram of p. Needed: edges that rise within [0, 1], one more than the counts; "
        "counts >= 0 with at least one token."
    )
