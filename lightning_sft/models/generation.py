"""Greedy or sampled answers from a causal language model, batched, with left padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.models.answering import answering
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.positions import row_limit
from lightning_sft.models.sampling import Draws, Entropies, Sampling
from lightning_sft.progress import progress
from lightning_sft.training.signals import stop_in_generation


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    Attributes:
        text: without special tokens, up to the end.
        tokens: ids of the tokens before the one that ends the answer; those of a stop string are among them.
        stopped: whether the answer ended by itself, and not because it had grown too long.
        entropy: sum of the entropies, in nats, of the predictions of all its tokens, the one that ends it included.
        predictions: how many these are.
    """

    text: str
    tokens: list[int]
    stopped: bool
    entropy: float
    predictions: int


class _StopOnSignal(StoppingCriteria):
    """Asks after each token whether a signal has asked the run to end."""

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stop_in_generation()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _StopAtStrings(StoppingCriteria):
    """Ends rows whose answer holds one of some strings; transformers' own also finds those that begin in the prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._start = start
        self._window = 1 + max(len(text.encode()) for text in stop)  # tokens; each has a byte or more

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        tails = input_ids[:, self._start :][:, -self._window :].tolist()
        texts = [_text(self._tokenizer, tail) for tail in tails]
        return torch.tensor([any(s in text for s in self._stop) for text in texts], device=input_ids.device)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    synced_gpus: bool = False,
) -> list[str]:
    """Return the text of the greedy answer to every prompt; see `answer_prompts`."""
    answers = answer_prompts(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, synced_gpus=synced_gpus
    )
    return [answer.text for answer in answers]


@torch.no_grad()
def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    synced_gpus: bool = False,
) -> list[Answer]:
    """Return the greedy or a sampled answer to every prompt, in order.

    Prompts of like length are answered together, unless answers would depend on it: some architectures do not leave
    padding on the left out, which is found out on a small copy at the first call. The model is in eval mode meanwhile
    and the global random state is left alone, so training goes on as if nothing had happened. What a model's generation
    config asks for beside its end tokens (penalties, beams, shortest lengths) is left out: greedy is the first choice.

    Args:
        model: a transformers causal LM, perhaps with adapters inside.
        tokenizer: its tokenizer; an answer ends at its end token and at those of the model's generation config.
        prompts: token ids of each prompt, templated up to where the answer starts.
        max_new_tokens: longest answer.
        batch_size: prompts answered at once.
        stop: strings that end an answer, and are cut off its text.
        sampling: how to sample, with a seed for each prompt; None is greedy.
        synced_gpus: every rank calls this with the same number of prompts, and keeps going until the slowest is done
            (sharded models need it).

    Raises:
        UserError: a prompt leaves no position for an answer.
    """
    last = last_position(model, prompts, max_new_tokens)
    way = answering(model)
    if not way.together and (synced_gpus or len(set(map(len, prompts))) > 1):
        batch_size = 1  # on all ranks or on none
    ends, strings = _stops(model, tokenizer, stop)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    generator: Any = model  # transformers types `generate` as a tensor
    with eval_mode(model), plain_decoding(model), progress("Answering", len(prompts), "prompts") as advance:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = _left_padded([prompts[i] for i in chosen], tokenizer, model.device)
            entropies = Entropies()
            draws = [] if sampling is None else [Draws(sampling.of(chosen), max_new_tokens, ids.shape[1])]
            output = generator.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens if last is None else min(max_new_tokens, last - ids.shape[1]),
                do_sample=False,
                use_cache=way.cached,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=synced_gpus,
                logits_processor=[entropies, *draws],
                stopping_criteria=[
                    *([] if synced_gpus else [_StopOnSignal()]),
                    *([_StopAtStrings(tokenizer, strings, ids.shape[1])] if strings else []),
                ],
            )
            rows = zip(output[:, ids.shape[1] :].tolist(), entropies.rows(), strict=True)
            answers.update(zip(chosen, (_answer(tokenizer, *row, ends, strings) for row in rows), strict=True))
            advance(len(chosen))
    return [answers[i] for i in range(len(prompts))]


def last_position(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int | None:
    """Return how many tokens a prompt and its answer may have together; None without a limit that matters.

    Raises:
        UserError: a prompt leaves no position for an answer.
    """
    longest = max(map(len, prompts), default=0)
    limit = row_limit(model, longest + max_new_tokens)
    last = None if limit is None or not limit.is_hard else limit.tokens
    if last is not None and longest >= last:
        raise UserError(
            f"A prompt has {longest} tokens, but {type(model).__name__} has {last} positions, which must hold the "
            "answer, too. Shorten the prompts, for example with data.max_length."
        )
    return last


@contextlib.contextmanager
def plain_decoding(model: PreTrainedModel) -> Iterator[None]:
    """Take everything out of a model's generation config that would change which token is the first choice."""
    own = model.generation_config
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "cache_implementation")
    values = {name: value for name in kept if (value := getattr(own, name, None)) is not None}
    model.generation_config = GenerationConfig(**values)
    try:
        yield
    finally:
        model.generation_config = own


def _stops(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Return the tokens that end an answer, and the strings that do: a string that is one special token is a token."""
    special = {text: i for text, i in tokenizer.get_added_vocab().items() if text in stop}
    return sorted({*end_tokens(model, tokenizer), *special.values()}), [text for text in stop if text not in special]


def _answer(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], entropies: list[float], ends: Sequence[int], stop: list[str]
) -> Answer:
    """Return the answer among a row of generated tokens, which may go on behind its end."""
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    stopped, predictions = length < len(tokens), min(length + 1, len(tokens))
    text = _text(tokenizer, tokens[:length])
    if any(s in text for s in stop):
        # the fewest tokens in whose text a stop string stands
        length = next(n for n in range(1, length + 1) if any(s in _text(tokenizer, tokens[:n]) for s in stop))
        text = text[: min(at for s in stop if (at := text.find(s)) >= 0)]
        stopped, predictions = True, length
    return Answer(text, tokens[:length], stopped, sum(entropies[:predictions]), predictions)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _left_padded(
    prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end an answer: those of the generation config and the tokenizer's."""
    of_model = model.generation_config.eos_token_id if model.generation_config is not None else None
    many = of_model if isinstance(of_model, list) else [of_model]
    return sorted({i for i in [*many, tokenizer.eos_token_id] if i is not None})


def special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of tokens that are no words of an answer: special ones, and those that end an answer."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted({*added, *tokenizer.all_special_ids, *end_tokens(model, tokenizer)})
