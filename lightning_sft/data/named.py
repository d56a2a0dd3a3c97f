"""Named validation and test sets: which sources make which set, and how often each set is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.data.reading.conversation import STRICT, Rules
from lightning_sft.data.reading.settings import as_sources
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.types import PADDING
from lightning_sft.errors import UserError, require_log_name


@dataclass
class NamedSet:
    """A validation set that is not read at every validation.

    Args:
        sources: a path, a `DataSource`, or a list of them.
        every: read it at every so manieth validation, and at a complete sanity check; 1 is each.
    """

    sources: str | DataSource | list[str | DataSource]
    every: int = 1


@dataclass(frozen=True)
class EvaluationSet:
    """One set as its rows are told apart.

    Attributes:
        name: part of its log keys; None for rows that are only pooled.
        sources: indices of its sources.
        every: it is read at every so manieth validation.
    """

    name: str | None
    sources: tuple[int, ...]
    every: int = 1


#: what ``data.val`` and ``data.test`` take
Sets = (
    str | DataSource | list[str | DataSource] | dict[str, str | DataSource | list[str | DataSource] | NamedSet] | None
)


def as_sets(value: Sets, what: str, rules: Rules = STRICT) -> tuple[list[DataSource], list[EvaluationSet]]:
    """Return the sources of a setting such as ``val``, and its named sets with indices among those sources.

    Raises:
        UserError: a name that a log key cannot hold, a set without sources, a number below 1, or no set that is read
            at every validation.
    """
    if not isinstance(value, Mapping):
        return as_sources(value, what, rules), []
    sources: list[DataSource] = []
    sets: list[EvaluationSet] = []
    for name, given in value.items():
        require_log_name(name, f"data.{what}")
        chosen = given if isinstance(given, NamedSet) else NamedSet(given)
        if isinstance(given, Mapping):
            chosen = _from_mapping(given, what, name)
        if not isinstance(chosen.every, int) or chosen.every < 1 or (what != "val" and chosen.every != 1):
            allowed = "1 or more" if what == "val" else "1, since a test is run once"
            raise UserError(f"data.{what}.{name}.every is {chosen.every!r}. Allowed: {allowed}.")
        own = as_sources(chosen.sources, f"{what}.{name}", rules)
        if not own:
            raise UserError(f"data.{what}.{name} names no source. Give a path or a DataSource.")
        first = len(sources)
        sets.append(EvaluationSet(name, tuple(range(first, first + len(own))), chosen.every))
        sources += own
    if sets and all(s.every > 1 for s in sets):
        raise UserError(
            f"No set of data.{what} is read at every validation, so val/nll would be missing at most of them. Give one "
            "of them every: 1."
        )
    return sources, sets


def _from_mapping(given: Mapping[str, Any], what: str, name: str) -> NamedSet:
    unknown = sorted(set(given) - {"sources", "every"})
    if unknown or "sources" not in given:
        raise UserError(
            f"data.{what}.{name} has {', '.join(map(repr, given)) or 'no key'}. Allowed: a path, a DataSource, a list "
            "of them, or a mapping with `sources` and, if it is not read at every validation, `every`."
        )
    return NamedSet(**given)


def read_settings(
    given: Mapping[str, Any], rules: Rules = STRICT
) -> tuple[dict[str, list[DataSource]], dict[str, list[EvaluationSet]]]:
    """Return the sources of each setting, and the named sets of those that are a mapping.

    The indices of sets count through the sources of all settings, in their order.

    Args:
        given: the settings ``train``, ``val``, ``test`` and ``predict``.
        rules: what to do with conversations that are not in order.

    Raises:
        UserError: see `as_sets` and `as_sources`; or ``train`` or ``predict`` is a mapping.
    """
    sources: dict[str, list[DataSource]] = {}
    named: dict[str, list[EvaluationSet]] = {}
    for what, value in given.items():
        if what in ("train", "predict") and isinstance(value, Mapping):
            raise UserError(f"data.{what} is a mapping. Only val and test have named sets; give a path or a list here.")
        first = sum(map(len, sources.values()))
        sources[what], sets = as_sets(value, what, rules)
        if sets:
            named[what] = [EvaluationSet(s.name, tuple(first + i for i in s.sources), s.every) for s in sets]
    return sources, named


def read_now(sets: Sequence[EvaluationSet], trainer: Trainer | None) -> list[bool]:
    """Return which sets are read by the evaluation under way, the same on every rank.

    In a fit, ``every`` counts the validations of modules that keep their number as ``validations``; all sets are read
    by other modules, in a complete sanity check, and outside of a fit.
    """
    if trainer is None or trainer.state.fn != "fit" or trainer.sanity_checking:
        return [True] * len(sets)
    done = getattr(trainer.lightning_module, "validations", None)
    return [done is None or (int(done) + 1) % s.every == 0 for s in sets]


class SetSampler(DistributedSampler[int]):
    """Rows in order, dealt to the ranks, without those of sets that are not read this time.

    A ``DistributedSampler``, since Lightning replaces other samplers.

    Args:
        sources: (rows,) source of each row.
        num_replicas: ranks that share the rows.
        rank: this one's place among them.
        skipped: returns the sources whose rows are left out, asked at the beginning of each iteration.
    """

    def __init__(
        self, sources: NDArray[np.int64], num_replicas: int, rank: int, skipped: Callable[[], Sequence[int]]
    ) -> None:
        super().__init__(sources, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]  # of known length
        self.sources = sources
        self.skipped = skipped

    @override
    def __iter__(self) -> Iterator[int]:
        """Yield this rank's rows; ranks that come short get `PADDING` at the end."""
        rows = np.flatnonzero(~np.isin(self.sources, list(self.skipped())))
        missing = -len(rows) % self.num_replicas
        rows = np.concatenate([rows, np.full(missing, PADDING, np.int64)])
        yield from rows[self.rank :: self.num_replicas].tolist()

    def __len__(self) -> int:
        """Return the most rows of a rank: those of a validation that reads every set."""
        return -(-len(self.sources) // self.num_replicas)


def skipped_sources(sets: Sequence[EvaluationSet], trainer: Trainer | None) -> list[int]:
    """Return the sources of the sets that are not read by the evaluation under way."""
    return [source for s, read in zip(sets, read_now(sets, trainer), strict=True) if not read for source in s.sources]


def set_sampler(
    sets: Sequence[EvaluationSet], sources: NDArray[np.int64], trainer: Trainer | None
) -> SetSampler | None:
    """Return the sampler of sets that are read at different validations; None where every row is read every time.

    Args:
        sets: the named sets.
        sources: (rows,) source of each row.
        trainer: of the run.
    """
    if all(s.every == 1 for s in sets):
        return None
    skipped = partial(skipped_sources, sets, trainer)
    return SetSampler(sources, *data_parallel_size_and_rank(trainer), skipped)
