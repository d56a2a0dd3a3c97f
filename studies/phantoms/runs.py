"""Runs of the study of phantoms: every one starts from the model as it is."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from studies import study
from studies.cure.texts import wordnet
from studies.phantoms.design import MODEL, SCORE, STUDY, Block, Stage, arm_words, run_settings


class Study(study.Study):
    """The study of phantoms on this machine; see `studies.study.Study`."""

    name = STUDY
    default_model = MODEL
    score = SCORE
    direction = ":max"
    score_words = "score"

    @override
    def require_model(self) -> None:
        super().require_model()
        wordnet()

    @override
    def settings(self, stage: Stage, block: Block) -> dict[str, Any]:
        return run_settings(stage, block, self.model, self.small)

    @override
    def arm_words(self, stage: Stage, block: Block, arm: str) -> list[str]:
        return arm_words(arm)

    @override
    def make_start(self, block: Block) -> None:
        """Nothing is needed but the model."""

    @override
    def start_words(self, block: Block) -> str:
        return self.model if "://" in self.model else "the model"
