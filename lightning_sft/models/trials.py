"""What is tried on a model while it is built: its new rows, and whether the head computes its logits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_sft.errors import UserError, first_line
from lightning_sft.head import HeadKind, Unembedding, choose_head
from lightning_sft.models.access import backbone, find_causal_lm, unembedding, vocabulary_size
from lightning_sft.models.checkpoint_tensors import NotByShards
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.small_copy import CopyFailed, small_copy, undisturbed


def copy_to_try(model: PreTrainedModel, *, needed: bool = False) -> PreTrainedModel | None:
    """Return a small copy of a model, None where none can be made.

    Args:
        model: its weights are not read.
        needed: the model itself has no weights to be tried with.

    Raises:
        NotByShards: there is no copy, and it is needed.
    """
    try:
        return small_copy(model)
    except CopyFailed as error:
        if needed:
            raise NotByShards("no small copy of it can be made, on which to try what its code does") from error
        return None


@torch.no_grad()
def try_new_rows(model: PreTrainedModel, rows: range) -> None:
    """Run the model on the last of its new tokens: some keep tables by token that do not grow with the embeddings.

    Args:
        model: with its weights.
        rows: the new ones; nothing is tried without any.

    Raises:
        UserError: it cannot run on them.
    """
    if not rows:
        return
    ids = torch.tensor([[rows.start - 1, rows.stop - 1]], device=model.device)
    try:
        with eval_mode(model), _attention_for(model):
            model(input_ids=ids, use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The vocabulary of {type(model).__name__} grew from {rows.start} to {rows.stop} tokens, and it cannot run "
            f"on the new ones: {first_line(error)}. It keeps other tables by token than its embeddings. Leave "
            "add_special_tokens out, or use unused tokens of its tokenizer."
        ) from error


def try_new_rows_on(tried: PreTrainedModel | None, rows: range) -> None:
    """Do so on a small copy of a model without weights: it gets new rows of its own."""
    if not rows or tried is None:
        return
    tried = copy.deepcopy(tried)
    known = vocabulary_size(tried)
    with undisturbed():
        tried.resize_token_embeddings(known + len(rows), mean_resizing=False)
        try_new_rows(tried, range(known, known + len(rows)))


@contextlib.contextmanager
def _attention_for(model: PreTrainedModel) -> Iterator[None]:
    """Attend in plain products while a model that is to train with flash attention is still on the CPU."""
    chosen = str(model.config._attn_implementation)
    if "flash" not in chosen or model.device.type != "cpu":
        yield
        return
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


@torch.no_grad()
def checked_head(kind: HeadKind, model: nn.Module, tried: PreTrainedModel | None = None) -> HeadKind:
    """Compare the head's logits with the model's own on a few tokens, and decide.

    Args:
        kind: as it was asked for.
        model: the model.
        tried: a small copy of it, without adapters, that is run where the model has no weights yet.

    Raises:
        UserError: the head that was asked for cannot serve the model.
    """
    if kind == "reference":
        return kind
    whole = find_causal_lm(model)
    causal_lm = whole if tried is None else tried
    ids = torch.arange(8, device=causal_lm.device)[None] % vocabulary_size(causal_lm)

    def parts() -> tuple[Tensor, Unembedding]:
        unembedding(whole)  # an adapter may sit on it
        hidden = backbone(causal_lm)(input_ids=ids, use_cache=False).last_hidden_state[0]
        matrix = unembedding(causal_lm)
        if hidden.shape[-1] != matrix.weight.shape[1]:
            raise UserError(
                f"its hidden states have {hidden.shape[-1]} values and its unembedding takes {matrix.weight.shape[1]}; "
                "something stands between them."
            )
        return hidden, matrix

    with eval_mode(causal_lm), _attention_for(causal_lm):
        return choose_head(kind, lambda: causal_lm(input_ids=ids, use_cache=False).logits[0], parts)
