"""One answer at a time, handed on while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from typing_extensions import override

from lightning_sft.models.answering import answering
from lightning_sft.models.generation import end_tokens, last_position, plain_decoding
from lightning_sft.models.mode import eval_mode


class _HandOn(TextStreamer):
    """Hands finished words on instead of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    @override
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)


@torch.no_grad()
def stream_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    write: Callable[[str], None],
    *,
    max_new_tokens: int = 256,
    do_sample: bool = False,
    seed: int = 0,
    when_cut: Callable[[], None] = lambda: None,
    **shaping: Any,
) -> str:
    """Write the answer to a prompt word by word, and return it.

    As in `answer_prompts`, what a model's generation config asks for beside its end tokens is left out, the model is in
    eval mode meanwhile, and the global random state is left alone.

    Args:
        model: a transformers causal LM, perhaps with adapters inside.
        tokenizer: its tokenizer.
        prompt: token ids, templated up to where the answer starts.
        write: gets the text piece by piece, without special tokens.
        max_new_tokens: longest answer.
        do_sample: draw each token; else the likeliest is taken.
        seed: of the samples.
        when_cut: called behind an answer that did not end by itself, but where it was as long as it may be.
        shaping: further arguments of transformers' ``generate``, such as ``temperature`` and ``top_p``.

    Raises:
        UserError: the prompt leaves no position for an answer.
    """
    last = last_position(model, [prompt], max_new_tokens)
    ids = torch.tensor([list(prompt)], device=model.device)
    pieces: list[str] = []

    def hand_on(text: str) -> None:
        pieces.append(text)
        write(text)

    generator: Any = model  # transformers types `generate` as a tensor
    ends = end_tokens(model, tokenizer)
    longest = max_new_tokens if last is None else min(max_new_tokens, last - len(prompt))
    devices = [model.device] if model.device.type == "cuda" else []
    with eval_mode(model), plain_decoding(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        written = generator.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=longest,
            use_cache=answering(model).cached,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            streamer=_HandOn(tokenizer, hand_on),
            do_sample=do_sample,
            **shaping,
        )
    new = written[0, len(prompt) :].tolist()
    if len(new) >= longest and new[-1] not in ends:
        when_cut()
    return "".join(pieces)
