"""GGUF files: converted once to a Hugging Face folder, cached by content, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lightning_sft.errors import UserError
from lightning_sft.files import cache_root, new_folder
from lightning_sft.progress import counted, note, progress


def converted_folder(gguf: Path) -> Path:
    """Return the Hugging Face folder with the dequantised fp32 weights and the tokenizer of a GGUF file.

    The folder lies in the cache under the hash of the file's content. It is written beside its place and renamed, so
    a broken conversion leaves nothing behind. Of several processes that want it, such as the ranks of a run, one
    converts under a lock, so that the whole model is in one process's memory, and the others wait.

    Raises:
        UserError: transformers cannot read the file.
    """
    folder = cache_root() / "gguf" / f"{gguf.stem}-{_content_hash(gguf)}"
    if folder.is_dir():
        return folder
    with _alone(folder):
        if not folder.is_dir():  # nobody was first while this one waited
            size = gguf.stat().st_size / 1e6
            note(f"Converting {gguf.name} ({size:,.0f} MB) to a Hugging Face folder, once; it is kept in {folder}.")
            try:
                with new_folder(folder) as partial:
                    _convert(gguf, partial)
            except OSError:
                if not folder.is_dir():  # else a process on a disk without locks was first: its folder is the same
                    raise
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder to be written; it goes with its process. Where files cannot be locked, go on."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held: contextlib.AbstractContextManager[object] = FileLock(folder.with_name(f".{folder.name}.lock")).acquire()
    except OSError:
        held = contextlib.nullcontext()
    with held:
        yield


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_progress(), _counting(gguf.name):
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"transformers cannot read the GGUF file {str(gguf)!r}: {error}. Allowed: GGUF files of the architectures "
            "and quantisations that transformers dequantises; convert others to a Hugging Face folder first."
        ) from error
    # A model that came out of a GGUF file counts as quantised and refuses to be saved: move the weights to a plain one.
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)  # the same memory: there is one copy
    plain.generation_config = loaded.generation_config
    with quiet_progress():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _counting(name: str) -> Iterator[None]:
    """Show our progress in place of transformers' own, which it writes whether bars are turned off or not."""
    from transformers import modeling_gguf_pytorch_utils as reading

    def counting(tensors: Sequence[Any], **kwargs: Any) -> Iterator[Any]:
        with progress(f"Converting {name}", len(tensors), "tensors") as advance:
            yield from counted(tensors, advance)

    theirs = vars(reading).get("tqdm")
    if theirs is not None:  # of another version of transformers: then it shows its own
        vars(reading)["tqdm"] = counting
    try:
        yield
    finally:
        if theirs is not None:
            vars(reading)["tqdm"] = theirs


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """Hold back transformers' progress bars, and bring them back as they were."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
