"""What an adapter reaches: which weights of a model it works on, which it leaves out, and which learn nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_SHOWN = 4  # kinds of modules named in a sentence


@dataclass(frozen=True)
class Reach:
    """The linear layers and experts of a model, and those of them that an adapter works on.

    Attributes:
        weights: number of values of each weight, by its name in the model without adapter.
        adapted: names of those that the adapter works on, or that are trained themselves.
    """

    weights: Mapping[str, int]
    adapted: frozenset[str]

    @property
    def share(self) -> float:
        """Share of the values of linear layers and experts that are adapted, 0 to 1; nan without any."""
        total = sum(self.weights.values())
        return sum(self.weights[name] for name in self.adapted) / total if total else float("nan")

    @property
    def left_out(self) -> list[str]:
        """Names of the weights without an adapter, in the model's order."""
        return [name for name in self.weights if name not in self.adapted]

    def __str__(self) -> str:
        """Say it in a sentence or two."""
        total = sum(self.weights.values())
        text = (
            f"The adapter works on {len(self.adapted)} of {len(self.weights)} weights of linear layers and experts, "
            f"{self.share:.0%} of their values."
        )
        if not self.left_out:
            return text
        kinds: dict[str, int] = {}
        for name in self.left_out:
            kind = without_numbers(name)
            kinds[kind] = kinds.get(kind, 0) + self.weights[name]
        largest = sorted(kinds, key=lambda kind: -kinds[kind])
        named = ", ".join(f"{kind} ({kinds[kind] / total:.0%})" for kind in largest[:_SHOWN])
        more = f" and {len(largest) - _SHOWN} more kinds" if len(largest) > _SHOWN else ""
        return f"{text} Without an adapter: {named}{more}."


def measure_reach(weights: Mapping[str, nn.Parameter], adapted: nn.Module) -> Reach:
    """Look which weights an adapter works on.

    Args:
        weights: those of the model before it got the adapter.
        adapted: the same model with the adapter in it.
    """
    worked_on = {id(p) for p in adapted.parameters() if p.requires_grad}
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            name = getattr(module, "parameter_name", "weight")
            worked_on.add(id(getattr(base, name, None)))
    sizes = {name: _values(weight) for name, weight in weights.items()}
    return Reach(sizes, frozenset(name for name, weight in weights.items() if id(weight) in worked_on))


def without_gradient(model: nn.Module) -> list[str]:
    """Return the modules of an adapter whose parameters all got no gradient, or one of zeros, in a backward pass.

    One of two factors of a fresh LoRA has no gradient in the first step, as the other one is zero; both have none where
    the loss does not depend on the module. Rows of single tokens (``trainable_token_indices``) are left out: they have
    a gradient only where their token stands in the batch.
    """
    has: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "trainable_tokens" not in name:
            module = re.sub(r"\.(lora|hada|lokr|ia3|vera|oft|boft|adapter|randlora|hra|shira)_.*|\.default.*", "", name)
            gradient = parameter.grad
            has[module] = has.get(module, False) or (gradient is not None and bool(gradient.any()))
    return [module for module, learns in has.items() if not learns]


def without_numbers(name: str) -> str:
    """Return a module's name with * in place of the numbers of layers."""
    return re.sub(r"\b\d+\b", "*", name)


def kinds_of(names: Iterable[str]) -> list[str]:
    """Return names without the numbers of layers, each once, in order."""
    return list(dict.fromkeys(map(without_numbers, names)))


def _values(weight: torch.Tensor) -> int:
    shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)  # 4-bit weights are packed
    return int(torch.Size(shape).numel())
