"""How many tokens a row may have, by what the model does: configurations name limits that some models do not have."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from transformers import PreTrainedModel

from lightning_sft.models.access import text_config
from lightning_sft.models.small_copy import CopyFailed, small_copy, token_ids, undisturbed

_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_positions")
_TRIED = 64  # positions of the small copy
_OFFSETS = range(5)  # RoBERTa and its like number positions from the padding token's id on


@dataclass(frozen=True)
class PositionLimit:
    """The longest row of a model.

    Attributes:
        tokens: of a row.
        is_hard: whether the model fails on longer ones; else it was trained on rows up to that length.
    """

    tokens: int
    is_hard: bool


#: what was found out about a model: the tokens of the longest row that it runs on, None if it runs on any
_usable: weakref.WeakKeyDictionary[PreTrainedModel, int | None] = weakref.WeakKeyDictionary()


def row_limit(model: PreTrainedModel, longest: int) -> PositionLimit | None:
    """Return the limit that rows of a model exceed, or None: rows are short enough, or any length will do.

    The model is tried only if the rows are longer than what its configuration names, or nearly so.

    Args:
        model: its weights are not read.
        longest: tokens of the longest row.
    """
    field = _field(model)
    if field is None:
        return None
    named = int(getattr(text_config(model), field))
    if longest <= named - len(_OFFSETS):
        return None
    if model not in _usable:
        _usable[model] = _longest_that_runs(model, field, named)
    usable = _usable[model]
    if usable is not None:
        return PositionLimit(usable, is_hard=True) if longest > usable else None
    is_trained_length = hasattr(text_config(model), "rope_parameters")
    return PositionLimit(named, is_hard=False) if is_trained_length and longest > named else None


def _longest_that_runs(model: PreTrainedModel, field: str, named: int) -> int | None:
    if _runs(model, field, _TRIED + 16):
        return None
    return next((named - less for less in _OFFSETS if _runs(model, field, _TRIED - less)), named)


def _field(model: PreTrainedModel) -> str | None:
    config = text_config(model)
    return next((f for f in _FIELDS if isinstance(getattr(config, f, None), int) and getattr(config, f) > 0), None)


def _runs(model: PreTrainedModel, field: str, length: int) -> bool:
    """Return whether a copy with `_TRIED` positions takes a row of a length."""
    try:
        copy = small_copy(model, **{field: _TRIED})
        with undisturbed():
            copy(input_ids=token_ids(copy, length)[None], use_cache=False)
    except CopyFailed:  # nothing is known: positions that rotate have no end
        return hasattr(text_config(model), "rope_parameters")
    except (RuntimeError, IndexError, ValueError):
        return False
    return True
