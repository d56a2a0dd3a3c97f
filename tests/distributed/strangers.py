"""The modules of docs/how_to/own_project.md, and loops of plain torch, and the gradient that their step must have."""

import ast
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lightning_sft.training import StepAccumulator
from tests.distributed.work import Gradients
from tests.docs.pages import ROOT, blocks
from tests.fitting import batches, loader, trainer
from tests.invariants.kept import whole
from tests.toys import toy_model

ROWS = 8
PAGE = ROOT / "docs/how_to/own_project.md"


def toy(dtype: str) -> torch.nn.Module:
    """A model without dropout that computes in one dtype throughout."""
    return toy_model("gpt_neox", dtype=getattr(torch, dtype)).train()


def from_page(name: str) -> type[LightningModule]:
    """A class as the page defines it, without the rest of its block."""
    (block,) = (b for b in blocks("python", pages=[PAGE]) if f"class {name}(" in b.text)
    tree = ast.parse(block.text)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)]
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(tree, block.id, "exec"), names)
    return names[name]


def step(kind: str, dtype: str, size: int, rank: int | None = None) -> dict[str, Any]:
    """One optimizer step over eight rows, in micro-batches of ``size`` rows, dealt to two ranks unless rank is None."""
    rows = batches(ROWS, size)
    ranks = 1 if rank is None else 2
    mine = rows if rank is None else rows[rank::2]
    sharing = {} if rank is None else {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    by_hand = kind == "ExactByHand"
    count = len(rows) // ranks
    module = from_page(kind)(toy(dtype), *([count] if by_hand else []))
    module.clip_gradients = lambda *given, **named: None
    seen = Gradients()
    fit = trainer(callbacks=[seen], accumulate_grad_batches=1 if by_hand else count, **sharing)
    fit.fit(module, loader(mine))
    (gradients,) = seen.steps
    return {"gradients": gradients, "tokens": float(module.steps.totals["supervised"])}


def all_steps(rank: int, cases: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """The results of `step` on this rank, case by case."""
    return [step(*case, rank=rank) for case in cases]


def torch_loop(rank: int, how: str, dtype: str, size: int) -> dict[str, Any]:
    """The same step in a loop of plain torch, over two ranks.

    Args:
        rank: this rank.
        how: ``"ddp"``, or ``"fsdp2"``, whose gradients are shards.
        dtype: of the model.
        size: rows of a micro-batch.
    """
    mesh = init_device_mesh("cpu", (2,))
    model = toy(dtype)
    wrapped = DistributedDataParallel(model) if how == "ddp" else fully_shard(model, mesh=mesh)
    steps = StepAccumulator()
    for batch in batches(ROWS, size)[rank::2]:
        logits = wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        loss_sum = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        steps.add(loss_sum, tokens=(labels != -100).sum()).backward()
    assert steps.finish(model.parameters())
    gradients = {f"model.{name}": whole(p.grad) for name, p in model.named_parameters()}
    return {"gradients": gradients, "tokens": float(steps.totals["supervised"])}


def all_torch_loops(rank: int, cases: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """The results of `torch_loop` on this rank, case by case."""
    return [torch_loop(rank, *case) for case in cases]


def whole_step(dtype: str) -> dict[str, Any]:
    """The same by plain torch: the mean over all tokens of all rows at once."""
    (batch,) = batches(ROWS, ROWS)
    model = toy(dtype)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    gradients = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    return {"gradients": gradients, "tokens": float((labels != -100).sum()), "loss": loss.item()}


def assert_exact(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Every parameter's gradient is right, relative to its norm."""
    assert got["tokens"] == expected["tokens"]
    assert got["gradients"].keys() == expected["gradients"].keys()
    for name, value in expected["gradients"].items():
        assert (got["gradients"][name] - value).norm() <= tolerance * value.norm(), name
