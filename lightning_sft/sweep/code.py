"""The code that decides what a run gives: the files that its classes import, and what these import in turn.

Comments, docstrings and layout are no part of it, nor are rooms that only show, write or start something. Files of this
package that code reads, such as the shipped guard set, count with the code beside them.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "lightning_sft"
#: rooms and files from which a run takes no number, unless it names a class in them
_SHOWN = (
    *("audit", "cli", "compare", "export", "figures", "scoring"),
    *(f"advice.{name}" for name in ("advice", "choice", "rules")),
    *(f"callbacks.{name}" for name in ("first_screen", "run_progress", "run_story")),
)

#: endings of files that the package's code reads
_DATA = (".json", ".jsonl", ".txt", ".yaml")


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the digests of the code of some modules, by room; see `room_of` and `modules_of`."""
    rooms: dict[str, dict[str, str]] = {}
    for module in modules:
        file = _file(module)
        if file is not None:
            room = rooms.setdefault(room_of(module), {})
            room[module] = _digest(file)
            if module.partition(".")[0] == PACKAGE:
                room |= {str(data.relative_to(file.parent.parent)): _content(data) for data in _read_beside(file)}
    return {
        room: hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in files.items()).encode()).hexdigest()[:8]
        for room, files in sorted(rooms.items())
    }


def modules_of(names: Iterable[str], alone: Iterable[str] = ()) -> list[str]:
    """Return the modules that some classes stand in, and those that these import, sorted.

    Args:
        names: dotted names of classes, functions or modules, of this package or of the user's project. Those of
            installed libraries are passed over: their versions tell.
        alone: modules that count without what they import.
    """
    found = set(alone)
    waiting = [module for name in names for module in _homes(name)]
    parts = [f"{PACKAGE}.{part}." for part in _SHOWN]
    shown = tuple(part for part in parts if not any(f"{module}.".startswith(part) for module in waiting))
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            homes = [home for name in _imports(module) for home in _homes(name)]
            waiting += [home for home in homes if not f"{home}.".startswith(shown)]
    return sorted(found)


def room_of(module: str) -> str:
    """Return what a module's code is called: its room in this package, or its own name elsewhere.

    >>> room_of("lightning_sft.data.batches.loader"), room_of("my_project.losses")
    ('lightning_sft.data', 'my_project.losses')
    """
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == PACKAGE else module


def _homes(name: str) -> list[str]:
    """Return the module that a dotted name stands for or in; of one that a package hands on, the file it is from."""
    module, rest = name, ""
    while module and _file(module) is None:
        module, _, last = module.rpartition(".")
        rest = last
    if not module:
        return []
    file = _file(module)
    if rest and file is not None and file.name == "__init__.py":
        handed_on = _handed_on(file).get(rest)
        if handed_on is not None:
            return _homes(handed_on)
    return [module]


def _imports(module: str) -> list[str]:
    """Return the dotted names that a module imports, inside functions too, but not for type checking alone."""
    file = _file(module)
    return [] if file is None else [name for name, _ in _imported(file, module)]


def _handed_on(file: Path) -> dict[str, str]:
    return {own: name for name, own in _imported(file, "")}


@cache
def _imported(file: Path, module: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of a dotted name and what it is called in the file."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: list[tuple[str, str]] = []
    waiting: list[ast.AST] = [_tree(file)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            found += [(alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*above, *filter(None, [node.module])])
            found += [(f"{home}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(found)


@cache
def _file(module: str) -> Path | None:
    """Return the file of a module of this package or of the user's project; None for all others."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)  # which imports nothing
    except (ImportError, ValueError):  # no name, or __main__
        return None
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    if origin.suffix != ".py" or (top != PACKAGE and is_library(origin, top)):
        return None
    if not inner:
        return origin
    place = origin.parent.joinpath(*inner)
    files = (place.with_suffix(".py"), place / "__init__.py") if origin.name == "__init__.py" else ()
    return next((file for file in files if file.is_file()), None)


def is_library(file: Path, module: str) -> bool:
    """Return whether a module's file is part of Python or of an installed package, wherever that was installed to."""
    if "site-packages" in file.parts or str(file.resolve()).startswith(_libraries()):
        return True
    inside = module.count(".") + (file.name == "__init__.py")
    return _holds_packages(file.parents[min(inside, len(file.parents) - 1)])


@cache
def _libraries() -> tuple[str, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({f"{Path(sysconfig.get_path(kind)).resolve()}/" for kind in kinds})


@cache
def _holds_packages(folder: Path) -> bool:
    """Return whether packages were installed to a folder, as by ``pip install --target``."""
    return any(folder.glob("*.dist-info"))


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _read_beside(file: Path) -> list[Path]:
    """Return the files beside a file of this package that are no code: what it or its neighbours read."""
    return sorted(path for path in file.parent.iterdir() if path.is_file() and path.suffix in _DATA)


@cache
def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _digest(file: Path) -> str:
    """Return the digest of what a file does."""
    tree = _tree(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
