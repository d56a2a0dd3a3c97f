"""Small things that the tests of the data room share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_sft.data.types import Encoded

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|header|>", "<|/header|>", "<|eot|>"]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text().rstrip("\n")


def byte_tokenizer(
    chat_template: str | None = None,
    eos: str = "<|im_end|>",
    bos: str = "<s>",
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, one token a byte but for the ``merges`` (in its alphabet)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*dict.fromkeys([bos, eos, *SPECIAL])]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return _fast(tokenizer, chat_template, bos, eos)


def space_tokenizer(chat_template: str | None = None, bos: str = "<s>", eos: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind: a space before each piece of text, "▁" joined with the letter after it."""
    letters = [chr(c) for c in range(32, 127) if chr(c) != " "] + ["\n"]
    merges = [("▁", letter) for letter in letters]
    special = [bos, eos, "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, "▁", *letters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_special_tokens(special)
    return _fast(tokenizer, chat_template, bos, eos)


def _fast(tokenizer: Tokenizer, chat_template: str | None, bos: str, eos: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=chat_template
    )


def marked(tokenizer: Any, encoded: Encoded) -> str:
    """Return the row as text, the trained parts in double brackets."""
    text, inside = "", False
    for token, trained in zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True):
        text += ("[[" if trained and not inside else "]]" if inside and not trained else "") + piece(tokenizer, token)
        inside = trained
    return text + ("]]" if inside else "")


def piece(tokenizer: Any, token: int) -> str:
    """Return one token as text, a leading space included."""
    name = tokenizer.convert_ids_to_tokens(token)
    return name.replace("▁", " ") if "▁" in tokenizer.get_vocab() else tokenizer.decode([token])


def trained_text(tokenizer: Any, batch: dict[str, Tensor], row: int = 0) -> str:
    """Decode what row ``row`` of a batch trains."""
    labels = batch["labels"][row]
    return tokenizer.decode(labels[labels != -100])
