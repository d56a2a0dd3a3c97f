"""What runs depend on beside their configuration: package, libraries, model and data files, device and dtype."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from transformers.utils.hub import cached_file

from lightning_sft.compare.facts import differences
from lightning_sft.data.reading.sources import DataSource, Source
from lightning_sft.errors import UserError
from lightning_sft.files import file_digest, to_json
from lightning_sft.models.capability import capability, fastest
from lightning_sft.models.loading import resolve
from lightning_sft.places import PACKAGE_SCHEME, package_file
from lightning_sft.sweep.code import PACKAGE, code_of, modules_of

#: what every run is made of, whatever its configuration
_RUN = ("module.SFTModule", "data.SFTDataModule", "data.draws", "sweep.rates")
#: what does a run and reads it; what else they import starts runs, and decides nothing
_ALONE = ("readings", "reading_less", "trial")
_LIBRARIES = ("torch", "lightning", "transformers", "peft", "tokenizers", "numpy")
#: of files above so many bytes, blocks are read in place of the whole
_WHOLE = 1 << 26
_BLOCK = 1 << 20


def device_of(accelerator: str) -> torch.device:
    """Return the kind of device that a trainer's setting takes on this machine."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def common_facts(device: torch.device, config: str | None = None) -> dict[str, str]:
    """Return what every run of this process depends on.

    Args:
        device: that it runs on.
        config: of the run, YAML, whose classes and functions are code that decides it, too; None leaves them out.
    """
    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    kind = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "package version": metadata.version("lightning-sft"),
        **run_code({} if config is None else yaml.safe_load(config)),
        "libraries": ", ".join([f"python {platform.python_version()}", *versions]),
        "device": f"{device.type} {kind}",
    }


def run_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the code that decides what a run gives, by room.

    Args:
        config: of the run; what it names by class path counts, with what that imports.

    Returns:
        ``package code``, of every run; ``named classes``, of this package; and ``own code``, of the user's project.
    """
    alone = [f"{PACKAGE}.cli.compare.{name}" for name in _ALONE]
    base = [f"{PACKAGE}.{name}" for name in _RUN]
    named = [value for key, value in _strings(config) if key == "class_path" or _names_code(value)]
    if config.get("model", {}).get("objective") == "auto":
        named += [f"{PACKAGE}.advice.{name}" for name in ("auto", "advice", "choice", "rules")]
    every = modules_of(base, alone)
    more = [module for module in modules_of([*base, *named], alone) if module not in every]
    ours = [module for module in more if module.startswith(f"{PACKAGE}.")]
    groups = {"package code": every, "named classes": ours, "own code": [m for m in more if m not in ours]}
    return {what: _by_room(modules) for what, modules in groups.items() if modules}


def _by_room(modules: Iterable[str]) -> str:
    return ", ".join(f"{room.removeprefix(f'{PACKAGE}.')} {digest}" for room, digest in code_of(modules).items())


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in plain data, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _names_code(value: str) -> bool:
    """Return whether a setting may name a function or class of a module, as ``my_rewards.score`` does."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) is not None and not Path(value).exists()


def arm_facts(settings: Any, sources: Mapping[str, list[DataSource]], device: torch.device) -> dict[str, str]:
    """Return what the runs of one arm depend on.

    Args:
        settings: the module's `ModelSettings`.
        sources: of the data module.
        device: that it runs on.
    """
    dtype = settings.dtype
    if dtype == "fastest":
        dtype, _ = fastest(capability(device), settings.has_adapter)
    named = [settings.name, settings.reference, settings.adapter_path]
    models = [model_digest(str(name), settings.revision) for name in named if name]
    data = {what: [source_facts(source) for source in sources[what]] for what in ("train", "val")}
    return {"model": " ".join(models), "data": _short(data), "dtype": str(dtype)}


def model_digest(name: str, revision: str | None) -> str:
    """Return a digest of a model's files, or the commit of a hub name that is in the cache.

    Of large files sixteen blocks, their size and their place are read: training changes all of them.

    Raises:
        UserError: a path that does not exist.
    """
    if name.startswith(PACKAGE_SCHEME):
        return content_digest(package_file(name))
    path = Path(name).expanduser()
    if path.is_file():
        return content_digest(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return _short([[p.relative_to(path).as_posix(), content_digest(p)] for p in files])
    resolve(name)  # what is neither a path nor a hub name is named here
    try:
        cached = cached_file(name, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError):  # not in the cache yet, or no name that a hub has
        cached = None
    return f"{name}@{Path(cached).parent.name if cached else revision or 'main'}"


def content_digest(path: Path) -> str:
    """Return a digest of a file's content; see `model_digest` for large ones."""
    size = path.stat().st_size
    if size <= _WHOLE:
        return file_digest(path)[:16]
    state = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(16):
            file.seek(i * (size - _BLOCK) // 15)
            state.update(file.read(_BLOCK))
    return state.hexdigest()[:16]


def source_facts(source: DataSource) -> object:
    """Return what a source's rows are made of, without where on this machine its files lie."""
    identity = source.identity()
    if identity is None:  # a hub name, a task, a source of one's own: its settings
        return [type(source).__name__, {k: repr(v) for k, v in sorted(vars(source).items()) if not k.startswith("_")}]
    if type(source) is not Source:
        return identity
    *shape, files = identity[1:]  # without its path
    return [shape, [[Path(name).name, content] for name, content in files]]


def require_same(own: Mapping[str, str], of_study: Mapping[str, str], arm: str) -> None:
    """Raise if this process would run an arm otherwise than the comparison was begun.

    Raises:
        UserError: says what differs, with both values.
    """
    different = differences(of_study, own, there_is="in the comparison")
    if different:
        raise UserError(
            f"This worker cannot take part: of the arm {arm}, {'; '.join(different)}. Runs of both would stand in one "
            "table. Use the same package, files and kind of device, or begin a comparison of another --name."
        )


def _short(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:16]
