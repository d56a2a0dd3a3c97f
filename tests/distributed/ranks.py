"""A few gloo ranks in a process of their own: autograd's threads do not survive a fork of the test process."""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SECONDS = 120


def two_ranks(work: str, folder: Path, **given: Any) -> list[Any]:
    """Run ``tests.distributed.<module>:<function>`` on two ranks; see :func:`some_ranks`."""
    return some_ranks(2, work, folder, **given)


def some_ranks(count: int, work: str, folder: Path, **given: Any) -> list[Any]:
    """Run ``tests.distributed.<module>:<function>`` on several ranks and return what each one returned.

    Args:
        count: number of ranks.
        work: such as ``work:fit``; called with ``(rank, **given)``.
        folder: where the results travel.
        given: plain data.

    Raises:
        AssertionError: a rank failed or hung; carries its output.
    """
    command = [sys.executable, "-m", "tests.distributed.ranks", work, str(folder), json.dumps(given), str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(count)]


def _rank(rank: int, count: int, port: int, work: str, folder: str, given: dict[str, Any]) -> None:
    """One of the processes that torchrun would have started."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    module, _, function = work.partition(":")
    result = getattr(importlib.import_module(f"tests.distributed.{module}"), function)(rank, **given)
    torch.save(result, Path(folder) / f"rank_{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    importlib.import_module(f"tests.distributed.{sys.argv[1].partition(':')[0]}")  # once, for both forks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = int(sys.argv[4])
    arguments = (count, port, *sys.argv[1:3], json.loads(sys.argv[3]))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=count, start_method="fork")
