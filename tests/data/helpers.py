"""Small things that the tests of the data room share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained_text(tokenizer: Any, batch: dict[str, Tensor], row: int = 0) -> str:
    """Decode what row ``row`` of a batch trains."""
    labels = batch["labels"][row]
    return tokenizer.decode(labels[labels != -100])
