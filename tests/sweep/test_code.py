"""Which code decides a run: files by what imports them, and what of a file counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_sft.sweep import code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of the user's: a loss that uses a helper, one that is not used, and a package that hands on names."""
    folder = tmp_path / "project_of_mine"
    files = {
        "__init__.py": "from project_of_mine.losses import Mine\nfrom .other import Other\n",
        "losses.py": "import torch\nfrom .helper import scale\n\nclass Mine:\n    f = lambda x: scale(x)\n",
        "helper.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import types\n"
        'def scale(x):\n    """Scale."""\n    return 2 * x\n',
        "types.py": "X = int\n",
        "other.py": "class Other: ...\n",
    }
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield folder
    forget()


def forget() -> None:
    for member in vars(code).values():
        getattr(member, "cache_clear", lambda: None)()


def test_a_class_is_its_file_and_what_that_imports(project: Path) -> None:
    mine = ["project_of_mine.helper", "project_of_mine.losses"]
    assert code.modules_of(["project_of_mine.losses.Mine"]) == mine
    assert code.modules_of(["project_of_mine.Mine"]) == mine, "a package that hands a name on is not its other files"
    assert "project_of_mine.other" in code.modules_of(["project_of_mine"])
    assert code.modules_of(["torch.optim.AdamW", "no.such.module", "1e-3", "__main__"]) == []
    (project.parent / "project_of_mine-1.0.dist-info").mkdir()
    forget()
    assert code.modules_of(["project_of_mine.losses.Mine"]) == [], "it is installed: its version tells"
    (project.parent / "project_of_mine-1.0.dist-info").rmdir()
    forget()
    assert set(code.code_of(code.modules_of(["project_of_mine.Mine", "torch.nn.Linear"]))) == set(mine)


@pytest.mark.parametrize(
    ("old", "new", "tells"),
    [
        ("2 * x", "3 * x", True),
        ("Scale.", "Scale it.", False),
        ("return 2 * x", "return 2*x  # twice", False),
        ("def scale", "\n\ndef scale", False),
        ("from . import types", "from . import typess", False),
    ],
    ids=["a number", "a docstring", "a comment", "layout", "a type"],
)
def test_a_change_tells_where_it_does_something(old: str, new: str, tells: bool, project: Path) -> None:
    before = code.code_of(code.modules_of(["project_of_mine.Mine"]))
    file = project / "helper.py"
    file.write_text(file.read_text().replace(old, new))
    forget()
    after = code.code_of(code.modules_of(["project_of_mine.Mine"]))
    # a name that is imported for type checking alone is part of the file's text, and of nothing else
    tells = tells or "types" in old
    assert {name for name in before if before[name] != after[name]} == ({"project_of_mine.helper"} if tells else set())


def test_a_fit_is_made_of_what_trains_and_reads() -> None:
    found = code.modules_of(["lightning_sft.module.SFTModule", "lightning_sft.data.SFTDataModule"])
    rooms = {code.room_of(module).partition(".")[2] for module in found}
    assert {"data", "evaluation", "head", "metrics", "models", "module", "objectives", "scores", "training"} <= rooms
    assert not {"audit", "cli", "compare", "export", "figures", "scoring", "sweep"} & rooms
    drift = code.modules_of(["lightning_sft.module.SFTModule", "lightning_sft.callbacks.DriftMonitor"])
    assert not [module for module in drift if module.startswith(("lightning_sft.sweep.", "lightning_sft.figures."))]
    assert "lightning_sft.objectives.base" in found
    assert "lightning_sft.objectives.eaft" not in found, "only runs that name an objective depend on it"
    more = code.modules_of(["lightning_sft.objectives.EAFT", "lightning_sft.callbacks.LearningRateSweep"])
    assert {"lightning_sft.objectives.eaft", "lightning_sft.sweep.range_test"} <= set(more)


def test_what_the_package_reads_beside_its_code_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ["lightning_sft.guard.texts", "lightning_sft.probes.library", "lightning_sft.scores"]
    before, read = code.code_of(modules), Path.read_bytes
    with monkeypatch.context() as changed:
        changed.setattr(Path, "read_bytes", lambda file: b"other" if file.name == "general.txt" else read(file))
        forget()
        after = code.code_of(modules)
    forget()
    assert {room for room in before if before[room] != after[room]} == {"lightning_sft.guard"}


def test_files_of_a_project_beside_its_code_are_left_to_the_settings_that_name_them(project: Path) -> None:
    before = code.code_of(code.modules_of(["project_of_mine.Mine"]))
    (project / "rows.jsonl").write_text("{}")
    forget()
    assert code.code_of(code.modules_of(["project_of_mine.Mine"])) == before
