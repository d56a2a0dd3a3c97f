"""What the two ranks of a test do."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.cli import main
from lightning_sft.errors import UserError
from tests.running import write_rows
from tests.test_module import batches, loader, trainer


class Gradients(Callback):
    """The gradients that every callback sees before an optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


def sgd_module(model: str, **settings: Any) -> SFTModule:
    """A module whose updates are its gradients."""
    return SFTModule(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lr_scheduler="constant", **settings)


def gradients(
    rank: int | None, model: str, masked: list[int], accumulate: int = 1, adapter: bool = False, **settings: Any
) -> dict[str, Any]:
    """Train on six micro-batches of two rows, dealt to the ranks in turn.

    Args:
        rank: this rank, or None for one device that gets all micro-batches of a step.
        model: a toy folder.
        masked: micro-batches without supervision.
        accumulate: micro-batches of a step on one rank.
        adapter: train LoRA.
        settings: of the module.
    """
    rows = batches(12, 2)
    for index in masked:
        rows[index]["labels"].fill_(-100)
    seen = Gradients()
    adapters = {"adapter": LoraConfig(r=4, target_modules="all-linear")} if adapter else {}
    torch.manual_seed(0)
    module = sgd_module(model, **adapters, **settings)
    sharing = {} if rank is None else {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    per_rank = rows if rank is None else rows[rank::2]
    fit = trainer(callbacks=[seen], accumulate_grad_batches=accumulate, gradient_clip_val=0.5, **sharing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        fit.fit(module, loader(per_rank))
    return {"steps": seen.steps, "skipped": module.skipped_steps, "weights": dict(module.scorer.state_dict())}


def all_gradients(rank: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of :func:`gradients` for several settings, by name."""
    return {name: gradients(rank, **case) for name, case in cases.items()}


def command_lines(rank: int, lines: list[list[str]]) -> None:
    """Run command lines one after the other, as torchrun would each."""
    for line in lines:
        main(line)


def fsdp2(**sizes: Any) -> ModelParallelStrategy:
    """The strategy, over data alone unless ``sizes`` say otherwise."""
    return ModelParallelStrategy(**{"data_parallel_size": 2, "tensor_parallel_size": 1, **sizes})


class Rows(Callback):
    """The indices of the rows that this rank trains on."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows += batch["row"].tolist()


def sharded_facts(rank: int, model: str) -> dict[str, Any]:
    """What a rank holds of the model and sees of the rows, under the package's own data module."""
    rows, module = Rows(), sgd_module(model)
    fit = trainer(strategy=fsdp2(), devices=2, callbacks=[rows])
    fit.fit(module, SFTDataModule(train=str(write_rows(Path(f"facts_{rank}.jsonl"))), batch_size=2))
    parameters = list(module.scorer.parameters())
    return {
        "data_parallel_size": module.device_mesh["data_parallel"].size(),
        "local": sum(p.to_local().numel() for p in parameters),
        "whole": sum(p.numel() for p in parameters),
        "largest_share": max(p.to_local().numel() / p.numel() for p in parameters),
        "rows": [row for row in rows.rows if row >= 0],
    }


def refusals(rank: int, model: str) -> dict[str, str]:
    """The messages of what FSDP2 cannot do."""
    attempts = {
        "auto": (fsdp2(data_parallel_size="auto", tensor_parallel_size="auto"), {}, "fit"),
        "torch_compile": (fsdp2(), {"torch_compile": True}, "fit"),
        "predict": (fsdp2(), {}, "predict"),
    }
    messages = {}
    for name, (strategy, settings, verb) in attempts.items():
        try:
            getattr(trainer(strategy=strategy, devices=2), verb)(sgd_module(model, **settings), loader(batches(4, 2)))
        except UserError as error:
            messages[name] = str(error)
    return messages
