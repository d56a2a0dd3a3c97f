"""A run that goes on under another number of ranks: the rows of each step, and the losses, of the uninterrupted one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.cli.entry import main
from tests.distributed.fits import fit_arguments, last_checkpoint
from tests.distributed.ranks import some_ranks
from tests.distributed.recorder import rows_of_steps
from tests.running import run, run_folder, scalars, write_rows

RECORDER = "--trainer.callbacks+=tests.distributed.recorder.RowRecorder"
#: 26 rows of which 4 are held out: 6 steps of 4 rows an epoch, the last one short
STEPS = (4, 9, 14)
ROWS = 26


def line(model: Path, rows: Path, root: str, steps: int, devices: int, **given: Any) -> list[str]:
    """A fit of 4 rows a step, by one rank that accumulates or by two, up to a step; it goes on where there was one."""
    fsdp2 = given.pop("fsdp2", None)
    sizes = {"data_parallel_size": devices, "tensor_parallel_size": 1, "save_distributed_checkpoint": fsdp2 == "shards"}
    strategy: Any = {"class_path": "ModelParallelStrategy", "init_args": sizes}
    strategy = json.dumps(strategy) if fsdp2 else "ddp" if devices > 1 else "auto"
    settings = {
        "model__dtype": "float64",
        "trainer__max_steps": steps,
        "trainer__max_epochs": -1,
        "trainer__devices": devices,
        "trainer__strategy": strategy,
        "trainer__accumulate_grad_batches": 2 // devices,
        "trainer__default_root_dir": root,
        **given,
    }
    again = ["--ckpt_path=last"] if steps != STEPS[0] else []
    return [*fit_arguments(model, rows, dropout=0.0, **settings), RECORDER, *again]


def assert_the_same_run(root: Path, whole: Path) -> None:
    assert rows_of_steps(root) == rows_of_steps(whole)
    assert len(rows_of_steps(whole)) == STEPS[-1]
    readings, expected = (scalars(run_folder(folder / "lightning_logs")) for folder in (root, whole))
    for key in ("train/loss", "train/grad_norm"):
        assert readings[key] == [(s, pytest.approx(v, rel=1e-5)) for s, v in expected[key]], key
    got, weights = (last_checkpoint(folder)["state_dict"] for folder in (root, whole))
    for name, value in weights.items():
        assert (got[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.fixture(scope="module")
def whole(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the rows, and of a run on one device in one go."""
    folder = tmp_path_factory.mktemp("elastic")
    verb, *words = line(toy_folder, write_rows(folder / "rows.jsonl", ROWS), str(folder / "whole"), STEPS[-1], 1)
    run(verb, words[:-1])
    return folder / "whole"


@pytest.mark.parametrize("order", ["shuffled", "packed"])
def test_batch_size_for_accumulation(order: str, whole: Path, toy_folder: Path) -> None:
    """One device reads its 4 rows a step as 2 x 2, as 4 at once, and one by one."""
    rows, how, expected = whole.parent / "rows.jsonl", {}, whole
    if order == "packed":
        how, expected = {"data__order": "packed", "data__max_length": 90}, Path("packed")
        main(line(toy_folder, rows, "packed", STEPS[-1], 1, **how)[:-1])
    for steps, batch_size in zip(STEPS, (2, 4, 1), strict=True):
        sizes = {"data__batch_size": batch_size, "trainer__accumulate_grad_batches": 4 // batch_size}
        main(line(toy_folder, rows, "parts", steps, 1, **sizes, **how))
    assert_the_same_run(Path("parts"), expected)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "strategy", ["ddp, 1 2 1", "shards, 2 1 2", pytest.param("file, 2 1 2", marks=pytest.mark.slow)]
)
def test_another_number_of_ranks(strategy: str, whole: Path, toy_folder: Path) -> None:
    kind, *devices = strategy.replace(",", "").split()
    rows, how = whole.parent / "rows.jsonl", {} if kind == "ddp" else {"fsdp2": kind}
    for steps, ranks in zip(STEPS, map(int, devices), strict=True):
        command = line(toy_folder, rows, str(Path("parts").absolute()), steps, ranks, **how)
        if ranks == 1 and kind == "ddp":
            main(command)
        else:
            some_ranks(ranks, "work:command_lines", Path.cwd(), lines=[command])
    assert_the_same_run(Path("parts"), whole)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more rows a step": (
        {"data__batch_size": 4},
        r"batch_size 2 \(now 4\): its optimizer steps have 4 rows.*would have 8.*trainer.accumulate_grad_batches: 1",
    ),
    "no whole number": ({"data__batch_size": 3}, r"Set data.batch_size: 4.*lightning-sft export"),
    "grouped": (
        {"data__batch_size": 4, "trainer__accumulate_grad_batches": 1, "data__order": "grouped"},
        r"under data.order: grouped, where the 2 rows .* would be 4. Set data.batch_size: 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_on_is_refused_with_the_way_out(
    case: str, whole: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, message = REFUSED[case]
    order = {k: v for k, v in changed.items() if k == "data__order"}
    rows = whole.parent / "rows.jsonl"
    main(line(toy_folder, rows, "parts", STEPS[0], 1, **order))
    with pytest.raises(SystemExit) as stop:
        main(line(toy_folder, rows, "parts", STEPS[1], 1, **changed))
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
