"""Host memory of a run over many rows: ``python -m tests.benchmarks.memory --rows 200000 1000000`` (an hour or more).

Writes made-up rows, and starts a process for each number of them: it builds a toy model, encodes the rows into an empty
cache, trains some steps with the callbacks and the TensorBoard logger that `lightning fit` has by default, and does the
same once more from the cache. Printed is memory that is nobody else's: anonymous and shared memory of the process and
its children, each page once, sampled while they run, above what imports, tokenizer and model take. Pages of mapped
files are not in it: the system takes them back whenever it needs room. What grows with the rows does not grow with
their words: ``--kind short`` encodes chats of few words, in half the time, and ``--kind plain`` prompts and completions
without a chat template, in a fifth of it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.benchmarks.cache import WORDS, write_chats

EVERY = 0.2
"""Seconds between two samples."""
STEPS = 20


def write_short(path: Path, rows: int) -> None:
    """Write chats of a few words."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(2))
            messages = [
                {"role": "user", "content": f"{i}: {question}?"},
                {"role": "assistant", "content": f"{answer}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def write_plain(path: Path, rows: int) -> None:
    """Write prompts and completions of 10 to 120 words' characters."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            prompt, completion = (" ".join(draw.choices(WORDS, k=draw.randint(2, most))) for most in (10, 20))
            file.write(json.dumps({"prompt": f"{i}: {prompt}?", "completion": completion}) + "\n")


KINDS = {"chat": write_chats, "short": write_short, "plain": write_plain}


def own_memory(pid: int) -> float:
    """Return the MiB that a process and all its children hold for themselves, pages that they share counted once."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) / 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ProcessLookupError):  # it ended meanwhile
        return total
    return total + sum(own_memory(int(child)) for child in children)


def watched(command: list[str]) -> dict[str, float]:
    """Run a process that prints the names of its phases; return the most memory that each of them held, in MiB."""
    peaks: dict[str, float] = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    phase, stream = "", process.stdout

    def read() -> None:
        nonlocal phase
        for line in stream:
            if line.startswith("phase "):
                phase = line.removeprefix("phase ").strip()

    reader = threading.Thread(target=read)
    reader.start()
    while process.poll() is None:
        now = phase
        peaks[now] = max(peaks.get(now, 0.0), own_memory(process.pid))
        time.sleep(EVERY)
    reader.join()
    stream.close()
    if process.returncode:
        raise SystemExit(process.returncode)
    return peaks


def phase(name: str) -> None:
    """Tell the watching process what comes next, and give it time to see how things stand."""
    time.sleep(2 * EVERY)
    print(f"phase {name}", flush=True)
    time.sleep(2 * EVERY)


def run(rows: Path, folder: Path, processes: int, order: str) -> None:
    """Encode and train, twice."""
    from lightning.pytorch.loggers import TensorBoardLogger

    from lightning_sft import SFTDataModule, SFTModule
    from tests.fitting import trainer
    from tests.toys import save_toy

    model = save_toy(folder / "toy")
    module = SFTModule(str(model))
    module.configure_model()
    len(module.tokenizer)
    phase("model")
    for again in ("", ", cached"):
        data = SFTDataModule(
            str(rows), val_split=200, cache_dir=str(folder / "kept"), num_proc=processes, batch_size=4,
            max_length=256, truncation="left", order=order, tokenizer=module.tokenizer,
        )  # fmt: skip
        phase(f"encoding{again}")
        data.setup("fit")
        phase(f"training{again}")
        logger = TensorBoardLogger(folder)
        trainer(max_steps=STEPS, default_root_dir=folder, limit_val_batches=2, logger=logger).fit(module, data)


def measure(rows: int, kind: str, processes: int, order: str, place: str | None) -> dict[str, float]:
    """Return the peaks of a run over so many rows by phase, above the model, in MiB; and the size of the file."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        path = Path(folder) / "rows.jsonl"
        KINDS[kind](path, rows)
        own = [str(path), folder, str(processes), order]
        peaks = watched([sys.executable, "-m", "tests.benchmarks.memory", "--one", *own])
        above = {name: peak - peaks["model"] for name, peak in peaks.items() if name not in ("", "model")}
        return {"file": path.stat().st_size / 2**20, **above}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--kind", choices=list(KINDS), default="chat")
    parser.add_argument("--order", default="shuffled")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", help="where files are kept meanwhile; default is TMPDIR")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        rows, folder, processes, order = arguments.one
        run(Path(rows), Path(folder), int(processes), order)
        return
    print(
        f"| {arguments.kind} rows, order: {arguments.order} | file, MiB | encoding | training | from the cache | then |"
    )
    print("|---|---|---|---|---|---|")
    for count in arguments.rows:
        found = measure(count, arguments.kind, arguments.processes, arguments.order, arguments.folder)
        phases = ("file", "encoding", "training", "encoding, cached", "training, cached")
        print(f"| {count} | {' | '.join(f'{found.get(name, 0.0):.0f}' for name in phases)} |", flush=True)


if __name__ == "__main__":
    main()
