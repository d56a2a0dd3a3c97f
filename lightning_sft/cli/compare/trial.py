"""One run of a comparison: a fit of the arm's configuration, on the replicate's rows, at the run's rate.

Every run starts from its configuration alone, in a process that other runs of the comparison may have used before, or
in one of its own. Nothing of it depends on which.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_sft.callbacks import FinalValidation, RunStory, RunSummary
from lightning_sft.cli.compare.reading_less import reading_less
from lightning_sft.cli.compare.readings import Readings, Recorder
from lightning_sft.cli.compare.steps import RunSteps
from lightning_sft.cli.failures import what_happened
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.compare.design import Design, Draw, RunSpec
from lightning_sft.compare.facts import depends_on
from lightning_sft.compare.result import Outcome, RunResult
from lightning_sft.compare.work import Runner, label
from lightning_sft.data import SFTDataModule
from lightning_sft.data.draws import draw_afresh
from lightning_sft.errors import first_line
from lightning_sft.files import write_text
from lightning_sft.places import LAST
from lightning_sft.training.signals import WATCH, Stopped

CONFIG, RESULT, SPEC = "config.yaml", "result.json", "spec.json"


class _TrialCLI(SFTCLI):
    """A fit whose rows are drawn for a replicate, with a logger that keeps readings in memory.

    Args:
        args: of the command line.
        folder: of the run.
        draw: of its replicate.
        readings: takes what is logged.
        what: names the run in lines about its progress.
    """

    def __init__(self, args: list[str], folder: Path, draw: Draw, readings: Readings, what: str) -> None:
        self._what = what
        self._trial_folder = folder
        self._draw = draw
        self._readings = readings
        super().__init__(args)

    @override
    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        data = self.datamodule
        assert isinstance(data, SFTDataModule)
        draw_afresh(data.sets, self._draw.seed, self._draw.part, self._draw.parts, self._draw.deal)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        # what is judged is the run's end: the best checkpoint on the way would be chosen by the rows that judge
        dropped = (ModelCheckpoint, RunStory, RunSummary, FinalValidation)
        kept = [c for c in trainer.callbacks if type(c) not in dropped]  # type: ignore[attr-defined]
        shown = [] if trainer.progress_bar_callback is not None else [RunSteps(self._what)]
        trainer.callbacks = [self._readings, *shown, *kept, FinalValidation(always=True)]  # type: ignore[attr-defined]
        trainer.loggers = [Recorder(str(self._trial_folder), self._readings.take)]
        return trainer


def run_settings(design: Design, spec: RunSpec, folder: Path) -> str:
    """Return an arm's configuration with what a run sets: seeds, folder, and what it reads."""
    content, seed = yaml.safe_load(design.arm(spec.arm).config), design.draw(spec).seed
    if spec.kind == "search":
        content = reading_less(content, instruments=not design.needs_validation_alone(spec))
    content["seed_everything"] = seed
    data = content.setdefault("data", {})
    data = data["init_args"] if "class_path" in data else data
    if "seed" in data:
        data["seed"] = seed
    content["trainer"]["default_root_dir"] = str(folder)
    return str(yaml.safe_dump(content, sort_keys=False))


