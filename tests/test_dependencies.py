"""pyproject.toml declares what the package imports, and nothing that it does not use."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_sft"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: declared and never imported: what it is for
USED_BY_OTHERS = {
    "gguf": "transformers reads GGUF files with it",
    "bitsandbytes": "transformers and peft load quantised weights with it",
    "deepspeed": "Lightning's DeepSpeedStrategy runs it",
}


EXTRAS = ("demo", "quantization", "deepspeed", "cce", "sweep", "completion")


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    optional = PROJECT["optional-dependencies"]
    return {name_of(r) for r in (*PROJECT["dependencies"], *(r for extra in extras for r in optional[extra]))}


def imported() -> Iterator[tuple[str, Path]]:
    """Every distribution that a file of the package imports, at any level."""
    distributions = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.partition(".")[0] for name in names} - {"lightning_sft"} - sys.stdlib_module_names:
                yield distributions.get(top, [top])[0].lower().replace("_", "-"), path


def test_what_is_imported_is_declared() -> None:
    known = declared(*EXTRAS)
    missing = {f"{name}: {path.relative_to(ROOT)}" for name, path in imported() if name not in known}
    assert not missing


def test_what_is_declared_is_used() -> None:
    assert declared(*EXTRAS) - {name for name, _ in imported()} <= set(USED_BY_OTHERS)


def test_only_the_demo_needs_reasoning_gym() -> None:
    """Without the extra, the package imports it only where a task is built, and says what to install."""
    files = {path.relative_to(PACKAGE).as_posix() for name, path in imported() if name == "reasoning-gym"}
    assert files == {"data/reading/tasks.py"}


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["optional-dependencies"]])
def test_every_bound_has_its_reason(group: str) -> None:
    """A comment above the requirement or behind it."""
    wanted = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in wanted:
        at = next(i for i, line in enumerate(lines) if f'"{requirement}"' in line)
        assert "#" in lines[at] or lines[at - 1].strip().startswith("#"), requirement


def test_every_version_that_the_tests_ran_with_is_kept() -> None:
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert declared("demo", "docs", "test", "dev") <= pinned
