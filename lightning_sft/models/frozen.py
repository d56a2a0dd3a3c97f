"""Frozen parameters, which the model's source brings back, and how to leave them out of state dicts."""

from __future__ import annotations

from typing import Any

from torch import nn


def without_frozen(state_dict: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return a state dict without frozen parameters, which the model's source brings back; buffers stay.

    What a quantised layer stores beside its weight, such as ``weight.absmax`` or ``SCB``, goes with it.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    known = parameters.keys() | {name for name, _ in module.named_buffers(remove_duplicate=False)}

    def is_frozen(name: str) -> bool:
        owner = name.rpartition(".")[0]
        return name in frozen or (name not in known and bool({owner, f"{owner}.weight"} & frozen))

    return {k: v for k, v in state_dict.items() if not is_frozen(k)}


def hide_frozen(module: nn.Module) -> None:
    """Leave frozen parameters out of a module's state dict from now on.

    A strategy that reads a sharded checkpoint asks it for what the state dict names, and one that gathers shards
    gathers what it names: neither then touches the frozen base.
    """

    def hide(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
        inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        for name in inside.keys() - without_frozen(inside, module).keys():
            del state_dict[prefix + name]

    untyped: Any = module
    untyped.register_state_dict_post_hook(hide)
