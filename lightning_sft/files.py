"""Where the package keeps what it makes once: converted models and encoded rows."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache folder: ``LIGHTNING_SFT_CACHE``, or ``lightning_sft`` under the user's cache folder."""
    explicit = os.environ.get("LIGHTNING_SFT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_sft"


def encoded_rows_root() -> Path:
    """Return the folder of encoded rows: ``LIGHTNING_SFT_DATA_CACHE``, or ``data`` in the cache folder."""
    explicit = os.environ.get("LIGHTNING_SFT_DATA_CACHE")
    return Path(explicit).expanduser() if explicit else cache_root() / "data"
