"""Small models: a tokenizer and random weights made on the spot, pretrained on words and their definitions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from typing_extensions import override

from lightning_sft.compare.result import Point
from lightning_sft.export.folder import write_folder
from lightning_sft.models.access import find_causal_lm
from studies.cells import Cell
from studies.checkpoints import fit, level_cell
from studies.rates.texts import entries

#: width, layers; four heads, and three times the width inside
SIZES = {"0.3M": (64, 3), "1M": (128, 4), "5M": (256, 5)}
VOCABULARY, SEED, RATE = 2048, 1, 3e-3
#: what the checkpoint's cell tells of it
PARAMETERS = "parameters"


def make_blank(folder: Path, size: str, text: list[str]) -> None:
    """Write a tokenizer that was trained on a text, and the configuration of a model, as a Hugging Face folder.

    Args:
        folder: to write.
        size: name of the model's size.
        text: lines.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.save_pretrained(folder)
    width, layers = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=3 * width, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=1, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)


def settings(blank: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the configuration of pretraining.

    Args:
        blank: folder of `make_blank`.
        sizes: of the study; see `studies.rates.design.sizes_of`.
    """
    steps, rows = sizes["pretrain"], sizes["pretrain_rows"]

    def source(size: int, part: str) -> dict[str, Any]:
        named = {"size": size, "part": part}
        return {"class_path": "studies.rates.texts.Definitions", "init_args": named}

    return {
        "seed_everything": SEED,
        "model": {
            "model_name_or_path": blank,
            "init": "random",
            "dtype": "float32",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": RATE, "betas": [0.9, 0.95]}},
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
        },
        "data": {
            "batch_size": rows,
            "val_batch_size": 64,
            "apply_chat_template": "never",
            "train_on": "all",
            "cache_dir": False,
            "train": source(steps * rows, "pretrain"),
            "val": source(sizes["judged"], "judged"),
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": steps, "val_check_interval": steps,
            "check_val_every_n_epoch": None, "num_sanity_val_steps": -1, "gradient_clip_val": 1.0,
            "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
            "callbacks": quiet_callbacks(),
        },
    }  # fmt: skip


def quiet_callbacks() -> list[dict[str, Any]]:
    """Return the settings that switch off what a run of the study needs not."""
    return [
        {"class_path": "lightning_sft.callbacks.GenerationMonitor", "init_args": {"samples": 0, "limit": 0}},
        {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": False}},
        {"class_path": "lightning_sft.callbacks.SilentFailureMonitor", "init_args": {"enabled": False}},
    ]


class _Way(Callback):
    """Keeps what is read on the way."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        read = {"val/nll": float(trainer.callback_metrics["val/nll"])}
        self.points.append(Point(trainer.global_step, 0, 0.0, read))


def make_model(size: str, folder: Path, commit: str | None, sizes: Mapping[str, int]) -> Cell:
    """Pretrain a model, write it into ``folder``, and return the cell that tells of it.

    Args:
        size: name of its size.
        folder: to write; it must not exist.
        commit: of this checkout.
        sizes: of the study; see `studies.rates.design.sizes_of`.
    """
    since, way = time.perf_counter(), _Way()
    blank = folder.with_name(f"blank {size}")
    make_blank(blank, size, [f"{entry.word}: {entry.definition}" for entry in entries("pretrain")])
    torch.set_num_threads(1)
    content = settings(str(blank), sizes)
    cli = fit(content, folder.with_name(f"{folder.name} under way"), way)
    write_folder(cli.model, folder)
    count = sum(p.numel() for p in find_causal_lm(cli.model).parameters())
    last = way.points[-1]
    curve = (*way.points[:-1], replace(last, values={**last.values, PARAMETERS: float(count)}))
    return level_cell("rates", f"model {size}", "NLL", content, curve, cli.trainer, folder, str(blank), commit, since)
