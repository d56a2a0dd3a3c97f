"""Runs the study and writes its page: ``python -m studies.rates --help``."""

from __future__ import annotations

from studies.command import Program
from studies.rates.design import REGISTERED, SCRIPTS, STAGES, STUDY, plain
from studies.rates.page import write_page
from studies.rates.runs import Study
from studies.rates.small import run_small

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
