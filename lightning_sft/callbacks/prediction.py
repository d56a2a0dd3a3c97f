"""PredictionWriter: answers as JSON lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_sft.errors import OutputExistsError
from lightning_sft.files import replacing


class PredictionWriter(Callback):
    """Write what ``predict`` answers to a JSONL file: prompt, completion, reference, score.

    One object a row, in the order of the data, with keys ``index``, ``source``, ``prompt``, ``completion``,
    ``reference`` (or null) and ``score`` (or null). The file is written beside its place and renamed, so a run that
    stops in the middle leaves no half file.

    Args:
        path: the file to write.
        overwrite: replace the file if it exists.

    Raises:
        OutputExistsError: the file exists and ``overwrite`` is off; found before anything is generated.
    """

    def __init__(self, path: str = "predictions.jsonl", overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        self._records: list[dict[str, Any]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            self.require_free()
        self._records = []

    def require_free(self) -> None:
        """Raise if the file exists and may not be replaced.

        Raises:
            OutputExistsError: it does.
        """
        if self.path.exists() and not self.overwrite:
            raise OutputExistsError(self.path, "Give PredictionWriter another path, or overwrite: true.")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._records.extend(outputs)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = self.path.with_name(f".{self.path.name}.parts")
        if trainer.world_size > 1:
            if trainer.is_global_zero:
                shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed, perhaps with more ranks
                parts.mkdir(parents=True)
            trainer.strategy.barrier("predictions: folder")
            _write(parts / f"{trainer.global_rank}.jsonl", self._records)
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                files = [parts / f"{rank}.jsonl" for rank in range(trainer.world_size)]
                self._records = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
                shutil.rmtree(parts)
        if trainer.is_global_zero:
            _write(self.path, sorted(self._records, key=lambda record: record["index"]))
            print(f"{len(self._records)} predictions written to {self.path}")


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
