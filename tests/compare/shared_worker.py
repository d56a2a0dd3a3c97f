"""A worker of a shared comparison whose runs are functions that take a moment; started as a process of its own.

Arguments: the storage, the folder, and whether it begins the comparison. It tells of each run when it starts.
"""

import sys
import time
from pathlib import Path

from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.shared import SharedLedger
from lightning_sft.compare.work import work
from tests.compare.worlds import design, world

BEAT = 0.4  # a database counts whole seconds: one
TAKES = 0.15


def main(url: str, folder: Path, begins: bool) -> None:
    ledger = SharedLedger(url, "toy", folder, beat=BEAT, poll=0.1, patience=20.0)
    of = design("A", "B")
    if begins:
        ledger.begin(of)
    else:
        assert ledger.join() == of
    run = world(of)

    def slowly(spec: RunSpec) -> RunResult:
        print(f"starts {spec.key}", flush=True)
        time.sleep(TAKES)
        return run(spec)

    work(of, ledger, slowly, lambda line: None)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "begins")
