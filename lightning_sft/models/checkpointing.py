"""Gradient checkpointing, under either of the names that transformers has for it."""

from __future__ import annotations

from transformers import PreTrainedModel

from lightning_sft.errors import UserError, first_line


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass, without reentrant autograd, which DDP and frozen inputs dislike.

    Raises:
        UserError: the architecture cannot.
    """
    arguments = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # the name in late releases of transformers 5
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    except ValueError as error:
        raise UserError(
            f"gradient_checkpointing is true, but {first_line(error)} Set gradient_checkpointing: false; a smaller "
            "data.batch_size with trainer.accumulate_grad_batches saves memory, too."
        ) from error
