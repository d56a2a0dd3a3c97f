"""Proofs by behaviour, at the start of a run: the model sees no future token, and no packed document another one."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_sft.errors import UserError, first_line
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.packing import PROVEN, supervised
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.small_copy import WINDOW, CopyFailed, small_copy, token_ids, undisturbed
from lightning_sft.objectives import NLL
from lightning_sft.scores import IGNORED

#: Tokens of the documents of the proof: longer than the windows, chunks and convolutions of a small copy, and no
#: multiple of them.
DOCUMENTS = (2 * WINDOW + 9, 2 * WINDOW + 1, 2 * WINDOW + 5)

#: What rounding in fp32 may move logits and log-probabilities of a small copy by. Its weights are large: what leaks
#: moves them by more than 0.01.
TOLERANCE = 1e-4

_CODE = "told where they begin, its code answers:"

#: Fields of configurations that make a decoder of what would else see both sides.
_DECODER_FIELDS = ("is_decoder", "causal")


def check_causal(model: PreTrainedModel, copy: PreTrainedModel | None) -> None:
    """Change the last tokens of a row: no logit before them may move.

    Args:
        model: whole, on the CPU.
        copy: a small copy of it, on which rows of 40 tokens are run; None runs them on the model itself.

    Raises:
        UserError: the model cannot be called as training calls it, or an earlier logit moves: trained on next tokens,
            such a model reads the answer.
    """
    looked_at = model if copy is None else copy
    _require_callable(looked_at)
    moved = _moved_by_the_future(looked_at)
    if moved <= TOLERANCE:
        return
    cure = next((field for field in _DECODER_FIELDS if _helps(model, field)), None)
    advice = "Use" if cure is None else f"Set model.config_overrides: {{{cure}: true}} to make a decoder of it, or use"
    raise UserError(
        f"{type(model).__name__} (model_type {model.config.model_type!r}) sees the future: other tokens at the end of "
        f"a row move the logits before them, by up to {moved:.2g} of the largest. Trained on next tokens, it would "
        f"learn to read the answer off its input. {advice} a causal model, such as Llama, Qwen or GPT-2."
    )


def _require_callable(model: PreTrainedModel) -> None:
    """Raise unless a model in training mode takes a row of any length, called as training calls it.

    Raises:
        UserError: gives what its code answered.
    """
    ids = token_ids(model, 2 * WINDOW + 8).to(model.device)
    was_training = model.training
    try:
        with undisturbed(model.device.type):
            _logits(model.train(), ids)
    except Exception as error:  # whatever an architecture's code raises
        raise UserError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) cannot train on rows of {len(ids)} "
            f"tokens, given as input_ids and attention_mask. Its code answers: {first_line(error)} Use another "
            "model, or change its sizes with model.config_overrides."
        ) from error
    finally:
        model.train(was_training)


def _helps(model: PreTrainedModel, field: str) -> bool:
    """Return whether a field of the configuration, set, keeps the future out."""
    if getattr(model.config, field, None) is not False:
        return False
    try:
        return _moved_by_the_future(small_copy(model, **{field: True})) <= TOLERANCE
    except CopyFailed:
        return False


def _moved_by_the_future(model: PreTrainedModel) -> float:
    """Return how far other last tokens move earlier logits, as a share of the largest logit."""
    length, kept = 2 * WINDOW + 8, WINDOW + 14
    ids = token_ids(model, length).to(model.device)
    other = ids.clone()
    other[kept:] = token_ids(model, length - kept, seed=1).to(model.device)
    with eval_mode(model), undisturbed(model.device.type):
        one, two = (_logits(model, row) for row in (ids, other))
    return float((one - two)[:kept].abs().max() / one.abs().max())


def _logits(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Return the logits of a row, (length, vocab), in fp32."""
    row = row[None]
    torch.manual_seed(0)  # what a model draws at random is drawn alike each time
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def prove_documents_apart(model: PreTrainedModel, copy: PreTrainedModel | None) -> bool:
    """Prove on a small copy that packed documents do not see each other, and score as padded rows do.

    The copy has large weights in fp32, so that the proof holds for any weights that training may reach.

    Args:
        model: for messages.
        copy: a small copy of it; None if none could be made.

    Returns:
        Whether documents are kept apart only by kernels that must be told the boundaries.

    Raises:
        DocumentsMix: the documents see each other, positions are not counted from each document's beginning, or there
            is no copy to prove it on.
    """
    if copy is None:
        _refuse(model, "no small copy of it can be made to prove on it that documents stay apart")
    scorer = TokenScorer(copy, "reference").eval()
    leak = _leak(scorer)
    if leak is None:
        return False
    scorer.with_boundaries = True
    if torch.accelerator.is_available():  # kernels that know of boundaries run there alone
        scorer.to(torch.accelerator.current_accelerator())
    told = _leak(scorer)
    if told is not None:
        _refuse(model, f"{leak}; {told}" if told.startswith(_CODE) else leak)
    return True


