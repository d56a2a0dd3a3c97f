"""How much the fused head works on at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

_ALIGN = 128  # tokens; products of other heights leave part of the units idle

#: How many chunks a bf16 gradient of the unembedding may sum in place. Each rounds it once more; eight are far less
#: than what the products themselves round, sixteen begin to show (docs/performance_log.md).
IN_PLACE = 8


@dataclass(frozen=True)
class Sizes:
    """Sizes of the blocks; results do not depend on them beyond rounding.

    The defaults were measured on a processor with 1 MiB of cache a core (docs/performance_log.md): smaller chunks read
    and write the sum of the unembedding's gradient too often, larger ones gain nothing and need a larger buffer.

    Attributes:
        chunk: tokens scored, and differentiated, together; a buffer of (chunk, vocab) is held.
        tile: candidates that the elementwise part works on at once.
        block: tokens whose logits of one tile are recomputed at once, for cross-token objectives.
        rows: bytes of logits in autograd's hands at once, for objectives that read their row.
    """

    chunk: int = 256
    tile: int = 2048
    block: int = 1024
    rows: int = 4 << 20


def reading_is_free(device: torch.device) -> bool:
    """Return whether values can be read without waiting for work that is under way, as on a CPU."""
    return device.type == "cpu"


def pick_sizes(device: torch.device, vocab: int, itemsize: int) -> Sizes:
    """Return the sizes for a device: measured constants on a CPU, by its memory on a GPU.

    Args:
        device: where the tensors are.
        vocab: number of candidates.
        itemsize: bytes of one product.
    """
    if device.type != "cuda":
        return Sizes()
    return sizes_for_memory(torch.cuda.get_device_properties(device).total_memory, vocab, itemsize)


def sizes_for_memory(total: int, vocab: int, itemsize: int) -> Sizes:
    """Return sizes that keep the buffers of a GPU under a 32nd of its ``total`` bytes: few, large launches.

    What is free at the moment is not asked: ranks, and runs, whose sums have other chunks round differently.
    """
    chunk = total // 64 // (vocab * itemsize) // _ALIGN * _ALIGN
    chunk = min(max(chunk, _ALIGN), 4096)
    return Sizes(chunk=chunk, tile=16384, block=chunk, rows=min(max(total // 512, 4 << 20), 256 << 20))


def sizes_in_place(sizes: Sizes, tokens: int, dim: int) -> Sizes:
    """Return sizes with chunks so few that a bf16 gradient of the unembedding can sum them in place.

    Chunks grow where there are more than ``IN_PLACE``, as long as the buffer grows by less than what an fp32 sum of the
    gradient would need; tiles shrink with them, so that a tile's logits stay in the cache.

    Args:
        sizes: for any number of tokens.
        tokens: of this call.
        dim: of the hidden states.
    """
    chunk = math.ceil(tokens / IN_PLACE)
    growth = (chunk - sizes.chunk) * torch.bfloat16.itemsize  # bytes a candidate, as is the sum's
    if growth <= 0 or growth >= dim * torch.float32.itemsize:
        return sizes
    return replace(sizes, chunk=chunk, tile=max(sizes.tile * sizes.chunk // chunk, 256))
