"""``lightning env``: what a bug report needs, even where a library is broken."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from lightning_sft.errors import UserError, first_line
from lightning_sft.files import cache_root
from lightning_sft.progress import waiting

PACKAGES = (
    "lightning-sft",
    "lightning",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "jsonargparse",
    "numpy",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "optuna",
    "lm_eval",
    "reasoning_gym",
)
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "PYTORCH_CUDA_ALLOC_CONF")
_OURS = "LIGHTNING_SFT_"


def main(arguments: list[str]) -> None:
    """Print versions, devices, folders and variables; nothing secret is among them."""
    if arguments and not {"-h", "--help"} & set(arguments):
        raise UserError(f"`lightning env` takes no options; given: {' '.join(arguments)}.")
    if arguments:
        print("usage: lightning env\n  print versions, devices, folders and variables for a bug report")
        sys.exit(0)
    for name, value in facts():
        print(f"{name:<25} {value}", flush=True)


def facts() -> Iterator[tuple[str, str]]:
    """Yield what there is, each with its name; what cannot be found out says why."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.platform()}, {os.cpu_count()} cores"
    for package in PACKAGES:
        yield package, _version(package)
    with waiting("Asking torch which devices there are ..."):
        devices, products = _asked(_devices), _asked(_capability)
    yield "devices", devices
    yield "fast products", products
    yield "memory", _asked(_memory)
    yield "cache", f"{cache_root()} ({_free(cache_root())} free)"
    yield "here", f"{Path.cwd()} ({_free(Path.cwd())} free)"
    for name in sorted({*VARIABLES, *(n for n in os.environ if n.startswith(_OURS))}):
        if name in os.environ and name != f"{_OURS}LAUNCHER":
            yield name, os.environ[name]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _asked(ask: Callable[[], str]) -> str:
    """Return an answer, or in a line why there is none: a broken driver must not hide the rest."""
    try:
        return ask()
    except Exception as error:
        return f"unknown: {first_line(error)}"


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = [f"{len(gpus)} x {', '.join(dict.fromkeys(gpus))} (CUDA {torch.version.cuda})"] if gpus else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return "; ".join(found) or f"no GPU (torch {torch.__version__})"


def _capability() -> str:
    import torch

    from lightning_sft.models.capability import capability

    return str(capability(torch.accelerator.current_accelerator() or "cpu"))


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GiB"


def _free(place: Path) -> str:
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 2**30:.0f} GiB"
