"""Fits in forked processes of one warmed parent: what they were given to learn from, and where they are just now.

A fresh interpreter needs ten seconds to import the package; a forked child is the same program a moment later. The
parent never trains, so no thread of autograd is lost in a fork.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_sft.callbacks import LastCheckpoint
from lightning_sft.checkpoints import io
from lightning_sft.checkpoints.io import SafeCheckpointIO
from lightning_sft.cli.entry import main
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.module import SFTModule
from lightning_sft.sweep.trial import TrialRunner
from tests.distributed.fits import lora
from tests.running import toy_arguments

#: what a fit can be in the middle of
PHASES = ("training", "validation", "checkpoint", "sweep", "cache")
STEPS = 8
#: 20 rows to train on in batches of 2 on each rank, two of them a step: 5 steps an epoch on one rank
SETTINGS: dict[str, Any] = {
    "model__config_overrides": json.dumps({"attention_dropout": 0.2}),
    "model__optimizer": "torch.optim.AdamW",
    "model__optimizer__lr": 1e-2,
    "data__batch_size": 2,
    "trainer__accumulate_grad_batches": 2,
    "trainer__max_steps": STEPS,
    "trainer__num_sanity_val_steps": 0,
    "trainer__check_val_every_n_epoch": "null",
    "trainer__val_check_interval": 4,
}
SWEEP = {"class_path": "LearningRateSweep", "init_args": {"at_step": 3, "steps": 6, "low": 1e-5, "high": 1e-2}}


@dataclass(frozen=True)
class Kind:
    """A kind of fit.

    Attributes:
        ranks: number of processes that train.
        adapter: LoRA, or the whole model.
    """

    ranks: int
    adapter: bool

    def arguments(self, model: Path, rows: Path, *, sweep: bool = False) -> list[str]:
        """Return the command line of this fit; a sweep in its middle leaves no trace."""
        callbacks = [{"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 1}}]
        callbacks += [SWEEP] if sweep else []
        ranks = ["--trainer.strategy=ddp_fork", f"--trainer.devices={self.ranks}"] if self.ranks > 1 else []
        adapter = [f"--model.adapter={lora(0.2)}"] if self.adapter else []
        lines = toy_arguments(model, rows, **SETTINGS)
        return ["fit", *lines, *ranks, *adapter, f"--trainer.callbacks={json.dumps(callbacks)}"]


@dataclass
class Fit:
    """A fit under way in a child of this process.

    Attributes:
        pid: of the child.
        folder: its working folder.
        pipe: gives a line for everything that `_tell` tells.
        told: the lines so far: rank, pid, phase, optimizer step.
    """

    pid: int
    folder: Path
    pipe: int
    told: list[tuple[int, int, str, int]] = field(default_factory=list)
    _rest: bytes = b""

    def listen(self) -> Iterator[tuple[int, int, str, int]]:
        """Yield what the fit tells, until nobody is left to tell anything."""
        while block := os.read(self.pipe, 4096):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                rank, pid, phase, step = line.decode().split()
                self.told.append((int(rank), int(pid), phase, int(step)))
                yield self.told[-1]

    def wait(self) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe)
        return status

    def output(self) -> str:
        """Return what the fit printed."""
        return (self.folder / "output.txt").read_text(errors="replace")


def start(arguments: list[str], folder: Path, record: str, *, temporary: Path, cache: Path) -> Fit:
    """Start a fit in a forked child.

    Args:
        arguments: of the command line.
        folder: where it runs; its output and the rows of its steps go there.
        record: distinguishes the rows of several fits in a folder.
        temporary: its TMPDIR.
        cache: of encoded rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reads, writes = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writes)
        return Fit(child, folder, reads)
    status = 1
    try:
        os.close(reads)
        os.chdir(folder)
        os.environ.update(TMPDIR=str(temporary), LIGHTNING_SFT_DATA_CACHE=str(cache))
        tempfile.tempdir = None
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        _watch(writes, record)
        main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(pipe: int, record: str) -> None:
    """Make this process, and the ranks that it forks, tell where they are, and record the rows of every step."""

    def tell(phase: str, step: int) -> None:
        os.write(pipe, f"{os.environ.get('LOCAL_RANK', '0')} {os.getpid()} {phase} {step}\n".encode())

    def around(owner: Any, name: str, phase: str, pause: float, step: Callable[[Any], int]) -> None:
        original = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            tell(phase, step(args[0]))
            time.sleep(pause)  # toys are so quick that a kill would always come too late
            return original(*args, **kwargs)

        setattr(owner, name, told)

    around(SFTModule, "training_step", "training", 0.01, lambda module: module.global_step)
    around(SFTModule, "validation_step", "validation", 0.01, lambda module: module.global_step)
    around(TrialRunner, "_prepare", "sweep", 0.01, lambda runner: runner.trainer.global_step)
    around(Encoder, "__call__", "cache", 0.002, lambda _: 0)
    around(SafeCheckpointIO, "save_checkpoint", "checkpoint", 0.005, lambda _: 0)
    around(io, "sync_all", "checkpoint", 0.01, lambda _: 0)
    _write_in_pieces(lambda: tell("checkpoint", 0))
    _record(tell, record)


def _write_in_pieces(tell: Callable[[], None]) -> None:
    """Let a checkpoint take its time, so that kills meet it half written."""
    save = torch.save

    def slowly(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(file, "fileno"):
            save(content, file, *args, **kwargs)
            return
        import io as memory

        whole = memory.BytesIO()
        save(content, whole, *args, **kwargs)
        view = whole.getbuffer()
        for first in range(0, len(view), len(view) // 4 + 1):
            tell()
            file.write(view[first : first + len(view) // 4 + 1])
            file.flush()
            time.sleep(0.005)

    torch.save = slowly


def _record(tell: Callable[[str, int], None], name: str) -> None:
    """Append the rows of every micro-batch of the fit, not of a sweep's trials, to a file of each rank."""
    on_batch, write = LastCheckpoint.on_train_batch_end, io._write

    def recorded(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + (0 if (batch_idx + 1) % 2 == 0 or trainer.is_last_batch else 1)
        line = json.dumps([step, batch_idx, batch["row"].tolist()])
        with Path(f"rows.{name}.{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")
        on_batch(self, trainer, module, outputs, batch, batch_idx)

    def saved(checkpoint: dict[str, Any], place: Path) -> None:
        """Tell when the file stands, which is behind training as a rule."""
        write(checkpoint, place)
        if place.name == "last.ckpt":
            tell("saved", checkpoint["global_step"])

    LastCheckpoint.on_train_batch_end = recorded  # type: ignore[method-assign]
    io._write = saved


def rows_by_step(folder: Path, record: str, ranks: int) -> dict[int, list[Any]]:
    """Return what every optimizer step was trained on: its micro-batches of all ranks."""
    steps: dict[int, list[Any]] = {}
    for rank in range(ranks):
        for line in (folder / f"rows.{record}.{rank}.jsonl").read_text().splitlines():
            step, batch_idx, rows = json.loads(line)
            steps.setdefault(step, []).append((rank, batch_idx, rows))
    return steps
