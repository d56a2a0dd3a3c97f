"""The load-balancing loss of mixtures of experts (Shazeer et al., arXiv 1701.06538), as transformers computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.models.access import backbone, text_config
from lightning_sft.models.small_copy import WINDOW, token_ids, undisturbed

_FIELDS = ("router_aux_loss_coef", "aux_loss_coef")


def asks_for_router_loss(model: PreTrainedModel) -> bool:
    """Return whether the configuration asks for the load-balancing loss (``output_router_logits``)."""
    return any(getattr(config, "output_router_logits", False) is True for config in (model.config, text_config(model)))


def router_coefficient(model: PreTrainedModel, copy: PreTrainedModel | None) -> float:
    """Return what the model multiplies its load-balancing loss by.

    On a small copy the coefficient is set to 1, and the model's own loss must grow by just that loss, once.

    Args:
        model: its configuration asks for that loss.
        copy: a small copy of it, whose coefficient is changed; None if none could be made.

    Raises:
        UserError: the model takes the setting and adds nothing, or something else.
    """
    named = next((float(vars(owner)[field]) for owner, field in _coefficients(model)), None)
    added = 0.0 if copy is None or named is None else _added_at_one(copy)
    if named is not None and abs(added - 1.0) < 1e-3:
        return named
    raise UserError(
        f"output_router_logits is true, but {type(model).__name__} (model_type {model.config.model_type!r}) adds "
        f"{f'{added:.3g} times its' if added else 'no'} load-balancing loss to its own. Set model.config_overrides: "
        "{output_router_logits: false}; some such models balance their experts by a bias instead."
    )


def hidden_and_router_loss(model: PreTrainedModel, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Run a model with its own load-balancing loss and without its logits.

    Args:
        model: its configuration asks for that loss.
        inputs: what the decoder is called with.

    Returns:
        The last hidden states, (batch, length, dim), and the load-balancing loss before its coefficient, ().
    """
    hidden: list[Tensor] = []
    decoder = backbone(model)
    handle = decoder.register_forward_hook(lambda _module, _inputs, output: hidden.append(output.last_hidden_state))
    try:
        output: Any = model(**inputs, logits_to_keep=1)
    finally:
        handle.remove()
    return hidden[0], output.aux_loss


def _coefficients(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Return who holds the coefficient, and under which name; the model itself first."""
    owners = (model, text_config(model), model.config)
    return [(owner, field) for owner in owners for field in _FIELDS if isinstance(vars(owner).get(field), float | int)]


def _added_at_one(copy: PreTrainedModel) -> float:
    """Return what a copy with a coefficient of 1 adds to its own loss, in multiples of its load-balancing loss."""
    for owner, field in _coefficients(copy):
        setattr(owner, field, 1.0)
    ids = token_ids(copy, 2 * WINDOW)[None]
    try:
        with undisturbed():
            with_router, without = (
                copy(input_ids=ids, labels=ids, use_cache=False, output_router_logits=asked) for asked in (True, False)
            )
    except Exception:  # whatever an architecture's code raises
        return 0.0
    auxiliary = getattr(with_router, "aux_loss", None)
    if not isinstance(auxiliary, Tensor) or not bool(torch.isfinite(auxiliary)) or float(auxiliary) == 0:
        return 0.0
    return float((with_router.loss - without.loss) / auxiliary)
