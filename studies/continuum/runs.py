"""Runs of the continuum study: checkpoints at a level, and the arms that continue from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from studies import study
from studies.cells import Cell
from studies.continuum import levels
from studies.continuum.design import BOTTOM, LEVELS, MODEL, SCORE, STUDY, Block, Stage, arm_words, run_settings


class Study(study.Study):
    """The continuum study on this machine; see `studies.study.Study`.

    ``small`` holds other numbers for a toy: see `design.run_settings` and `levels.settings`.
    """

    name = STUDY
    default_model = MODEL
    score = SCORE
    score_words = "exact match"

    def checkpoint(self, task: str, level: str) -> Path:
        """Return where the checkpoint of a level is, or will be."""
        return self.work / "levels" / f"{task}, {level}"

    def ensure_level(self, task: str, level: str) -> None:
        """Make the checkpoint of a level, and of those below it, unless they are there.

        Raises:
            UserError: the one here is not the one that the level's cell tells of.
        """
        lower = [name for name in LEVELS if self._target(name) < self._target(level) and self._on_way(name, level)]
        start = self.model
        if lower:
            below = max(lower, key=self._target)
            self.ensure_level(task, below)
            start = str(self.checkpoint(task, below))

        def make() -> Cell:
            self.say(f"level {task}, {level}: fine-tuning on clean rows up to mean p {self._target(level)}")
            return levels.make_level(task, level, start, self.checkpoint(task, level), self.commit, self.small)

        self.require_checkpoint(f"{task}, {level}", self.checkpoint(task, level), make)

    def _target(self, level: str) -> float:
        return float({**LEVELS, **(self.small or {}).get("targets", {})}[level])

    @staticmethod
    def _on_way(name: str, level: str) -> bool:
        """Return whether a level lies on the way to another: the three of the hypotheses, or the four of the rules."""
        return name.startswith("at ") == level.startswith("at ")

    @override
    def settings(self, stage: Stage, block: Block) -> dict[str, Any]:
        folder = self.checkpoint(block.task, block.level)
        # before it is made, the model itself: the design is asked only for what is missing then
        return run_settings(stage, block, str(folder) if folder.is_dir() else self.model, self.small)

    @override
    def arm_words(self, stage: Stage, block: Block, arm: str) -> list[str]:
        level = self.level_cell(f"{block.task}, {block.level}")
        return arm_words(arm, 0.0 if level is None else level.run.readings[f"p at {BOTTOM}%"])

    @override
    def make_start(self, block: Block) -> None:
        self.ensure_level(block.task, block.level)

    @override
    def start_words(self, block: Block) -> str:
        return f"checkpoint of {block.name.rpartition(', ')[0]}"
