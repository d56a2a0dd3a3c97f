"""The benchmarks run, on toys and without peers: their tables have the rows that they promise."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_sft import SFTModule
from lightning_sft.data import SFTDataModule
from tests.benchmarks import corpus, data_path, head, predict_grid, silent, step, utilisation, validation, waits
from tests.benchmarks.predict_cells import OPTIMIZERS, Lion, cells
from tests.benchmarks.predict_strangers import strangers
from tests.benchmarks.predict_widths import KEPT_ASIDE, rehearsed, widths
from tests.benchmarks.turns import count, heats
from tests.running import write_rows
from tests.toys import save_toy

TINY = {"toy": (12, 8, 40)}


def rows_of(table: str) -> dict[str, list[str]]:
    """The cells of each row of a Markdown table, by its first cell."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_head_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str):
    monkeypatch.setattr(head, "SIZES", TINY)
    monkeypatch.setattr(head, "peers", lambda device: {})
    head.timing("toy", dtype, rounds=1, skip=["GEM"])
    rows = rows_of(capsys.readouterr().out)
    assert {"plain", "bare products", "fused NLL", "fused cross-token"} <= set(rows)
    assert "fused GEM" not in rows


def test_head_accuracy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(head, "SIZES", {"toy": (12, 16, 300)})
    head.accuracy("toy", "bf16")
    cells = capsys.readouterr().out.strip("| \n").split(" | ")
    assert int(cells[1]) > 0
    assert float(cells[3]) < float(cells[2])


def test_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Ours and a plain Trainer of transformers, in processes of their own, on the same batches, heat by heat."""
    model, data = save_toy(tmp_path / "toy"), write_rows(tmp_path / "rows.jsonl", 30)
    names = [step.OURS, "its parts in a bare loop", "its matrix products alone", "Hugging Face Trainer"]
    sizes = ["--batch-size", "2", "--rounds", "2", "--precisions", "fp32", "--together", "3"]
    step.main(["--model", str(model), "--data", str(data), "--contenders", *names, *sizes])
    _, first, first_phases, second, second_phases = re.split(
        r"[^\n]* supervised, |\| CPU s of", capsys.readouterr().out
    )
    assert [set(rows_of(table)) & set(names) for table in (first, second)] == [set(names[:3]), {names[0], names[3]}]
    totals = rows_of(first) | rows_of(second)
    assert all(float(cells[1]) > 0 for cells in (totals[name] for name in names))
    parts = rows_of(first_phases) | rows_of(second_phases)
    assert set(parts) & set(names) == {*names} - {"its matrix products alone"}
    for name in (names[1], names[3]):  # every phase is found, and together they are no more than the step
        assert all(float(cell) > 0 for cell in parts[name])


def test_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On a CPU nothing waits; every call that would is in the table."""
    model, data = save_toy(tmp_path / "toy"), write_rows(tmp_path / "rows.jsonl", 30)
    sizes = ["--batch-size", "2", "--warm", "1", "--steps", "2"]
    waits.main(["--model", str(model), "--data", str(data), "--lora", *sizes])
    assert rows_of(capsys.readouterr().out).items() >= {name: ["0.0"] for name in waits.WAITS}.items()
    assert waits.count(["aten::mm", "cudaStreamSynchronize", "cudaMemcpy", "cudaStreamSynchronize"]) == {
        "cudaStreamSynchronize": 2,
        "cudaMemcpy": 1,
    }


def test_model_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tied embeddings multiply, in the head; others are looked up. A GPU that is known has a peak."""
    for tied in (True, False):
        path = save_toy(tmp_path / str(tied), tie_word_embeddings=tied)
        model = LlamaForCausalLM.from_pretrained(path)
        multiplied = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n or tied)
        assert utilisation.model_flops(str(path), 10, lora=False) == 60 * multiplied
        assert utilisation.model_flops(str(path), 10, lora=True) == 40 * multiplied
    assert utilisation.utilisation(2e12, 4.0, "cpu") == "0.5"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert utilisation.utilisation(989e12, 2.0, "cuda") == "494 (50%)"


def test_random_weights_of_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    toy = save_toy(tmp_path / "toy")
    monkeypatch.setattr(step, "MODEL", str(toy))
    shape = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    monkeypatch.setitem(step.SHAPES, "tiny", shape)
    made = LlamaForCausalLM.from_pretrained(step.save_model("random:tiny", tmp_path / "made"))
    assert made.config.hidden_size == 16


def test_data_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Grouped and packed batches of made-up text; a packed one holds more than it pads."""
    model = save_toy(tmp_path / "toy")
    data = tmp_path / "rows.jsonl"
    rows = ({"prompt": "a" * (3 + 7 * i % 50), "completion": "b" * (5 + 11 * i % 90)} for i in range(64))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["padded to the longest", "packed, attention per document"]
    options = ["--model", str(model), "--data", str(data), "--rounds", "1", "--precision", "fp32"]
    data_path.main([*options, "--contenders", *names])
    table = rows_of(capsys.readouterr().out)
    padding = [float(re.sub("%", "", table[name][4])) for name in names]
    assert padding[1] < padding[0]


def test_heats_hold_the_first_contender():
    assert heats(["a", "b", "c", "d"], 3) == [["a", "b", "c"], ["a", "d"]]
    assert heats(["a"], 3) == [["a"]]
    assert heats(["a", "b"], 1) == [["a"], ["b"]]
    assert heats([], 3) == []


