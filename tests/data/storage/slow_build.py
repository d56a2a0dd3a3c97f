"""Build a set into a cache, in a process of its own that can be slow, stuck or killed.

python -m tests.data.storage.slow_build ROWS CACHE LOG [kill-while-writing | SECONDS_A_ROW [NUM_PROC]]
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from lightning_sft.data import library
from lightning_sft.data.encoding.encode import Encoder
from tests.data.kept import built, facts


def main() -> None:
    """Note in the log when the set is made, and print its facts."""
    rows, root, log, how, *processes = sys.argv[1:]
    make, encode = library.build, Encoder.__call__

    def noted(*args):
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return make(*args)

    def slowly(self, example):
        time.sleep(float(how))
        return encode(self, example)

    def killed(path, array, **kwargs):
        save(path, array, **kwargs)
        if "lengths" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)

    library.build = noted
    if how == "kill-while-writing":
        save, np.save = np.save, killed
    else:
        Encoder.__call__ = slowly
    print(facts(built(train=rows, cache_dir=root, num_proc=int(processes[0]) if processes else None)))


if __name__ == "__main__":
    main()