def run_here(design: Design, spec: RunSpec, folder: Path) -> RunResult:
    """Do a run in this process, or go on with it where it was interrupted.

    Args:
        design: of the comparison.
        spec: of the run.
        folder: its own; checkpoints in it are removed when it is done.

    Returns:
        What it gave; a run that ended with an error is a result, too.

    Raises:
        OSError: the disk cannot be written.
    """
    since, draw = time.perf_counter(), design.draw(spec)
    write_text(folder / CONFIG, run_settings(design, spec, folder))
    readings, data, error = Readings(spec.rate), None, None
    outcome: Outcome = "finished"
    lasts = sorted(folder.rglob(LAST))
    resume = [f"--ckpt_path={lasts[-1]}"] if lasts else []
    try:
        cli = _TrialCLI(["fit", f"--config={folder / CONFIG}", *resume], folder, draw, readings, label(design, spec))
        data, trainer = cli.datamodule, cli.trainer
        device, steps = str(trainer.strategy.root_device), trainer.global_step
    except Exception as problem:  # whatever ends one run is a result of it, so that the others go on
        if isinstance(problem, OSError) and what_happened(problem):
            raise
        outcome, error, device, steps = "failed", f"{type(problem).__name__}: {first_line(problem)}", "", 0
        write_text(folder / "error.txt", traceback.format_exc())
    readings.finish(steps)
    if readings.diverged or not _is_finite(readings):
        outcome, error = "diverged", None  # instruments may well refuse to read a model that is no more
    result = RunResult(
        digest=design.digest_of(spec),
        key=spec.key,
        outcome=outcome,
        error=error,
        curve=tuple(readings.points),
        steps=steps,
        tokens=readings.tokens,
        seconds=readings.seconds,
        wall_seconds=time.perf_counter() - since,
        answer_tokens=_answer_tokens(data),
        rows=_rows(data),
        device=device,
        judged_rows=_judged_rows(data),
    )
    if is_first_rank():
        for path in [p.parent for p in folder.rglob(LAST)]:
            shutil.rmtree(path, ignore_errors=True)
    gc.collect()  # a trainer and its module hold each other, and the next run wants their memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def run_apart(design: Design, spec: RunSpec, folder: Path) -> RunResult:
    """Do a run in a process of its own, which may start ranks; one that dies has failed."""
    plain = {"design": design.plain(), "spec": vars(spec)}
    write_text(folder / SPEC, json.dumps(plain))
    (folder / RESULT).unlink(missing_ok=True)
    since = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "lightning_sft.cli.compare.trial", str(folder)], check=False)
    if (folder / RESULT).exists():
        return RunResult.of(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    if done.returncode in (130, 143):  # a signal that reached it, too: the comparison ends, the run goes on later
        raise Stopped(done.returncode - 128)
    said = f"its process ended with status {done.returncode} and without a result"
    return RunResult(design.digest_of(spec), spec.key, "failed", said, wall_seconds=time.perf_counter() - since)


def runner(design: Design, folder: Path, *, apart: bool) -> Runner:
    """Return what does the runs of a comparison, each in a folder of its own below ``folder``."""
    one = run_apart if apart else run_here

    def run(spec: RunSpec) -> RunResult:
        result = one(design, spec, folder / design.digest_of(spec))
        return replace(result, depends_on=depends_on(design, spec))

    return run


def main(argv: list[str]) -> None:
    """Do the run that a folder asks for, as `run_apart` starts it."""
    folder = Path(argv[0])
    plain = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    result = run_here(Design.of(plain["design"]), RunSpec(**plain["spec"]), folder)
    if is_first_rank():
        write_text(folder / RESULT, json.dumps(result.plain()))


def is_first_rank() -> bool:
    """Return whether this process is the first rank of the run that it has done."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _is_finite(readings: Readings) -> bool:
    last = readings.points[-1].values if readings.points else {}
    return all(math.isfinite(v) for k, v in last.items() if k in ("val/nll", "val/loss"))


def _answer_tokens(data: LightningDataModule | None) -> float | None:
    report = getattr(data, "report", {}).get("val")
    return float(report.trained.mean()) if report is not None and len(report.trained) else None


def _judged_rows(data: LightningDataModule | None) -> int | None:
    report = getattr(data, "report", {}).get("val")
    return None if report is None else int(report.rows)


def _rows(data: LightningDataModule | None) -> dict[str, str]:
    sets: Any = getattr(data, "sets", ())
    return {what: str(sets[what].fingerprint)[:16] for what in ("train", "val") if what in sets}


if __name__ == "__main__":
    WATCH.install()
    WATCH.speaks = False
    main(sys.argv[1:])
