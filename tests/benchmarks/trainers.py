"""The contenders' programs: ``python -m tests.benchmarks.trainers SETTINGS``, started by ``turns.Contender``."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch

from tests.benchmarks.axolotl_trainer import axolotl
from tests.benchmarks.phases import FORWARD
from tests.benchmarks.turns import MANY, Gate

Settings = dict[str, Any]


def ours(settings: Settings, gate: Gate) -> None:
    """SFTModule and SFTDataModule through Lightning's Trainer, with the callbacks that every run has."""
    from lightning.pytorch import Callback, Trainer

    class Turn(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            gate.wait()
            gate.note(batch)

    module, data = module_and_data(settings)
    trainer = Trainer(
        accelerator=settings["accelerator"],
        devices=1,
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


def module_and_data(settings: Settings) -> tuple[Any, Any]:
    """Return our module and data module."""
    from peft import LoraConfig

    from lightning_sft import SFTDataModule, SFTModule

    module = SFTModule(
        settings["model"],
        adapter=LoraConfig(**settings["lora"]) if settings.get("lora") else None,
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-5),
        lr_scheduler="constant",
        dtype="float32" if settings["precision"] != "bf16" else "bfloat16",
        **settings["module"],
    )
    options = {"batch_size": settings["batch_size"], "max_length": settings["max_length"], "truncation": "drop"}
    data = SFTDataModule(settings["rows"], tokenizer=module.tokenizer, **{**options, **settings["data"]})
    return module, data


def _parts(settings: Settings) -> tuple[Any, Any, list[Any]]:
    """Return our scorer, the batches that the trainer would get, and the parameters that train."""
    from lightning_sft.models.build import build_scorer
    from lightning_sft.objectives import NLL

    module, data = module_and_data(settings)
    flat = settings["data"].get("layout") != "padded"
    scorer = build_scorer(module.settings, NLL(), len(module.tokenizer), flat=flat).to(settings["accelerator"])
    data.setup("fit")
    batches = data.train_batches.collator(0, None, flat=flat and scorer.flat_refusal is None)
    loader = data.train_dataloader()
    loader.collator = lambda: batches
    return scorer, loader, [p for p in scorer.parameters() if p.requires_grad]


def bare(settings: Settings, gate: Gate) -> None:
    """The parts of our step in a bare loop: no trainer, no callbacks, no log."""
    from lightning.fabric.utilities import move_data_to_device

    from lightning_sft.objectives import NLL

    scorer, loader, parameters = _parts(settings)
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, fused=True)
    for batch in loader:
        gate.wait()
        gate.note(batch)
        batch = move_data_to_device(batch, settings["accelerator"])
        optimizer.zero_grad()
        output = scorer(batch, NLL())
        (output.loss_sum / len(output.losses)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def products(settings: Settings, gate: Gate) -> None:
    """Nothing but the matrix products of our step, recorded beforehand and run again."""
    from lightning.fabric.utilities import move_data_to_device

    from lightning_sft.objectives import NLL
    from tests.benchmarks.products import Recorder

    scorer, loader, _ = _parts(settings)
    for batch in loader:
        with Recorder() as recorder:
            scorer(move_data_to_device(batch, settings["accelerator"]), NLL()).loss_sum.backward()
        scorer.zero_grad()
        recorder.run()  # matrices are made the first time
        gate.wait()
        gate.note(batch)
        recorder.run()
        gate.stop()  # the next batch's products are recorded in between


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
    if settings.get("lora") and settings["kind"] != "trl":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**settings["lora"], task_type="CAUSAL_LM"))
    common: Settings = {
        "output_dir": tempfile.mkdtemp(dir=settings["folder"]),
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": 2e-5,
        "bf16": settings["precision"] == "bf16-mixed",
        "max_steps": MANY,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": settings["accelerator"] == "cpu",
        "train_sampling_strategy": settings["order"],
    }
    if settings["kind"] == "trl":
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(**common, max_length=settings["max_length"], **settings["options"])
        trainer: Any = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[Turn()],
            peft_config=_lora(settings),
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
    trainer.compute_loss = gate.phases.timed(FORWARD, trainer.compute_loss)
    trainer.train()


def _lora(settings: Settings) -> Any:
    from peft import LoraConfig

    return LoraConfig(**settings["lora"], task_type="CAUSAL_LM") if settings.get("lora") else None


def train(settings: Settings, gate: Gate) -> None:
    """Train as the settings say, and tell the gate."""
    if settings["kind"] != "products":
        gate.phases.watch(settings["kind"])
    kinds = {"ours": ours, "bare": bare, "products": products, "axolotl": axolotl}
    kinds.get(settings["kind"], hugging_face)(settings, gate)


def main() -> None:
    """Run the contender that the settings name."""
    settings: Settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    train(settings, Gate())


if __name__ == "__main__":
    main()
