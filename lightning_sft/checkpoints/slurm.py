"""SLURM: which job this is, and asking to have it requeued."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def slurm_job() -> dict[str, Any]:
    """Return what identifies the command of a SLURM job and its restart; empty outside of SLURM.

    The id is the same when the job is requeued; ``restarts`` is not. One job may run several commands.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {"id": _job_id(), "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")), "command": sys.argv[1:]}


def is_continued_by(stored: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Return whether a job goes on with what a checkpoint says of its own: the same command, started once more.

    Args:
        stored: `slurm_job` of the run that wrote the checkpoint, and whether it was ``requeued``.
        job: `slurm_job` of this process.
    """
    same = bool(job) and all(stored.get(key) == job[key] for key in ("id", "command"))
    return same and (bool(stored.get("requeued")) or job["restarts"] > stored.get("restarts", 0))


def requeue() -> str:
    """Ask SLURM to requeue the job of this process; return how that went, in words."""
    command = ["scontrol", "requeue", _job_id()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`{' '.join(command)}` failed: {error}"
    if done.returncode:
        return f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}"
    return f"SLURM job {_job_id()} is requeued"


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
