"""Read every row of some sets with a finished model, and write what it makes of each."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_sft.data import SFTDataModule
from lightning_sft.data.batches.collate import Collator
from lightning_sft.data.encoding.tokenizer import pad_token_id
from lightning_sft.data.inspect import show, training_weights
from lightning_sft.data.storage.dataset import Row, TokenDataset
from lightning_sft.errors import UserError
from lightning_sft.metrics.answers import answer_spans
from lightning_sft.metrics.rows import RowReading, read_rows
from lightning_sft.models.finished import FinishedModel
from lightning_sft.models.generation import end_tokens
from lightning_sft.scores import IGNORED
from lightning_sft.scoring.table import Before, check_output, writing

What = Literal["train", "val", "test"]
STAGES = {"train": "fit", "val": "validate", "test": "test"}
#: rows that are read, sorted by length and written together
WINDOW = 2048


@dataclass
class SetSummary:
    """Sums over the rows of one set, for a printed line.

    Attributes:
        rows: number of rows.
        tokens: trained tokens that were scored.
        nll: sum over them, in nats.
        p: sum of their probabilities.
        answers: complete answers.
        exact: how many of them are exact.
    """

    rows: int = 0
    tokens: int = 0
    nll: float = 0.0
    p: float = 0.0
    answers: int = 0
    exact: int = 0


@dataclass
class ScoreReport:
    """What a pass over the rows found.

    Attributes:
        sets: sums by name of the set.
        worst: rows with the highest NLL or, compared, those that rose most: the number, and the row by column.
        compared: rows that the other file has, too; None if nothing was compared.
        gained, lost: of them, how many became exact, and how many ceased to be.
    """

    sets: dict[str, SetSummary] = field(default_factory=dict)
    worst: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    compared: int | None = None
    gained: int = 0
    lost: int = 0

    def add(self, columns: Mapping[str, Sequence[Any]], top: int) -> None:
        """Add rows, given by column."""
        order = "nll" if self.compared is None else "change"
        for i in range(len(columns["row"])):
            line = {name: values[i] for name, values in columns.items() if name != "text"}
            of_set = self.sets.setdefault(line["set"], SetSummary())
            of_set.rows += 1
            of_set.tokens += line["tokens"]
            of_set.nll += (line["nll"] or 0.0) * line["tokens"]
            of_set.p += (line["mean_p"] or 0.0) * line["tokens"]
            of_set.answers += line["answers"]
            of_set.exact += line["exact_answers"]
            if self.compared is not None and line["change"] is not None:
                self.compared += 1
                was, now = line["exact_match_before"], line["exact_match"]
                self.gained += was is False and now is True
                self.lost += was is True and now is False
            if line[order] is not None:
                self.worst.append((line[order], line))
        self.worst = heapq.nlargest(top, self.worst, key=lambda pair: pair[0])


@dataclass(frozen=True)
class _Set:
    """One set as it is scored: its rows, where each stands, and a digest of what each says."""

    what: What
    dataset: TokenDataset
    where: list[str]
    keys: list[str]
    names: Mapping[int, str]  # source -> set


def score_rows(
    model: FinishedModel,
    data: SFTDataModule,
    output: str | Path,
    *,
    sets: Sequence[What] = ("train", "val", "test"),
    compare: str | Path | None = None,
    text: bool = False,
    top: int = 10,
) -> ScoreReport:
    """Score every row of some sets, and write a Parquet file with a line a row.

    Some 2,000 rows are in memory as tensors at a time; a comparison holds the table, too. The file is there when it
    is whole, and never before.

    Args:
        model: of whatever trainer, see `load_finished`; its tokenizer reads the rows.
        data: the rows. Those of ``train`` are scored as well, each once.
        output: the file; it must not exist.
        sets: which sets; those that the data module does not have are left out.
        compare: a file that an earlier call wrote about another model on the same rows.
        text: whether to write the text of each row, its trained tokens marked.
        top: how many of the worst rows the report holds.

    Raises:
        UserError: the output exists, there is no set, or the file to compare with is of other rows.
    """
    output = Path(output)
    check_output(output)
    before = Before.of(None if compare is None else Path(compare))
    chosen = [_load(data, what, model.tokenizer) for what in dict.fromkeys(sets) if data.sets.has(what)]
    if not chosen:
        raise UserError(f"There is nothing to score: the data have none of the sets {', '.join(sets)}.")
    places: Iterator[int | None] = iter(())
    if before is not None:
        keys = [key for s in chosen for key in s.keys]
        places = iter(before.find(keys, [n for s in chosen for n in _scored_tokens(s.dataset)]))
    report = ScoreReport(compared=None if before is None else 0)
    about = {"version": 1, "model": model.name, "step": model.step, "base": model.base}
    with writing(output, about, text=text, compared=before is not None) as write:
        for one in chosen:
            for start in range(0, len(one.dataset), WINDOW):
                columns = _window(model, data, one, range(start, min(start + WINDOW, len(one.dataset))), text)
                if before is not None:
                    columns |= before.columns([next(places) for _ in columns["row"]], columns["nll"])
                write(columns)
                report.add(columns, top)
    return report


def _load(data: SFTDataModule, what: What, tokenizer: Any) -> _Set:
    data.tokenizer = tokenizer
    data.setup(STAGES[what])
    examples = data.sets.examples(what)
    names = {i: f"{what}/{s.name}" for s in data.named_sets.get(what, ()) for i in s.sources}
    where, keys = zip(*((example.where, example.key.hex()) for example in examples), strict=True)
    return _Set(what, data.dataset(what), list(where), list(keys), names)


def _scored_tokens(dataset: TokenDataset) -> Iterator[int]:
    """Yield how many trained tokens of each row have a token before them."""
    for i in range(len(dataset)):
        yield int(dataset[i].trained[1:].sum())


def _window(model: FinishedModel, data: SFTDataModule, one: _Set, indices: range, text: bool) -> dict[str, list[Any]]:
    """Return some rows by column, in their order; read in batches of like length."""
    rows = [one.dataset[i] for i in indices]
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    readings: dict[str, NDArray[Any]] = {}
    collate = Collator(pad_token_id(model.tokenizer), data.pad_to_multiple_of)
    ends = end_tokens(model.causal_lm, model.tokenizer)
    for start in range(0, len(rows), data.val_batch_size):
        chosen = by_length[start : start + data.val_batch_size]
        reading = _read(model, collate([rows[i] for i in chosen]), ends)
        for name, values in reading._asdict().items():
            column = readings.setdefault(name, np.empty(len(rows), values.cpu().numpy().dtype))
            column[chosen] = values.cpu().numpy()
    plain: dict[str, list[Any]] = {
        name: [None if value != value else value for value in column.tolist()] for name, column in readings.items()
    }
    exact = zip(plain["answers"], plain["exact"], strict=True)
    return {
        "set": [one.names.get(row.source, one.what) for row in rows],
        "source": [data.source_names[row.source] for row in rows],
        "row": list(indices),
        "where": one.where[indices.start : indices.stop],
        "key": one.keys[indices.start : indices.stop],
        "tokens": plain["tokens"],
        "nll": plain["nll"],
        "mean_p": plain["mean_p"],
        "exact_match": [right == answers if answers else None for answers, right in exact],
        "first_wrong": [None if place < 0 else place for place in plain["first_wrong"]],
        "lowest_logp": plain["lowest_logp"],
        "weight": [_weight(data, row) for row in rows],
        "answers": plain["answers"],
        "exact_answers": plain["exact"],
        "pass_at_1": plain["pass_at_1"],
        **({"text": [show(model.tokenizer, row.ids, row.trained, color=False) for row in rows]} if text else {}),
    }


def _read(model: FinishedModel, batch: dict[str, Tensor], ends: Sequence[int]) -> RowReading:
    batch.pop("loss_weight", None)  # every token counts once here
    output = model.score(batch)
    row, place = (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True)
    spans = answer_spans(batch["labels"].to(output.scores.logp.device), ends)
    return read_rows(output.scores, spans, row, place + 1, len(batch["labels"]))


def _weight(data: SFTDataModule, row: Row) -> float:
    """Return the mean weight of a row's trained tokens in the loss of training."""
    weights = training_weights(data, row)
    if weights is None or not row.trained.any():
        return 1.0
    return float(weights[row.trained].mean())


def describe(report: ScoreReport, output: Path) -> str:
    """Return the report as text of several lines."""
    lines = [f"{'set':<20}{'rows':>9}{'tokens':>11}{'nll':>9}{'mean p':>9}{'exact match':>13}"]
    for name, s in report.sets.items():
        nll, p = (total / s.tokens if s.tokens else math.nan for total in (s.nll, s.p))
        exact = f"{s.exact / s.answers:.4f}" if s.answers else "-"
        lines.append(f"{name:<20}{s.rows:>9}{s.tokens:>11}{nll:>9.4f}{p:>9.4f}{exact:>13}")
    if report.compared is not None:
        rows = sum(s.rows for s in report.sets.values())
        lines.append(
            f"compared: {report.compared} of {rows} rows; exact match gained in {report.gained}, lost in {report.lost}"
        )
    if report.worst:
        lines.append("highest NLL:" if report.compared is None else "largest rise of NLL:")
    for value, line in report.worst:
        lines.append(f"{value:>9.4f}  {line['set']}  {line['where']}  (lowest logp {line['lowest_logp']:.2f})")
    return "\n".join([*lines, f"Written, a line a row, to {output}"])
