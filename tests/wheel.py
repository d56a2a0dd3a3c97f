"""A person with an empty folder and a fresh environment, into which the built wheel was installed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: what a build reads
SOURCES = ("lightning_sft", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
#: imports once what every step needs, and runs each in a fork of that state: as in a process of its own, but quicker
DRIVER = """
import json, os, sys, traceback
import lightning_sft.cli.lightning_cli
from lightning_sft.cli.entry import main

def run(step):
    for stream, name, how in ((0, "in", os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        os.dup2(os.open(step[name], how), stream)
    sys.argv = ["lightning", *step["words"]]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    child = os.fork()
    if not child:
        status = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What a command printed.

    Attributes:
        status: it ended with.
        out: on stdout.
        err: on stderr.
    """

    status: int
    out: str
    err: str


class Person:
    """Types commands in an empty folder; what they print is shown by ``pytest -s``, and where a test fails.

    Args:
        place: gets the wheel, the environment and the folder.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "empty"
        self.folder.mkdir()
        self._place = place
        self._bin = install(build_wheel(place), place)
        self._environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LIGHTNING_SFT_RUN_NAMES")}
        self._environment["LIGHTNING_SFT_DATA_CACHE"] = str(place / "rows")
        self._driver: subprocess.Popen[str] | None = None

    def program(self, *words: str) -> str:
        """Run the installed script ``lightning`` in a process of its own; return what it printed."""
        command = [self._bin / "lightning", *words]
        ran = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def types(self, *words: str, then: str = "", status: int = 0) -> Ran:
        """Run a command and return what it printed.

        Args:
            words: after ``lightning``.
            then: what is typed into it.
            status: that it must end with.
        """
        files = {name: self._place / name for name in ("in", "out", "err")}
        files["in"].write_text(then)
        files["out"].write_text("")
        files["err"].write_text("")
        if self._driver is None:
            command = [self._bin / "python", "-c", DRIVER]
            self._driver = subprocess.Popen(command, cwd=self.folder, env=self._environment, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps({"words": words, **{k: str(v) for k, v in files.items()}}) + "\n")
        self._driver.stdin.flush()
        ended = int(self._driver.stdout.readline())
        ran = Ran(ended, files["out"].read_text(), files["err"].read_text())
        print(f"\n$ lightning {shlex.join(words)}", ran.out, ran.err, sep="\n", flush=True)
        assert ended == status, f"lightning {' '.join(words)}: {ended}\n{ran.out}\n{ran.err}"
        assert "Traceback" not in ran.err, ran.err
        return ran

    def leaves(self) -> None:
        """End the process that ran the commands."""
        if self._driver is not None:
            self._driver.communicate()


def build_wheel(place: Path) -> Path:
    """Build the wheel from a copy, since a build writes into its source folder; without a network."""
    source = place / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(place), str(source))
    (wheel,) = place.glob("*.whl")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """Install a wheel into a fresh environment, which sees the packages of this one; return its scripts' folder."""
    folder = place / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    scripts = folder / "bin"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # a line of a .pth file adds that folder alone: the editable install in it is not seen
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(scripts / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return scripts


def pip(*words: str) -> None:
    """Run pip quietly; a checkout on PYTHONPATH would count as installed."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert ran.returncode == 0, ran.stdout + ran.stderr
