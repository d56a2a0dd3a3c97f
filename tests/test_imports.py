"""Import direction: scores <- head, objectives, metrics; nobody below the module knows Lightning or the module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_sft

PACKAGE = Path(lightning_sft.__file__).parent
#: the files that may stand at the root of the package
ROOT_FILES = {
    "__init__",
    "__main__",
    "errors",
    "scores",
    "files",
    "hub",
    "places",
    "units",
    "held_out",
    "progress",
    "module",
    "evaluation",
    "resuming",
}
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
    "_lightning": ("lightning_sft.",),
    "errors.py": ("lightning.", "lightning_sft.", "torch"),
    "files.py": ("lightning.", "lightning_sft."),
    "units.py": ("lightning.", "lightning_sft.", "torch"),
    "held_out.py": ("lightning.", "lightning_sft.", "torch"),
    "progress.py": (
        "lightning.",
        "torch",
        *(f"lightning_sft.{room}" for room in ("cli", "data", "models", "callbacks")),
    ),
    "places.py": ("lightning.", "torch", "transformers"),
    "hub.py": ("lightning.", "torch", "transformers", "huggingface_hub", "datasets"),
    "cli/front": ("lightning.", "torch", "transformers", "lightning_sft.cli.lightning_cli", "lightning_sft.module"),
    "objectives": ("lightning.", "lightning_sft.head", "lightning_sft.module", "lightning_sft.models", "transformers"),
    "metrics": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks"),
    "head": ("lightning.", "lightning_sft.module", "lightning_sft.models", "lightning_sft.metrics", "transformers"),
    "models": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.data"),
    "data": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.models", "lightning_sft.objectives"),
    "data/reading": ("lightning.", *(f"lightning_sft.data.{room}" for room in ("encoding", "storage", "batches"))),
    "data/encoding": ("lightning_sft.data.batches", "lightning_sft.data.datamodule"),
    "data/storage": tuple(f"lightning_sft.data.{room}" for room in ("reading", "encoding", "batches")),
    "data/batches": ("lightning.", *(f"lightning_sft.data.{room}" for room in ("reading", "encoding"))),
    "probes": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli", "lightning_sft.sweep"),
    "advice": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli", "lightning_sft.figures"),
    "report": (
        "torch",
        "lightning.",
        *(f"lightning_sft.{room}" for room in ("module", "callbacks", "cli", "sweep", "metrics", "advice", "figures")),
    ),
    "figures": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli"),
    "callbacks": ("lightning_sft.module", "lightning_sft.cli", *TRIALS),
    "training": (
        "lightning_sft.module",
        "lightning_sft.checkpoints",
        "lightning_sft.callbacks",
        "lightning_sft.data",
        "lightning_sft.cli",
    ),
    "checkpoints": (
        "lightning_sft.module",
        "lightning_sft.training",
        "lightning_sft.callbacks",
        "lightning_sft.data",
        "lightning_sft.cli",
    ),
    "scoring": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli"),
    "chat": ("lightning.", "lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli"),
    "sweep": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli", "lightning_sft.figures"),
    "compare": (
        "lightning.",
        "lightning_sft.module",
        "lightning_sft.callbacks",
        "lightning_sft.cli",
        "lightning_sft.figures",
    ),
    "audit": ("lightning_sft.module", "lightning_sft.callbacks", "lightning_sft.cli", "lightning_sft.sweep"),
    "estimate": (
        "lightning.",
        "lightning_sft.module",
        "lightning_sft.callbacks",
        "lightning_sft.data",
        "lightning_sft.cli",
    ),
    "evaluation.py": (
        "lightning_sft.module",
        "lightning_sft.objectives",
        "lightning_sft.training",
        "lightning_sft.checkpoints",
        "lightning_sft.callbacks",
        "lightning_sft.data.datamodule",
        "lightning_sft.cli",
    ),
    "resuming.py": (
        "lightning_sft.module",
        "lightning_sft.evaluation",
        "lightning_sft.callbacks",
        "lightning_sft.data",
        "lightning_sft.cli",
    ),
    "module.py": ("lightning_sft.cli",),
}


def imported(path: Path) -> set[str]:
    """Every imported module, and every imported name as if it were one, wherever in the file it stands."""
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


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports, inside functions and for type checking included.

    A package's ``__init__`` that gives a name from one of its files stands for that file only where the name is
    imported from it.
    """
    files = {module_name(path): path for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                plain = len(inside) < len(node.names)
                found[name] |= inside | ({node.module} & files.keys() if plain else set())
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in edges[node]:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def test_no_import_circle() -> None:
    assert circles(graph()) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_the_root_holds_what_it_should() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= ROOT_FILES


def test_files_are_short() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {name: count for name, count in lines.items() if count > 300}


def private_lightning() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for name in imported(path):
            if path.parent.name != "_lightning" and name.startswith("lightning."):
                if any(part.startswith("_") for part in name.split(".")):
                    yield f"{path.relative_to(PACKAGE)}: {name}"


def test_private_lightning_stays_in_one_room() -> None:
    assert not list(private_lightning())


def test_importing_the_package_is_cheap() -> None:
    heavy = "('torch', 'lightning', 'transformers', 'numpy')"
    code = f"import sys, lightning_sft.cli.entry; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert loaded.stdout.strip() == "[]"
