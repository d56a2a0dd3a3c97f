"""One pass of a model over some rows: its capability reading, the same on every rank, however they share the rows."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.advice.rows import ReadingRows
from lightning_sft.advice.token_scores import BatchReader, KindsOfTokens
from lightning_sft.errors import UserError
from lightning_sft.metrics.capability import TokenTable, read_capability
from lightning_sft.metrics.capability_reading import CapabilityReading, CutOffs
from lightning_sft.metrics.wide import wide_device
from lightning_sft.models.generation import end_tokens, special_ids
from lightning_sft.probes.forward import within_shards

_COLUMNS = len(TokenTable._fields)
#: columns of whole numbers
_WHOLE = [TokenTable._fields.index(name) for name in ("is_top1", "row", "source", "kind", "answer")]


def measure(
    trainer: Trainer,
    outer: nn.Module,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: ReadingRows,
    cut_offs: CutOffs,
) -> CapabilityReading:
    """Read the capability; a collective, which draws no random number and leaves the model as it was.

    Args:
        trainer: whose ranks share the rows.
        outer: the module that shards gather under, such as the LightningModule.
        model: the language model inside.
        tokenizer: says which tokens are special, and which end an answer.
        rows: what to read.
        cut_offs: of the continuum.

    Raises:
        UserError: no supervised token, or a strategy under which the model cannot be read.
    """
    if (why := why_unreadable(trainer)) is not None:
        raise UserError(why)
    reader = BatchReader(model, KindsOfTokens(special_ids(model, tokenizer), end_tokens(model, tokenizer)))
    own: list[Tensor] = []
    count, rank = data_parallel_size_and_rank(trainer)
    mine = rows.batches[rank::count]
    passes = max(_by_rank(trainer, len(mine), outer))

    def body() -> None:
        with trainer.precision_plugin.forward_context():
            for i in range(passes):  # each rank makes the same number of forward passes
                read = reader.read(mine[i] if i < len(mine) else rows.batches[0])
                own.extend([read] if i < len(mine) else [])

    if passes:
        within_shards(outer, model, body)
    table = torch.cat(own) if own else torch.zeros(0, _COLUMNS, dtype=torch.float64)
    tokens = _gathered(trainer, table, outer)
    order = tokens[:, TokenTable._fields.index("row")].argsort(stable=True)
    return read_capability(TokenTable.from_matrix(tokens[order]), rows.sources, cut_offs, rows.rows_of_set)


def why_unreadable(trainer: Trainer) -> str | None:
    """Return why a strategy does not let the model be read outside of its own forward; None where it does."""
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        return (
            f"The capability cannot be read under {type(trainer.strategy).__name__}, which keeps no whole matrices. "
            "Use one device, ddp or FSDP2 (configs/strategy/fsdp2.yaml), or read it beforehand with `lightning advise`."
        )
    return None


def _by_rank(trainer: Trainer, number: int, outer: nn.Module) -> list[int]:
    """Return a number of each rank among which rows are shared out."""
    count, rank = data_parallel_size_and_rank(trainer)
    numbers = torch.zeros(count, dtype=torch.float64, device=_device(outer))
    numbers[rank] = number * count / trainer.world_size  # ranks that share layers count once
    return [round(n) for n in _summed(trainer, numbers).tolist()]


def _gathered(trainer: Trainer, own: Tensor, outer: nn.Module) -> Tensor:
    """Return the rows of all ranks, (all tokens, columns), in the order of the ranks, on every rank."""
    count, rank = data_parallel_size_and_rank(trainer)
    numbers = _by_rank(trainer, len(own), outer)
    whole = torch.zeros(sum(numbers), own.shape[1], dtype=torch.float64, device=_device(outer))
    start = sum(numbers[:rank])
    whole[start : start + len(own)] = own.to(whole.device) * (count / trainer.world_size)
    total = _summed(trainer, whole).cpu()
    total[:, _WHOLE] = total[:, _WHOLE].round()  # thirds of a number may not add up to it
    return total


def _summed(trainer: Trainer, tensor: Tensor) -> Tensor:
    total = trainer.strategy.reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _device(outer: Any) -> torch.device:
    return wide_device(outer.device if isinstance(outer, LightningModule) else next(outer.parameters()).device)
