"""A run as its folder shows it: settings, curves, texts and the files that callbacks wrote."""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.errors import UserError
from lightning_sft.places import RUN_SETTINGS, newest_settings, resumed_at, settings_at
from lightning_sft.report.events import EVENTS, METRICS, Logs, read_logs

#: a run that wrote nothing for so many seconds is not under way any more
_STILL = 600
#: arguments of an adapter that people choose; a settings file holds some twenty more, at their defaults
_OF_ADAPTERS = {"r", "rank", "alpha", "lora_alpha", "lora_dropout", "target_modules", "num_virtual_tokens"}


@dataclass
class Run:
    """What a run's folder holds.

    Attributes:
        folder: its place.
        name: short, different from those of the other runs of the page.
        label: shorter, for legends, and as different.
        config: its settings, nested, of its last part if it went on; empty without config.yaml.
        resumed: steps at which it went on.
        objectives: its objectives in turn, each with the step from which on it was trained under it.
        logs: curves and texts.
        capability: content of capability.json; empty without.
        contexts: lines of silent.jsonl.
        probes: verdicts.json of each order-parameter callback, by the name of its folder.
        sweeps: results by name.
        predictions: of critical learning rates, by the name of the sweep.
        problems: what could not be read, sentences.
    """

    folder: Path
    name: str
    label: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    objectives: list[tuple[int, str]] = field(default_factory=list)
    logs: Logs = field(default_factory=Logs)
    capability: dict[str, Any] = field(default_factory=dict)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def setting(self, path: str) -> Any:
        """Return a setting by its dotted name; None where it is not set."""
        value: Any = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def objective(self) -> str:
        """The objective's name with its numbers, of its last part."""
        return _objective(self.config)

    @property
    def learning_rate(self) -> float | None:
        """The optimizer's rate as configured."""
        rate = self.setting("model.optimizer.init_args.lr")
        return float(rate) if isinstance(rate, int | float | str) and _is_number(rate) else None

    @property
    def steps(self) -> int:
        """The last optimizer step that was logged."""
        return max((max(curve) for curve in self.logs.curves.values()), default=0)

    @property
    def planned(self) -> int | None:
        """Optimizer steps that were asked for; None where epochs decide."""
        most = self.setting("trainer.max_steps")
        return most if isinstance(most, int) and most > 0 else None

    @property
    def is_under_way(self) -> bool:
        """Whether the run has not ended: steps are missing, and something was written a moment ago."""
        last = self.logs.last or 0
        return not self.is_complete and time.time() - last < _STILL

    @property
    def is_complete(self) -> bool:
        """Whether all planned steps are there, or what is written at the end of a fit."""
        if self.planned is not None:
            return self.steps >= self.planned
        return bool(self.capability.get("end")) or "silent/verdict" in self.logs.texts


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def class_name(given: Any, default: str = "none") -> str:
    """Return a configured class in words: its short name and the numbers and words among its arguments."""
    if given is None:
        return default
    if not isinstance(given, Mapping) or "class_path" not in given:
        return str(given)
    arguments = given.get("init_args") or {}
    if str(given["class_path"]).startswith("peft."):
        arguments = {name: value for name, value in arguments.items() if name in _OF_ADAPTERS}
    shown = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in arguments.items()
             if isinstance(v, int | float | str) and not isinstance(v, bool) and v not in ("", 0)]  # fmt: skip
    name = str(given["class_path"]).rpartition(".")[2]
    return f"{name}({', '.join(shown)})" if shown else name


def _objective(config: Mapping[str, Any]) -> str:
    """Return the name of the objective of some settings, with its numbers."""
    model = config.get("model")
    return class_name(model.get("objective") if isinstance(model, Mapping) else None, "NLL")


def open_runs(folders: Sequence[str]) -> list[Run]:
    """Read runs.

    Raises:
        UserError: a folder that is missing or no run; names the runs within it, if there are some.
    """
    if not folders:
        raise UserError("No run was given. Allowed: folders of runs, such as lightning_logs/NAME.")
    paths = [_find(folder) for folder in folders]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise UserError(f"{twice[0]!r} was given twice. Give each run once.")
    runs = [_open(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    labels = [re.sub(r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d$", "", run.name) for run in runs]  # without the time
    for run, label in zip(runs, labels, strict=True):
        run.label = label if labels.count(label) == 1 else run.name
    return runs


def _find(given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_file() and path.name == RUN_SETTINGS:
        path = path.parent
    if not path.exists():
        raise UserError(
            f"{given!r} does not exist.{_nearby(path)} Allowed: the folder of a run, such as lightning_logs/NAME."
        )
    if path.is_dir() and _is_run(path):
        return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path.resolve()
    if path.is_dir():
        within = sorted(p for depth in ("*", "*/*") for p in path.glob(depth) if p.is_dir() and _is_run(p))
        if within:
            some = " ".join(str(p) for p in within[:4])
            raise UserError(f"{given!r} is no run, but holds {len(within)}. Give them: {some}")
    raise UserError(
        f"{given!r} is no run: it has no event file of TensorBoard, no {METRICS} and no {RUN_SETTINGS}. Allowed: the "
        "folder that a fit wrote, such as lightning_logs/NAME."
    )


def _nearby(path: Path) -> str:
    """Return a sentence about the runs beside or below a path that is not there, newest first; empty without any."""
    above = next((folder for folder in path.parents if folder.is_dir()), Path())
    runs = {p: p.stat().st_mtime for depth in ("*", "*/*") for p in above.glob(depth) if p.is_dir() and _is_run(p)}
    newest = [str(p) for p in sorted(runs, key=lambda p: -runs[p])]
    close = difflib.get_close_matches(str(path), newest, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return meant + (f" Runs there, newest first: {', '.join(newest[:5])}." if newest else "")


def _is_run(path: Path) -> bool:
    return any(path.glob(EVENTS)) or (path / METRICS).is_file() or (path / RUN_SETTINGS).is_file()


def _names(paths: Sequence[Path]) -> list[str]:
    """Return as many last parts of each path as tell them apart."""
    for parts in (1, 2, 3):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _open(folder: Path, name: str) -> Run:
    run = Run(folder, name, logs=read_logs(folder))
    config = _structured(run, newest_settings(folder))
    run.config, run.resumed = config if isinstance(config, dict) else {}, resumed_at(folder)
    for step in (0, *run.resumed):
        part = _structured(run, settings_at(folder, step + 1))
        name = _objective(part if isinstance(part, dict) else {})
        if not run.objectives or name != run.objectives[-1][1]:
            run.objectives.append((step, name))
    capability = _structured(run, folder / "capability.json")
    run.capability = capability if isinstance(capability, dict) else {}
    if (contexts := folder / "silent.jsonl").is_file():
        for line in contexts.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                run.contexts.append(dict(json.loads(line)))
            except ValueError:
                run.problems.append("silent.jsonl has a line that cannot be read.")
                break
    for path in sorted(folder.glob("order_parameter*/verdicts.json")):
        if isinstance(content := _structured(run, path), dict):
            run.probes[path.parent.name] = content
    for path in sorted((folder / "sweep").glob("*.json")):
        parts = path.name.split(".")
        if len(parts) == 2 and isinstance(content := _structured(run, path), dict):
            run.sweeps[parts[0]] = content
        elif parts[1] == "prediction" and isinstance(content := _structured(run, path), dict):
            run.predictions[parts[0]] = content
    run.problems = [*run.logs.problems, *run.problems]
    return run


def _structured(run: Run, path: Path) -> Any:
    """Return the content of a YAML or JSON file; None, and a problem of the run, where that fails."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return None
