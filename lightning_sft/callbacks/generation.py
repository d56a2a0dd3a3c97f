"""GenerationMonitor: generated answers to held-out prompts: how many are right, and whether they degenerate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.callbacks.degeneration import DegenerationGuard
from lightning_sft.data.named import EvaluationSet
from lightning_sft.errors import UserError
from lightning_sft.figures.answers import answer_table
from lightning_sft.figures.loggers import log_text
from lightning_sft.metrics.answers import numbers_of_samples
from lightning_sft.metrics.generated import AnswerSums
from lightning_sft.metrics.wide import wide_device
from lightning_sft.models.access import vocabulary_size
from lightning_sft.models.generation import Answer, answer_prompts, last_position
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.models.merged import merged_adapters
from lightning_sft.models.sampling import Sampling
from lightning_sft.probes.forward import within_shards

Stage = Literal["val", "test"]
#: tokens in a row from which merging adapters pays: it costs as much as 40 of them save, and answers end early
_WORTH_MERGING = 100
T = TypeVar("T")


class GenerationMonitor(Callback):
    """Answer held-out prompts on every validation and test; log samples, their accuracy, and whether they degenerate.

    Keys, over all answers and for each named set (``val/<set>/...``), exact over ranks:

    - ``val/task_accuracy``: mean score of the greedy answers, where the source scores answers.
    - ``val/stop_share``: share of the greedy answers that end by themselves; ``val/answer_tokens``: their mean length;
      ``val/repetition``: mean share of their 4-grams that stand in the same answer before.
    - ``val/sampled_pass_at_<k>``: the chance that one of k sampled answers is right (has a score of 1), estimated
      without bias from ``num_return_sequences`` samples. ``val/pass_at_<k>``, of the exact answer, needs no samples.

    In a fit it warns when the answers of a set collapse, compared with the best earlier reading, while the loss of
    training or of validation falls: many more repeats, many fewer ends, or empty answers; and when a loss is
    implausible: exactly 0, or far below the entropy of the model's own predictions. ``num_sanity_val_steps: -1`` makes
    the first reading before the first step.

    It needs a data module with ``generation_rows`` and ``score``, such as
    [`SFTDataModule`][lightning_sft.data.SFTDataModule]; with others this callback does nothing. For long answers,
    adapters are merged into float32 weights meanwhile, on a copy. Samples have seeds of their own: no random number of
    the run is drawn.

    Args:
        samples: prompts whose answers are logged as text.
        limit: prompts to answer on validation where answers are scored; None is all of them. Only ``samples``
            prompts are answered where nothing is scored.
        test_limit: the same on test.
        max_new_tokens: longest answer.
        batch_size: prompts answered at once.
        num_return_sequences: answers to sample for each prompt, beside the greedy one; None samples none.
        temperature: of the samples.
        pass_at_k: the k of ``sampled_pass_at_<k>``; None is 1 and ``num_return_sequences``.
        stop_strings: strings that end an answer, beside the model's end tokens; they are cut off.
        seed: of the samples, which are drawn with the same random numbers at each validation.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Raises:
        UserError: a number that is too small, or a k that is larger than ``num_return_sequences``.
    """

    def __init__(
        self,
        samples: int = 8,
        limit: int | None = 64,
        test_limit: int | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_return_sequences: int | None = None,
        temperature: float = 1.0,
        pass_at_k: list[int] | None = None,
        stop_strings: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        _at_least(0, samples=samples, limit=limit, test_limit=test_limit)
        _at_least(1, max_new_tokens=max_new_tokens, batch_size=batch_size, num_return_sequences=num_return_sequences)
        if not 0 < temperature < math.inf:
            raise UserError(f"GenerationMonitor got temperature={temperature}. Allowed: a number above 0.")
        if any(not text for text in stop_strings or ()):
            raise UserError("GenerationMonitor got an empty string among stop_strings. Allowed: strings with text.")
        self.samples = samples
        self.limit = limit
        self.test_limit = test_limit
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.num_return_sequences = num_return_sequences or 0
        self.temperature = temperature
        self.pass_at_k = _pass_at(pass_at_k, self.num_return_sequences)
        self.stop_strings = stop_strings or []
        self.seed = seed
        self._model = model
        self._tokenizer = tokenizer
        self._guard = DegenerationGuard()
        self._told = False

    # ------------------------------------------------------------------ hooks

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._guard.see_loss(outputs)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module, "val", self.limit)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.barebones:
            self._guard.warn(trainer, pl_module)  # here, since the module has logged its loss by now

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module, "test", self.test_limit)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._guard.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._guard.load_state_dict(state_dict)

    # ------------------------------------------------------------------ reading

    def _read(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, limit: int | None) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        glance = trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf
        if trainer.barebones or glance or not hasattr(datamodule, "generation_rows"):
            return
        rows = datamodule.generation_rows(stage, limit)
        scored = not all(datamodule.score(row, "") is None for row in rows)
        if not scored:
            rows = _spread(rows, self.samples)
        if not rows:
            return
        if any(isinstance(m, FullyShardedDataParallel) for m in pl_module.modules()):
            rank_zero_warn(
                "GenerationMonitor answers nothing under FSDPStrategy (FSDP1), whose shards cannot be gathered around "
                "generation. Use configs/strategy/fsdp2.yaml for answers."
            )
            return
        if self.num_return_sequences and not scored and not self._told:
            self._told = True
            rank_zero_warn(
                f"GenerationMonitor samples no answers, as nothing says which are right: no source of data.{stage} has "
                "a scorer. Give it one, such as score: exact_match, or leave num_return_sequences out."
            )
        count, rank = data_parallel_size_and_rank(trainer)
        mine = rows[rank::count]
        fill = math.ceil(len(rows) / count) - len(mine)  # every rank makes the same number of forward passes
        greedy, sampled = self._answers(trainer, pl_module, rows, [*mine, *rows[:fill]], scored)
        sets = list(getattr(datamodule, "named_sets", {}).get(stage, [])) or [EvaluationSet(None, ())]
        sums = AnswerSums(len(sets), self.pass_at_k if scored else (), wide_device(pl_module.device))
        which = {source: i for i, s in enumerate(sets) for source in s.sources}
        scores: list[float | None] = []
        for row, answer, others in zip(mine, greedy, sampled, strict=False):
            scores.append(datamodule.score(row, answer.text))
            its_set = which[row.source] if which else 0  # rows of others need no source
            sums.add(its_set, answer.tokens, answer.stopped, scores[-1])
            sums.add_entropy(its_set, answer.entropy, answer.predictions)
            sums.add_samples(its_set, [datamodule.score(row, other.text) for other in others])
        self._log(trainer, pl_module, stage, sums, sets)
        table = [(r.prompt_text, r.reference, a.text, s) for r, a, s in zip(mine, greedy, scores, strict=False)]
        if shown := _spread(table, self.samples):
            log_text(trainer, f"{stage}/samples", answer_table(shown), trainer.global_step)

    def _answers(
        self, trainer: Trainer, pl_module: LightningModule, rows: list[Any], mine: list[Any], scored: bool
    ) -> tuple[list[Answer], list[list[Answer]]]:
        """Return the greedy answer and the samples of each of this rank's rows."""
        model = model_to_read(pl_module, self._model)
        last_position(model, [row.prompt_ids for row in rows], self.max_new_tokens)  # refused on all ranks or on none
        tokenizer = tokenizer_to_use(pl_module, self._tokenizer)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        options |= {"stop": self.stop_strings, "synced_gpus": trainer.world_size > 1}
        samples = self.num_return_sequences if scored else 0
        prompts = [row.prompt_ids for row in mine]
        seeds = [_seed(self.seed, row.stage, row.index, i) for row in mine for i in range(samples)]
        greedy: list[Answer] = []
        sampled: list[Answer] = []

        batches = math.ceil(len(mine) / self.batch_size) + math.ceil(len(seeds) / self.batch_size)
        pays = batches * self.max_new_tokens >= _WORTH_MERGING

        def answer() -> None:
            with trainer.precision_plugin.forward_context(), merged_adapters(model) if pays else nullcontext():
                greedy.extend(answer_prompts(model, tokenizer, prompts, **options))
                repeated = [prompt for prompt in prompts for _ in range(samples)]
                sampling = Sampling(self.temperature, seeds)
                sampled.extend(answer_prompts(model, tokenizer, repeated, sampling=sampling, **options))

        within_shards(pl_module if self._model is None else self._model, model, answer)
        return greedy, [sampled[i * samples : (i + 1) * samples] for i in range(len(mine))]

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, sums: AnswerSums, sets: list[EvaluationSet]
    ) -> None:
        total = trainer.strategy.reduce(sums.sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        parts = {stage: total[[i for i, s in enumerate(sets) if s.every == 1]].sum(0)}
        parts |= {f"{stage}/{s.name}": total[i] for i, s in enumerate(sets) if s.name is not None}
        for key, part in parts.items():
            means = sums.means(part)
            if not means:
                continue
            for name, value in means.items():
                pl_module.log(f"{key}/{name}", value, prog_bar=key == stage and name == "task_accuracy", batch_size=1)
            if stage == "val" and trainer.state.fn == "fit":
                vocabulary = vocabulary_size(model_to_read(pl_module, self._model))
                judge = key != stage or len(parts) == 1  # named sets each for itself
                self._guard.see_answers(key, means, sums.entropy(part), vocabulary, judge=judge)


def _at_least(least: int, **numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < least:
            raise UserError(f"GenerationMonitor got {name}={value}. Allowed: {least} or more.")


def _pass_at(given: list[int] | None, samples: int) -> tuple[int, ...]:
    """Return the k of ``sampled_pass_at_<k>``.

    Raises:
        UserError: more than there are samples, or no number of samples.
    """
    if given is None:
        return tuple(sorted({1, samples})) if samples else ()
    found = numbers_of_samples(given, "GenerationMonitor's pass_at_k")
    if found and found[-1] > samples:
        have = f"num_return_sequences={samples}" if samples else "no num_return_sequences"
        raise UserError(
            f"GenerationMonitor got pass_at_k={given} with {have}. Allowed: k up to the number of sampled answers. "
            f"Set num_return_sequences to {found[-1]} or more, or lower k. model.pass_at_k needs no samples."
        )
    return found


def _seed(*of: object) -> int:
    """Return the seed of a sample, the same on any number of ranks."""
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=7).digest(), "big")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, spread evenly."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
