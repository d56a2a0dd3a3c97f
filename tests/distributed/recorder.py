"""A callback that writes down which rows each optimizer step of each rank sees."""

import json
from pathlib import Path

from lightning.pytorch import Callback


class RowRecorder(Callback):
    """Appends "[step, rows]" to a file of this rank in the run's root, a line a micro-batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        rows = [row for row in dict.fromkeys(batch["row"].flatten().tolist()) if row >= 0]
        with Path(trainer.default_root_dir, f"rows{trainer.global_rank}.txt").open("a") as file:
            file.write(json.dumps([trainer.global_step, rows]) + "\n")


def rows_of_steps(root: Path) -> dict[int, list[int]]:
    """The rows of each step over all ranks, sorted."""
    steps: dict[int, list[int]] = {}
    for path in sorted(root.glob("rows*.txt")):
        for line in path.read_text().splitlines():
            step, rows = json.loads(line)
            steps[step] = sorted([*steps.get(step, []), *rows])
    return steps
