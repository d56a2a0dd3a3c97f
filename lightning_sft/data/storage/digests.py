"""What encoded rows depend on, as digests: files, tokenizer, code and settings."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_sft.data.types import BadRow, Example
from lightning_sft.files import code_digest, file_digest

LIBRARIES = ("transformers", "tokenizers", "jinja2")
"""Libraries whose version may change what a row becomes."""


def digest(value: object) -> str:
    """Return the digest of a value of plain data.

    Raises:
        TypeError: it holds something that JSON does not keep, so that two values might look the same.
    """
    text = json.dumps(value)
    if json.loads(text) != value:
        raise TypeError(f"not plain data: {value!r}")
    return hashlib.sha256(text.encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the digest of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])


@cache
def encoding_digest() -> str:
    """Return the digest of what turns rows into tokens: all files of ``data/``, and the versions of the libraries."""
    room = Path(__file__).parent.parent
    return digest([code_digest(room), [[name, metadata.version(name)] for name in LIBRARIES]])


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the digest of everything that a tokenizer saves: vocabulary, rules, special tokens, chat template.

    Raises:
        TypeError: it is no tokenizer of transformers, or it cannot be saved, so that nothing tells two of them apart.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer of transformers")
    tokenizer("a")  # forgets the truncation and padding of an earlier call, which would be saved along
    kind = type(tokenizer)
    try:
        code = [kind.__module__, kind.__qualname__]
        if kind.__module__.partition(".")[0] != "transformers":  # whose version is in `code_digest`
            code.append(file_digest(Path(inspect.getfile(kind))))
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return digest([*code, bool(tokenizer.split_special_tokens), folder_digest(Path(folder))])
    except (OSError, NotImplementedError, ValueError, AttributeError) as e:
        raise TypeError(f"the tokenizer cannot be saved: {e}") from e


def rows_digest(examples: Iterable[Example], sources: Iterable[int], rejected: Iterable[BadRow]) -> str:
    """Return the digest of rows that were read."""
    state = hashlib.sha256()
    for example, source in zip(examples, sources, strict=True):
        row = [
            int(source),
            example.where,
            example.messages,
            example.flags,
            example.prompt_messages,
            example.tools,
            example.plain,
            example.template_kwargs,
            example.weight,
            example.unused,
        ]
        state.update(json.dumps(row, default=repr).encode() + b"\n")
    for bad in rejected:
        state.update(json.dumps([bad.where, bad.reason, bad.text, bad.code.value]).encode() + b"\n")
    return state.hexdigest()
