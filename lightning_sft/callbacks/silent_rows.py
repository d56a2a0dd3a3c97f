"""Which rows of a run are watched for silent failure: from our data module, or from anybody's loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_sft._lightning import all_gather, validation_loaders
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.probes.token_sample import SampledRow, TokenSample, choose, documents_of, where_trained
from lightning_sft.probes.watched_set import WatchedSet

#: training rows where nobody says how many: with a validation, few enough to cost little beside it
TRAIN_ROWS, LEAST_ROWS, MOST_ROWS, SHARE_OF_VALIDATION = 32, 8, 128, 0.03


def _train_rows(given: int | None, validated: int) -> int:
    """Return how many training rows are watched: as given, else by the rows of a validation."""
    if given is not None:
        return given
    return max(LEAST_ROWS, min(MOST_ROWS, int(SHARE_OF_VALIDATION * validated))) if validated else TRAIN_ROWS


def from_datamodule(data: SFTDataModule, train_rows: int | None, val_rows: int, tokens: int) -> list[WatchedSet]:
    """Return the watched sets of a run on our data module, which has been set up.

    Args:
        data: the data module.
        train_rows: the most training rows; None: 3% of the validation rows, from 8 to 128, or 32 without validation.
        val_rows: the most rows of each validation set.
        tokens: the most tokens of each.
    """
    found = []
    train_rows = _train_rows(train_rows, len(data.dataset("val")) if "val" in data.sets else 0)
    if "train" in data.sets and train_rows:
        total = len(data.dataset("train"))
        sample = TokenSample(_rows(data, "train", choose(total, train_rows)), tokens)
        groups = _sources(data, sample)
        found.append(WatchedSet("train", sample, trained=True, groups=groups, is_whole=train_rows >= total))
    if "val" in data.sets and val_rows:
        named = {s.name: s.sources for s in data.named_sets.get("val", []) if s.name is not None}
        sources = data.dataset("val").sources
        parts = [np.flatnonzero(np.isin(sources, of)) for of in named.values()] or [np.arange(len(sources))]
        chosen = [int(part[i]) for part in parts for i in choose(len(part), val_rows)]
        sample = TokenSample(_rows(data, "val", chosen), tokens * len(parts))
        groups = {f"{name}/": of for name, of in named.items()} or _sources(data, sample)
        found.append(WatchedSet("val", sample, trained=False, groups=groups))
    return [s for s in found if len(s.sample)]


def bound_of(watched: WatchedSet) -> tuple[str, int]:
    """Return which setting keeps training tokens from being watched, and its value; an empty name where none does."""
    if watched.sample.left_out:
        return "tokens", len(watched.sample)
    return ("", 0) if watched.is_whole else ("train_rows", len(watched.sample.rows))


def to_watch_more(watched: WatchedSet, *, asked_for: bool) -> str:
    """Return how the next run watches more training rows: options, or words where they would add a second monitor.

    Args:
        watched: the training rows that this run watched.
        asked_for: whether the settings have a monitor of their own.

    Returns:
        Empty where all training rows were watched.
    """
    name, value = bound_of(watched)
    if not name or asked_for:
        return f"{name} of its SilentFailureMonitor above {value}" if name else ""
    more = max(MOST_ROWS, 4 * value)
    return f"--trainer.callbacks+=SilentFailureMonitor --trainer.callbacks.{name}={more}"


def _rows(data: SFTDataModule, what: Any, numbers: Sequence[int]) -> list[SampledRow]:
    """Return rows of a set; of training rows, the tokens that are trained towards, and not away from."""
    weights = data.loss_weights.of_sources(data.source_names) if what == "train" else None
    rows = []
    for number in numbers:
        row = data.dataset(what)[number]
        trained = np.asarray(row.trained)
        if what == "train" and row.weights is not None:
            trained = trained & (np.asarray(row.weights) > 0)
        if weights is not None and weights[row.source] <= 0:
            trained = np.zeros_like(trained)
        ids = torch.from_numpy(np.array(row.ids, dtype=np.int64))
        rows.append(SampledRow(ids, where_trained(torch.from_numpy(np.array(trained))), number, row.source))
    return rows


def _sources(data: SFTDataModule, sample: TokenSample) -> Mapping[str, Sequence[int]]:
    """Return the sources of a sample, by part of a log key; nothing where there is but one."""
    present = sorted(set(sample.source.tolist()))
    return {f"source/{data.source_names[i]}/": (i,) for i in present} if len(present) > 1 else {}


def from_loaders(
    trainer: Trainer, train_rows: int | None, val_rows: int, tokens: int
) -> tuple[list[WatchedSet], list[str]]:
    """Return the watched sets of a run on other loaders, and why the others cannot be watched.

    Rows are looked up in the loaders' datasets and put through their collate functions, so that no loader moves. A
    collective: ranks that hold other rows each, as those of a set that was dealt out by hand, are refused together.
    """
    with isolate_rng():
        loaders = validation_loaders(trainer)
    many = list(loaders) if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    wanted = [("train", trainer.train_dataloader, _train_rows(train_rows, 0))]
    wanted += [("val" if len(many) == 1 else f"val/{i}", loader, val_rows) for i, loader in enumerate(many)]
    found, refused = [], []
    for name, loader, most in wanted:
        if loader is None or not most:
            continue
        try:
            rows, is_whole = _rows_of(loader, most)
            sample, why = TokenSample(rows, tokens), "the rows looked at have no supervised token"
        except UserError as error:
            sample, is_whole, why = TokenSample([]), False, str(error)
        if not _is_everywhere(trainer, sample):
            refused.append(f"{name}: its rows differ from rank to rank, and are to be the same dataset on each")
        elif len(sample):
            found.append(WatchedSet(name, sample, trained=name == "train", is_whole=is_whole))
        else:
            refused.append(f"{name}: {why}")
    return found, refused


def tell_refused(refused: Sequence[str], *, must_watch: bool) -> None:
    """Say which sets of other loaders are not watched, and why.

    Raises:
        UserError: something must be watched.
    """
    if not refused:
        return
    text = f"SilentFailureMonitor does not watch {'; '.join(refused)}."
    if must_watch:
        raise UserError(f"{text} Leave it out, or give the run such loaders.")
    rank_zero_info(text)


def _is_everywhere(trainer: Trainer, sample: TokenSample) -> bool:
    """Return whether all ranks have the same sample."""
    module = trainer.lightning_module
    own = torch.tensor(int(sample.digest()[:12], 16), device=module.device)
    return bool((all_gather(module)(own) == own).all())


def _rows_of(loader: Any, most: int) -> tuple[list[SampledRow], bool]:
    """Return at most so many documents of a loader's dataset, and whether these are all of them."""
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"rows of a {type(loader).__name__} over a {type(dataset).__name__} cannot be looked up without moving it. "
            "Needed: a DataLoader over a dataset with a length and __getitem__"
        )
    whole = getattr(loader, "batch_size", None) is None and getattr(loader, "batch_sampler", None) is None
    rows: list[SampledRow] = []
    with isolate_rng():
        for number in choose(len(dataset), most):
            item = dataset[number]
            rows += documents_of(loader.collate_fn(item if whole else [item]), number)
            if len(rows) > most:
                break
    return rows[:most], len(rows) <= most and len(dataset) <= most
