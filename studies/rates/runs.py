"""Units of the study, several at a time in processes that stay, and the checkpoints that they start from."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from lightning_sft.cli.compare.finish import quiet
from lightning_sft.cli.compare.identity import model_digest
from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.result import RunResult
from studies import study
from studies.cells import Cell, processor, read_cells, require_one_version, write_cell
from studies.cure.texts import wordnet
from studies.rates.design import ARM, STUDY, Block, Stage, sizes_of
from studies.rates.models import make_model
from studies.rates.unit import Task, run_unit
from studies.registration import seed_text
from studies.side_by_side import prepare_processes, run_wanted


def _worker() -> None:
    """Prepare a process: Ctrl-C is for the program, which lets units under way finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def seed_of(text: str, block: str, replicate: int) -> int:
    """Return the seed of a unit: of the rows that it draws, and of everything random in it.

    Args:
        text: see `studies.registration.seed_text`.
        block: name of the block; blocks that differ in the adapter alone share their seeds, and so their rows.
        replicate: which one.
    """
    shared = block.rpartition(",")[0]
    return int.from_bytes(hashlib.sha256(f"{text}\n{shared}\n{replicate}".encode()).digest()[:4], "little") % 2**31


class Study(study.Study):
    """The study of rates on this machine; see `studies.study.Study`. A unit is one cell, with a whole grid in it."""

    name = STUDY
    default_model = "made here"
    score = "none"
    score_words = "best rate"

    @override
    def require_model(self) -> None:
        wordnet()

    def checkpoint(self, size: str) -> Path:
        """Return where the model of a size is, or will be."""
        return self.work / f"model {size}"

    @override
    def settings(self, stage: Stage, block: Block) -> dict[str, Any]:
        return {"model": block.model, "task": block.task, "lora": block.lora, "sizes": sizes_of(self.small)}

    @override
    def arm_words(self, stage: Stage, block: Block, arm: str) -> list[str]:
        return []

    @override
    def start_words(self, block: Block) -> str:
        return f"model {block.model}"

    @override
    def make_start(self, block: Block) -> None:
        folder = self.checkpoint(block.model)
        make = lambda: make_model(block.model, folder, self.commit, sizes_of(self.small))  # noqa: E731
        self.require_checkpoint(self.start_words(block), folder, make)

    def task_of(self, stage: Stage, block: Block, replicate: int, commit: str | None) -> Task:
        """Return what a process needs to run a unit."""
        text = seed_text(self.name, commit if stage.registered and commit else self.unregistered(stage))
        key = f"{stage.name}, {block.name}, {replicate}"
        return Task(
            key, str(self.checkpoint(block.model)), block.task, block.lora, seed_of(text, block.name, replicate),
            sizes_of(self.small), str(self.work / "runs" / hashlib.sha256(key.encode()).hexdigest()[:12]),
        )  # fmt: skip

    @override
    def _run_stage(self, stage: Any, commit: str | None, blocks: Sequence[Any]) -> None:
        quiet()
        prepare_processes(self.root)
        mine = [cell for cell in read_cells(self.cells) if cell.stage == stage.name]
        done = {(cell.block, cell.replicate) for cell in mine}
        by_name: dict[str, Block] = {block.name: block for block in blocks}
        # whole replicates first, so that a stage that is stopped has as many of each block as can be
        missing = [(n, name) for n in range(stage.replicates) for name in by_name if (name, n) not in done]
        if not missing:
            self.say(f"{stage.name}: all cells are there")
            return
        self.require_model()
        require_one_version(mine, self.here)
        for block in {by_name[name].model: by_name[name] for _, name in missing}.values():
            self.make_start(block)
        digests = {block.model: model_digest(str(self.checkpoint(block.model)), None) for block in by_name.values()}

        def wanted(under_way: Sequence[tuple[str, RunSpec]]) -> Iterator[tuple[str, RunSpec]]:
            for n, name in missing:
                spec = RunSpec("judged", n, ARM, 0.0)
                if (name, n) not in done and (name, spec) not in under_way:
                    yield name, spec

        def keep(name: str, spec: RunSpec, result: RunResult) -> None:
            block = by_name[name]
            seed = self.task_of(stage, block, spec.replicate, commit).seed
            facts = {**self.here, "model": digests[block.model], "start": self.start_words(block)}
            cell = Cell(
                self.name, stage.name, name, "judged", spec.replicate, ARM, 0.0, seed,
                commit if stage.registered else None, self.commit, self.settings(stage, block), facts, processor(),
                result.plain(),
            )  # fmt: skip
            path = write_cell(self.cells, cell)
            done.add((name, spec.replicate))
            self.say(f"{path.relative_to(self.cells)}: {result.steps} steps, {result.wall_seconds:.0f} s")

        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_worker) as pool:

            def run(name: str, spec: RunSpec) -> RunResult:
                return pool.submit(run_unit, self.task_of(stage, by_name[name], spec.replicate, commit)).result()

            run_wanted(wanted, run, keep, self.workers)
