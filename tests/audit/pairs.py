"""Models tuned by plain torch, transformers and peft, and what they say, computed without this package's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

WORDS = ["red", "blue", "green", "grey", "pink"]


def write_rows(path: Path, shift: int, count: int = 16) -> Path:
    """Questions and their answers; a model that learned them under one shift is wrong about them under another."""
    rows = [{"prompt": f"colour {i % 5}", "completion": WORDS[(i + shift) % 5]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Ids of each row, and the places of its trained tokens: the answer and the token that ends it."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        asked = [{"role": "user", "content": row["prompt"]}]
        said = [*asked, {"role": "assistant", "content": row["completion"]}]
        start = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"])
        ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
        end = start + ids[start:].index(tokenizer.eos_token_id)
        found.append((ids, list(range(start, end + 1))))
    return found


def tune(model: nn.Module, rows: list[tuple[list[int], list[int]]], steps: int, lr: float) -> None:
    """A plain loop, a row at a time."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    for step in range(steps):
        ids, places = rows[step % len(rows)]
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        loss = nn.functional.cross_entropy(logits[[p - 1 for p in places]], torch.tensor([ids[p] for p in places]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def tuned_folder(base: Path, rows: Path, folder: Path, steps: int = 16, lr: float = 1e-3) -> Path:
    """All weights tuned, saved by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tune(model, encoded(rows, tokenizer), steps, lr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tuned_adapter(base: Path, rows: Path, folder: Path, steps: int = 16, lr: float = 1e-2) -> Path:
    """An adapter tuned and saved by peft, without a tokenizer beside it."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    tune(model, encoded(rows, AutoTokenizer.from_pretrained(base)), steps, lr)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def said(model: nn.Module, rows: list[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """What a model says of each trained token, in float64, a row at a time without padding."""
    model = model.double().eval()
    columns: dict[str, list[Any]] = {name: [] for name in ("row", "logp", "top", "best", "other", "target")}
    for number, (ids, places) in enumerate(rows):
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in places:
            line, target = logp[place - 1].numpy(), ids[place]
            others = line.copy()
            others[target] = -np.inf
            for name, value in zip(
                columns,
                (number, line[target], line.max(), int(line.argmax()), int(others.argmax()), target),
                strict=True,
            ):
                columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def expected_numbers(
    before: dict[str, np.ndarray], now: dict[str, np.ndarray], min_fall: float = 0.1
) -> dict[str, Any]:
    """The figures of an audit by the definitions, on whole arrays."""
    behind, outranked = before["best"] != before["target"], now["best"] != now["target"]
    fell = now["logp"] - before["logp"] > min_fall
    same = before["other"] == now["other"]
    p = np.exp(now["top"])
    return {
        "tokens": len(p),
        "nll": -now["logp"].mean(),
        "nll_before": -before["logp"].mean(),
        "outranked": outranked.mean(),
        "expected": (1 - p).mean(),
        "excess": outranked.mean() - (1 - p).mean(),
        "behind": int(behind.sum()),
        "share": (behind & outranked & fell & same).sum() / behind.sum(),
        "displaced": (behind & outranked & fell & ~same).sum() / behind.sum(),
        "unlearned": (behind & outranked & ~fell).sum() / behind.sum(),
        "flipped": (behind & ~outranked).sum() / behind.sum(),
        "lost": (~behind & outranked).sum() / (~behind).sum() if (~behind).any() else None,
    }


def calibration_error(said: dict[str, np.ndarray], bins: int = 15) -> float:
    """Guo et al. 2017, over equal bins."""
    p, right = np.exp(said["top"]), said["best"] == said["target"]
    which = np.minimum((p * bins).astype(int), bins - 1)
    groups = [which == b for b in range(bins)]
    return float(sum(abs(right[g].mean() - p[g].mean()) * g.mean() for g in groups if g.any()))


def exact_answers(said: dict[str, np.ndarray]) -> float:
    """Share of rows whose every trained token is the first choice."""
    right = said["best"] == said["target"]
    return float(np.mean([right[said["row"] == row].all() for row in np.unique(said["row"])]))


@torch.no_grad()
def guard_numbers(before: nn.Module, after: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Any:
    """Tokens, both losses, divergence and changed first choices on plain texts, in float64."""
    nll_before = nll = kl = changed = tokens = 0.0
    for text in texts:
        ids = tokenizer(text).input_ids
        first, second = (
            m.double()(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1).numpy() for m in (before, after)
        )
        at = np.arange(len(ids) - 1), ids[1:]
        tokens += len(ids) - 1
        nll_before, nll = nll_before - first[at].sum(), nll - second[at].sum()
        kl += (np.exp(first) * (first - second)).sum()
        changed += (first.argmax(1) != second.argmax(1)).sum()
    return {
        "tokens": tokens,
        "nll_before": nll_before / tokens,
        "nll": nll / tokens,
        "kl": kl / tokens,
        "changed": changed / tokens,
    }
