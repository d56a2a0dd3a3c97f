"""What torch's context_parallel does with our models: ``python -m tests.benchmarks.context_parallel`` (a minute).

Two gloo ranks on a CPU share out rows of one document and rows of two documents that lie end to end, with tiny random
models of several architectures. Printed is what ``context_parallel`` answers. As its ring of attention exists for three
CUDA kernels alone, the last column replaces it by what it promises: attention over all positions, gathered, in their
order, causal. What then still differs from the whole row is what an architecture's other layers do at the seam: no
error says so. Differences are of the second half's logits, relative to the largest one.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import _cp_options

from lightning_sft.errors import first_line
from lightning_sft.models.packing import choose_attention
from tests.distributed.ranks import some_ranks
from tests.models.zoo import tiny_model

KINDS = ("llama", "gpt_neox", "gemma3_text", "lfm2", "qwen3_next", "mamba")
LENGTH = 64
#: tokens of the documents of a row, by the kind of row
ROWS = {"one document": (LENGTH,), "two end to end": (40, 24)}


def gathered(part: Tensor) -> Tensor:
    """Return the positions of both ranks, one after the other."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(2)]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts, 2)


@contextmanager
def gathered_attention() -> Iterator[None]:
    """Attend causally over the positions of both ranks, rank by rank; no mask of one rank's own is followed."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def whole(query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any) -> Tensor:
        rank, length = torch.distributed.get_rank(), query.shape[2]
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        everything = (gathered(part) for part in (query, key, value))
        mixed = attend(*everything, is_causal=True, scale=more.get("scale"))
        return mixed[:, :, rank * length : (rank + 1) * length]

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", whole):
        yield


@torch.no_grad()
def of_rank(rank: int, kind: str, row: str, torchs: bool) -> str:
    """Return what comes of this rank's half of a row: an error, or how far its logits are from the whole row's.

    Args:
        rank: of two.
        kind: of the architecture.
        row: a key of `ROWS`.
        torchs: whether context_parallel shares the row out; else attention is gathered.
    """
    logging.disable(logging.ERROR)  # torch logs the traceback of each failure
    warnings.simplefilter("ignore")
    mesh = init_device_mesh("cpu", (2,))
    _cp_options.enable_load_balance = False  # the row stays in its order
    torch.manual_seed(0)
    model: Any = tiny_model(kind).eval()
    if len(ROWS[row]) > 1:
        choose_attention(model, None)
    ids = torch.randint(3, 250, (1, LENGTH))
    positions = torch.cat([torch.arange(size) for size in ROWS[row]])[None]

    def logits(ids: Tensor, positions: Tensor) -> Tensor:
        named = {} if kind == "mamba" else {"position_ids": positions}
        made = model(input_ids=ids, use_cache=False, **named).logits
        assert isinstance(made, Tensor)
        return made

    whole = logits(ids, positions)
    own = slice(rank * LENGTH // 2, (rank + 1) * LENGTH // 2)
    buffers = [ids.clone(), positions.clone()]
    try:
        if torchs:
            with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1, 1]):
                made = logits(*buffers)
        else:
            with gathered_attention():
                made = logits(ids[:, own], positions[:, own])
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return f"{float((made - whole[:, own]).abs().max() / whole.abs().max()):.0e}"


def second_half(folder: Path, kind: str, row: str, torchs: bool) -> str:
    """Return what comes of the second half of a row, by ranks of their own: errors leave collectives out of step."""
    given = {"kind": kind, "row": row, "torchs": torchs}
    first, second = some_ranks(2, "tests.benchmarks.context_parallel:of_rank", folder, **given)
    found = first if "Connection closed" in second else second  # the other rank gave up before
    assert isinstance(found, str)
    return found


def main() -> None:
    """Print the table."""
    print("| model | row | torch's context_parallel | attention over all positions |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for row, documents in ROWS.items():
                torchs = second_half(Path(folder), kind, row, True)
                # rows of documents: attention is called for each document of a rank's half
                right = second_half(Path(folder), kind, row, False) if len(documents) == 1 else ""
                print(f"| {kind} | {row} | {torchs} | {right} |", flush=True)


if __name__ == "__main__":
    main()
