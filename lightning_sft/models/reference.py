"""Models that an objective compares with: a frozen checkpoint or copy, or a snapshot of the model under training.

Both are submodules of the scorer, so that a strategy places them, or shards them, as it does the model. The third kind,
the model with its adapters switched off, needs no module of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self, override

from lightning_sft.errors import UserError
from lightning_sft.models.access import SearchBarrier, find_causal_lm, vocabulary_size
from lightning_sft.models.loading import load_tokenizer
from lightning_sft.models.mode import eval_mode

_SHOWN = 5  # tokens named in a message


class Reference(nn.Module, SearchBarrier, ABC):
    """A model to compare with, which nobody trains and no search for *the* model finds."""

    @abstractmethod
    def in_place(self, model: nn.Module) -> AbstractContextManager[PreTrainedModel]:
        """Give the reference model in eval mode; ``model`` is the one under training."""


class FrozenReference(Reference):
    """A frozen model of its own. Checkpoints leave it out, since its source brings it back.

    Args:
        model: a transformers causal LM; its parameters stop asking for gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        untyped: Any = self
        untyped.register_state_dict_post_hook(_hide)
        untyped.register_load_state_dict_pre_hook(_fill_in)

    @override
    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    @override
    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[PreTrainedModel]:
        yield find_causal_lm(self.model)


class Snapshot(Reference):
    """Copies of what trains: all parameters, or those of the adapters. Checkpoints hold them.

    While the snapshot is looked at, it and the parameters change places, so that it costs one copy of what trains and
    no copy of what is frozen.

    Args:
        model: the model under training, before anything trains.

    Attributes:
        age: optimizer steps since the snapshot was taken, scalar.
    """

    age: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for i, parameter in enumerate(_trainable(model)):
            self.register_buffer(f"copy{i}", parameter.detach().clone())
        self.register_buffer("age", torch.tensor(0))

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        return [(parameter, self.get_buffer(f"copy{i}")) for i, parameter in enumerate(_trainable(model))]

    @torch.no_grad()
    def grow_older(self, model: nn.Module, most: int) -> None:
        """Count an optimizer step; take a new snapshot after ``most`` of them."""
        self.age += 1
        if self.age < most:
            return
        self.age.zero_()
        for parameter, copy in self._pairs(model):
            copy.copy_(parameter)

    @override
    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[PreTrainedModel]:
        self._swap(model)
        causal_lm = find_causal_lm(model)
        try:
            with eval_mode(causal_lm):
                yield causal_lm
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        for parameter, copy in self._pairs(model):
            parameter.data, copy.data = copy.data, parameter.data


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _hide(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        del state_dict[name]


def _fill_in(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a strict load find what checkpoints leave out."""
    assert isinstance(module, FrozenReference)
    state_dict.update(module.model.state_dict(prefix=f"{prefix}model."))


def check_same_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, **how: Any) -> None:
    """Raise unless a reference's tokenizer gives every token the id that the model's own tokenizer gives it.

    Args:
        tokenizer: the model's own.
        name: hub name or folder of the reference.
        how: further arguments of `load_tokenizer`.

    Raises:
        UserError: says how many ids differ, and which.
    """
    own, other = tokenizer.get_vocab(), load_tokenizer(name, **how).get_vocab()
    apart = sorted(token for token in own.keys() | other.keys() if own.get(token) != other.get(token))
    if apart:
        shown = ", ".join(f"{t!r} ({own.get(t, 'none')} and {other.get(t, 'none')})" for t in apart[:_SHOWN])
        raise UserError(
            f"model.reference is {name!r}, whose vocabulary is another one: {len(apart)} tokens have another id there, "
            f"or none, such as {shown}. Predictions can be compared only over one vocabulary. Take a reference of the "
            "model's own family; if tokens were added to the model, the reference needs them as well."
        )


def check_rows(reference: PreTrainedModel, model: PreTrainedModel, name: str) -> None:
    """Raise if a reference has fewer rows of logits than the model; more, which pad its size, are cut off.

    Raises:
        UserError: names both numbers.
    """
    rows, own = vocabulary_size(reference), vocabulary_size(model)
    if rows < own:
        raise UserError(
            f"model.reference is {name!r} with {rows} rows of logits, and the model has {own}. Allowed: a reference "
            "with at least as many. Take another one, or remove what was added to the model's vocabulary."
        )
