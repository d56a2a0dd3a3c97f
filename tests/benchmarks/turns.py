"""Contenders in processes of their own that take a training step each in turn.

Interleaved steps meet the same busy machine; separate processes have their own memory, warm-up and libraries. The
clock runs from one "go" until the loop comes round for the next one: data, forward, backward, clipping, optimizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.phases import Phases

MANY = 10**6
"""Steps that a contender is to take; the parent ends its process."""
REPLIES = "BENCHMARK_REPLIES"  # names the file descriptor that replies go to; stdout is the libraries' own


@dataclass
class Step:
    """One step of one contender.

    Attributes:
        wall: seconds on the clock.
        cpu: processor seconds of the whole process.
        tokens: real tokens, without padding.
        positions: positions of the batch, with padding.
        trained: supervised tokens.
        peak: MiB of the resident set at its peak so far.
        phases: processor seconds of each phase that is known.
    """

    wall: float
    cpu: float
    tokens: int
    positions: int
    trained: int
    peak: float
    phases: dict[str, float] = field(default_factory=dict)


class Gate:
    """The worker's side: ``wait`` before each step.

    Attributes:
        phases: the clock of the step's phases.
    """

    def __init__(self) -> None:
        self.phases = Phases()
        self._replies = os.fdopen(int(os.environ[REPLIES]), "w")
        self._since: tuple[float, float] | None = None
        self._taken: tuple[float, float] | None = None
        self._batches: deque[tuple[int, int, int]] = deque()

    def counted(self, collate: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], Mapping[str, Any]]:
        """Return ``collate``, taking down what each batch holds; loaders that read ahead do not confuse the order."""

        def call(rows: Any) -> Mapping[str, Any]:
            batch = collate(rows)
            self.note(batch)
            return batch

        return call

    def note(self, batch: Mapping[str, Any]) -> None:
        """Take down what a batch holds; batches are noted in the order in which they are trained on."""
        self._batches.append(count(batch))

    def wait(self) -> None:
        """Tell the parent about the step that ended, and wait for the next turn; leave when there is none."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if self._since is not None:
            self.stop()
            assert self._taken is not None
            (wall, cpu), self._taken = self._taken, None
            self._reply(Step(wall, cpu, *self._batches.popleft(), peak_resident(), self.phases.taken()).__dict__)
        else:
            self._reply({"ready": True})
        if not sys.stdin.readline():
            os._exit(0)  # nothing of the training is wanted, and its loop is in the middle
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End the step here, where something that is not measured follows before the next turn."""
        if self._taken is None and self._since is not None:
            self._taken = time.perf_counter() - self._since[0], time.process_time() - self._since[1]

    def _reply(self, message: Mapping[str, Any]) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()


def count(batch: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return real tokens, positions and supervised tokens of a batch.

    Packed batches have no mask: ours tell the row of each position, -1 for none; TRL's hold no padding at all.
    """
    ids, mask, row = batch["input_ids"], batch.get("attention_mask"), batch.get("row")
    real = ids.numel()
    if mask is not None:
        real = int((mask != 0).sum())
    elif row is not None and row.shape == ids.shape:
        real = int((row >= 0).sum())
    return real, ids.numel(), int((batch["labels"] != -100).sum())


def peak_resident() -> float:
    """MiB of this process's resident set at its peak; of the GPU's memory where one is used."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@dataclass
class Contender:
    """The parent's side of one process.

    Args:
        name: for the table.
        command: what to run.
        threads: how many threads it may use.
        log: where its output goes.
        environment: variables of its own.
    """

    name: str
    command: Sequence[str]
    threads: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the process; it warms up by itself later."""
        read, write = os.pipe()
        environment = {
            **os.environ,
            **self.environment,
            REPLIES: str(write),
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[write],
                text=True,
            )
        os.close(write)
        self._replies = os.fdopen(read)

    def ready(self) -> None:
        """Wait until it stands before its first step."""
        self._read()

    def step(self) -> Step:
        """Let it take one step."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a process that died is reported with its output
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return Step(**self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)
        self._replies.close()

    def _read(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            status = self._process.wait(60)
            output = self.log.read_text()[-3000:]
            raise RuntimeError(f"{self.name} ended before its time with status {status} (-9: memory?):\n{output}")
        return dict(json.loads(line))


def take_turns(contenders: Sequence[Contender], warm: int, rounds: int) -> None:
    """Run ``warm`` unrecorded and ``rounds`` recorded steps of each, round by round; then end the processes."""
    try:
        for contender in contenders:
            contender.ready()
        for turn in range(warm + rounds):
            for contender in contenders:
                step = contender.step()
                if turn >= warm:
                    contender.steps.append(step)
    finally:
        for contender in contenders:
            contender.close()


def heats(names: Sequence[str], together: int) -> list[list[str]]:
    """Split contenders into heats of at most ``together``, the first one in each unless they run one by one."""
    if together == 1 or not names:
        return [[name] for name in names]
    first, others = names[0], names[1:]
    step = max(together - 1, 1)
    return [[first, *others[i : i + step]] for i in range(0, len(others), step)] or [[first]]


def median(values: Iterable[float]) -> float:
    """Median of some numbers."""
    return statistics.median(values)


def python(interpreter: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the command of a worker."""
    return [interpreter, "-m", "tests.benchmarks.trainers", json.dumps(settings)]
