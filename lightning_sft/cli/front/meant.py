"""What a value can only mean: a file of settings, a model's name, the path of a class, the path of rows."""

from __future__ import annotations

from pathlib import Path

from lightning_sft.cli.front.listing import listing
from lightning_sft.places import RUN_SETTINGS, SUFFIXES, near_file, suffix

#: endings of files of settings
YAML = (".yaml", ".yml", ".json")


def is_settings_file(word: str) -> bool:
    """Return whether a word names a file of settings that exists, or a run's folder, in which one lies."""
    path = Path(word)
    return path.is_file() if path.suffix in YAML else (path / RUN_SETTINGS).is_file()


def no_settings(word: str) -> str:
    """Say why a word by itself is no file of settings, and what was probably meant."""
    path = Path(word).expanduser()
    allowed = (
        "Allowed by itself: a YAML file, a run's folder; an option begins with two dashes, such as --model NAME or "
        "--train FILE."
    )
    if path.is_dir():
        if (run := a_run_in(path)) is not None:
            return f"{word!r} is a folder of runs and none itself. Give one of them, such as {str(run)!r}."
        return f"{word!r} is a folder without a run's {RUN_SETTINGS}. {allowed}"
    rows = f" Rows are given by --train {word}." if suffix(path) in SUFFIXES and path.suffix not in YAML else ""
    if path.exists():
        return f"{word!r} is no file of settings: its ending is {path.suffix or 'none'!r}, not .yaml.{rows} {allowed}"
    said = f"There is no file {word!r} in {str(Path.cwd())!r}.{near_file(word, YAML)}{rows}"
    return said if path.suffix in YAML else f"{said} {allowed}"


def a_run_in(folder: Path) -> Path | None:
    """Return the newest of the runs that lie side by side in a folder."""
    runs = [path.parent for path in folder.glob(f"*/{RUN_SETTINGS}")] if folder.is_dir() else []
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)


def is_model_name(value: str) -> bool:
    """Return whether ``--model VALUE`` can only be a model's name: no settings, no path of a class."""
    if not value or is_settings_file(value) or value.lstrip()[0] in "{[" or "\n" in value or value == "null":
        return False
    return not may_be_class(value)


def may_be_class(value: str) -> bool:
    """Return whether a word reads like the path of a class, such as ``my_module.MyModule``."""
    parts = value.split(".")
    named = len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1] != "gguf"
    return value == "SFTModule" or named


def is_data_path(key: str, value: str) -> bool:
    """Return whether the value of a setting such as ``data.train`` is a path or a hub name, not a class or a list."""
    known = listing().of_class(key)
    if value in {*known, *(kind.path for kind in known.values())} or value.lstrip()[:1] in ("{", "["):
        return False
    return not (may_be_class(value) and suffix(Path(value)) not in SUFFIXES)
