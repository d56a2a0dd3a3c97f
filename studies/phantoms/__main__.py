"""Runs the study and writes its page: ``python -m studies.phantoms --help``."""

from __future__ import annotations

from studies.command import Program
from studies.phantoms.design import REGISTERED, SCRIPTS, STAGES, STUDY, plain
from studies.phantoms.page import write_page
from studies.phantoms.runs import Study
from studies.phantoms.small import run_small

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
