"""The command line with slow training steps that write down which rows each rank sees, for a test to kill."""

import os
import sys
import time
from pathlib import Path

from lightning_sft.cli.entry import main
from lightning_sft.module import SFTModule

training_step = SFTModule.training_step


def recorded_training_step(self, batch, batch_idx):
    """Write "global step: rows", once a stretch of a row's tokens, and take some time."""
    rows = batch["row"].flatten().tolist()
    seen = [row for i, row in enumerate(rows) if row >= 0 and (i == 0 or rows[i - 1] != row)]
    with (Path(os.environ["RECORD"]) / f"rank{self.global_rank}.txt").open("a") as file:
        file.write(f"{self.global_step}: {' '.join(map(str, seen))}\n")
    time.sleep(float(os.environ["STEP_SECONDS"]))
    return training_step(self, batch, batch_idx)


if __name__ == "__main__":
    SFTModule.training_step = recorded_training_step
    main(["fit", *sys.argv[1:]])
