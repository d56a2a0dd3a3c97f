"""Adapters merged into their layers for a while: one product in each layer, where an adapter makes three."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from lightning_sft.models.mode import eval_mode

#: dtypes in which a small update survives being added to a weight: in 16 bits most of a young adapter would be rounded
#: off, and the model that answers would not be the one that is trained
_EXACT = (torch.float32, torch.float64)
_SAME = 1e-5  # of the largest output: what rounding in fp32 moves, summed over some thousand inputs, is a tenth of it


@contextlib.contextmanager
def merged_adapters(model: nn.Module) -> Iterator[int]:
    """Merge the adapters of a model inside the context, and put its weights back bit for bit: they are set aside.

    Layers stay as they are where merging would change what they compute: weights in 16 bits, quantised, sharded or
    shared, autocast, and adapters whose output is no product with one matrix, which is tried on each layer.

    Args:
        model: holds adapters of peft, or none; must not be trained meanwhile.

    Yields:
        the number of layers that were merged.
    """
    if any(isinstance(p, DTensor) for p in model.parameters()):
        yield 0
        return
    held = Counter(id(p) for m in model.modules() for p in vars(m)["_parameters"].values() if p is not None)
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and _can_merge(m, held)]
    with contextlib.ExitStack() as undo:
        yield sum(undo.enter_context(_merged(layer)) for layer in layers)


def _can_merge(layer: Any, held: Counter[int]) -> bool:
    base = layer.get_base_layer()
    if type(base) not in (nn.Linear, Conv1D) or layer.merged or layer.disable_adapters or not layer.active_adapters:
        return False
    weight = base.weight
    plain = type(weight) is nn.Parameter and weight.dim() == 2 and weight.dtype in _EXACT  # DeepSpeed's may be empty
    return plain and held[id(weight)] == 1 and not torch.is_autocast_enabled(weight.device.type) and _fits(weight)


def _fits(weight: Tensor) -> bool:
    """Return whether a copy of a weight takes no more than a tenth of the free memory; a CPU's is not looked at."""
    if weight.device.type != "cuda":
        return True
    return weight.numel() * weight.element_size() < torch.cuda.mem_get_info(weight.device)[0] / 10


@contextlib.contextmanager
def _merged(layer: Any) -> Iterator[bool]:
    """Merge one layer on a copy of its weights; yield whether it computes the same as before."""
    parameters = list(layer.get_base_layer().parameters(recurse=False))
    own = [p.data for p in parameters]
    with torch.no_grad():
        before = _output(layer)
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data.clone()
        try:
            same = _merge(layer, before)
            if not same:
                _put_back(layer, parameters, own)
            yield same
        finally:
            _put_back(layer, parameters, own)


def _merge(layer: Any, before: Tensor) -> bool:
    try:
        layer.merge()
    except (NotImplementedError, RuntimeError, ValueError):  # a kind that cannot be merged says so, each in its way
        return False
    return bool((_output(layer) - before).abs().max() <= _SAME * before.abs().max())


def _put_back(layer: Any, parameters: list[nn.Parameter], own: list[Tensor]) -> None:
    if layer.merged:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "can be inaccurate": the weights come from the copy
            layer.unmerge()  # for what the layer remembers
    for parameter, data in zip(parameters, own, strict=True):
        parameter.data = data


def _output(layer: Any) -> Tensor:
    """Return what a layer makes of some inputs, (4, out); draws no random number."""
    weight = layer.get_base_layer().weight
    size = weight.shape[0] if isinstance(layer.get_base_layer(), Conv1D) else weight.shape[1]
    inputs = torch.arange(4 * size, device=weight.device, dtype=torch.float32).mul(0.7).cos().view(4, size)
    with eval_mode(layer):
        output = layer(inputs.to(weight.dtype))
    assert isinstance(output, Tensor)
    return output
