"""`lightning estimate` beside the peak memory of real runs on a CPU; nothing in it was fitted to any run.

    python -m tests.benchmarks.estimate                    # all cases, some 10 minutes on two idle cores
    python -m tests.benchmarks.estimate --only "full"      # those whose name holds this text

Each case is a run of two steps through the command line, in processes of its own, the second step with optimizer
states there. Its peak is the largest resident set of a rank from the start of training on, less that of a run of the
same strategy on a toy. The system's allocator is told to give freed blocks back, so that what is measured are tensors
and not holes; the reading of the training rows before the first step is off. The models are random, of four
architectures and 25 to 45 million parameters; all rows are of one length.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from transformers import AutoConfig

from lightning_sft.cli.entry import main as lightning
from lightning_sft.estimate.spread import CONTEXT
from tests.distributed import ranks
from tests.distributed.ranks import some_ranks
from tests.running import QUIET, run
from tests.toys import toy_tokenizer

MIB = 2**20
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SIZES, "intermediate_size": 1024, "vocab_size": 24000, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {**SIZES, "intermediate_size": 1536, "vocab_size": 32000, "head_dim": 64}
              | {"tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {**SIZES, "intermediate_size": 1536, "vocab_size": 48000, "head_dim": 64}
               | {"num_key_value_heads": 1, "sliding_window": 128, "query_pre_attn_scalar": 64}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
                 | {"intermediate_size": 2048, "vocab_size": 20000}),
    "toy": ("llama", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            | {"vocab_size": 300}),
}  # fmt: skip
LORA = ["--model.adapter=peft.LoraConfig", "--model.adapter.r=16", "--model.adapter.target_modules=all-linear"]
CHECKPOINTING = ["--model.gradient_checkpointing=true"]
DDP = ["--trainer.strategy=ddp", "--trainer.devices=2"]
FSDP2 = [
    "--trainer.strategy=ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
    "--trainer.devices=2",
]


@dataclass(frozen=True)
class Case:
    """A run: its model, batch, and further settings."""

    name: str
    model: str
    rows: int
    length: int
    more: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return 2 if "--trainer.devices=2" in self.more else 1

    @property
    def how(self) -> str:
        """Its strategy."""
        return "ddp" if self.more[-2:] == DDP else "fsdp2" if self.ranks == 2 else "single"


CASES = [
    Case("full, small batch", "llama", 1, 256),
    Case("full, large batch", "qwen3", 4, 256),
    Case("LoRA, bfloat16 base", "llama", 4, 256, [*LORA, "--model.dtype=bfloat16"]),
    Case("full", "llama", 3, 256),
    Case("full, long rows, 2 micro-batches", "llama", 1, 512, ["--trainer.accumulate_grad_batches=2"]),
    Case("full, checkpointing", "qwen3", 4, 256, CHECKPOINTING),
    Case("full, large vocabulary", "gemma3", 2, 256),
    Case("full, bf16-mixed", "gpt_neox", 2, 256, ["--trainer.precision=bf16-mixed"]),
    Case("full, SGD with momentum", "gpt_neox", 1, 512,
         ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-4", "--model.optimizer.momentum=0.9"]),
    Case("full, frozen reference (ASFT)", "llama", 2, 256, ["--model.objective=ASFT"]),
    Case("LoRA, float32 base", "qwen3", 4, 256, LORA),
    Case("LoRA, checkpointing", "gpt_neox", 4, 256, [*LORA, *CHECKPOINTING]),
    Case("full, 2 ranks ddp", "llama", 2, 256, DDP),
    Case("full, 2 ranks fsdp2", "llama", 2, 256, FSDP2),
    Case("full, checkpointing, 2 ranks fsdp2", "qwen3", 2, 256, [*CHECKPOINTING, *FSDP2]),
    Case("LoRA, 2 ranks fsdp2", "gpt_neox", 2, 256, [*LORA, *FSDP2]),
]  # fmt: skip


class PeakMemory(Callback):
    """Write the most memory of this rank from the start of training on, in bytes: of the GPU, or (Linux) the process.

    Args:
        folder: gets ``peak_RANK``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.device.type == "cuda":
            (self.folder / f"peak_{trainer.global_rank}").write_text(str(torch.cuda.max_memory_allocated()))
            return
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        (self.folder / f"peak_{trainer.global_rank}").write_text(str(peak * 1024))