class DocumentsMix(UserError):
    """Documents in one row see each other, or cannot be proven not to.

    Args:
        message: for a run that cannot go on without.
        why: the reason alone, as half a sentence.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def _refuse(model: PreTrainedModel, why: str) -> NoReturn:
    raise DocumentsMix(
        f"{type(model).__name__} (model_type {model.config.model_type!r}, attention "
        f"{model.config._attn_implementation!r}) cannot train on packed rows: {why}. Set data.order: grouped and "
        f"data.layout: padded, which saves nearly as much padding, or use one of the architectures that are proven: "
        f"{', '.join(PROVEN)}.",
        f"{type(model).__name__} does not keep documents of one row apart: {why}",
    )


def _leak(scorer: TokenScorer) -> str | None:
    """Return how packed documents differ from padded ones, as a sentence; None if they do not."""
    model = scorer.causal_lm
    documents = [token_ids(model, n, seed=i).to(model.device) for i, n in enumerate(DOCUMENTS)]
    others = [token_ids(model, DOCUMENTS[0], seed=9).to(model.device), *documents[1:]]
    behind = slice(DOCUMENTS[0] - 1, None)  # log-probabilities of the documents behind the first
    try:
        with undisturbed(model.device.type):
            together, changed = (_packed_logp(scorer, docs) for docs in (documents, others))
            alone = _padded_logp(scorer, documents)
    except (UserError, ValueError, RuntimeError, IndexError, TypeError) as error:
        return f"{_CODE} {first_line(error)}"
    seen = float((together - changed)[behind].abs().max())
    moved = float((together - alone).abs().max())
    if seen > TOLERANCE:
        return f"a changed document moves the log-probabilities of the next ones by up to {seen:.2g}"
    if not moved <= TOLERANCE:
        return f"a document in a pack has other log-probabilities than in a row of its own, by up to {moved:.2g}"
    return None


def _packed_logp(scorer: TokenScorer, documents: list[Tensor]) -> Tensor:
    """Return the log-probabilities of documents in one row, the first token of each aside."""
    ids = torch.cat(documents)
    positions = torch.cat([torch.arange(len(d), device=d.device) for d in documents])
    batch: dict[str, Any] = {
        "input_ids": ids[None],
        "labels": torch.where(positions == 0, IGNORED, ids)[None],
        "position_ids": positions[None],
    }
    sizes = torch.tensor([len(d) for d in documents], device=ids.device)
    boundaries = {
        "cu_seq_lens": nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32),
        "max_length": max(map(len, documents)),
    }
    return _logp(scorer, {**batch, **boundaries, "supervised": supervised(batch)})


def _padded_logp(scorer: TokenScorer, documents: list[Tensor]) -> Tensor:
    """Return the same log-probabilities of one document a row, padded on the right."""
    ids, labels = (nn.utils.rnn.pad_sequence(documents, True, fill) for fill in (0, IGNORED))
    return _logp(scorer, {"input_ids": ids, "labels": labels, "attention_mask": (labels != IGNORED).long()})


def _logp(scorer: TokenScorer, batch: dict[str, Any]) -> Tensor:
    torch.manual_seed(0)  # what a model draws at random is drawn alike each time
    return scorer(batch, NLL()).scores.logp.float()  # type: ignore[no-any-return]
