"""What a checkpoint holds beyond Lightning's own: every RNG of every rank, and the facts that a resume must meet."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sft.errors import UserError

KEY = "lightning_sft"


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's, torch's and CUDA's random streams, as plain data and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast("tuple[str, Any, int, int, float]", np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": (version, torch.tensor(internal, dtype=torch.int64), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the random streams back to where `rng_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu().clone())  # torch 2.13 crashes on a view with an offset into its storage
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu().clone())


def rng_of_rank(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Return the random streams of a rank; one that the checkpoint's run did not have gets streams of its own.

    Args:
        states: of the ranks that the checkpoint's run had.
        rank: of this run.
    """
    if rank < len(states):
        return states[rank]
    known = states[rank % len(states)]
    words = known["torch"].to(torch.int64).tolist()
    seed = int(np.random.SeedSequence([rank, *words]).generate_state(1)[0])
    before = rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return rng_state()
    finally:
        set_rng_state(before)


def gather_rng_states(world_size: int, all_gather: Callable[[Tensor], Tensor]) -> list[dict[str, Any]]:
    """Return the RNG states of all ranks, on every rank.

    Args:
        world_size: number of ranks.
        all_gather: gathers a tensor over the ranks into (world_size, ...).
    """
    own = rng_state()
    if world_size == 1:
        return [own]
    tensors, scalars = _flatten(own)
    columns = [all_gather(t) for t in tensors]
    numbers = all_gather(torch.tensor(scalars, dtype=torch.float64))
    return [_unflatten(own, [c[rank].cpu() for c in columns], numbers[rank].tolist()) for rank in range(world_size)]


def _flatten(state: dict[str, Any]) -> tuple[list[Tensor], list[float]]:
    tensors = [state["python"][1], state["numpy"][1], state["torch"]] + ([state["cuda"]] if "cuda" in state else [])
    gauss = state["python"][2]
    return tensors, [float("nan") if gauss is None else gauss, *map(float, state["numpy"][2:])]


def _unflatten(like: dict[str, Any], tensors: list[Tensor], numbers: list[float]) -> dict[str, Any]:
    gauss, position, has_gauss, cached = numbers
    state = {
        "python": (like["python"][0], tensors[0], None if gauss != gauss else gauss),
        "numpy": (like["numpy"][0], tensors[1], int(position), int(has_gauss), cached),
        "torch": tensors[2],
    }
    return {**state, "cuda": tensors[3]} if len(tensors) > 3 else state


def check_weights(state_dict: dict[str, Any], module: nn.Module, saved: str, here: str) -> None:
    """Raise unless a checkpoint's weights fit the module; frozen parameters may be missing.

    Args:
        state_dict: the checkpoint's weights.
        module: the module that is to load them.
        saved: description of the model that was saved.
        here: description of the model of this run.

    Raises:
        UserError: weights that this model does not have, has in another shape, or would have to train from nothing.
    """
    # the objective's own loading decides about its state, whose shape may depend on the run
    state_dict = {k: v for k, v in state_dict.items() if not k.startswith("objective.")}
    own = {**module.state_dict(), **dict(module.named_parameters(remove_duplicate=False))}
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    unknown = sorted(state_dict.keys() - own.keys())
    missing = sorted(trainable - state_dict.keys())
    shapes = [k for k in state_dict.keys() & own.keys() if state_dict[k].shape != own[k].shape]
    if not (unknown or missing or shapes):
        return
    differences = {"only in the checkpoint": unknown, "missing there": missing, "of another shape": sorted(shapes)}
    detail = [f"{k}: {', '.join(v[:3])}{' ...' if len(v) > 3 else ''}" for k, v in differences.items() if v]
    raise UserError(
        f"The checkpoint holds {saved}, but this run built {here}; their weights differ ({'; '.join(detail)}). Use the "
        "model and adapter settings that it was trained with: config.yaml beside its checkpoints folder."
    )


def check_resume(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise if a run differs from the checkpoint it resumes in something that its position depends on.

    Args:
        saved: facts in the checkpoint, such as ``{"world_size": 2}``.
        here: the same facts of this run.

    Raises:
        UserError: names what differs, with both values.
    """
    differ = [_differs(k, saved[k], v) for k, v in here.items() if k in saved and saved[k] != v]
    if differ:
        raise UserError(
            f"This run cannot continue the checkpoint: {', '.join(differ)} differ. The position in the data and the "
            "schedule depend on them. Resume with the checkpoint's values, or start a new run from its weights: "
            "`lightning-sft export` writes a model folder for --model.model_name_or_path."
        )


def _differs(name: str, saved: object, here: object) -> str:
    """Return what differs in a fact; of a class with arguments, such as an optimizer, those that do.

    >>> _differs("optimizer", "AdamW(eps=1e-08, lr=0.1)", "AdamW(eps=1e-08, lr=0.2)")
    'lr of the optimizer AdamW (checkpoint: 0.1, this run: 0.2)'
    """
    one, other = _arguments(str(saved)), _arguments(str(here))
    if one is None or other is None or one[0] != other[0]:
        return f"{name} (checkpoint: {saved}, this run: {here})"
    keys = [key for key in {**one[1], **other[1]} if one[1].get(key) != other[1].get(key)]
    return ", ".join(
        f"{key} of the {name} {one[0]} (checkpoint: {one[1].get(key)}, this run: {other[1].get(key)})" for key in keys
    )


def _arguments(text: str) -> tuple[str, dict[str, str]] | None:
    """Return the class and the arguments of ``Class(a=1, b=(2, 3))``; None of another text."""
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
        return None
    return ast.unparse(call.func), {str(word.arg): ast.unparse(word.value) for word in call.keywords}
