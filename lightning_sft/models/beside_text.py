"""What a model has beside its language part: towers for images and sound, which no row of text ever enters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def beside_text(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the outermost modules that a row of text does not enter.

    Where the configuration holds one for text and others beside it, that is whatever is neither the decoder nor the
    output embeddings; elsewhere it is what has a configuration of its own, as the image encoder inside GIT. Layers of a
    decoder that attend to an encoder are not known here, and nothing of classes that a repository brings along.
    """
    if not any(kind.__module__.startswith("transformers.models.") for kind in type(model).__mro__):
        return ()
    text = model.config.get_text_config(decoder=True)
    whole = model.config
    decoder: nn.Module = model.get_decoder()
    if text is not whole and decoder is not model:
        needed = {id(m) for part in (decoder, model.get_output_embeddings()) for m in part.modules()}
        return tuple(_outermost(model, lambda module: not any(id(m) in needed for m in module.modules())))
    own = {id(whole), id(text)}
    others = tuple(
        type(config)
        for name in getattr(whole, "sub_configs", {})
        if isinstance(config := getattr(whole, name, None), PreTrainedConfig) and id(config) not in own
    )
    return tuple(_outermost(model, lambda module: isinstance(getattr(module, "config", None), others)))


def freeze_beside_text(model: PreTrainedModel) -> tuple[str, ...]:
    """Freeze what a row of text does not enter, and return its names.

    Without a gradient it would learn nothing, and yet be waited for by DDP, and be looked for in a sharded checkpoint.
    """
    names = beside_text(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return names


def in_text(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Return those names of modules or parameters of a model that a row of text enters."""
    beside = tuple(f"{name}." for name in beside_text(model))
    return [name for name in names if not f"{name}.".startswith(beside)]


def _outermost(module: nn.Module, found: Callable[[nn.Module], bool], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if found(child):
            yield f"{prefix}{name}"
        else:
            yield from _outermost(child, found, f"{prefix}{name}.")
