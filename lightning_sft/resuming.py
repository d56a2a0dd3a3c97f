"""What a checkpoint of a training module holds beyond Lightning's own, and what is checked when it is loaded."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from typing_extensions import override

from lightning_sft._lightning import all_gather, attached_trainer
from lightning_sft.advice.auto import AutoObjective
from lightning_sft.checkpoints import averaging, state
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.checkpoints.resume import ResumeState
from lightning_sft.models import tuners
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.objectives import Objective
from lightning_sft.training.exact_step import ExactSteps
from lightning_sft.training.strategies import adapter_of


class ResumableModule(LightningModule):
    """A module whose resumed run takes the steps of the uninterrupted one, or is refused by name.

    A subclass sets the attributes. It calls ``resume_state.check`` before it trains, and ``resume_state.restore_rng``
    when nothing else will draw a random number before the first step.

    Attributes:
        settings: of the model.
        objective: the loss that is trained.
        scorer: holds the model.
        steps: count what a checkpoint remembers of them.
        auto: the objective that the run picks by itself, if it is to.
        resume_state: what the checkpoint said.
        validations: complete validations of the fit so far.
        loaded_step: optimizer steps behind the checkpoint that was loaded; 0 without one.
    """

    settings: ModelSettings
    objective: Objective
    scorer: TokenScorer
    steps: ExactSteps
    auto: AutoObjective
    resume_state: ResumeState
    validations: int
    loaded_step: int = 0

    @abstractmethod
    def use_objective(self, objective: Objective) -> None:
        """Take another objective from here on."""

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.settings.base_comes_back and adapter_of(self.trainer).drops_frozen:
            averaging.drop_frozen(checkpoint, self)
        checkpoint[state.KEY] = self.resume_state.content(
            self.trainer,
            self.objective,
            state.gather_rng_states(self.trainer.world_size, all_gather(self)),
            open_micro_batches=self.steps.accumulator.open_micro_batches,
            skipped_steps=self.steps.accumulator.skipped_steps,
            validations=self.validations,
            tuner=tuners.tuner_state(self.scorer.model),
        )
        checkpoint[state.KEY]["auto"] = self.auto.content()

    def check_checkpoint(self, path: Path) -> None:
        """Raise unless a checkpoint fits this run, where the strategy loads it ahead of the module's hooks.

        Raises:
            UserError: the checkpoint is of another model, adapter or objective with a state; names both.
        """
        strategy, trains = type(self.trainer.strategy).__name__, self.trainer.state.fn == "fit"
        if self.auto.is_open:
            self._keep_objective(read_checkpoint(path))
        self.resume_state.check_before_loading(path, self, self.objective, strategy, trains=trains)

    def _keep_objective(self, checkpoint: dict[str, Any]) -> None:
        """Go on under the objective that the checkpoint's run picked."""
        trainer = attached_trainer(self)
        trains = trainer is not None and trainer.state.fn == "fit"
        kept = self.auto.kept(checkpoint.get(state.KEY, {}), trains=trains)
        if kept is not None and trainer is None:
            self.objective = kept
        elif kept is not None:
            self.use_objective(kept)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded_step = int(checkpoint.get("global_step", 0))
        self._keep_objective(checkpoint)
        self.resume_state.accept_weights(checkpoint, self, self.objective)
        if (trainer := attached_trainer(self)) and trainer.state.fn == "fit" and state.KEY in checkpoint:
            self.steps.accumulator.skipped_steps = self.resume_state.remember(checkpoint, trainer)
            self.validations = checkpoint[state.KEY].get("validations", 0)
            tuners.load_tuner_state(self.scorer.model, checkpoint[state.KEY].get("tuner", {}))
