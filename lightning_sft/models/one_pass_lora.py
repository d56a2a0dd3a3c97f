"""LoRA whose second product is added to the layer's output as it is made, in one pass over the outputs, not four.

peft computes ``base(x) + B(A(x)) * scaling``: B's output, times the factor, plus the layer's, each a tensor as large as
the layer's output, and the same again in the backward pass. Here the factor goes to the few numbers of ``A(x)``, and
the product with B adds to the output. Sums round in another order; in 16 bits they are rounded once less.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

#: What may look at, or change, what a module gets and gives; a module that is not called would keep it from doing so.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class OnePassLinear(lora.Linear):
    """A linear layer of peft with LoRA; whatever is not the plain case takes peft's own way."""

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with the adapter's, (..., out).

        Args:
            x: (..., in).
            args: what the layer takes beside it.
            kwargs: what the layer or another kind of LoRA takes beside it.
        """
        name = None if args or kwargs else self._plain_adapter()
        if name is None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        rows = x.reshape(-1, x.shape[-1])  # addmm takes matrices
        down, up = self.lora_A[name], self.lora_B[name]
        assert isinstance(down.weight, Tensor)
        assert isinstance(up.weight, Tensor)
        dropped = self.lora_dropout[name](self._cast_input_dtype(rows, down.weight.dtype))
        small = down(dropped) * self.scaling[name]
        base = self.base_layer(rows)
        summed = torch.addmm(base.to(small.dtype), small, up.weight.to(small.dtype).T)
        return summed.to(base.dtype).view(*x.shape[:-1], summed.shape[-1])

    def _plain_adapter(self) -> str | None:
        """Return the adapter, if there is one, it is plain LoRA, and nothing listens to the modules inside."""
        if self.disable_adapters or self.merged:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        name: str = active[0]
        up = self.lora_B[name]
        plain = _is_plain(self.base_layer, nn.Linear, Conv1D) and _is_plain(up, nn.Linear) and up.bias is None
        return name if plain else None


def _is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a module is a product with a weight that is there whole, without hooks."""
    whole = type(module) in kinds and not isinstance(module.weight, DTensor)
    return whole and not any(getattr(module, name) for name in _HOOKS)


def add_in_one_pass(model: nn.Module) -> None:
    """Let the LoRA layers of a model add in one pass; layers that peft computes in a way of its own stay."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = OnePassLinear
