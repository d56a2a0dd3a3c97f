"""A few of the kills of ``make test-faults``: a fit is killed, and nothing is lost."""

import os
import subprocess
import sys

import pytest


def kills(*options: str) -> str:
    """Run kills in a process of their own, whose children train: autograd's threads do not survive a fork."""
    command = [sys.executable, "-m", "tests.faults.kills", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_two_kills_lose_nothing() -> None:
    printed = kills("--kills=2", "--ranks=1")
    assert "2 kills" in printed
    assert printed.count("| none |") == 2


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_kill_in_every_phase_loses_nothing(ranks: int) -> None:
    printed = kills("--kills=10", f"--ranks={ranks}")
    assert printed.count("| none |") == 10
