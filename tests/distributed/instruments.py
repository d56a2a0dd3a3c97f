"""What the two ranks of a test do: predictions beside leftovers, and a prediction of a critical rate."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import ExposureForecast
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.probes import Probe
from lightning_sft.sweep.parts import PartsObserver
from lightning_sft.sweep.prediction.session import predict_in_session
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import TrialRunner
from tests.sweep.toys import Between, Toy, between, quadratic


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


def parts(rank: int, model: str, rows: str, devices: int = 2) -> dict[str, Any]:
    """Held-out rows in three parts and in one, which more rows than a rank has are needed for in eight."""
    found: dict[str, Any] = {}

    def work(trainer: Trainer, module: LightningModule) -> None:
        with TrialRunner(trainer, module, 1) as runner:
            for count in (1, 3):
                found[f"{count}"] = torch.tensor(runner.start([PartsObserver(trainer, module, count)])["val/nll"])
        try:
            PartsObserver(trainer, module, 8)
        except UserError as error:
            found["refused"] = str(error)

    data = SFTDataModule(train=rows, val_split=7, batch_size=2, cache_dir=False)
    strategy: dict[str, Any] = {"strategy": "ddp", "use_distributed_sampler": False} if devices > 1 else {}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [Between(work)]
    trainer = Trainer(max_steps=1, accelerator="cpu", devices=devices, callbacks=callbacks, **strategy, **quiet)  # type: ignore[arg-type]
    trainer.fit(SFTModule(model), data)
    return found


def exposures(rank: int, model: str, rows: str, devices: int = 2, asked: bool = True) -> dict[str, Any]:
    """A run whose exposures are forecast (unless it is not asked) and graded, and the weights that it ends with."""
    told = ExposureForecast([Probe("say ", *pair, leading_space=False) for pair in ("wq", "qw", "z1")], stretch=8)
    data = SFTDataModule(train=rows, batch_size=4 // devices, batching="padded", cache_dir=False)
    strategy: dict[str, Any] = {"strategy": "ddp", "use_distributed_sampler": False} if devices > 1 else {}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"accelerator": "cpu", "devices": devices, "max_steps": 20, "gradient_clip_val": 1.0, **strategy}
    trainer = Trainer(callbacks=[told] if asked else [], **settings, **quiet)  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = SFTModule(model, optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3))
    trainer.fit(module, data)
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return {"said": told.result.to_json() if told.result is not None else "", "weights": weights}


def predict(rank: int, arguments: list[str]) -> None:
    """Run predict on the command line."""
    main(["predict", *arguments])
