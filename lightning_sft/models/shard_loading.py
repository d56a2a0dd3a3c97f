"""Models without their weights, which are read once the model is sharded: each rank reads what it keeps, and no more.

transformers makes the model as ever, with its dtypes, buffers and ties, from tensors on the meta device; only the
reading is left out. Its own table says which tensors of the checkpoint make which parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from lightning_sft.models.checkpoint_tensors import CheckpointTensors, NotByShards
from lightning_sft.models.gguf import quiet_progress

Place = tuple[nn.Module, str]
"""A module and the name of one of its own parameters: both stay when an adapter or a strategy wraps what is around."""


class ShardLoading:
    """Makes models without their weights, and reads the weights when a strategy has sharded them.

    Attributes:
        refusal: why this cannot be done, as half a sentence; None where it can.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self._read_from: list[tuple[CheckpointTensors, dict[str, Place]]] = []

    @contextmanager
    def without_weights(self) -> Iterator[None]:
        """Let ``from_pretrained`` make a model whose parameters are on the meta device; buffers have their values.

        Raises:
            NotByShards: the checkpoint cannot be read tensor by tensor.
        """
        kind: Any = PreTrainedModel
        own = getattr(kind, "_load_pretrained_model", None)
        if own is None:
            raise NotByShards("this version of transformers loads models in another way")
        kind._load_pretrained_model = staticmethod(self._load_nothing)
        try:
            yield
        finally:
            kind._load_pretrained_model = staticmethod(own)

    def _load_nothing(
        self, model: PreTrainedModel, _state_dict: Any, files: list[str] | None, config: Any, *_: Any
    ) -> tuple[Any, None]:
        """Do what transformers does between making a model and tying its weights, on tensors without data."""
        tensors = CheckpointTensors(model, files or [], config)
        info = tensors.load(model, tensors.empty(), replace(config, device_map={"": "meta"}))
        conversions = model._weight_conversions
        # buffers are small and never sharded; tied weights that are both there are compared before they are tied
        tied = [pair for pair in model.all_tied_weights_keys.items() if all(name in tensors.groups for name in pair)]
        for name in {name for name, _ in model.named_buffers()} | {name for pair in tied for name in pair}:
            if name in tensors.groups:
                tensors.load(model, tensors.groups[name].tensors, config)
        model._weight_conversions = conversions  # those of the whole checkpoint
        places = {name: _place(model, name) for name, _ in model.named_parameters(remove_duplicate=False)}
        self._read_from.append((tensors, places))
        return info, None

    def give_up(self, why: str) -> None:
        """Forget the checkpoints: models will be loaded whole."""
        self.refusal = why
        self._read_from.clear()

    def copied(self, model: PreTrainedModel, twin: PreTrainedModel) -> None:
        """Note that a model was copied before its weights were read."""
        of_twin = dict(zip(model.modules(), twin.modules(), strict=True))
        for tensors, places in [*self._read_from]:
            if found := {name: (of_twin[m], own) for name, (m, own) in places.items() if m in of_twin}:
                self._read_from.append((tensors, found))

    @torch.no_grad()
    def read_now(self, *modules: nn.Module) -> None:
        """Read the parameters of some modules whole, as those of embeddings that are to grow.

        Raises:
            NotByShards: other tensors of the checkpoint would have to be read for them.
        """
        for tensors, places in self._read_from:
            for module, own in [place for place in places.values() if place[0] in modules]:
                empty = module._parameters[own]
                if empty is None or not empty.is_meta:
                    continue
                same = {n: place for n, place in places.items() if place[0]._parameters[place[1]] is empty}  # tied
                name = next((name for name in same if name in tensors.groups), None)
                if name is None:
                    raise NotByShards(f"its {next(iter(same))} is made of other tensors")
                value = nn.Parameter(tensors.made(tensors.groups[name])[name], requires_grad=empty.requires_grad)
                for holder, attribute in same.values():
                    holder._parameters[attribute] = value

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Put tensors of NaN on the CPU, which take no memory, in the place of weights, and take them away after.

        What an adapter draws at random is then drawn as beside real weights; what it makes *of* weights becomes NaN.

        Raises:
            NotByShards: on leaving: something was made of weights that are not there yet.
        """
        stand_ins: dict[nn.Parameter, nn.Parameter] = {}
        for module, own, parameter in [*_own_parameters(model)]:
            if parameter.is_meta:
                if parameter not in stand_ins:
                    nan = torch.full((), torch.nan, dtype=parameter.dtype, device="cpu").expand(parameter.shape)
                    stand_ins[parameter] = nn.Parameter(nan, requires_grad=parameter.requires_grad)
                module._parameters[own] = stand_ins[parameter]
        yield
        empty = {stand_in: nn.Parameter(p.detach(), stand_in.requires_grad) for p, stand_in in stand_ins.items()}
        for module, own, parameter in [*_own_parameters(model)]:
            module._parameters[own] = empty.get(parameter, parameter)
        for name, made in [*model.named_parameters(), *model.named_buffers()]:
            if not made.is_meta and made.is_floating_point() and bool(made.isnan().any()):
                raise NotByShards(f"its adapter makes {name} of weights")

    def check(self, model: nn.Module) -> None:
        """Raise unless every parameter without a value will get one.

        Raises:
            NotByShards: names one that will not.
        """
        coming = {id(p) for _, _, p in self._coming()}
        for name, parameter in model.named_parameters():
            if parameter.is_meta and id(parameter) not in coming:
                raise NotByShards(f"no tensor of its checkpoint makes {name}")

    def _coming(self) -> Iterator[tuple[CheckpointTensors, str, nn.Parameter]]:
        """Yield the parameters that tensors make, in the order of the checkpoint, for each of the models."""
        for tensors, places in self._read_from:
            for name in tensors.groups:
                if name in places and (parameter := places[name][0]._parameters[places[name][1]]) is not None:
                    yield tensors, name, parameter

    @torch.no_grad()
    def fill(self, scorer: nn.Module, device: torch.device) -> None:
        """Give a sharded model memory for its shards, and read them.

        Args:
            scorer: sharded; parameters that were read or drawn before have their values.
            device: where the shards are to be.
        """
        waiting = {id(p) for p in scorer.parameters() if p.device.type == "meta"}
        scorer._apply(lambda t: torch.empty_like(t, device=device) if t.device.type == "meta" else t)
        with quiet_progress():
            for tensors, name, parameter in self._coming():
                if id(parameter) in waiting:
                    _copy_shard(tensors.source(name), parameter)
                    waiting.remove(id(parameter))
        assert not waiting, "checked before"
        self._read_from.clear()


def _own_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield every parameter with each module that holds it; tied ones come more than once."""
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                yield module, own, parameter


def _place(model: nn.Module, name: str) -> Place:
    owner, _, own = name.rpartition(".")
    return model.get_submodule(owner), own


def _copy_shard(source: Any, parameter: nn.Parameter) -> None:
    """Copy this rank's part of a tensor into a sharded parameter.

    Args:
        source: the whole tensor, or a slice of safetensors that has not been read.
        parameter: a DTensor, in the dtype that the values are to have.
    """
    assert isinstance(parameter, DTensor)
    local = parameter.to_local()
    sizes, starts = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    if local.numel():
        local.copy_(source[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))])
