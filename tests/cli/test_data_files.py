"""Files of every ending that the docs name, through the command line: looked at, and trained on for two steps."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_sft.cli.entry import main
from lightning_sft.places import COMPRESSIONS, SUFFIXES
from tests.running import run, run_folder, scalars, toy_arguments

PAIRS = [{"prompt": f"Name fruit {i}.", "completion": "A pear."} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
FORMATS = {
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A pear."}]},
    "sharegpt": {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "bot", "value": "A pear."}]},
    "prompt_completion": PAIRS[0],
    "alpaca": {"instruction": "Name a fruit.", "input": " ", "output": "A pear."},
    "text": {"text": "A pear."},
}


def write(path: Path) -> Path:
    """Write the pairs in the form that the ending names."""
    table = pa.Table.from_pylist(PAIRS)
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = [list(PAIRS[0]), *(list(row.values()) for row in PAIRS)]
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(LINES)
    else:
        contents = {
            ".json": json.dumps(PAIRS).encode(),
            ".csv": "".join(delimiter.join(row) + "\n" for row in rows).encode(),
            ".tsv": "".join(delimiter.join(row) + "\n" for row in rows).encode(),
            ".txt": b"A pear.\n" * 4,
            ".gz": gzip.compress(LINES),
            ".bz2": bz2.compress(LINES),
            ".xz": lzma.compress(LINES),
        }
        path.write_bytes(contents.get(path.suffix, LINES))
    return path


ENDINGS = (*SUFFIXES, *(f".jsonl{ending}" for ending in COMPRESSIONS))


@pytest.mark.parametrize("ending", ENDINGS)
def test_inspect_reads_files_as_data(ending, toy_folder, tmp_path, capsys):
    path = write(tmp_path / f"rows{ending}")
    main(["inspect", f"--model.model_name_or_path={toy_folder}", f"--data.train={path}", "--rows=1", "--color=false"])
    printed = capsys.readouterr().out
    assert "train: 4 rows" in printed
    assert "A pear.<|im_end|>⟧" in printed


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_of_every_format(name, toy_folder, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([FORMATS[name]] * 2))
    (tmp_path / "c.yaml").write_text(
        f"model: {{model_name_or_path: {toy_folder}}}\n"
        f"data:\n  train: {path}\n  val: [{path}]\n  on_unanswered: drop_tail\n"
    )
    main(["inspect", "--config", str(tmp_path / "c.yaml"), "--color=false"])
    printed = capsys.readouterr().out
    assert "A pear.<|im_end|>⟧" in printed
    assert "val: 2 rows" in printed
    known = "the row itself" if name == "text" else "turns found"
    assert f"what is trained is known from: {known}" in printed


@pytest.mark.parametrize(
    "ending", [e if e in (".json", ".csv") else pytest.param(e, marks=pytest.mark.slow) for e in ENDINGS]
)
def test_fit_on_files_of_every_ending(ending, toy_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, val = (write(tmp_path / f"{name}{ending}") for name in ("train", "val"))
    settings = {"data__val": val, "data__val_split": None, "data__batch_size": 2, "trainer__max_steps": 2}
    run("fit", toy_arguments(toy_folder, train, **settings))
    assert len(scalars(run_folder())["train/loss"]) == 2
