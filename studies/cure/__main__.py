"""Runs the study and writes its page: ``python -m studies.cure --help``."""

from __future__ import annotations

from studies.command import Program
from studies.cure.design import REGISTERED, SCRIPTS, STAGES, STUDY, plain
from studies.cure.page import write_page
from studies.cure.runs import Study
from studies.cure.small import run_small

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
