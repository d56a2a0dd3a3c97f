"""Probes become ids: one token an answer, or an error that says how the tokenizer splits it and what to use instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.probes.probe import AUTO, Probe, named

#: id of a competitor that the model is to name
UNKNOWN = -1
SUFFIXES = ("s", "es", "d", "ed", "ing", "ly", "er", "r", "y", "ness")

#: where a probe has no form that this tokenizer could read
_OTHERS = (
    "No single-token form of it was found. Probes for this model: `lightning mine-probes` finds some in a text, and "
    "silent.jsonl of a run of it holds some."
)


@dataclass(frozen=True)
class EncodedProbes:
    """Probes as one right-padded batch.

    Attributes:
        probes: the probes, named.
        input_ids: the contexts, (probes, length), int64.
        attention_mask: 1 on the contexts, 0 on the padding, (probes, length), int64.
        last: index of each context's last token, where the answer is predicted, (probes,), int64.
        correct: ids of the correct tokens, (probes,), int64.
        competitor: ids of the competitors, (probes,), int64; `UNKNOWN` until a model has named it.
    """

    probes: tuple[Probe, ...]
    input_ids: Tensor
    attention_mask: Tensor
    last: Tensor
    correct: Tensor
    competitor: Tensor

    def to(self, device: torch.device) -> EncodedProbes:
        """Return the batch on a device."""
        tensors = (self.input_ids, self.attention_mask, self.last, self.correct, self.competitor)
        return EncodedProbes(self.probes, *(t.to(device) for t in tensors))


def encode_probes(probes: Sequence[Probe], tokenizer: PreTrainedTokenizerBase) -> EncodedProbes:
    """Tokenize probes and check their answers.

    Every answer is tokenized together with its context, because that is what a text of both would become; the special
    tokens that the tokenizer puts in front of a text (such as a BOS token) are there.

    Raises:
        UserError: an answer is not one token, or merges with the end of its context, or the two of a probe are the
            same token.
    """
    contexts, correct, competitor = [], [], []
    probes = named(probes)
    for probe in probes:
        context = _ids(tokenizer, probe.context) if probe.context_ids is None else list(probe.context_ids)
        c = _answer(probe, context, probe.correct, tokenizer) if probe.correct_id is None else probe.correct_id
        s = probe.competitor_id
        if s is None:
            named_later = probe.competitor in AUTO
            s = UNKNOWN if named_later else _answer(probe, context, probe.competitor, tokenizer)
        if c == s:
            raise UserError(
                f"The tokenizer gives {probe.correct!r} and {probe.competitor!r} the same token {c}. Choose another "
                "competitor."
            )
        contexts.append(context)
        correct.append(c)
        competitor.append(s)
    length = max(map(len, contexts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked out, so any id will do
    lengths = torch.tensor([len(ids) for ids in contexts])
    return EncodedProbes(
        probes=probes,
        input_ids=torch.tensor([ids + [pad] * (length - len(ids)) for ids in contexts]),
        attention_mask=(torch.arange(length) < lengths[:, None]).long(),
        last=lengths - 1,
        correct=torch.tensor(correct),
        competitor=torch.tensor(competitor),
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text with the special tokens in front of it, and without any behind it."""
    ids: list[int] = list(tokenizer(text).input_ids)
    bare: list[int] = list(tokenizer(text, add_special_tokens=False).input_ids)
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids


def _answer(probe: Probe, context: list[int], word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    text = f" {word}" if probe.leading_space else word
    together = _ids(tokenizer, probe.context + text)
    if together[: len(context)] != context:
        raise UserError(
            f"The answer {text!r} of probe {probe.name!r} merges with the end of its context "
            f"{probe.context[-30:]!r}: {_split(tokenizer, together[-3:])}. Let the context end at the end of a word."
        )
    answer = together[len(context) :]
    if len(answer) == 1:
        return answer[0]
    alternatives = single_token_alternatives(word, tokenizer, leading_space=probe.leading_space)
    instead = f"Single tokens instead: {alternatives}." if alternatives else _OTHERS
    raise UserError(
        f"The answer {text!r} of probe {probe.name!r} is {len(answer)} tokens: {_split(tokenizer, answer)}. The "
        f"order parameter is defined for answers of one token. {instead}"
    )


def _split(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return " + ".join(repr(tokenizer.decode([i])) for i in ids)


def single_token_alternatives(
    word: str, tokenizer: PreTrainedTokenizerBase, *, leading_space: bool = True, limit: int = 5
) -> list[str]:
    """Return words near ``word`` that are one token: its other forms first, then words that begin like it.

    Args:
        word: a word of several tokens.
        tokenizer: the tokenizer.
        leading_space: whether a space precedes the word.
        limit: the most words to return.
    """
    space = " " if leading_space else ""
    stems = [word, *(word[: -len(s)] for s in SUFFIXES if word.endswith(s) and len(word) > len(s) + 2)]
    forms = [stem + s for stem in stems for s in ("", *SUFFIXES)]
    forms = [f for form in forms for f in (form, form.lower(), form.capitalize()) if f != word]
    found = [f for f in forms if len(tokenizer(space + f, add_special_tokens=False).input_ids) == 1]
    if not found and len(word) >= 5:
        vocabulary = [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
        words = {t.strip() for t in vocabulary if t.startswith(space) and t.strip().isalpha() and t.strip() != word}
        shared = {w: _shared_beginning(w.lower(), word.lower()) for w in words}
        found = sorted((w for w in words if shared[w] >= 4), key=lambda w: (-shared[w], len(w), w))
    return list(dict.fromkeys(found))[:limit]


def _shared_beginning(a: str, b: str) -> int:
    """Return the number of first letters that two words share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
