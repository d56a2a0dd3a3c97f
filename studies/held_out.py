"""NLL of held-out rows, for callbacks that judge by it in the same validation: the module logs it only after them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override


class HeldOutNLL(Callback):
    """Sums the NLL of all validation rows; a study has no others than its held-out ones."""

    _sum, _count = 0.0, 0

    @property
    def held_out_nll(self) -> float:
        """Of the validation whose batches were read last, nats per token."""
        return self._sum / self._count

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sum, self._count = 0.0, 0

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logp: Tensor = outputs["scores"].logp
        self._sum -= float(logp.double().sum())
        self._count += len(logp)
