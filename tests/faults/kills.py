"""Fifty SIGKILLs at random moments: ``make test-faults``.

Each kill meets a fit of a kind (whole model or LoRA, one rank or two, TMPDIR on the same filesystem or on another) in a
phase: training, validation, writing a checkpoint, a sweep, building the cache of encoded rows. Afterwards the same
command resumes. Nothing may be lost: the checkpoint that was complete last is found and whole, the rows from it on are
those of a fit that was never killed, and so are the final weights, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_sft.checkpoints.read import is_whole
from tests.faults.fits import PHASES, Fit, Kind, rows_by_step, start
from tests.running import run_folder, write_rows
from tests.toys import save_toy

os.environ["LIGHTNING_SFT_RUN_NAMES"] = "numbers"  # of the fits that are started: their folders are known beforehand
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
#: the event of a phase to kill at is drawn from so many, which every kind of fit has
MOMENTS = {"training": 14, "validation": 6, "checkpoint": 36, "sweep": 1, "cache": 16}


@dataclass(frozen=True)
class Kill:
    """One kill: when, whom, and what was left.

    Attributes:
        kind: of the fit.
        phase: it was in.
        moment: how many events of the phase had been told.
        target: ``"all"``, or the rank that was killed alone.
        elsewhere: whether TMPDIR was on another filesystem.
        at: optimizer step that the fit was at.
        resumed: optimizer step that it resumed from; 0 is a fresh start, where no checkpoint was complete.
        ended: seconds until the last process had ended.
        faults: what was lost; empty if nothing.
    """

    kind: Kind
    phase: str
    moment: int
    target: str
    elsewhere: bool
    at: int
    resumed: int
    ended: float
    faults: tuple[str, ...]

    def row(self, number: int) -> str:
        """Return a line of the table."""
        what = "LoRA" if self.kind.adapter else "full"
        temporary = "other" if self.elsewhere else "same"
        lost = "; ".join(self.faults) or "none"
        return (
            f"| {number} | {what} | {self.kind.ranks} | {self.phase} {self.moment} | {self.target} | {temporary} | "
            f"{self.at} | {self.resumed} | {self.ended:.1f} | {lost} |"
        )


HEAD = (
    "| kill | fit | ranks | moment | killed | TMPDIR | step | resumed from | ended after, s | lost |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


class Trials:
    """Kills of fits that share a model, rows and uninterrupted fits to compare with.

    Args:
        place: a folder for all of it.
        elsewhere: a folder on another filesystem.
    """

    def __init__(self, place: Path, elsewhere: Path) -> None:
        self.place = place
        self.elsewhere = elsewhere
        self.model = save_toy(place / "model")
        self.rows = write_rows(place / "rows.jsonl")
        self._whole: dict[Kind, Path] = {}
        self._count = 0

    def whole(self, kind: Kind) -> Path:
        """Return the folder of a fit of this kind that nobody killed."""
        if kind not in self._whole:
            folder = self.place / f"whole_{kind.ranks}_{kind.adapter}"
            arguments = kind.arguments(self.model, self.rows)
            fit = start(arguments, folder, "whole", temporary=self.place, cache=self.place / "cache")
            for _ in fit.listen():
                pass
            assert fit.wait() == 0, fit.output()[-3000:]
            self._whole[kind] = folder
        return self._whole[kind]

    def kill(self, kind: Kind, phase: str, target: str, *, elsewhere: bool, draw: random.Random) -> Kill:
        """Kill a fit at a random moment of a phase, resume it, and compare.

        Args:
            kind: of the fit.
            phase: in which it is killed.
            target: ``"all"`` processes, or one rank.
            elsewhere: whether TMPDIR is on another filesystem.
            draw: the moment.
        """
        whole = self.whole(kind)
        self._count += 1
        folder = self.place / f"killed_{self._count}"
        temporary = (self.elsewhere if elsewhere else self.place) / f"tmp_{self._count}"
        temporary.mkdir()
        arguments = kind.arguments(self.model, self.rows, sweep=phase == "sweep")
        cache = folder / "cache" if phase == "cache" else self.place / "cache"
        fit = start(arguments, folder, "killed", temporary=temporary, cache=cache)
        moment = draw.randrange(1, MOMENTS[phase] + 1)
        delay = draw.uniform(0.0, 0.2 if phase == "sweep" else 0.03)  # a sweep is one event and takes long
        at, saved, ended = _kill(fit, phase, moment, target, delay)
        faults = _end(fit, kind, target, ended)
        if at < 0:
            faults.append("the moment never came: nothing was killed")
        faults += [f"{path.name} is not whole" for path in (folder / LAST.parent).glob("*.ckpt") if not is_whole(path)]
        there = (folder / LAST).exists()
        if saved and not there:
            faults.append(f"last.ckpt of step {saved} is gone")
        again = start(
            [*arguments, *(["--ckpt_path=last"] if there else [])], folder, "resumed", temporary=temporary, cache=cache
        )
        for _ in again.listen():
            pass
        status = again.wait()
        resumed = 0
        if status:
            faults.append(f"the resumed fit ended with {status}: {again.output()[-300:]}")
        else:
            resumed, differ = _compare(whole, folder, kind)
            faults += differ
            if resumed < saved:
                faults.append(f"resumed from {resumed}, although {saved} was saved")
        shutil.rmtree(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        return Kill(kind, phase, moment, target, elsewhere, at, resumed, ended, tuple(faults))


def _kill(fit: Fit, phase: str, moment: int, target: str, delay: float) -> tuple[int, int, float]:
    """Kill processes of a fit at the moment-th event of a phase.

    Returns:
        The step it was at, the step that was saved last, and the seconds from the kill until no process was left.
    """
    at = saved = seen = 0
    since = time.monotonic()
    ranks: dict[int, int] = {}
    for rank, pid, told, step in fit.listen():
        ranks[rank] = pid
        at = max(at, step)
        saved = step if told == "saved" else saved
        seen += told == phase
        if seen >= moment and target in ("all", *map(str, ranks)):
            time.sleep(delay)
            doomed = {fit.pid, *ranks.values()} if target == "all" else {ranks[int(target)]}
            for pid in doomed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            since = time.monotonic()
            break
    else:
        at = -1
    for _, _, told, step in fit.listen():  # what was told before the kill came
        saved = step if told == "saved" else saved
    return at, saved, time.monotonic() - since


def _end(fit: Fit, kind: Kind, target: str, took: float) -> list[str]:
    """Return what was wrong with the end of a fit whose processes were killed, ``took`` seconds after that."""
    status = fit.wait()
    if target == "all" or kind.ranks == 1:
        return []
    faults = [] if took < 60 else [f"the other ranks went on for {took:.0f} s"]
    if status == 0:
        return faults  # it was through before the kill came
    last = fit.output().strip().splitlines()[-1]
    if not last.startswith("error: ") or "rank" not in last:
        faults.append(f"no message about the rank, but {last[:200]!r}")
    return faults


def _compare(whole: Path, folder: Path, kind: Kind) -> tuple[int, list[str]]:
    """Return the step from which a fit was resumed, and in what it differs from the uninterrupted one."""
    expected, got = rows_by_step(whole, "whole", kind.ranks), {}
    with suppress(FileNotFoundError):  # it had been complete: nothing was left to train
        got = rows_by_step(folder, "resumed", kind.ranks)
    resumed = min(got, default=max(expected) + 1) - 1
    faults = [
        f"other rows in step {step}" for step in range(resumed + 1, max(expected) + 1) if got[step] != expected[step]
    ]
    run = run_folder(folder / "lightning_logs")  # a second one where the first had no checkpoint
    one, other = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True) for p in (whole / RUN, run))
    if one["global_step"] != other["global_step"]:
        faults.append(f"ended at step {other['global_step']}")
    faults += [
        f"other weights: {k}" for k, v in one["state_dict"].items() if not torch.equal(v, other["state_dict"][k])
    ]
    leftovers = [path.name for path in (run / "checkpoints").glob(".*")]
    return resumed, faults + ([f"left behind: {leftovers}"] if leftovers else [])


def other_filesystem() -> Path | None:
    """Return a folder on another filesystem than the temporary one, if there is one."""
    shared = Path("/dev/shm")
    here = Path(tempfile.gettempdir())
    usable = shared.is_dir() and os.access(shared, os.W_OK) and shared.stat().st_dev != here.stat().st_dev
    return Path(tempfile.mkdtemp(prefix="lightning_sft_faults_", dir=shared)) if usable else None


def main() -> None:
    """Kill and resume, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks that come round")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed if not given")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    draw = random.Random(seed)
    kinds = [Kind(ranks, adapter) for ranks in arguments.ranks for adapter in (False, True)]
    print(f"seed {seed}\n\n{HEAD}", flush=True)
    elsewhere = other_filesystem()
    kills: list[Kill] = []
    try:
        with tempfile.TemporaryDirectory(prefix="lightning_sft_faults_") as folder:
            trials = Trials(Path(folder), elsewhere or Path(folder))
            for number in range(arguments.kills):
                # every phase, kind, target and TMPDIR comes round; the moments are random
                kind, phase = kinds[number % len(kinds)], PHASES[number // len(kinds) % len(PHASES)]
                target = "all" if kind.ranks == 1 else draw.choice(["all", "0", "1"])
                other = elsewhere is not None and draw.random() < 0.5
                kills.append(trials.kill(kind, phase, target, elsewhere=other, draw=draw))
                print(kills[-1].row(number + 1), flush=True)
    finally:
        if elsewhere is not None:
            shutil.rmtree(elsewhere, ignore_errors=True)
    bad = sum(bool(kill.faults) for kill in kills)
    print(
        f"\n{len(kills)} kills, {sum(kill.elsewhere for kill in kills)} with TMPDIR on another filesystem; lost: {bad}"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
