"""What the two ranks of a test do."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.objectives import Adaptive
from tests.fitting import batches, loader, trainer
from tests.invariants.kept import whole
from tests.running import write_rows


class Gradients(Callback):
    """The gradients that every callback sees before an optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append({n: whole(p.grad) for n, p in pl_module.named_parameters() if p.grad is not None})


def sgd_module(model_name_or_path: str, **settings: Any) -> SFTModule:
    """A module whose updates are its gradients."""
    return SFTModule(
        model_name_or_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lr_scheduler="constant", **settings
    )


def gradients(
    rank: int | None,
    model: str,
    masked: list[int],
    accumulate: int = 1,
    adapter: bool = False,
    strategy: str = "ddp",
    **settings: Any,
) -> dict[str, Any]:
    """Train on six micro-batches of two rows, dealt to the ranks in turn.

    Args:
        rank: this rank, or None for one device that gets all micro-batches of a step.
        model: a toy folder.
        masked: micro-batches without supervision.
        accumulate: micro-batches of a step on one rank.
        adapter: train LoRA.
        strategy: of two ranks, ``"ddp"`` or ``"fsdp2"``.
        settings: of the module.
    """
    rows = batches(12, 2)
    for index in masked:
        rows[index]["labels"].fill_(-100)
    seen = Gradients()
    adapters = {"adapter": LoraConfig(r=4, target_modules="all-linear")} if adapter else {}
    torch.manual_seed(0)
    module = sgd_module(model, **adapters, **settings)
    how = fsdp2() if strategy == "fsdp2" else strategy
    sharing = {} if rank is None else {"strategy": how, "devices": 2, "use_distributed_sampler": False}
    per_rank = rows if rank is None else rows[rank::2]
    fit = trainer(callbacks=[seen], accumulate_grad_batches=accumulate, gradient_clip_val=0.5, **sharing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        fit.fit(module, loader(per_rank))
    weights = {name: whole(p) for name, p in module.scorer.named_parameters()}
    return {"steps": seen.steps, "skipped": module.skipped_steps, "weights": weights}


def all_gradients(rank: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of :func:`gradients` for several settings, by name."""
    return {name: gradients(rank, **case) for name, case in cases.items()}


def command_lines(rank: int, lines: list[list[str]]) -> None:
    """Run command lines one after the other, as torchrun would each."""
    for line in lines:
        main(line)


def several(rank: int, calls: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of several functions of this file, by name, in one process."""
    return {name: globals()[name](rank, **given) for name, given in calls.items()}


def fsdp2(**sizes: Any) -> ModelParallelStrategy:
    """The strategy, over data alone unless ``sizes`` say otherwise."""
    return ModelParallelStrategy(**{"data_parallel_size": 2, "tensor_parallel_size": 1, **sizes})


class Rows(Callback):
    """The indices of the rows that this rank trains on."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows += batch["row"].unique().tolist()  # flat batches have a row for each token


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


def split_facts(rank: int, model: str) -> dict[str, Any]:
    """What a rank holds of a model whose layers are split over two ranks, after training with dropout."""
    rows = Rows()
    overrides = {"attention_dropout": 0.2, "hidden_dropout": 0.2}
    module = sgd_module(model, dtype="float64", config_overrides=overrides)
    fit = trainer(strategy=fsdp2(data_parallel_size=1, tensor_parallel_size=2), devices=2, callbacks=[rows])
    fit.fit(module, SFTDataModule(train=str(write_rows(Path(f"split_{rank}.jsonl"))), batch_size=4))
    local = {name: p.to_local().detach().clone() for name, p in module.scorer.named_parameters()}
    shapes = {name: list(p.shape) for name, p in module.scorer.named_parameters()}
    split = [name for name, p in module.scorer.named_parameters() if local[name].shape != p.shape]
    return {"rows": rows.rows, "local": local, "shapes": shapes, "split": split}


def refusals(rank: int, model: str, narrow: str) -> dict[str, str]:
    """The messages of what FSDP2 cannot do.

    Args:
        rank: this rank.
        model: a toy folder.
        narrow: a model of other sizes, whose heads two ranks cannot share out.
    """
    save = trainer(strategy=fsdp2(save_distributed_checkpoint=False), devices=2)
    save.fit(sgd_module(model, objective=Adaptive()), loader(batches(4, 2)))
    save.save_checkpoint("adaptive.ckpt")
    save.strategy._save_distributed_checkpoint = True
    save.save_checkpoint("shards.ckpt")
    split = {"data_parallel_size": 1, "tensor_parallel_size": 2}
    lora = {"adapter": LoraConfig(target_modules="all-linear")}
    attempts: dict[str, Any] = {
        "auto": ({"data_parallel_size": "auto", "tensor_parallel_size": "auto"}, {}, "fit", {}),
        "sizes": ({"data_parallel_size": 3}, {}, "fit", {}),
        "torch_compile": ({}, {"torch_compile": True}, "fit", {}),
        "predict": ({}, {}, "predict", {}),
        "single rows": ({}, {"adapter": LoraConfig(trainable_token_indices=[1])}, "fit", {}),
        "adapter on split layers": (split, lora, "fit", {}),
        "heads": (split, {"model_name_or_path": narrow}, "fit", {}),
        "another model": ({}, {"model_name_or_path": narrow}, "fit", {"ckpt_path": "adaptive.ckpt"}),
        "another model, shards": ({}, {"model_name_or_path": narrow}, "fit", {"ckpt_path": "shards.ckpt"}),
        "an adapter": ({}, lora, "validate", {"ckpt_path": "adaptive.ckpt"}),
        "another objective": ({}, {}, "validate", {"ckpt_path": "adaptive.ckpt"}),
        "an optimizer without a state": ({}, {"objective": Adaptive()}, "fit", {"ckpt_path": "adaptive.ckpt"}),
        "another objective, shards": ({}, {}, "fit", {"ckpt_path": "shards.ckpt"}),
    }
    messages = {}
    for name, (sizes, settings, verb, given) in attempts.items():
        module = sgd_module(**{"model_name_or_path": model, **settings})
        try:
            getattr(trainer(strategy=fsdp2(**sizes), devices=2), verb)(module, loader(batches(4, 2)), **given)
        except (UserError, RuntimeError) as error:
            messages[name] = str(error)
    return messages
