"""ResumeState: what a checkpoint holds beyond Lightning's own, and how a run continues from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_sft._lightning import accumulation, callbacks_of, data_parallel_size_and_rank
from lightning_sft.checkpoints import averaging, elastic, shards, state
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.errors import UserError
from lightning_sft.objectives import Objective

#: where a checkpoint holds the snapshot of the model that some objectives compare it with
_SNAPSHOT = "scorer.reference."
#: the facts of the checkpoints that a trainer has written in this process
_WRITTEN: WeakKeyDictionary[Trainer, list[dict[str, Any]]] = WeakKeyDictionary()


def position_facts(trainer: Trainer) -> dict[str, Any]:
    """Return what the position in the data and in the schedule depends on, as far as the trainer knows it."""
    facts: dict[str, Any] = {
        "world_size": trainer.world_size,
        "data_parallel_size": data_parallel_size_and_rank(trainer)[0],
        "accumulate_grad_batches": accumulation(trainer),
    }
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    return facts if batch_size is None else {**facts, "batch_size": batch_size}


class ResumeState:
    """Describes a run for its checkpoints, and holds what a checkpoint said until the run can compare and continue.

    Args:
        model: description of the model that this run trains.
        asked: settings that a resume must keep, beside those of the optimizer, such as the warm-up's.

    Attributes:
        optimizer: ``{"optimizer": ..., "lr_scheduler": ...}``, descriptions of both once they are made.
    """

    def __init__(self, model: str, **asked: float | None) -> None:
        self.model = model
        self.optimizer: dict[str, str] = {}
        self._asked = asked
        self._facts: dict[str, Any] = {}
        self._rng: dict[str, Any] | None = None

    def content(
        self,
        trainer: Trainer,
        objective: Objective,
        rng: list[dict[str, Any]],
        *,
        open_micro_batches: int,
        skipped_steps: int,
        validations: int,
        tuner: dict[str, Any],
    ) -> dict[str, Any]:
        """Return what a checkpoint holds under ``state.KEY``, plain data and tensors.

        Args:
            trainer: of the run.
            objective: the loss that is trained.
            rng: random streams of each rank.
            open_micro_batches: micro-batches of the optimizer step under way.
            skipped_steps: optimizer steps without a token to learn from, so far.
            validations: complete validations so far.
            tuner: what an adapter remembers of the steps so far.
        """
        facts = {**position_facts(trainer), **self.optimizer, **self._asked}
        written = _WRITTEN.setdefault(trainer, [])
        written += [] if facts in written else [facts]
        return {
            "facts": facts,
            "open_micro_batches": open_micro_batches,
            "model": self.model,
            "objective": repr(objective),
            "rng": rng,
            "skipped_steps": skipped_steps,
            "validations": validations,
            "tuner": tuner,
        }

    def check_before_loading(
        self, path: Path, module: nn.Module, objective: Objective, strategy: str, *, trains: bool
    ) -> None:
        """Raise unless a checkpoint fits this run, where a strategy is about to load from it.

        Args:
            path: file or folder of the checkpoint.
            module: what is to load it.
            objective: the loss of this run.
            strategy: name of the strategy's class, for messages.
            trains: whether the optimizer's state is loaded, too.

        Raises:
            UserError: the checkpoint is of another model, adapter or objective with a state; names both.
        """
        content = read_checkpoint(path)
        saved = content.get(state.KEY, {})
        weights = shards.weights(path, empty=True) if path.is_dir() else content["state_dict"]
        state.check_weights(weights, module, saved.get("model", "another model"), self.model)
        stateless = any(not state["state"] for state in content.get("optimizer_states", ()))
        if stateless and trains:
            raise UserError(
                f"The checkpoint {str(path)!r} is one file, and its optimizer has no state, as SGD without momentum: "
                f"{strategy} cannot read that. Save folders instead (save_distributed_checkpoint: true), or use an "
                "optimizer with a state, such as SGD with momentum."
            )
        stateful = any(objective.state_dict()) or any(k.startswith("objective.") for k in weights)
        if saved and stateful and saved["objective"] != repr(objective):
            raise UserError(
                f"The checkpoint was trained under {saved['objective']}; this run uses {objective!r}, and {strategy} "
                "cannot leave the state of an objective out. Resume with the checkpoint's objective, or start a new "
                "run from its weights: `lightning-sft export` writes a model folder for --model.model_name_or_path."
            )

    def accept_weights(self, checkpoint: dict[str, Any], module: nn.Module, objective: Objective) -> None:
        """Check a checkpoint's weights against the module; keep this run's state of another objective, in place.

        Raises:
            UserError: the weights are of another model.
        """
        saved = checkpoint.get(state.KEY, {})
        # FSDP2 loads the weights before this hook, and takes them out
        weights: dict[str, Tensor] | None = checkpoint.get("state_dict")
        if saved and saved["objective"] != repr(objective):
            rank_zero_warn(
                f"The checkpoint was trained under {saved['objective']}; this run uses {objective!r}. "
                "Weights, optimizer and schedule continue. The losses change their meaning; val/nll keeps its own."
            )
            if weights is not None:
                kept = {k: v for k, v in weights.items() if not k.startswith(("objective.", _SNAPSHOT))}
                snapshot = {k: v for k, v in module.state_dict().items() if k.startswith(_SNAPSHOT)}
                state_here = {**objective.state_dict(prefix="objective."), **snapshot}
                weights = checkpoint["state_dict"] = {**kept, **state_here}
        if weights is not None:
            state.check_weights(weights, module, saved.get("model", "another model"), self.model)

    def remember(self, checkpoint: dict[str, Any], trainer: Trainer) -> int:
        """Keep what a checkpoint says until `check` and `restore_rng`; return the steps that its run skipped.

        A checkpoint that this very run has written is no resume: Lightning's BatchSizeFinder puts the weights back by
        one after it has changed the batch size.

        Args:
            checkpoint: of a fit; holds `content` under ``state.KEY``. What averaging callbacks load is completed.
            trainer: of this run.

        Raises:
            UserError: it holds weights alone.
        """
        if "callbacks" not in checkpoint:
            raise UserError(
                "The checkpoint holds weights alone (save_weights_only: true): no state of the optimizer, of the "
                "schedule or of the position in the data, so there is nothing to resume. Resume from last.ckpt of its "
                "run, or start a new run from its weights: `lightning-sft export` writes a model folder for "
                "--model.model_name_or_path. It validates, tests, predicts and exports as it is."
            )
        saved = checkpoint[state.KEY]
        self._facts = {} if saved["facts"] in _WRITTEN.get(trainer, []) else saved["facts"]
        here = position_facts(trainer)
        if self._facts and elastic.adapt(checkpoint, self._facts, here, saved.get("open_micro_batches", 0)):
            self._facts = {**self._facts, **{name: here[name] for name in elastic.SIZES if name in here}}
        self._rng = state.rng_of_rank(saved["rng"], trainer.global_rank)
        averaging.complete(checkpoint, trainer.lightning_module, callbacks_of(trainer))
        if saved.get("open_micro_batches"):
            rank_zero_warn(
                f"The checkpoint was written in the middle of an optimizer step: the gradient of its first "
                f"{saved['open_micro_batches']} micro-batches is not in it, and their rows are not seen again. Resume "
                "from last.ckpt, or make val_check_interval a multiple of accumulate_grad_batches."
            )
        return int(saved["skipped_steps"])

    def check(self, facts: dict[str, Any]) -> None:
        """Compare this run's facts with the checkpoint's, once.

        Raises:
            UserError: names what differs, with both values.
        """
        saved, self._facts = self._facts, {}
        state.check_resume(saved, {**facts, **self.optimizer, **self._asked})

    def restore_rng(self) -> bool:
        """Put this rank's random streams to where the checkpoint found them, once; return whether there was one."""
        rng, self._rng = self._rng, None
        if rng is not None:
            state.set_rng_state(rng)
        return rng is not None
