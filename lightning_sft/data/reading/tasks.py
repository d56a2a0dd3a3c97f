"""Tasks of reasoning_gym as a source: items made on the spot, answers scored by the task itself."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from typing_extensions import override

from lightning_sft.data.reading.scorers import Score, Scorer, as_scorer, scored
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.types import BadRow, Example
from lightning_sft.errors import UserError
from lightning_sft.places import DEMO_EXTRA
from lightning_sft.progress import counted, progress

SEED_STRIDE = 10_000_019
"""reasoning_gym draws item i from seed + i, so that neighbouring seeds give shifted copies of one list."""


class ReasoningGymTask(DataSource):
    """Items of one reasoning_gym task.

    Args:
        name: name of the task, such as ``chain_sum``.
        size: number of items.
        seed: seed of the items. Different seeds give different items; what nevertheless comes up in train too is
            dropped from validation and test, and counted.
        config: options of the task, such as ``{max_terms: 2}``.
        prefix: text put before each question.
        suffix: text put after each question, such as an instruction about the form of the answer.
        max_prompt_chars: items whose question is longer are left out, and others drawn instead.
        system: system prompt.
        weight: see `DataSource`.
        label: name of the source; default is the task's name.
        score: ``task``: 1 where the task's own scorer gives the answer full marks, else 0; or a scorer as in `Source`.
    """

    drop_leaks = True

    def __init__(
        self,
        name: str,
        size: int = 1000,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        prefix: str = "",
        suffix: str = "",
        max_prompt_chars: int | None = None,
        system: str | None = None,
        weight: float = 1.0,
        label: str | None = None,
        score: Literal["task"] | Score | Scorer | None = "task",
    ) -> None:
        if size < 1 or seed < 0:
            raise UserError(f"task {name}: size={size} and seed={seed}; size must be at least 1 and seed at least 0.")
        if weight <= 0:
            raise UserError(f"task {name}: weight is {weight}; it must be above 0.")
        self.task = name
        self.name = label or name
        self.size = size
        self.seed = seed
        self.config = config or {}
        self.prefix = prefix
        self.suffix = suffix
        self.max_prompt_chars = max_prompt_chars
        self.system = system
        self.weight = weight
        self.scorer = None if score == "task" else as_scorer(score)
        self._own_scorer = score == "task"

    @cached_property
    def _dataset(self) -> Any:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as e:
            raise UserError(
                f"The task {self.task!r} needs the package reasoning_gym, which is not installed here: `{DEMO_EXTRA}`."
            ) from e
        if self.task not in DATASETS:
            raise UserError(f"reasoning_gym has no task {self.task!r}. It has: {', '.join(sorted(DATASETS))}.")
        draws = self.size if self.max_prompt_chars is None else 20 * self.size
        seed = self.seed * SEED_STRIDE % 2**31
        try:
            return reasoning_gym.create_dataset(self.task, size=draws, seed=seed, **self.config)
        except (TypeError, ValueError, AssertionError) as e:
            raise UserError(f"The task {self.task!r} does not take config={self.config}: {e}.") from e

    def examples(self, answers: bool = True) -> Iterator[Example | BadRow]:
        """Yield ``size`` items as a question and its answer."""
        with progress(f"Drawing {self.name}", self.size) as advance:
            yield from counted(self._items(), advance)

    def _items(self) -> Iterator[Example]:
        found = 0
        for index in range(self._dataset.size):
            item = self._dataset[index]
            question = f"{self.prefix}{item['question']}{self.suffix}"
            if self.max_prompt_chars is not None and len(question) > self.max_prompt_chars:
                continue
            answer = str(item["answer"])
            yield Example(
                messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}),
                flags=(None, None),
                prompt_messages=1,
                plain=(question, answer),
                where=f"{self.name}[{index}]",
                item=item,
            )
            found += 1
            if found == self.size:
                return
        if found < self.size:
            raise UserError(
                f"The task {self.task!r} gave {found} items of at most {self.max_prompt_chars} characters among "
                f"{self._dataset.size}; {self.size} are asked for. Raise max_prompt_chars or lower size."
            )

    def score(self, example: Example, answer: str) -> float | None:
        """Judge the answer by the task's own scorer, or by the one that was chosen."""
        if not self._own_scorer:
            return scored(self.scorer, answer, example.reference)
        return float(self._dataset.score_answer(answer=answer.strip(), entry=example.item) == 1.0)

    @override
    def drawn(self, seed: int) -> ReasoningGymTask:
        fresh = copy.copy(self)
        vars(fresh).pop("_dataset", None)
        mixed = hashlib.sha256(f"{self.seed} {seed}".encode()).digest()
        fresh.seed = int.from_bytes(mixed[:4], "little") >> 1  # the stride makes other windows of all 31-bit seeds
        return fresh
