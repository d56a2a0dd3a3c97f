"""A run with sweeps at its start and in its middle ends like the run without them, to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import two_ranks
from tests.distributed.test_fsdp2 import strategy
from tests.running import run, write_rows
from tests.sweep.traces import assert_no_trace, line

KINDS = {"full": False, "lora": True}
STRATEGIES: dict[str, str] = {"ddp": "ddp", "fsdp2": json.dumps(strategy(False))}
RUNS = {"swept": True, "plain": False}


@pytest.mark.parametrize("kind", KINDS)
def test_on_one_device(kind: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    for root, swept in RUNS.items():
        verb, *arguments = line(toy_folder, rows, root, swept, adapter=KINDS[kind])
        run(verb, arguments)
    assert_no_trace(Path("swept"), Path("plain"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_on_two_ranks(name: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given: dict[str, Any] = {"trainer__strategy": STRATEGIES[name], "trainer__devices": 2, "data__num_workers": 0}
    lines = [
        line(toy_folder, rows, f"{kind}/{root}", swept, adapter=adapter, **given)
        for kind, adapter in KINDS.items()
        for root, swept in RUNS.items()
    ]
    two_ranks("work:command_lines", tmp_path, lines=lines)
    for kind in KINDS:
        assert_no_trace(tmp_path / kind / "swept", tmp_path / kind / "plain")
