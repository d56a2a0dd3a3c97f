"""The tensors of a checkpoint, read one by one, and the parameters that transformers makes of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, core_model_loading

#: what is used of transformers' loading, which may change with its version
_INTERNALS = ("WeightConverter", "WeightRenaming", "convert_and_load_state_dict_in_model", "rename_source_key")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class NotByShards(Exception):
    """A model must be loaded whole; the message says why, as half a sentence."""


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that are read together.

    Attributes:
        tensors: what safetensors reads slices of, by their keys.
        computed: whether transformers computes with them, as where it stacks experts; else one is one parameter.
    """

    tensors: Mapping[str, Any]
    computed: bool


class CheckpointTensors:
    """The tensors of a checkpoint, none of which has been read.

    Args:
        model: as transformers made it, without weights.
        files: of the checkpoint.
        config: how transformers loads them.

    Attributes:
        groups: by the name of the parameters that they make, in the order of the files.

    Raises:
        NotByShards: they cannot be read one by one.
    """

    def __init__(self, model: PreTrainedModel, files: list[str], config: Any) -> None:
        if gone := [name for name in _INTERNALS if not hasattr(core_model_loading, name)]:
            raise NotByShards(f"this version of transformers loads models in another way, without {gone[0]}")
        if model.is_custom_code():
            raise NotByShards(f"the code of {type(model).__name__} comes with the checkpoint")
        if config.hf_quantizer is not None:
            raise NotByShards("its checkpoint is quantised")
        if not files or not all(file.endswith(".safetensors") for file in files):
            raise NotByShards("its weights are not in safetensors files")
        self._tensors: dict[str, Any] = {}
        for file in files:
            opened: Any = safe_open(file, framework="pt", device="cpu")
            self._tensors |= {key: opened.get_slice(key) for key in opened.keys()}  # it is no mapping
        self._config = config
        self._spare = copy.deepcopy(model)
        self._blank = {
            name: (self._spare.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], value)
            for named in (self._spare.named_parameters, self._spare.named_buffers)
            for name, value in named(remove_duplicate=False)
        }
        self._latest: tuple[Group, dict[str, Tensor]] | None = None
        self.groups = self._find_groups()

    def _find_groups(self) -> dict[str, Group]:
        known = self._spare.state_dict()
        prefix = self._spare.base_model_prefix
        steps = self._config.weight_mapping or []
        renamings = [step for step in steps if isinstance(step, core_model_loading.WeightRenaming)]
        converters = [step for step in steps if isinstance(step, core_model_loading.WeightConverter)]
        keys: dict[tuple[str, bool], list[str]] = {}
        for key in self._tensors:
            name, pattern = core_model_loading.rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, pattern = core_model_loading.rename_source_key(key, [], [], prefix, known)
            if name in known:
                keys.setdefault((name, pattern is not None), []).append(key)
        groups: dict[str, Group] = {}
        for (name, computed), own in keys.items():
            group = Group({key: self._tensors[key] for key in own}, computed)
            groups |= dict.fromkeys(self.made(group, empty=True) if computed else [name], group)
        return groups

    def empty(self) -> dict[str, Tensor]:
        """Return tensors without data in the place of those of the checkpoint."""
        return {key: _without_data(tensor) for key, tensor in self._tensors.items()}

    def load(self, model: PreTrainedModel, tensors: Mapping[str, Any], config: Any) -> Any:
        """Let transformers put tensors into a model; return what it says about missing and odd ones."""
        return core_model_loading.convert_and_load_state_dict_in_model(model, dict(tensors), config)[0]

    def made(self, group: Group, *, empty: bool = False) -> dict[str, Tensor]:
        """Return the parameters and buffers that a group makes, whole, on the CPU; or, if empty, without data."""
        given = {key: _without_data(tensor) for key, tensor in group.tensors.items()} if empty else group.tensors
        config = replace(self._config, device_map={"": "meta"}) if empty else self._config
        missing = self.load(self._spare, given, config).missing_keys
        made: dict[str, Tensor] = {}
        for name in self._blank.keys() - missing:
            module, own, blank = self._blank[name]
            made[name] = getattr(module, own).detach()
            setattr(module, own, blank)
        return made

    def source(self, name: str) -> Any:
        """Return what slices of a parameter are read from: the file, or the whole tensor where it is computed."""
        group = self.groups[name]
        if not group.computed:
            (tensor,) = group.tensors.values()
            return tensor
        if self._latest is None or self._latest[0] is not group:  # groups of several parameters follow each other
            self._latest = None  # before the next one is read
            self._latest = (group, self.made(group))
        return self._latest[1][name]


def _without_data(tensor: Any) -> Tensor:
    kind = tensor.get_dtype()
    if kind not in _DTYPES:
        raise NotByShards(f"its checkpoint holds numbers of the kind {kind}")
    return torch.empty(tensor.get_shape(), dtype=_DTYPES[kind], device="meta")
