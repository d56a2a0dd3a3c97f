"""Instruments on two ranks: one reading decides for both, and leftovers of a killed run are cleared away."""

import json
from pathlib import Path

import torch

from tests.distributed.instruments import exposures, parts
from tests.distributed.ranks import two_ranks
from tests.running import toy_arguments, write_rows


def test_a_prediction_starts_from_one_reading_on_every_rank(tmp_path: Path) -> None:
    first, second = two_ranks("instruments:prediction", tmp_path)
    assert first["start"] == second["start"] == -2.0, "rank 0's reading"
    assert first["found"] == second["found"]
    assert torch.equal(first["x"], second["x"])


def test_exposures_are_forecast_and_graded_on_two_ranks_as_on_one(toy_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": "say ", "completion": f"{'wz'[i % 2]}or{i}"}) + "\n" for i in range(80))
    )
    given = {"model": str(toy_folder), "rows": str(rows)}
    first, second = two_ranks("instruments:exposures", tmp_path, **given)
    plain, _ = two_ranks("instruments:exposures", tmp_path, **given, asked=False)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["weights"], plain["weights"]), "the short runs left a trace"
    assert first["said"] == second["said"]
    said, alone = json.loads(first["said"]), json.loads(exposures(0, **given, devices=1)["said"])
    assert (said["rows_per_step"], said["seen"]) == (4, alone["seen"])
    for on_two, on_one in zip(said["probes"], alone["probes"], strict=True):
        assert on_two["outcome"] == on_one["outcome"]
        assert (on_two["step"] is None) == (on_one["step"] is None)
        if on_two["step"] is not None:
            assert abs(on_two["step"] - on_one["step"]) < 0.5
    assert {probe["outcome"] for probe in said["probes"]} >= {"flips"}


def test_held_out_rows_are_dealt_alike_by_all_ranks(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given = {"model": str(toy_folder), "rows": str(rows)}
    first, second = two_ranks("instruments:parts", tmp_path, **given)
    alone = parts(0, **given, devices=1)
    for count in ("1", "3"):
        assert torch.equal(first[count], second[count])
        assert torch.allclose(first[count], alone[count], rtol=1e-6)
    assert first["refused"] == second["refused"] == alone["refused"]
    assert "There are 7 held-out rows, and 8 parts" in alone["refused"]


def test_predictions_survive_leftovers_of_a_killed_run(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", count=5)
    left = tmp_path / ".answers.jsonl.parts"
    left.mkdir()
    for rank in (1, 3):  # of a run on four ranks
        (left / f"{rank}.jsonl").write_text(json.dumps({"index": 77}) + "\n")
    (left / ".2.jsonl.partial").write_text("cut o")
    writer = {"class_path": "PredictionWriter", "init_args": {"path": "answers.jsonl"}}
    given = {"data__train": None, "data__predict": rows, "data__val_split": None, "model__max_new_tokens": 2}
    ranks = {"trainer__strategy": "ddp", "trainer__devices": 2, "trainer__max_steps": None}
    arguments = toy_arguments(toy_folder, rows, **given, **ranks, trainer__callbacks=json.dumps([writer]))
    arguments = [argument for argument in arguments if not argument.startswith("--data.train")]
    two_ranks("instruments:predict", tmp_path, arguments=arguments)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(5))
    assert not left.exists()
