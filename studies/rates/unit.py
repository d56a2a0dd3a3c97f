"""One run of the study: from one start, a grid of rates, range tests and statics, in trials that leave no trace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe, GenerationMonitor, SilentFailureMonitor
from lightning_sft.cli.compare.finish import quiet
from lightning_sft.compare.result import Point, RunResult
from lightning_sft.metrics.wide import wide
from lightning_sft.models.access import find_causal_lm, find_tokenizer, input_embeddings
from lightning_sft.models.mode import eval_mode
from lightning_sft.sweep.observers import HeldOutObserver
from lightning_sft.sweep.range_test import Reads, range_test
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Values
from studies.rates.texts import TaskRows

#: first part of the keys of readings; a rate follows
JUDGED, CHOSEN, QUARTER = "judged at the end", "val at the end", "val at a quarter"
TRAIN_TEST, VAL_TEST, LINE = "range test, training loss", "range test, validation NLL", "val after one step"
#: statics before the first step, and readings there
START_JUDGED, START_VAL = "judged before", "val before"
STATICS = ("gradient norm", "embedding rms", "participation ratio", "trainable parameters", "width")
#: rates of the first grid, and rounds of two further ones around the best, each halving the distance on a log scale
GRID = tuple(2e-5 * 4**i for i in range(7))
REFINE = 2
#: range tests go from the lowest rate of the grid to four times the highest
LOW, HIGH = GRID[0], 4 * GRID[-1]
LINE_GRID = tuple(2e-5 * 2**i for i in range(15))


@dataclass(frozen=True)
class Task:
    """What a unit needs to know; plain data, so that another process can be given it.

    Attributes:
        key: its name.
        model: folder of the checkpoint.
        task: name of the task.
        adapter: whether LoRA is trained instead of all weights.
        seed: of everything random in it, and of its rows.
        sizes: see `studies.rates.design.sizes_of`.
        work: folder for what Lightning writes.
    """

    key: str
    model: str
    task: str
    adapter: bool
    seed: int
    sizes: dict[str, int]
    work: str


def key_of(what: str, rate: float) -> str:
    """Return the key of a reading at a rate."""
    return f"{what} {rate:.6g}"


def at_rates(readings: Mapping[str, float], what: str) -> dict[float, float]:
    """Return the readings of a kind by rate, rising."""
    found = {float(key.removeprefix(what)): value for key, value in readings.items() if key.startswith(f"{what} ")}
    return dict(sorted(found.items()))


class Rows:
    """Reads the NLL of some rows' answers, end token included; an observer of trials.

    Args:
        named: key of the reading.
        pairs: prompt and answer of each row.
        tokenizer: of the model.
        steps: optimizer steps after which it reads; None: after every one.
        size: rows read at a time.
    """

    def __init__(
        self, named: str, pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase,
        steps: Sequence[int] | None = None, size: int = 48,
    ) -> None:  # fmt: skip
        self.named, self.steps = named, steps
        encoded = [_encoded(prompt, answer, tokenizer) for prompt, answer in pairs]
        encoded.sort(key=lambda row: len(row[0]))
        self._batches = [_padded(encoded[i : i + size]) for i in range(0, len(encoded), size)]

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Return the mean over tokens, in a list of one; an empty list after other steps than asked for."""
        if self.steps is not None and trainer.global_step not in self.steps:
            return {self.named: []}
        return {self.named: [self.nll(module)]}

    def nll(self, module: LightningModule) -> float:
        """Return the mean over tokens now, in nats."""
        model, total, count = find_causal_lm(module), 0.0, 0
        with eval_mode(module), torch.no_grad():
            for ids, mask, labels in self._batches:
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                targets = labels[:, 1:]
                total += float(wide(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")).sum())
                count += int((targets != -100).sum())
        return total / count


def _encoded(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Return the ids of a row, and how many of them in front are not trained."""
    before = tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
    own = tokenizer(answer, add_special_tokens=False).input_ids
    return [*before, *own, tokenizer.eos_token_id], len(before)


def _padded(rows: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, before) in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        labels[i, before : len(row)] = torch.tensor(row[before:])
    return ids, mask, labels


def refined(scores: Mapping[float, float]) -> list[float]:
    """Return the two rates beside the best one, half-way to its neighbours on a log scale; none outside of the grid.

    >>> refined({1.0: 3.0, 4.0: 1.0, 16.0: 2.0})
    [2.0, 8.0]
    """
    rates = sorted(scores)
    best = min(rates, key=lambda rate: scores[rate] if math.isfinite(scores[rate]) else math.inf)
    place = rates.index(best)
    beside = [rates[i] for i in (place - 1, place + 1) if 0 <= i < len(rates)]
    return [float(f"{math.sqrt(best * other):.6g}") for other in beside]


class _Work(Callback):
    """Does the work of a unit before the first optimizer step, and ends the fit after it.

    Args:
        task: of the unit.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.values: dict[str, float] = {}
        self.steps = 0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = True
        sizes, tokenizer = self.task.sizes, find_tokenizer(pl_module)
        steps = sizes["steps"]

        def rows(named: str, part: Any, at: Sequence[int]) -> Rows:
            some = TaskRows(self.task.task, sizes["judged" if part == "judged" else "val"], part, self.task.seed)
            return Rows(named, some.pairs(), tokenizer, at)

        readers = [
            rows(JUDGED, "judged", [steps]), rows(CHOSEN, "val", [steps]), rows(QUARTER, "val", [steps // 4])
        ]  # fmt: skip
        self.values |= {START_JUDGED: readers[0].nll(pl_module), START_VAL: readers[1].nll(pl_module)}
        self.values |= statics(pl_module, self.task)
        self._range_tests(trainer, pl_module)
        with Session(trainer, pl_module, SweepSettings("grid", steps, None)) as session:
            self._line(session, trainer)
            self._grid(session, readers)

    def _range_tests(self, trainer: Trainer, module: LightningModule) -> None:
        """Run the package's range tests at its defaults but for range and length."""
        steps = self.task.sizes["range"]
        kinds: tuple[tuple[str, Reads], ...] = ((TRAIN_TEST, "train"), (VAL_TEST, "val"))
        for named, reads in kinds:
            found = range_test(
                trainer, module, SweepSettings(named, steps, None), low=LOW, high=HIGH, reads=reads, smoothing=0.8
            )
            self.values |= {key_of(named, rate): loss for rate, loss in zip(found.rates, found.losses, strict=False)}
            self.steps += len(found.losses)

    def _line(self, session: Session, trainer: Trainer) -> None:
        """Read the validation NLL after a single step of the run's own optimizer at each of some rates."""
        observer = HeldOutObserver(trainer)
        for rate in LINE_GRID:
            trial = session.trial(rate, [observer], rates=[rate], variant="line")
            found = trial.readings.get("val_nll", [])
            self.values[key_of(LINE, rate)] = found[0][0] if found else math.nan
            self.steps += 1

    def _grid(self, session: Session, readers: Sequence[Rows]) -> None:
        """Train to the end at each rate of the grid, then between the best ones by the judged rows."""
        scores: dict[float, float] = {}
        wanted = list(GRID)
        for _ in range(REFINE + 1):
            for rate in wanted:
                trial = session.trial(rate, readers)
                self.steps += trial.steps
                for reader in readers:
                    found = [row for row in trial.readings.get(reader.named, []) if row]
                    ended = trial.outcome == "finished" or reader.named == QUARTER
                    self.values[key_of(reader.named, rate)] = found[0][0] if found and ended else math.nan
                scores[rate] = self.values[key_of(JUDGED, rate)]
            wanted = [rate for rate in refined(scores) if rate not in scores]


def statics(module: LightningModule, task: Task) -> dict[str, float]:
    """Return what can be read before the first step.

    The gradient is that of the mean NLL of 64 training rows with respect to all that is trained. RMS and participation
    ratio (square of the sum of the covariance's eigenvalues over the sum of their squares) are of the input embeddings.

    Args:
        module: with the model in it.
        task: of the unit.
    """
    model = find_causal_lm(module)
    trained = [p for p in model.parameters() if p.requires_grad]
    pairs = TaskRows(task.task, 64, "train", task.seed).pairs()
    encoded = [_encoded(prompt, answer, find_tokenizer(module)) for prompt, answer in pairs]
    ids, mask, labels = _padded(encoded)
    with eval_mode(module):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, trained)
    table = wide(input_embeddings(model).detach())
    spectrum = torch.linalg.eigvalsh(torch.cov(table.T))
    found = (
        float(torch.stack([wide(g).square().sum() for g in gradients]).sum().sqrt()),
        float(table.square().mean().sqrt()),
        float(spectrum.sum() ** 2 / spectrum.square().sum()),
        float(sum(p.numel() for p in trained)),
        float(table.shape[1]),
    )
    return dict(zip(STATICS, found, strict=True))


def run_unit(task: Task) -> RunResult:
    """Run a unit in this process.

    Args:
        task: what it is.
    """
    torch.set_num_threads(1)
    quiet()
    since = time.perf_counter()
    seed_everything(task.seed % 2**31, verbose=False)
    sizes = task.sizes
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    module = SFTModule(
        task.model, adapter=adapter if task.adapter else None, dtype="float32", lr_scheduler="linear",
        warmup_ratio=0.1, optimizer=_optimizer,
    )  # fmt: skip

    def rows(part: Any, size: int) -> TaskRows:
        return TaskRows(task.task, size, part, task.seed)

    data = SFTDataModule(
        rows("train", sizes["steps"] * sizes["rows"]), rows("val", sizes["val"]), batch_size=sizes["rows"],
        val_batch_size=sizes["val"], apply_chat_template="never", train_on=_trained(task.task), cache_dir=False,
        seed=task.seed,
    )  # fmt: skip
    work = _Work(task)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=sizes["steps"], num_sanity_val_steps=0, logger=False,
        max_epochs=1, gradient_clip_val=1.0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=task.work,
        callbacks=[work, CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False),
                   GenerationMonitor(samples=0, limit=0)],
    )  # fmt: skip
    Path(task.work).mkdir(parents=True, exist_ok=True)
    trainer.fit(module, data)
    curve = (Point(0, 0, 0.0, work.values),)
    return RunResult(
        "", task.key, "finished", curve=curve, steps=work.steps, wall_seconds=time.perf_counter() - since, device="cpu"
    )


def _trained(task: str) -> Any:
    """Return which tokens of a task's rows are trained: the answer, or all of a sentence."""
    return "all" if task == "sentences" else "assistant"


_optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.AdamW(  # noqa: E731
    parameters, lr=1e-3, weight_decay=0.0
)
