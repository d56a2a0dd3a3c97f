"""ResumableModule: what a checkpoint holds beyond Lightning's own, and how a run continues from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_sft._lightning import accumulation, all_gather, attached_trainer, data_parallel_size_and_rank
from lightning_sft.checkpoints import shards, state
from lightning_sft.checkpoints.runs import read_checkpoint
from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.frozen import without_frozen
from lightning_sft.objectives import Objective
from lightning_sft.training.accumulation import Denominator
from lightning_sft.training.token_exact import TokenExactModule


class ResumableModule(TokenExactModule):
    """The checkpoint half of `SFTModule`: every random stream, and the facts that a resume must meet.

    Args:
        settings: which model is trained; the frozen base of an adapter is left out of checkpoints.
        objective: the loss of a token.
        denominator: see `TokenExactModule`.
    """

    def __init__(self, settings: ModelSettings, objective: Objective, denominator: Denominator) -> None:
        super().__init__(objective, denominator)
        self.settings = settings
        self.strict_loading = not settings.base_comes_back
        self._optimizer_as_asked: dict[str, str] = {}
        self._resumed_facts: dict[str, Any] = {}
        self._rng_to_restore: dict[str, Any] | None = None

    def _facts(self) -> dict[str, Any]:
        """What the position in the data and in the schedule depends on."""
        facts: dict[str, Any] = {
            "world_size": self.trainer.world_size,
            "data_parallel_size": data_parallel_size_and_rank(self.trainer)[0],
            "accumulate_grad_batches": accumulation(self.trainer),
        }
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        return {**facts, **({} if batch_size is None else {"batch_size": batch_size}), **self._optimizer_as_asked}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.settings.base_comes_back and self.strategy_adapter.drops_frozen:
            checkpoint["state_dict"] = without_frozen(checkpoint["state_dict"], self)
        checkpoint[state.KEY] = {
            "facts": self._facts(),
            "open_micro_batches": len(self._window),
            "model": self.settings.describe(),
            "objective": repr(self.objective),
            "rng": state.gather_rng_states(self.trainer.world_size, all_gather(self)),
            "skipped_steps": self.skipped_steps,
        }

    def check_checkpoint(self, path: Path) -> None:
        """Raise unless a checkpoint fits this run, where a strategy is about to load from it.

        Raises:
            UserError: the checkpoint is of another model, adapter or objective with a state; names both.
        """
        content = read_checkpoint(path)
        saved = content.get(state.KEY, {})
        weights = shards.weights(path, empty=True) if path.is_dir() else content["state_dict"]
        state.check_weights(weights, self, saved.get("model", "another model"), self.settings.describe())
        stateless = any(not state["state"] for state in content.get("optimizer_states", ()))
        if stateless and self.trainer.state.fn == "fit":
            raise UserError(
                f"The checkpoint {str(path)!r} is one file, and its optimizer has no state, as SGD without momentum: "
                f"{type(self.trainer.strategy).__name__} cannot read that. Save folders instead "
                "(save_distributed_checkpoint: true), or use an optimizer with a state, such as SGD with momentum."
            )
        stateful = any(self.objective.state_dict()) or any(k.startswith("objective.") for k in weights)
        if saved and stateful and saved["objective"] != repr(self.objective):
            raise UserError(
                f"The checkpoint was trained under {saved['objective']}; this run uses {self.objective!r}, and "
                f"{type(self.trainer.strategy).__name__} cannot leave the state of an objective out. Resume with the "
                "checkpoint's objective, or start a new run from its weights: `lightning-sft export` writes a model "
                "folder for --model.model_name_or_path."
            )

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(state.KEY, {})
        # FSDP2 loads the weights before this hook, and takes them out
        weights: dict[str, Tensor] | None = checkpoint.get("state_dict")
        if saved and saved["objective"] != repr(self.objective):
            rank_zero_warn(
                f"The checkpoint was trained under {saved['objective']}; this run uses {self.objective!r}. "
                "Weights, optimizer and schedule continue. The losses change their meaning; val/nll keeps its own."
            )
            if weights is not None:
                others = {k: v for k, v in weights.items() if not k.startswith("objective.")}
                weights = checkpoint["state_dict"] = {**others, **self.objective.state_dict(prefix="objective.")}
        if weights is not None:
            here = self.settings.describe()
            state.check_weights(weights, self, saved.get("model", "another model"), here)
        trainer = attached_trainer(self)
        if trainer is None or trainer.state.fn != "fit" or not saved:
            return
        self._resumed_facts = saved["facts"]
        if saved.get("open_micro_batches"):
            rank_zero_warn(
                f"The checkpoint was written in the middle of an optimizer step: the gradient of its first "
                f"{saved['open_micro_batches']} micro-batches is not in it, and their rows are not seen again. Resume "
                "from last.ckpt, or make val_check_interval a multiple of accumulate_grad_batches."
            )
        self.skipped_steps = saved["skipped_steps"]
        self._rng_to_restore = saved["rng"][trainer.global_rank]

    def _check_resumed(self) -> None:
        """Compare with the checkpoint once, as soon as the optimizer is there: before or after it was restored."""
        saved, self._resumed_facts = self._resumed_facts, {}
        state.check_resume(saved, self._facts())

    @override
    def on_fit_start(self) -> None:
        self._check_resumed()

    @override
    def on_train_start(self) -> None:
        self._check_resumed()
        super().on_train_start()
        if self._rng_to_restore is not None:
            state.set_rng_state(self._rng_to_restore)
            self._rng_to_restore = None
            rank_zero_info(f"Resumed at step {self.trainer.global_step} from {self.trainer.ckpt_path}")
