"""What the two ranks of a test do: predictions beside leftovers, and a prediction of a critical rate."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_sft.cli.entry import main
from lightning_sft.sweep.prediction.session import predict_in_session
from lightning_sft.sweep.session import Session, SweepSettings
from tests.sweep.toys import Toy, between, quadratic


class Differing:
    """Reads a margin that differs from rank to rank, as different devices may in the last bit."""

    def read(self, trainer: Trainer, module: Toy) -> dict[str, list[float]]:
        return {"margin": [1.0 - float(module.x[0].detach()) * (1.0 + 0.25 * trainer.global_rank)]}


def prediction(rank: int) -> dict[str, Any]:
    """The prediction of one probe, and the trials that it was made from."""

    def work(trainer: Trainer, toy: LightningModule) -> dict[str, Any]:
        with Session(trainer, toy, SweepSettings("toy", 8, None)) as session:
            found = predict_in_session(session, [Differing()], ["probe"])
            return {"found": str(found), "start": session.start([Differing()])["margin"][0]}

    module = Toy([3.0], quadratic(1.0))
    strategy = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    result: dict[str, Any] = between(module, work, Path(f"rank_{rank}"), **strategy)
    return {"start": result["start"], "found": result["found"], "x": torch.tensor(module.x.tolist())}


def predict(rank: int, arguments: list[str]) -> None:
    """Run predict on the command line."""
    main(["predict", *arguments])
