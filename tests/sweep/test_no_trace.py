"""A run with sweeps at its start and in its middle ends like the run without them, to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.fits import fsdp2_strategy as sharded
from tests.distributed.ranks import two_ranks
from tests.running import run, write_rows
from tests.sweep.traces import assert_no_trace, line

KINDS = {"full": False, "lora": True}
RUNS = {"swept": True, "plain": False}


@pytest.mark.parametrize("kind", KINDS)
def test_on_one_device(kind: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    for root, swept in RUNS.items():
        verb, *arguments = line(toy_folder, rows, root, swept, adapter=KINDS[kind])
        run(verb, arguments)
    assert_no_trace(Path("swept"), Path("plain"))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        pytest.param("ddp", "full", id="ddp, full"),
        pytest.param("ddp", "lora", id="ddp, lora", marks=pytest.mark.slow),
        pytest.param(json.dumps(sharded(False)), "full", id="fsdp2, full"),
    ],
)
def test_on_two_ranks(strategy: str, kind: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given: dict[str, Any] = {"trainer__strategy": strategy, "trainer__devices": 2, "data__num_workers": 0}
    lines = [line(toy_folder, rows, root, swept, adapter=KINDS[kind], **given) for root, swept in RUNS.items()]
    two_ranks("work:command_lines", tmp_path, lines=lines)
    assert_no_trace(tmp_path / "swept", tmp_path / "plain")
