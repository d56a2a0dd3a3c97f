"""Import direction: scores <- head, objectives, metrics; nobody below the module knows Lightning or the module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_sft

PACKAGE = Path(lightning_sft.__file__).parent
#: how a trial runs, which no callback knows
TRIALS = tuple(f"lightning_sft.sweep.{name}" for name in ("trial", "snapshot", "batches"))
#: room -> what its files must never import, at any level
FORBIDDEN = {
    "scores.py": (
        "lightning_sft.head",
        "lightning_sft.objectives",
        "lightning_sft.metrics",
        "lightning.",
        "torchmetrics",
    ),
    "objectives": ("lightning.", "lightning_sft.head", "lightning_sft.module", "lightning_sft.models", "transformers"),
    "metrics": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks"),
    "head": ("lightning.", "lightning_sft.module", "lightning_sft.models", "lightning_sft.metrics", "transformers"),
    "models": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.data"),
    "data": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.models", "lightning_sft.objectives"),
    "callbacks": ("lightning_sft.module", "lightning_sft.cli.entry", "lightning_sft.cli.lightning_cli", *TRIALS),
    "token_exact.py": (
        "lightning_sft.module",
        "lightning_sft.checkpoints.resume",
        "lightning_sft.callbacks",
        "lightning_sft.data",
    ),
    "resumable.py": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.data"),
    "sweep": (
        "lightning_sft.module",
        "lightning_sft.callbacks",
        "lightning_sft.cli.entry",
        "lightning_sft.cli.lightning_cli",
    ),
    "module.py": ("lightning_sft.cli.entry", "lightning_sft.cli.lightning_cli"),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_import_direction(room: str) -> None:
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in files
        for name in imported(file)
        for forbidden in FORBIDDEN[room]
        if name == forbidden.rstrip(".") or name.startswith(forbidden.rstrip(".") + ".")
    ]
    assert not wrong


def test_private_lightning_stays_in_one_file() -> None:
    allowed = {"_lightning.py"}
    wrong = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in allowed
        for name in imported(path)
        if name.startswith("lightning.") and any(part.startswith("_") for part in name.split("."))
    ]
    assert not wrong


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, lightning_sft; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert loaded.stdout.strip() == "[]"
