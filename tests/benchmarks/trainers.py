"""The contenders' programs: ``python -m tests.benchmarks.trainers SETTINGS``, started by ``turns.Contender``."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch

from tests.benchmarks.turns import Gate

Settings = dict[str, Any]
MANY = 10**6  # steps; the parent ends the process


def ours(settings: Settings, gate: Gate) -> None:
    """SFTModule and SFTDataModule through Lightning's Trainer, with the callbacks that every run has."""
    from lightning.pytorch import Callback, Trainer

    from lightning_sft import SFTDataModule, SFTModule

    class Turn(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            gate.wait()
            gate.note(batch)

    fused = settings["fused_adamw"]
    module = SFTModule(
        settings["model"],
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-5, fused=fused),
        lr_scheduler="constant",
        dtype="float32" if settings["precision"] != "bf16" else "bfloat16",
        **settings["module"],
    )
    options = {"batch_size": settings["batch_size"], "max_length": settings["max_length"], "truncation": "drop"}
    data = SFTDataModule(settings["rows"], tokenizer=module.tokenizer, **{**options, **settings["data"]})
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if settings["precision"] == "bf16-mixed" else "32-true",
        max_steps=MANY,
        gradient_clip_val=1.0,  # as the other trainers by default
        callbacks=[Turn()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=settings["folder"],
    )
    trainer.fit(module, data)


def hugging_face(settings: Settings, gate: Gate) -> None:
    """TRL's SFTTrainer, or the Trainer of transformers with labels handed to the model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Turn(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.wait()

    with open(settings["encoded"]) as file:
        rows = Dataset.from_list(json.load(file))
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    attention = settings.get("attention")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    common: Settings = {
        "output_dir": tempfile.mkdtemp(dir=settings["folder"]),
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": 2e-5,
        "bf16": settings["precision"] == "bf16-mixed",
        "max_steps": MANY,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": settings["order"],
    }
    if settings["kind"] == "trl":
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(**common, max_length=settings["max_length"], **settings["options"])
        trainer: Any = SFTTrainer(
            model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[Turn()]
        )
    else:
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        trainer = Trainer(
            model=model,
            args=TrainingArguments(**common, **settings["options"]),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(
                tokenizer, padding=settings["padding"], max_length=settings["max_length"]
            ),
            callbacks=[Turn()],
        )
    trainer.data_collator = gate.counted(trainer.data_collator)
    trainer.train()


def main() -> None:
    """Run the contender that the settings name."""
    settings: Settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    gate = Gate()
    (ours if settings["kind"] == "ours" else hugging_face)(settings, gate)


if __name__ == "__main__":
    main()
