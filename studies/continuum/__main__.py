"""Runs the study and writes its page: ``python -m studies.continuum --help``."""

from __future__ import annotations

from studies.command import Program
from studies.continuum.design import REGISTERED, SCRIPTS, STAGES, STUDY, plain
from studies.continuum.page import write_page
from studies.continuum.runs import Study
from studies.continuum.small import run_small

PROGRAM = Program(
    STUDY,
    STAGES,
    Study,
    run_small,
    write_page,
    {**REGISTERED, "design": plain()},
    SCRIPTS,
)

if __name__ == "__main__":
    PROGRAM.main()
