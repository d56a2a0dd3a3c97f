"""Runs to export, each trained when a test first asks for it, and a process that reads the exported folders."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule
from lightning_sft.cli.entry import main
from lightning_sft.export.folder import load_module
from lightning_sft.models.generation import generate
from tests.lazy import Lazy
from tests.running import run, toy_arguments, write_rows
from tests.toys import save_toy

LORA = ["--model.adapter=peft.LoraConfig", "--model.adapter.target_modules=all-linear", "--model.adapter.r=4"]
ON_EMBEDDINGS = '--model.adapter.target_modules=["q_proj","embed_tokens"]'
SAVED_WHOLE = '--model.adapter.modules_to_save=["embed_tokens"]'
GROWN = ["--model.add_special_tokens=" + json.dumps([f"<|{i}|>" for i in range(8)])]
NEW_ROWS = "--model.adapter.trainable_token_indices=" + json.dumps(
    {"embed_in": [263, 264, 265, 266], "lm_head": [263, 264, 265, 266]}
)
TIED_WHOLE = '--model.adapter.modules_to_save=["embed_tokens","lm_head"]'
BOTH_WHOLE = '--model.adapter.modules_to_save=["embed_in","lm_head"]'
#: name -> (architecture, overrides of its configuration, settings of the run)
RUNS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "full": ("llama", {"eos_token_id": 0}, []),
    "tied": ("llama", {}, LORA),
    "untied": ("gpt_neox", {}, LORA),
    "dora": ("llama", {}, [*LORA, "--model.adapter.use_dora=true"]),
    "embeddings": ("llama", {}, [*LORA[:1], ON_EMBEDDINGS]),
    "embeddings saved whole": ("llama", {}, [*LORA, SAVED_WHOLE]),
    "tokens": ("llama", {}, [*LORA, "--model.adapter.trainable_token_indices=[1,40,41]"]),
    "ia3": ("llama", {}, ["--model.adapter=peft.IA3Config"]),
    "continued": ("llama", {}, ["--trainer.num_sanity_val_steps=-1"]),
    "grown": ("gpt_neox", {}, [*LORA, BOTH_WHOLE, *GROWN]),
    "grown, tied": ("llama", {}, [*LORA, TIED_WHOLE, "--model.adapter.ensure_weight_tying=true", *GROWN]),
    "grown, rows": ("gpt_neox", {}, [*LORA, NEW_ROWS, *GROWN]),
    "grown, tied rows": ("llama", {}, [*LORA, "--model.adapter.trainable_token_indices=[263,264,265,266]", *GROWN]),
}
#: a whole model, an adapter beside tied and beside untied embeddings and on them, new tokens; the others are slow
SHOWN = ("full", "tied", "untied", "embeddings", "continued", "grown, tied")
#: answers one job a line; knows transformers and peft alone
READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

def read(job):
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    if job["kind"] == "adapter":
        from peft import AutoPeftModelForCausalLM
        model = AutoPeftModelForCausalLM.from_pretrained(job["folder"])
        model.generation_config = GenerationConfig.from_pretrained(job["folder"])
    else:
        model = AutoModelForCausalLM.from_pretrained(job["folder"])
    model.eval()
    nll = tokens = 0
    for batch in torch.load(job["rows"]):
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        logp = logits[:, :-1].double().log_softmax(-1)
        picked = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
        nll, tokens = nll - picked.sum().item(), tokens + picked.numel()
    answers = []
    for prompt in job["prompts"]:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**chat, max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(output[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))
    config = model.generation_config
    assert "lightning_sft" not in sys.modules and "lightning" not in sys.modules
    return {"nll": nll / tokens, "answers": answers, "ends": config.eos_token_id, "cache": config.use_cache}

for line in sys.stdin:
    print("answer", json.dumps(read(json.loads(line))), flush=True)
"""
PROMPTS = [f"say {row}" for row in range(4)]


class Stranger:
    """A process without this package that reads one exported folder after the other."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, "-c", READER]
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment
            )

    def read(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(self.errors.read_text()[-3000:])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def train(folder: Path, name: str, *further: str) -> Path:
    """A short run of the command line under ``folder``; returns its last checkpoint."""
    kind, overrides, settings = RUNS[name]
    model = save_toy(folder / "model", kind, **overrides)
    rows = write_rows(folder / "rows.jsonl", count=12)
    fast = {"model__optimizer__lr": 0.01, "model__lr_scheduler": "constant", "trainer__val_check_interval": 2}
    arguments = toy_arguments(model, rows, trainer__max_steps=4, trainer__default_root_dir=folder, **fast)
    run("fit", [*arguments, "--data.system=Count ``` words.", *settings, *further])
    return folder / "lightning_logs/version_0/checkpoints/last.ckpt"


def train_all_it_needs(name: str, folder: Path, trained: Lazy[Path]) -> Path:
    """Return the last checkpoint of a run; "continued" starts from the adapter of another run on the same model."""
    if name != "continued":
        return train(folder, name)
    main(["export", f"--ckpt_path={trained['tied']}", f"--output={folder / 'stored'}"])
    (folder / "continued.yaml").write_text(f"model:\n  adapter_path: {folder / 'stored'}\n")
    return train(folder, name, f"--config={folder / 'continued.yaml'}")


def jobs_of(name: str) -> list[str]:
    return ["full"] if name == "full" else [f"{name}, adapter", f"{name}, merged"]


def run_of(job: str) -> str:
    return job.rpartition(", ")[0] or job


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in SHOWN else [pytest.mark.slow]


def file_name(name: str) -> str:
    return re.sub(r"\W", "_", name)


def expected_of(checkpoint: Path, batches: Path) -> dict[str, Any]:
    """Return what our own module says; writes the batches that a stranger is to read."""
    module = load_module(checkpoint)
    data = SFTDataModule(val=str(checkpoint.parents[3] / "rows.jsonl"), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    (metrics,) = Trainer(accelerator="cpu", **quiet).validate(module, data, verbose=False)
    torch.save(list(data.val_dataloader()), batches)
    tokenizer, answers = module.tokenizer, []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        answers += generate(module.scorer.causal_lm, tokenizer, [ids], max_new_tokens=12)
    return {"nll": metrics["val/nll"], "answers": answers}


def export_and_read(
    job: str, place: Path, checkpoint: Path, expected: dict[str, Any], stranger: Stranger
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the exported folder, what our module says, and what the stranger says."""
    folder = place / file_name(job)
    kind = job.rpartition(", ")[2]
    main(["export", f"--ckpt_path={checkpoint}", f"--output={folder}", *(["--merge"] if kind == "merged" else [])])
    rows = place / f"{file_name(run_of(job))}.pt"
    return folder, expected, stranger.read({"folder": str(folder), "kind": kind, "rows": str(rows), "prompts": PROMPTS})