def settings(case: Case, place: Path) -> list[str]:
    """The arguments of a case's run, without what only measures it; makes the model's folder."""
    folder = place / case.model
    if not folder.exists():
        kind, sizes = MODELS[case.model]
        AutoConfig.for_model(kind, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
                             **sizes).save_pretrained(folder)  # fmt: skip
        toy_tokenizer().save_pretrained(folder)
    rows = place / "rows.jsonl"
    if not rows.exists():
        rows.write_text("".join(json.dumps({"text": f"{i} " + "word " * 500}) + "\n" for i in range(8)))
    optimizer = [] if any("optimizer" in m for m in case.more) else ["--model.optimizer=AdamW"]
    return [
        f"--model.model_name_or_path={folder}",
        "--model.init=random",
        f"--data.train={rows}",
        "--data.train_on=all",
        "--data.cache_dir=false",
        "--data.truncation=right",
        f"--data.max_length={case.length}",
        f"--data.batch_size={case.rows}",
        "--trainer.max_steps=2",
        *QUIET,
        *optimizer,
        *case.more,
    ]


def fit(rank: int, words: list[str]) -> None:
    """One rank of a case's run; blocks of 64 KiB and more go back to the system when they are freed."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD of malloc.h
    run("fit", words)


def measured(case: Case, place: Path) -> int:
    """Run a case; return the largest resident set of a rank, in bytes."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        keep = {"class_path": "tests.benchmarks.estimate.PeakMemory", "init_args": {"folder": folder}}
        words = [*settings(case, place), "--trainer.enable_checkpointing=false", "--trainer.logger=false"]
        quiet = {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": False}}
        words.append(f"--trainer.callbacks={json.dumps([keep, quiet])}")
        some_ranks(case.ranks, "tests.benchmarks.estimate:fit", Path(folder), words=words)
        return max(int(path.read_text()) for path in Path(folder).glob("peak_*"))


def estimated(case: Case, place: Path) -> dict[str, int]:
    """What the verb says of a case, in bytes."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        lightning(["estimate", *settings(case, place), "--json=true"])
    return json.loads(out.getvalue()[out.getvalue().index("{") :])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"], help="cuda: runs on one device alone")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    given = parser.parse_args()
    chosen = [case for case in CASES if given.only in case.name]
    if given.accelerator == "cuda":
        more = ["--trainer.accelerator=cuda"]
        chosen = [replace(case, more=[*case.more, *more]) for case in chosen if case.ranks == 1]
    ranks.SECONDS = 3600  # on a busy machine
    empty: dict[str, int] = {}
    print("| run | model | batch | estimated MiB | measured MiB | error |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="estimate_") as folder:
        place = Path(folder)
        for case in chosen:
            on_gpu = "--trainer.accelerator=cuda" in case.more
            if on_gpu:
                empty[case.how] = -CONTEXT  # which the allocator does not see
            if case.how not in empty:
                how = {"single": [], "ddp": DDP, "fsdp2": FSDP2}[case.how]
                empty[case.how] = measured(Case("empty", "toy", 2, 64, how), place)
            said, got = estimated(case, place), measured(case, place) - empty[case.how]
            print(
                f"| {case.name} | {case.model} | {case.rows} x {case.length} | {said['peak'] / MIB:.0f} "
                f"| {got / MIB:.0f} | {said['peak'] / got - 1:+.1%} |",
                flush=True,
            )
    print({how: f"{size / MIB:.0f} MiB" for how, size in empty.items()})


if __name__ == "__main__":
    main()
