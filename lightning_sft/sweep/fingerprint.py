"""A digest of any value by content: tensors by their bytes, objects by their attributes, functions by their code."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import pickle
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lightning_sft.files import tensor_bytes

#: What every module keeps of its own, such as hooks and the way back to the trainer.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_INTERNAL_OF_LIGHTNING = frozenset(vars(LightningModule())) - {"training"}
#: Objects that are told by their class alone. Rows are told by the batches; a tokenizer acts before them.
_OPAQUE = (LightningDataModule, DataLoader, Dataset, PreTrainedTokenizerBase, types.ModuleType)
#: Packages whose objects are connections to the outside, not settings.
_OUTSIDE = frozenset({"lightning", "logging", "threading", "multiprocessing", "asyncio", "wandb", "tensorboard"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NAMED = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, Path)
_CHUNK = 1 << 24  # elements of a frozen tensor that are widened to 64 bits at once


def fingerprint(*values: object) -> str:
    """Return a hexadecimal digest of values of any kind; see `Fingerprint`."""
    reader = Fingerprint()
    return _joined("values", (reader.of(value) for value in values)).hex()


class Fingerprint:
    """Digests of values by content, each object read once.

    Tensors and arrays count with shape, dtype and every byte; mappings, sequences and dataclasses with what they hold;
    modules with class, mode, attributes, parameters, buffers and children; functions with their code and what they
    close over; other objects with their attributes. No ``repr`` of anything that may shorten itself or show an
    address.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, bytes]] = {}  # the object is kept so that its id stays its own

    def of(self, value: Any) -> bytes:
        """Return the digest of one value."""
        if isinstance(value, enum.Enum):
            return _joined("enum", [_name(type(value)), value.name.encode()])
        if isinstance(value, _PLAIN):
            return _joined("plain", [_name(type(value)), repr(value).encode()])
        if isinstance(value, _NAMED):
            return _joined("named", [_name(type(value)), str(value).encode()])
        if isinstance(value, type):
            return _joined("class", [_name(value)])
        if id(value) not in self._known:
            self._known[id(value)] = (value, b"within itself")
            self._known[id(value)] = (value, self._read(value))
        return self._known[id(value)][1]

    def _read(self, value: Any) -> bytes:
        kind = _name(type(value))
        if isinstance(value, Tensor):
            frozen = isinstance(value, nn.Parameter) and not value.requires_grad
            quantized = getattr(value, "quant_state", None)  # of bitsandbytes: the scales of a 4-bit weight
            return _joined("tensor", [kind, *_tensor(value, checksum=frozen), self.of(quantized)])
        if isinstance(value, np.ndarray) and value.dtype != object:
            return _joined("array", [str((value.shape, value.dtype.str)).encode(), value.tobytes()])
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, PretrainedConfig):
            content = {k: v for k, v in value.to_dict().items() if k != "_name_or_path"}  # a place, not a setting
            return _joined("configuration", [kind, self.of(content)])
        if isinstance(value, Mapping):
            return _joined("mapping", [kind, *(self.of(part) for item in value.items() for part in item)])
        if isinstance(value, set | frozenset):
            return _joined("set", [kind, *sorted(map(self.of, value))])
        if isinstance(value, list | tuple | np.ndarray):
            return _joined("sequence", [kind, *map(self.of, value)])
        if isinstance(value, functools.partial):
            return _joined("partial", map(self.of, (value.func, value.args, value.keywords)))
        if isinstance(value, types.MethodType):
            return _joined("method", [self.of(value.__self__), self.of(value.__func__)])
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, torch.Generator):
            return _joined("generator", [tensor_bytes(value.get_state())])
        if isinstance(value, _OPAQUE) or type(value).__module__.partition(".")[0] in _OUTSIDE:
            return _joined("opaque", [kind])
        return self._object(value)

    def _object(self, value: Any) -> bytes:
        kind, own = _name(type(value)), self._methods(type(value))
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
            return _joined("dataclass", [kind, own, self.of({**fields, **getattr(value, "__dict__", {})})])
        if hasattr(value, "__dict__"):
            return _joined("object", [kind, own, self.of(dict(sorted(vars(value).items())))])
        try:
            return _joined("pickle", [kind, pickle.dumps(value, protocol=4)])
        except Exception:  # what cannot be pickled says so in many ways
            return _joined("opaque", [kind])

    def _module(self, module: nn.Module) -> bytes:
        internal = _INTERNAL_OF_LIGHTNING if isinstance(module, LightningModule) else _INTERNAL
        attributes = {k: v for k, v in sorted(vars(module).items()) if k not in internal and not k.startswith("__")}
        if isinstance(module, LightningModule):
            attributes["automatic_optimization"] = module.automatic_optimization
        tables = (attributes, module._parameters, module._buffers, module._modules)
        return _joined("module", [_name(type(module)), self._methods(type(module)), *map(self.of, map(dict, tables))])

    def _methods(self, kind: type) -> bytes:
        """Return the digest of the code that a class and its bases outside of libraries bring along."""
        parts = []
        for base in kind.__mro__:
            if _is_library(base.__module__):
                continue
            for name, member in sorted(vars(base).items()):
                functions = _functions(member)
                parts += [name.encode(), *map(self.of, functions)] if functions else []
        return _joined("methods", parts)

    def _function(self, function: types.FunctionType) -> bytes:
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self.of(cell.cell_contents))
            except ValueError:  # not filled yet
                cells.append(b"empty")
        defaults = self.of((function.__defaults__, function.__kwdefaults__))
        return _joined("function", [_name(function), *_code(function.__code__), defaults, *cells])


