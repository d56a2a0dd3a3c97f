"""What the tests of the cache share: a data module under test, and everything that can be known of its sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_sft.data import SFTDataModule, Source
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.errors import UserError
from tests.toys import toy_tokenizer

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


def chat(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]}


def built(stage: str = "fit", **options: Any) -> SFTDataModule:
    data = SFTDataModule(**{"tokenizer": toy_tokenizer(), "shuffle": False, "batch_size": 4, **options})
    data.setup(stage)
    return data


def facts(data: SFTDataModule) -> str:
    """All that a set's building makes, as text: equal texts are equal sets."""
    found: dict[str, Any] = {"names": data.source_names}
    for what, report in data.report.items():
        fields = {k: v.tolist() if isinstance(v, np.ndarray) else repr(v) for k, v in vars(report).items()}
        types = [str(getattr(report, name).dtype) for name in ("lengths", "full_lengths", "trained")]
        dataset, of_set = data.dataset(what), data.sets[what]
        arrays = {name: getattr(dataset, name) for name in ("ids", "trained", "lengths", "ends", "sources")}
        known = data.sets._known(what)
        found[what] = [
            {name: [str(array.dtype), array.tolist()] for name, array in arrays.items()},
            [fields, types, of_set.kept.tolist(), of_set.fingerprint, known.tobytes().hex()],
            [] if what == "train" else list(map(repr, of_set.examples)),
        ]
        if what != "train":
            rows = data.generation_rows(what, 5)
            found[what] += [list(map(repr, rows)), [data.score(row, str(row.reference)) for row in rows]]
    return json.dumps(found, indent=1)


def outcome(stage: str, **options: Any) -> str:
    """Facts of the sets, or the error."""
    try:
        return facts(built(stage, **options))
    except UserError as error:
        return str(error)


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else []


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.endswith(".partial")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def untouchable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither reads files nor tokenises from here on."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(Encoder, "__call__", refuse)
    monkeypatch.setattr(Source, "examples", refuse)
