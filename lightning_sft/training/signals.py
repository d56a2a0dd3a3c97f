"""SIGTERM, SIGINT and SLURM's requeue signal: the first ends the run at its next safe point, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: tells the ranks that Lightning starts as further processes of the command who started them
_LAUNCHER = "LIGHTNING_SFT_LAUNCHER"


class Stopped(SystemExit):
    """A signal ended the run; the exit status is the shell's for that signal, 143 for SIGTERM.

    Attributes:
        done: of work of many runs, how much of it is done: the same command goes on. Empty otherwise.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.done = ""


class SignalWatch:
    """Catches the signals that ask a run to end, and remembers the first.

    Attributes:
        requested: the signal that asks to end, or None.
        deferring: the run has safe points ahead, where it asks `stop_requested`; otherwise a signal raises `Stopped`.
        agreed: all ranks know of the request.
        ranks: gives the ids of the rank processes that this one started.
        only_waits: this process is no rank itself and only waits for them.
        saves: whether the command keeps what it has done so far in checkpoints; else there is nothing to say of them.
        again: the command that was typed; empty where nobody typed one.
        speaks: whether a run says where it stops; not where it is one of many, and their verb says it.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._pid = 0
        self.is_started_rank = False
        self.speaks = True
        self.reset()

    def reset(self) -> None:
        """Forget the request and the processes."""
        self.requested: int | None = None
        self.deferring = False
        self.agreed = False
        self.only_waits = False
        self.saves = True
        self.again = ""
        self.ranks: Callable[[], Iterable[int]] = tuple

    def install(self, *more: int) -> bool:
        """Catch SIGTERM, SIGINT and ``more`` in this process; return whether this call installed the first of them.

        Python lets only the main thread do so; elsewhere nothing happens.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        if self._before and self._pid != os.getpid():  # a forked rank
            self.reset()
            self.is_started_rank = True
        first = not self._before
        if first:
            self.reset()
            self.is_started_rank = os.environ.get(_LAUNCHER) == str(os.getppid())
        self._pid = os.getpid()
        if not self.is_started_rank:
            os.environ[_LAUNCHER] = str(self._pid)
        for signum in {signal.SIGTERM, signal.SIGINT, *more} - self._before.keys():
            self._before[signum] = signal.signal(signum, self._handle)
        return first

    def restore(self) -> None:
        """Put the handlers back that were there before `install`."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            self._before = {}
            if not self.is_started_rank:
                os.environ.pop(_LAUNCHER, None)
        self.reset()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._in_a_helper(signum)
            return
        if self.requested is not None:
            self._again(signum)
            return
        self.requested = signum
        if self.only_waits:
            self._send(signum)
        elif not self.deferring:
            self.stop("where no step was under way; there is nothing new to save" if self.saves else "")

    def _in_a_helper(self, signum: int) -> None:
        """Act in a forked process that is no rank, such as a loader's worker or one that tokenises."""
        from torch.utils.data import get_worker_info

        # A worker ends with its parent. If it died first, as when a whole group gets the signal, the step would fail.
        if signum != signal.SIGINT and get_worker_info() is None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def _again(self, signum: int) -> None:
        if self.is_started_rank:  # the process that started this one decides; a terminal's Ctrl-C reaches both
            return
        self._send(signal.SIGKILL)
        kept = " The last checkpoint that was complete is whole." if self.saves else ""
        _say(f"{signal.Signals(signum).name} again: ended at once.{kept}")
        os._exit(128 + signum)

    def end_ranks(self) -> None:
        """Kill the rank processes that this one started, where it ends without their knowing."""
        if not self.agreed:
            self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        for pid in self.ranks():
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def stop(self, where: str, *, speak: bool = True, lost: bool = True, go_on: str = "") -> NoReturn:
        """Say where the run stops, in one line, and end it.

        Args:
            where: completes "Stopped by SIGTERM ..."; empty where there is nothing to add.
            speak: on one rank.
            lost: nothing is kept to go on from, so that the command that was typed begins again.
            go_on: the command that goes on from what is kept; empty where none is known.

        Raises:
            Stopped: always.
        """
        signum = signal.SIGTERM if self.requested is None else self.requested
        if speak and self.speaks and not (self.is_started_rank and os.environ.get("LOCAL_RANK", "0") != "0"):
            again = f" Begin again with {self.again}" if self.again and self.saves and lost else ""
            again = f" Go on with {go_on}" if go_on and not lost else again
            _say(f"Stopped by {signal.Signals(signum).name}{' ' * bool(where)}{where}.{again}")
        raise Stopped(signum)


def _say(line: str) -> None:
    with suppress(OSError):  # nobody may listen any more
        print(line, file=sys.stderr, flush=True)


def stop_in_generation() -> None:
    """End a run on one device in the middle of an answer, where a validation is under way; nothing is lost by that.

    Raises:
        Stopped: a signal has asked for it.
    """
    if WATCH.deferring and WATCH.requested is not None:
        WATCH.stop("in a generation", speak=False)


#: of this process; a forked rank takes it over by `SignalWatch.install`
WATCH = SignalWatch()


def goes_on_with(callbacks: Iterable[Any]) -> str:
    """Return the command by which a run with these callbacks goes on; empty where none of them keeps a checkpoint."""
    return next((str(c.goes_on_with()) for c in callbacks if hasattr(c, "goes_on_with")), "")


def stop_requested(trainer: Trainer) -> bool:
    """Return whether a signal has reached any rank; a collective, the same on every rank."""
    if trainer.world_size > 1:
        import torch

        own = torch.tensor(WATCH.requested or 0, device=trainer.strategy.root_device)
        agreed = int(trainer.strategy.reduce(own, reduce_op="max"))
        WATCH.requested = agreed or None
        WATCH.agreed = bool(agreed)
    return WATCH.requested is not None