def test_made_up_rows_have_the_lengths_of_gsm8k():
    rows = corpus.made_up(2000)
    words = [sum(len(text.split()) for text in row.values()) for row in rows]
    assert 170 < sum(words) / len(words) < 200
    assert corpus.made_up(5) == corpus.made_up(5)


def test_count():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    labels = torch.tensor([[-100, 1, 1], [-100, 2, -100]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert count({"input_ids": ids, "labels": labels, "attention_mask": mask, "row": torch.tensor([0, 1])}) == (5, 6, 3)
    packed = {"input_ids": ids, "labels": labels, "row": torch.tensor([[0, 0, 1], [2, -1, -1]])}
    assert count(packed) == (4, 6, 3)
    assert count({"input_ids": ids, "labels": labels}) == (6, 6, 3)


def test_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both kinds of validation run, and what is bare logs no more than the NLL."""
    options = ["--rows", "8", "--sentences", "2", "--rounds", "1"]
    validation.main(["--model", str(save_toy(tmp_path / "toy")), *options])
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["NLL alone, and the guard set's forward passes"][1]) == 1.0
    assert float(rows["named sets, exact match, pass@k, drift"][1]) > 0


def test_silent(toy_folder: Path, tmp_path: Path):
    """The monitor's hooks are timed apart from a validation and from a step."""

    def make() -> tuple[SFTModule, SFTDataModule]:
        module = SFTModule(str(toy_folder), adapter=LoraConfig(r=2, target_modules="all-linear"))
        return module, SFTDataModule(str(write_rows(tmp_path / "rows.jsonl")), val_split=6)

    figures = silent.measure(make, steps=2)
    assert all(value > 0 for name, value in figures.items() if name.endswith(", s"))
    assert figures["the monitor, % of a validation"] > 0
    assert figures["tokens held against probes"] > 100
    assert figures["outcomes that differ"] == 0
    assert figures["largest difference of an NLL, nats"] < 1e-4


def grid_cell(optimizer: str, off: float) -> dict:
    """A cell whose prediction is off by a multiple of its interval's half-width."""
    rate = math.exp(0.1 * off)
    said = {"predicted": rate, "low": rate * math.exp(-0.1), "high": rate * math.exp(0.1), "critical": 1.0}
    return {"cell": ["optimizers", "llama", 0, optimizer, "constant", 12], **said}


def test_predict_grid_weighs_units_alike():
    """Ninety cells of one optimizer do not outvote ten of another; a part is tested as a whole."""
    lines = [grid_cell("NAdam", 0.5)] * 90 + [grid_cell("Lion", 2.0)] * 10
    factor, count, units, held = widths(lines, OPTIMIZERS)["other"]
    assert (factor, count, units, held) == (pytest.approx(2.0), 100, 2, pytest.approx(0.5))
    assert widths(lines, OPTIMIZERS, share=0.5)["other"][0] == pytest.approx(0.5)
    assert predict_grid.rejected({"a": lines[:90], "b": lines[90:], "c": lines[82:92]}).keys() == {"a", "b"}
    mixed = widths([*lines, grid_cell("SGD", 0.3)], OPTIMIZERS)
    assert mixed["SGD"][:3] == (pytest.approx(0.3), 1, 1)
    assert mixed["other"][0] == factor
    told = {**grid_cell("Lion", 0.5), "uniform": None, "gradients": 12}
    row = predict_grid.row("Lion", [told, {**told, "predicted": None}])
    assert "| 1 of 2 | 1 of 1 (" in row, "a refusal counts, whether or not trials find a rate"


def test_classes_for_judgement_are_no_others():
    """No class is both, none that was run before is judged, and the grid runs both in cells that no other part has."""
    (calibrate, _), (judged, without), (judge, _) = (strangers(part) for part in ("strangers", "judged", "last"))
    assert {"SGD", "AdamW", "Rprop"} <= set(calibrate)
    assert "ASGD" in judged
    assert "Muon" in without, "takes matrices only"
    assert not set(calibrate) & set(judged)
    assert not {*calibrate, *judged} & set(judge)
    models = {part: {(c[1], c[2]) for c in cells(part, ("ASGD",))} for part in predict_grid.PARTS}
    assert not models["judged"] & set.union(*(models[p] for p in ("design", "kept", "fresh", "unseen", "strangers")))
    assert not models["last"] & set.union(*(own for part, own in models.items() if part != "last"))
    aside = cells("last", ("ASGD",))
    others = [cell for part in predict_grid.PARTS if part != "last" for cell in cells(part, ("ASGD",))]
    for block, place in KEPT_ASIDE.items():
        new = {cell[place] for cell in aside if cell[0] == block} - {"ASGD"}
        assert not new & {cell[place] for cell in others}


def test_judgements_are_rehearsed():
    """Half of the classes judged by the others: always well where all are alike, never where no two are."""

    def rehearse(off, classes, each):
        lines = [grid_cell(f"class {i}", off(i, j)) for i in range(classes) for j in range(each)]
        return rehearsed(lines, {line["cell"][3]: Lion for line in lines}, share=0.8, times=20)

    assert rehearse(lambda i, j: (j + 0.5) / 20, 24, 20) == 1
    assert rehearse(lambda i, j: 2.0**i, 8, 100) == 0
