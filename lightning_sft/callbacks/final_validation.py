"""FinalValidation: a run that ends before its first validation, or after its last one, gets one at its end."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_sft._lightning.loops import validate_also


class FinalValidation(Callback):
    """Validate after the last optimizer step of a fit in which no validation was due.

    ``max_steps`` below an epoch, or ``max_epochs`` below ``check_val_every_n_epoch``, would end a run without a word
    about the held-out rows, and without ``best.ckpt``. `SFTModule` brings this callback along.

    Args:
        enabled: False turns it off where it would be brought along.
        always: validate after the last step, too, where the last validation that was due is some steps ago.
    """

    def __init__(self, enabled: bool = True, always: bool = False) -> None:
        self.enabled = enabled
        self.always = always
        self._validated = self._added = False
        self._at = -1  # the step of the validation that was added

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validate_also(trainer, lambda resumed: self._is_due(trainer, resumed))

    def _is_due(self, trainer: Trainer, resumed: bool) -> bool:
        if resumed:
            return self._at == trainer.global_step
        self._added = self.enabled and (self.always or not self._validated) and _ends(trainer)
        return self._added

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._added:
            if not self._validated:
                rank_zero_info("No validation was due before the end of this fit: one is run now.")
            self._added, self._at = False, trainer.global_step

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            # one that was added does not count: a run that goes on beyond it ends with another
            self._validated |= self._at != trainer.global_step

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"validated": self._validated, "at": self._at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated, self._at = bool(state_dict["validated"]), int(state_dict["at"])


def _ends(trainer: Trainer) -> bool:
    """Return whether the batch that was trained on is the last of the fit."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    return trainer.should_stop or (last_epoch and trainer.is_last_batch)
