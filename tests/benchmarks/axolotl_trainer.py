"""Axolotl as a contender of ``tests.benchmarks.step``: its own loading, model and trainer, on rows that are encoded.

It pins torch and transformers, so it lives in an environment of its own, which needs nothing of this package:
``python -m tests.benchmarks.step --axolotl PYTHON``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.phases import FORWARD
from tests.benchmarks.turns import MANY, Gate

Settings = dict[str, Any]


def axolotl(settings: Settings, gate: Gate) -> None:
    """Train as ``axolotl train`` does, on the given rows in their order."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer
    from axolotl.utils.dict import DictDefault
    from transformers import TrainerCallback

    class Turn(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.wait()

    cfg = load_cfg(DictDefault(configuration(settings)))
    trainer = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0]
    trainer.add_callback(Turn())
    trainer.data_collator = gate.counted(trainer.data_collator)
    trainer.compute_loss = gate.phases.timed(FORWARD, trainer.compute_loss)
    trainer.train()


def configuration(settings: Settings) -> Settings:
    """Return Axolotl's configuration; writes the rows in the form that it takes without encoding them again."""
    folder = Path(tempfile.mkdtemp(dir=settings["folder"]))
    rows = json.loads(Path(settings["encoded"]).read_text())
    lines = (json.dumps({**row, "attention_mask": [1] * len(row["input_ids"])}) for row in rows)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    chosen: Settings = {
        "base_model": settings["model"],
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "run"),
        "sequence_len": settings["max_length"],
        "curriculum_sampling": True,  # rows in their order
        "shuffle_merged_datasets": False,
        "sample_packing": False,  # packs would be other batches
        "micro_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": 1,
        "max_steps": MANY,
        "learning_rate": 2e-5,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": settings["precision"] != "fp32",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        **settings["options"],
    }
    lora = settings.get("lora")
    if lora:
        chosen |= {"adapter": "lora", "lora_r": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_target_linear": True}
    return chosen
