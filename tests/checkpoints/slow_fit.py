"""The command line with slow training steps, so that a test can kill it between two checkpoints."""

import sys
import time

from lightning_sft.cli.entry import main
from lightning_sft.module import SFTModule

training_step = SFTModule.training_step


def slow_training_step(self, batch, batch_idx):
    time.sleep(0.3)
    return training_step(self, batch, batch_idx)


if __name__ == "__main__":
    SFTModule.training_step = slow_training_step
    main(["fit", *sys.argv[1:]])