def _is_library(module: str) -> bool:
    """Return whether versions stand for the code of a module: everything that pip installs, this package included."""
    package = module.partition(".")[0]
    return package in {"lightning_sft", "torch", "lightning", "transformers", "peft", "torchmetrics", "builtins"}


def _functions(member: Any) -> list[types.FunctionType]:
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset) if isinstance(f, types.FunctionType)]
    member = getattr(member, "__func__", member)  # static and class methods
    return [member] if isinstance(member, types.FunctionType) else []


def _code(code: types.CodeType) -> Iterable[bytes]:
    """Yield what a function does, without where it stands in its file."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant))).encode()
        else:
            yield repr(constant).encode()


def _name(kind: type | Callable[..., Any]) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _joined(kind: str, parts: Iterable[bytes]) -> bytes:
    state = hashlib.sha256(kind.encode())
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _tensor(tensor: Tensor, *, checksum: bool) -> list[bytes]:
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
    facts = str((tuple(tensor.shape), tensor.dtype, tensor.requires_grad)).encode()
    if local.layout != torch.strided or local.is_quantized:
        return [facts, tensor_bytes(local.to_dense() if local.layout != torch.strided else local.int_repr())]
    return [facts, _checksum(local) if checksum else tensor_bytes(local)]


@torch.no_grad()
def _checksum(tensor: Tensor) -> bytes:
    """Return two 64-bit sums over every element's bits, one of them by place: made where the tensor is.

    Frozen weights are most of a model, and copying them to the host to hash each byte would take longer than a trial.
    """
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}[tensor.element_size()]
    bits = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = bits.contiguous().reshape(-1).view(whole)
    plain = placed = 0
    for begin in range(0, flat.numel(), _CHUNK):
        part = flat[begin : begin + _CHUNK].to(torch.int64)
        places = torch.arange(begin + 1, begin + 1 + len(part), device=part.device)
        mixed = places * -7046029254386353131  # an odd number near 2**64 / the golden ratio; products wrap around
        plain += int(part.sum())
        placed += int(((part + 1) * (mixed ^ (mixed >> 29))).sum())
    return f"{plain} {placed}".encode()
