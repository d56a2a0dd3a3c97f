"""Audits of models that others tuned, against an independent computation, and everything that cannot be audited."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.cli.entry import main
from lightning_sft.models.finished import FinishedModel, FoundModel
from tests.audit.pairs import (
    calibration_error,
    encoded,
    exact_answers,
    expected_numbers,
    guard_numbers,
    said,
    tuned_adapter,
    tuned_folder,
    write_rows,
)
from tests.export.runs import train
from tests.toys import save_toy

# peft 0.21 warns of adapters beside tied embeddings, and asks transformers for an old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:`loftq_config` specified"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
TEXTS = ["The river runs to the sea.", "Bread is made of flour and water.", "Snow fell on the hills."]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a folder and an adapter tuned from it, the rows, a guard set and probes."""
    place = tmp_path_factory.mktemp("pair")
    save_toy(place / "random")
    write_rows(place / "old.jsonl", shift=0)
    tuned_folder(place / "random", place / "old.jsonl", place / "base", steps=120, lr=3e-3)
    write_rows(place / "rows.jsonl", shift=1)
    tuned_folder(place / "base", place / "rows.jsonl", place / "tuned")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        tuned_adapter(place / "base", place / "rows.jsonl", place / "adapter")
    (place / "guard.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    probes = [{"context": "colour", "correct": c, "competitor": s, "leading_space": False} for c, s in ("ab", "rt")]
    (place / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return place


def run(place: Path, *arguments: str, output: str = "out") -> dict[str, Any]:
    """Audit as the command line does, and return the JSON."""
    rows = f"--data={place / 'rows.jsonl'}"
    main(["audit", rows, f"--guard={place / 'guard.txt'}", f"--output={output}", "--device=cpu", *arguments])
    return json.loads(Path(output, "audit.json").read_text())


def load(place: Path, name: str) -> torch.nn.Module:
    if name == "adapter":
        model = AutoModelForCausalLM.from_pretrained(place / "base")
        return peft.PeftModel.from_pretrained(model, place / "adapter")
    return AutoModelForCausalLM.from_pretrained(place / name)


@pytest.mark.parametrize(("name", "together"), [("tuned", False), ("adapter", False), ("adapter", True)])
def test_figures_are_those_of_an_independent_computation(name: str, together: bool, place: Path) -> None:
    found = run(place, f"--before={place / 'base'}", f"--after={place / name}", f"--together={together}")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    rows = encoded(place / "rows.jsonl", tokenizer)
    before, now = said(load(place, "base"), rows), said(load(place, name), rows)
    expected = expected_numbers(before, now)
    assert 0 < expected["share"] < 1
    assert 0 < expected["flipped"] < 1
    for key, value in expected.items():
        assert found["silent"][key] == pytest.approx(value, abs=1e-4), key
    for model, columns in (("before", before), ("after", now)):
        assert found[model]["calibration"] == pytest.approx(calibration_error(columns), abs=1e-4)
        assert found[model]["exact"] == pytest.approx(exact_answers(columns), abs=1e-9)
    guard = guard_numbers(load(place, "base"), load(place, name), tokenizer, TEXTS)
    assert guard["kl"] > 0.01
    for key, value in guard.items():
        assert found["forgetting"][key] == pytest.approx(value, abs=1e-4), key
    change, low, high = found["nll_change"]
    assert change == pytest.approx(expected["nll"] - expected["nll_before"], abs=1e-4)
    assert low < change < high < 0
    worst = found["contexts"][0]
    ids, _ = rows[worst["row"]]
    assert worst["context_ids"] == ids[: len(worst["context_ids"])]
    assert ids[len(worst["context_ids"])] == worst["correct_id"]
    failed = (before["best"] != before["target"]) & (now["best"] != now["target"])
    failed &= (now["logp"] - before["logp"] > 0.1) & (before["other"] == now["other"])
    assert len(found["contexts"]) == failed.sum()
