"""The Parquet file of scored rows: its columns, how it is written, and an earlier one to compare with."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import Self

from lightning_sft.errors import OutputExistsError, UserError, first_line
from lightning_sft.files import replacing

COLUMNS = pa.schema(
    [
        ("set", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("where", pa.string()),
        ("key", pa.string()),
        ("tokens", pa.int32()),
        ("nll", pa.float64()),
        ("mean_p", pa.float64()),
        ("exact_match", pa.bool_()),
        ("first_wrong", pa.int32()),
        ("lowest_logp", pa.float64()),
        ("weight", pa.float64()),
        ("answers", pa.int32()),
        ("exact_answers", pa.int32()),
        ("pass_at_1", pa.float64()),
    ]
)
TEXT = pa.field("text", pa.string())
#: of the other file, and what became of them
COMPARED = pa.schema(
    [
        ("nll_before", pa.float64()),
        ("mean_p_before", pa.float64()),
        ("exact_match_before", pa.bool_()),
        ("change", pa.float64()),
    ]
)
#: under which the file says how it was made
ABOUT = b"lightning_sft"
_JOINED = ("key", "tokens", "nll", "mean_p", "exact_match")
_SHARED = 0.5  # of the smaller file's rows; fewer in common are another data set with a few rows alike


def check_output(output: Path) -> None:
    """Raise unless a file can be written there.

    Raises:
        UserError: it exists, or does not end in ``.parquet``.
    """
    if output.suffix != ".parquet":
        raise UserError(f"--output is {str(output)!r}. Allowed: a file that ends in .parquet.")
    if output.exists():
        raise OutputExistsError(output)


@contextmanager
def writing(
    output: Path, about: Mapping[str, Any], *, text: bool, compared: bool
) -> Iterator[Callable[[Mapping[str, Sequence[Any]]], None]]:
    """Give a function that takes some rows, by column, and writes them as a row group.

    The file is written beside ``output`` and takes its name when it is whole. Compared rows are then sorted, the
    largest ``change`` first, which holds the whole table in memory once.

    Args:
        output: the file.
        about: plain data on how the rows were made, kept in the file's metadata.
        text: whether rows have ``text``.
        compared: whether rows have the columns of a comparison.
    """
    schema = COLUMNS.append(TEXT) if text else COLUMNS
    schema = pa.schema([*schema, *COMPARED]) if compared else schema
    schema = schema.with_metadata({ABOUT: json.dumps(about).encode()})
    with replacing(output) as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            yield lambda rows: writer.write_table(pa.table(dict(rows), schema=schema))
        if compared:
            table = pq.read_table(partial)
            pq.write_table(table.sort_by([("change", "descending")]), partial, compression="zstd")


class Before:
    """The rows of another file of scores, to be found by what stands in them.

    Args:
        path: the file.

    Raises:
        UserError: there is no such file, or no scores of rows are in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"--compare is {str(path)!r}, and there is no such file (looked from {Path.cwd()}).")
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                missing = [name for name in _JOINED if name not in names]
                table = None if missing else file.read(columns=list(_JOINED))
                self.about: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(ABOUT, b"{}"))
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise UserError(
                f"--compare is {str(path)!r}, which is no whole Parquet file: {first_line(error)}"
            ) from error
        if table is None:
            raise UserError(
                f"--compare is {str(path)!r}, which has no column {', '.join(missing)}. Allowed: a file that "
                "`lightning score` wrote."
            )
        self._tokens: NDArray[np.int64] = table["tokens"].to_numpy().astype(np.int64)
        self._values = {name: table[name].to_pylist() for name in ("nll", "mean_p", "exact_match")}
        self._at: dict[str, list[int]] = defaultdict(list)
        for i, key in enumerate(table["key"].to_pylist()):
            self._at[key].append(i)

    @classmethod
    def of(cls, path: Path | None) -> Self | None:
        """Return the rows of a file; None without one."""
        return None if path is None else cls(path)

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, keys: Sequence[str], tokens: Sequence[int]) -> list[int | None]:
        """Return which row of the file each of this run's rows is; None where it is not there.

        Rows of like content are paired in their order.

        Args:
            keys: digest of the content of each row.
            tokens: trained tokens of each row that are scored.

        Raises:
            UserError: the file is of another data set, or its rows were trained on other tokens.
        """
        left = {key: list(places) for key, places in self._at.items()}
        found: list[int | None] = [left[key].pop(0) if left.get(key) else None for key in keys]
        common = [(i, place) for i, place in enumerate(found) if place is not None]
        if len(common) < max(1, _SHARED * min(len(keys), len(self))):
            raise UserError(
                f"--compare is {str(self.path)!r}, which is of another data set: {len(common)} of this run's "
                f"{len(keys)} rows are among its {len(self)}. Score both models on the same rows"
                f"{self._made_of()}."
            )
        other = [(i, place) for i, place in common if tokens[i] != self._tokens[place]]
        if other:
            i, place = other[0]
            raise UserError(
                f"--compare is {str(self.path)!r}, whose rows were read as other tokens: {len(other)} of "
                f"{len(common)} common rows differ in how many are trained ({tokens[i]} here, {self._tokens[place]} "
                "there, for one). NLL per token is not comparable then. Score both with one tokenizer, chat template, "
                "data.train_on and data.max_length."
            )
        return found

    def columns(self, places: Sequence[int | None], nll: Sequence[float | None]) -> dict[str, list[Any]]:
        """Return the columns of a comparison for some rows.

        Args:
            places: of them in the file; None where it has none.
            nll: of this run.
        """
        before = {
            name: [None if place is None else values[place] for place in places]
            for name, values in self._values.items()
        }
        pairs = zip(nll, before["nll"], strict=True)
        change = [None if new is None or old is None else new - old for new, old in pairs]
        return {**{f"{name}_before": values for name, values in before.items()}, "change": change}

    def _made_of(self) -> str:
        model = self.about.get("model")
        return f" (the file was made with {model})" if model else ""
