"""What a new run's folder is called: its objective, its learning rate and when it began."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

import lightning_sft.objectives
from lightning_sft.training.signals import WATCH

#: ``numbers`` keeps Lightning's version_0, version_1, ... for scripts that count on them
SETTING = "LIGHTNING_SFT_RUN_NAMES"
#: hands the name to the ranks that this process starts, which begin later
_HANDED_ON = "LIGHTNING_SFT_RUN_NAME"


def run_name(config: Namespace, roots: Iterable[Path]) -> str | None:
    """Return the name of a new run, such as ``NLL_lr0.001_2026-03-01_12-30-00``, the same on all ranks.

    Args:
        config: of the fit.
        roots: folders in which it must be new.

    Returns:
        None where runs are to be numbered.
    """
    if os.environ.get(SETTING) == "numbers":
        return None
    if WATCH.is_started_rank and _HANDED_ON in os.environ:
        return os.environ[_HANDED_ON]
    what = _settings(config)
    if _ranks_start_apart():  # their clocks differ, and no rank has made the folder yet when the others look
        name = _new(f"{what}_run", roots, first=1)
    else:
        name = _new(f"{what}_{datetime.now():%Y-%m-%d_%H-%M-%S}", roots)
    os.environ[_HANDED_ON] = name
    return name


def _new(name: str, roots: Iterable[Path], first: int | None = None) -> str:
    """Return a name that no folder has, with a number where one is needed."""
    taken = {path.name for root in roots if root.is_dir() for path in root.iterdir()}
    candidate, number = (name, 2) if first is None else (f"{name}{first}", first + 1)
    while candidate in taken:
        candidate, number = f"{name}{'_' if first is None else ''}{number}", number + 1
    return candidate


def _ranks_start_apart() -> bool:
    """Return whether something else than Lightning starts the ranks of this run, such as torchrun or srun."""
    return any(os.environ.get(n, "1") not in ("", "1") for n in ("WORLD_SIZE", "SLURM_NTASKS"))


def _settings(config: Namespace) -> str:
    model = config.get("model") or Namespace()
    rate = _arguments(model.get("optimizer")).get("lr")
    parts = [_objective(model.get("objective")), None if rate is None else f"lr{float(rate):g}"]
    return "_".join(part for part in parts if part) or "run"


def _objective(given: Any) -> str:
    """Return the short name of an objective with its first number, such as alpha, and others that are no defaults."""
    if given is None:
        return "NLL"
    if not isinstance(given, Namespace):
        return str(given)
    name = str(given.class_path).rpartition(".")[2]
    cls = getattr(lightning_sft.objectives, name, None)
    defaults = {} if cls is None else {k: p.default for k, p in inspect.signature(cls).parameters.items()}
    numbers = {k: v for k, v in _arguments(given).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    first = next((key for key in defaults if key in numbers), None)
    return "_".join([name, *(f"{k}{v:g}" for k, v in numbers.items() if k == first or defaults.get(k) != v)])


def _arguments(given: Any) -> Mapping[str, Any]:
    """Return the arguments of a configured class."""
    return vars(given["init_args"]) if isinstance(given, Namespace) and "init_args" in given else {}
