"""Main memory of a rank while a model is loaded under FSDP2, whole and shard by shard.

    python -m tests.benchmarks.host_memory                        # 0.3 billion parameters, some minutes
    python -m tests.benchmarks.host_memory --billions 1 --how shards

Two ranks on the CPU load a random Llama in bfloat16 from safetensors files, up to where a fit would take its first
batch. A process beside each rank reads its anonymous memory every two milliseconds; the peak is that above the same run
of a toy. Pages of mapped files are not in it: the system takes them back whenever it needs room.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_sft import SFTModule
from lightning_sft.training.strategies import FullyShard
from tests.distributed import ranks
from tests.distributed.ranks import two_ranks
from tests.distributed.work import fsdp2
from tests.fitting import batches, loader, trainer
from tests.toys import toy_tokenizer

MIB = 2**20
EVERY = 0.002
"""Seconds between two looks at a rank's memory."""
SIZES: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "0.3": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 18, "num_attention_heads": 16},
    "1": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}


def write_model(folder: Path, size: str) -> None:
    """Write a random model in bfloat16, a file for each layer, without holding it whole."""
    heads = {"num_key_value_heads": SIZES[size]["num_attention_heads"] // 4, "tie_word_embeddings": True}
    config = AutoConfig.for_model("llama", vocab_size=32000, **SIZES[size], **heads)
    config.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        if name != "lm_head.weight":  # tied
            files.setdefault(".".join(name.split(".")[:3]), []).append(name)
    index: dict[str, str] = {}
    for i, names in enumerate(files.values()):
        file = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02 for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = 2 * sum(shapes[name].numel() for name in index)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )


@contextmanager
def watched() -> Iterator[list[int]]:
    """Let a process beside this one read its memory; the list gets the peak of anonymous memory, in bytes."""
    own, peak = os.getpid(), []
    ends, tells = os.pipe()
    result, answers = os.pipe()
    if not (child := os.fork()):
        os.close(tells)
        os.set_blocking(ends, False)
        largest = 0
        while True:
            for line in Path(f"/proc/{own}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    largest = max(largest, int(line.split()[1]) * 1024)
            try:
                if not os.read(ends, 1):
                    break
            except BlockingIOError:
                time.sleep(EVERY)
        os.write(answers, str(largest).encode())
        os._exit(0)
    os.close(ends)
    os.close(answers)
    try:
        yield peak
    finally:
        os.close(tells)
        os.waitpid(child, 0)
        peak.append(int(os.read(result, 100)))
        os.close(result)


class _Loaded(Exception):
    """The model is there."""


class _Stop(Callback):
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        raise _Loaded


def load(rank: int, model: str, by_shards: bool, dtype: str) -> dict[str, int]:
    """Load a model on this rank; return the bytes of its peak, its shards and the largest tensor."""
    FullyShard.loads_shards = by_shards
    torch.manual_seed(0)
    module = SFTModule(model, dtype=dtype)  # type: ignore[arg-type]
    run = trainer(strategy=fsdp2(), devices=2, callbacks=[_Stop()])
    with watched() as peak:
        try:
            run.validate(module, loader(batches(2, 2)), verbose=False)
        except _Loaded:
            pass
    parameters: list[Any] = list(module.scorer.parameters())
    return {
        "peak": peak[0],
        "shards": sum(p.to_local().numel() * p.element_size() for p in parameters),
        "tensor": max(p.numel() * p.element_size() for p in parameters),
        "whole": sum(p.numel() * p.element_size() for p in parameters),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", default="0.3", choices=[size for size in SIZES if size != "toy"])
    parser.add_argument("--how", nargs="+", default=["whole", "shards"], choices=["whole", "shards"])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    given = parser.parse_args()
    ranks.SECONDS = 3600  # on a busy machine
    print("| parameters | dtype | loaded | shards MiB | largest tensor MiB | peak MiB | of 1.2 shards + a tensor |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="host_memory_") as place:
        for size in ("toy", given.billions):
            write_model(Path(place) / size, size)
        for dtype in given.dtype:
            for how in given.how:
                settings = {"by_shards": how == "shards", "dtype": dtype}
                found = {}
                for size in ("toy", given.billions):
                    with tempfile.TemporaryDirectory(dir=place) as folder:
                        work, model = "tests.benchmarks.host_memory:load", str(Path(place) / size)
                        both = two_ranks(work, Path(folder), model=model, **settings)
                        found[size] = max(both, key=lambda rank: int(rank["peak"]))
                own, peak = found[given.billions], found[given.billions]["peak"] - found["toy"]["peak"]
                allowed = 1.2 * own["shards"] + own["tensor"]
                sizes = " | ".join(f"{bytes_ / MIB:,.0f}" for bytes_ in (own["shards"], own["tensor"], peak))
                count = own["whole"] * 8 / torch.finfo(getattr(torch, dtype)).bits
                print(f"| {count / 1e9:.2f} billion | {dtype} | {how} | {sizes} | {peak / allowed:.2f} |", flush=True)


if __name__ == "__main__":
    main()
