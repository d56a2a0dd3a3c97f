"""Sources -> one encoded set with its report: the only place where rows are counted out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.contexts import ContextWeights
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.encoding.parallel import encode_rows
from lightning_sft.data.encoding.truncate import Truncation, truncate
from lightning_sft.data.sets import OnBadRow, RawSet, describe, reject
from lightning_sft.data.storage.dataset import BuiltSet, SetReport, TokenDataset
from lightning_sft.data.types import BadRow, BadRowError, Encoded, Example
from lightning_sft.errors import UserError


@dataclass(frozen=True)
class BuildOptions:
    """How rows become a set; see `SFTDataModule`."""

    max_length: int | None = None
    truncation: Truncation = "error"
    on_bad_row: OnBadRow = "error"
    num_proc: int | None = None

    def identity(self) -> list[Any]:
        """Return what the rows depend on, as plain data."""
        return [self.max_length, self.truncation, self.on_bad_row]


def build(raw: RawSet, names: Sequence[str], encoder: Encoder, options: BuildOptions, what: str) -> BuiltSet:
    """Encode a set.

    Args:
        raw: the rows.
        names: names of all sources, by index.
        encoder: rows -> tokens.
        options: see there.
        what: name of the set, for messages.

    Raises:
        UserError: a row cannot be encoded under ``on_bad_row: error``, is too long under ``truncation: error``, or
            nothing is left.
    """
    report = SetReport(rejected=list(raw.rejected))
    encoded: list[Encoded] = []
    kept: list[int] = []
    full_lengths: list[int] = []
    too_long: list[tuple[int, str]] = []
    first, on_bad_row = encoder.tokenizer.bos_token_id, options.on_bad_row
    weigh = ContextWeights(encoder.loss_weights.contexts if what == "train" else {})
    with closing(encode_rows(encoder, raw.examples, options.num_proc, what)) as rows:
        for i, (example, row) in enumerate(zip(raw.examples, rows, strict=True)):
            if isinstance(row, UserError):
                raise row
            if isinstance(row, BadRowError):
                reject(BadRow(example.where, str(row), code=row.code), report.rejected, on_bad_row)
                continue
            if options.max_length is not None and len(row.ids) > options.max_length:
                if options.truncation == "error":
                    too_long.append((len(row.ids), example.where))
                    continue
                cut = truncate(row, options.max_length, options.truncation, first)
                if cut is None:
                    report.dropped += 1
                    continue
                report.truncated += 1
            else:
                cut = row
            weighed = weigh(cut)
            if cut.trained[1:].any() and not weighed.trained[1:].any():  # nothing predicts the first token
                reject(BadRow(example.where, _WEIGHS_NOTHING, code=Code.NOTHING_TRAINED), report.rejected, on_bad_row)
                continue
            encoded.append(weighed)
            full_lengths.append(len(row.ids))
            kept.append(i)
    if too_long:
        raise UserError(
            f"{len(too_long)} of {len(raw.examples)} rows of {what} are longer than max_length={options.max_length}; "
            f"longest: {max(too_long)[0]} tokens ({max(too_long)[1]}). Raise max_length, or set data.truncation: "
            "drop, left, right or keep_completion."
        )
    if not encoded:
        raise UserError(
            f"No rows are left in {what}: of {len(raw.examples) + len(raw.rejected)} rows, {len(report.rejected)} were "
            f"bad and {report.dropped} dropped by truncation: {options.truncation} at max_length={options.max_length}."
            + (f" The first bad row: {describe(report.rejected[0])}" if report.rejected else "")
        )
    sources = [raw.sources[i] for i in kept]
    report.rows = len(encoded)
    report.lengths = np.array([len(row.ids) for row in encoded], np.int64)
    report.full_lengths = np.array(full_lengths, np.int64)
    report.trained = np.array([int(row.trained.sum()) for row in encoded], np.int64)
    report.negative = sum(row.weights is not None and bool((row.weights[row.trained] < 0).any()) for row in encoded)
    report.contexts = weigh.found
    report.masks = dict(Counter(row.mask.value for row in encoded))
    report.unused = _unused([raw.examples[i] for i in kept], encoder.template.every_source)
    report.source_rows = {names[s]: sources.count(s) for s in dict.fromkeys(sources)}
    examples = [raw.examples[i] for i in kept]
    return BuiltSet(TokenDataset(encoded, sources), examples, report, np.array(kept, np.int64), fingerprint(examples))


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a digest of examples in their order."""
    return hashlib.blake2b(b"".join(example.key for example in examples), digest_size=16).hexdigest()


_WEIGHS_NOTHING = (
    "nothing would be trained: data.loss_weights.contexts gives weight 0 to the only tokens of the row that are. Give "
    "them another weight, or leave the row out."
)


def _unused(examples: Sequence[Example], template: str) -> dict[str, int]:
    """Return in how many rows each column or key stands that nothing reads; a template may read keys of messages."""
    counts = Counter(name for example in examples for name in example.unused)
    return {
        name: rows
        for name, rows in counts.most_common()
        if not (name.startswith("messages.") and name.removeprefix("messages.") in template)
    }
