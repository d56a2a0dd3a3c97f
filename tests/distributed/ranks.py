"""Gloo ranks for all tests, forked from one process that has imported everything.

A test process cannot fork ranks itself, since autograd's threads do not survive a fork, and a fresh interpreter for
each group of ranks would spend more time on imports than on the test.
"""

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

#: of processor time that ranks may use: on a busy machine the same work takes any number of seconds by the clock
SECONDS = 400
#: by the clock, without any work: ranks that wait for each other
QUIET = 240
LOOK = 5
LOG = "ranks.log"


class Pool:
    """The process that forks; started when it is first needed, and again after ranks that hung."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> int | None:
        """Return the exit code of the ranks, or None if they hung; then they are killed."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.ranks"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        begun = last = processor_seconds(self.process.pid)
        quiet = time.monotonic()
        while not select.select([self.process.stdout], [], [], LOOK)[0]:
            now = processor_seconds(self.process.pid)
            if now > last + 0.1:
                last, quiet = now, time.monotonic()
            if now > begun + SECONDS or time.monotonic() > quiet + QUIET:
                self.close()
                return None
        return int(self.process.stdout.readline() or -1)

    def close(self) -> None:
        """End the process and every rank that it still has."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
        self.process = None


POOL = Pool()


def processor_seconds(session: int) -> float:
    """Return the processor time that the processes of a session have used so far, 0 where the system does not tell."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))  # its own, and that of its children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def two_ranks(work: str, folder: Path, **given: Any) -> list[Any]:
    """Run a function on two ranks; see ``some_ranks``."""
    return some_ranks(2, work, folder, **given)


def some_ranks(count: int, work: str, folder: Path, **given: Any) -> list[Any]:
    """Run a function on several ranks and return what each one returned.

    Args:
        count: number of ranks.
        work: ``module:function``, a module of ``tests.distributed`` or one with its full name; the function is called
            with ``(rank, **given)`` in ``folder``.
        folder: where the results travel.
        given: plain data.

    Raises:
        AssertionError: a rank failed or hung; carries its output.
    """
    # a fixture that ran a command line for many tests leaves its seed, which Lightning would give to these ranks
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    request = {"count": count, "work": work, "folder": str(folder), "given": given, "environment": environment}
    code = POOL.ask(request)
    output = (folder / LOG).read_text(errors="replace")[-5000:] if code != 0 and (folder / LOG).exists() else ""
    assert code == 0, f"{work}: " + ("its ranks hung" if code is None else f"exit code {code}") + output
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(count)]


def _function(work: str) -> Any:
    module, _, function = work.partition(":")
    return getattr(importlib.import_module(module if "." in module else f"tests.distributed.{module}"), function)


def _rank(rank: int, count: int, port: int, work: str, given: dict[str, Any]) -> None:
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
    result = _function(work)(rank, **given)
    torch.save(result, f"rank_{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _launch(request: dict[str, Any]) -> None:
    """Fork the ranks of one request, in a process of its own, whose output goes into the request's folder."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    _function(request["work"])  # imported once, for all ranks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (request["count"], port, request["work"], request["given"])
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=request["count"], start_method="fork")


def _serve() -> None:
    """Answer one line of JSON after the other with an exit code, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    importlib.import_module("tests.distributed.work")
    for line in sys.stdin:
        if not (child := os.fork()):
            code = 1
            try:
                _launch(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
