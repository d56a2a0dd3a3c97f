"""Fresh draws of rows: tasks draw anew, files are dealt out, splits follow the seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.data import ReasoningGymTask, SFTDataModule
from lightning_sft.data.draws import Part, draw_afresh, needs_parts
from lightning_sft.data.reading.sources import Source
from lightning_sft.errors import UserError
from tests.running import write_rows
from tests.toys import toy_tokenizer


def task(seed: int) -> ReasoningGymTask:
    return ReasoningGymTask("chain_sum", size=12, seed=seed, config={"min_terms": 2, "max_terms": 2})


def rows(module: SFTDataModule) -> dict[str, list[tuple[int, ...]]]:
    module.tokenizer = toy_tokenizer()
    module.setup("fit")
    sets = {what: module.dataset(what) for what in ("train", "val")}  # type: ignore[arg-type]
    return {what: [tuple(data[i].ids.tolist()) for i in range(len(data))] for what, data in sets.items()}


def drawn(seed: int, part: int = 0, parts: int = 1, **settings: Any) -> dict[str, list[tuple[int, ...]]]:
    module = SFTDataModule(cache_dir=False, **settings)
    draw_afresh(module.sets, seed, part, parts, deal=5)
    return rows(module)


def test_tasks_draw_anew_by_the_seed() -> None:
    one, again, other = (drawn(seed, train=task(0), val=task(1)) for seed in (1, 1, 2))
    assert one == again
    for what in ("train", "val"):
        assert not set(one[what]) & set(other[what])
    assert not set(one["train"]) & set(one["val"]), "sources of one run stay apart"
    assert not needs_parts(SFTDataModule(train=task(0), val=task(1)).sets)


def test_what_a_split_holds_out_follows_the_seed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    one, other = (drawn(seed, train=str(path), val_split=8) for seed in (1, 2))
    assert set(one["val"]) != set(other["val"])
    assert sorted(one["train"] + one["val"]) == sorted(other["train"] + other["val"])


def test_a_file_of_validation_rows_is_dealt_out(tmp_path: Path) -> None:
    train, val = write_rows(tmp_path / "train.jsonl"), write_rows(tmp_path / "val.jsonl", count=11, longest=5)
    given = {"train": str(train), "val": {"short": [Source(str(val))]}}
    assert needs_parts(SFTDataModule(**given).sets)  # type: ignore[arg-type]
    parts = [drawn(seed, seed, 3, **given)["val"] for seed in range(3)]
    assert sorted(map(len, parts)) == [3, 4, 4]
    assert sorted(row for part in parts for row in part) == sorted(drawn(9, **given)["val"])


def test_bad_rows_are_counted_once_and_too_few_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": f"say {i}", "completion": str(i)}) for i in range(5)]
    path.write_text("\n".join([*good[:2], "no json", *good[2:]]) + "\n")
    source = Source(str(path), format="prompt_completion")
    counts = [len(list(Part(source, number, 2, 0).examples())) for number in (0, 1)]
    assert sum(counts) == 6
    assert Part(source, 0, 2, 0).identity() != Part(source, 1, 2, 0).identity()
    with pytest.raises(UserError, match="has 5 rows to judge by, and each of 6 replicates"):
        list(Part(source, 0, 6, 0).examples())
    with pytest.raises(UserError, match="Allowed: 0 to 1"):
        Part(source, 2, 2, 0)
