"""Whether the Hugging Face hub can be reached, asked once and quickly, before a library tries again for a minute."""

from __future__ import annotations

import difflib
import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from lightning_sft.errors import UserError
from lightning_sft.places import ADAPTER_CONFIG, MODEL_CONFIG, PACKAGE_SCHEME, without_network

#: seconds that a connection may take
PATIENCE = 3.0
#: by these variables the hub's libraries ask nobody
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_KINDS = {"model": "models", "dataset": "datasets"}


def is_hub_name(name: str) -> bool:
    """Return whether a name can only be one of the hub: nothing of that name is here, and it is no path or address."""
    path = Path(name).expanduser()
    is_path = name.startswith((PACKAGE_SCHEME, ".", "/", "~")) or "://" in name or path.suffix in (".gguf", ".ckpt")
    return bool(name) and not is_path and name.count("/") <= 1 and not path.exists()


def is_cached(name: str, kind: str = "model") -> bool:
    """Return whether the hub's cache on this machine has some files of a model or a data set."""
    folder = cache() / f"{_KINDS[kind]}--{name.replace('/', '--')}" / "snapshots"
    if kind == "dataset" and (_home("HF_DATASETS_CACHE", "datasets") / name.replace("/", "___")).is_dir():
        return True
    return folder.is_dir() and any(folder.iterdir())


def cache() -> Path:
    """Return the folder in which the hub's library keeps what it fetched."""
    return _home("HF_HUB_CACHE", "hub")


def _home(variable: str, name: str) -> Path:
    user = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get(variable) or Path(os.environ.get("HF_HOME") or user) / name).expanduser()


def why_not_reached() -> str | None:
    """Return why the hub cannot be asked; None where it can, or where only its own library can tell."""
    given = next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    return f"{given} is set, so nobody is asked" if given is not None else _no_answer(_address())


def _address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@lru_cache
def _no_answer(address: str) -> str | None:
    parts = urlsplit(address)
    if getproxies() or parts.hostname is None:  # a proxy answers for it
        return None
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
    except OSError as error:
        return f"{address} cannot be reached ({error.strerror or error})"
    return None


def require_on_hub(name: str, kind: str = "model") -> None:
    """Raise where a name is neither here nor in the hub's cache, and the hub cannot be asked for it.

    Args:
        name: of a model, a tokenizer, an adapter or a data set; paths and addresses pass.
        kind: ``model`` (tokenizers and adapters too) or ``dataset``.

    Raises:
        UserError: says what was tried, and what works without a network.
    """
    if not is_hub_name(name) or is_cached(name, kind) or (why := why_not_reached()) is None:
        return
    marks = (MODEL_CONFIG, ADAPTER_CONFIG)
    here = [p.name for p in Path.cwd().iterdir() if any((p / mark).is_file() for mark in marks)]
    close = difflib.get_close_matches(name, here, n=1)
    meant = f" Did you mean the folder './{close[0]}'?" if close else ""
    instead = (
        f"a local folder (`hf download {name} --local-dir FOLDER` makes one where there is a network), a .gguf file, "
        f"or a file in a Python package: {without_network()}"
        if kind == "model"
        else "a file or a folder of rows"
    )
    raise UserError(
        f"{name!r} is not in {str(Path.cwd())!r}, nor in the cache of the Hugging Face hub ({cache()}), and {why}."
        f"{meant} Without a network, give {instead}. HF_ENDPOINT names a mirror of the hub."
    )
