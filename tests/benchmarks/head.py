"""Time, memory and error of the fused head beside its peers: ``python -m tests.benchmarks.head``.

All methods of one size and dtype take turns within each round, on one thread, and the median of their processor times
is reported as a ratio to the plain head of the same rounds. Memory is the peak of the resident set above what was
there before the call, gradients included, in a process of its own. With ``--accelerator cuda`` the time is that of the
clock with the device waited for, and the memory what torch allocates on it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_sft.head import HeadInput, HeadOutput, Unembedding, fused_head, reference_head
from lightning_sft.models.capability import capability
from lightning_sft.objectives import NLL
from tests.benchmarks.methods import OURS, Data, Method, make_data, naive, peers, products

SIZES = {
    "49k": (2048, 576, 49152),
    "152k": (1024, 896, 151936),
    "262k": (1024, 640, 262144),
    "128k": (8192, 2048, 128256),
}
"""Tokens, dim and vocabulary: those of SmolLM2-135M, Qwen2.5-0.5B, Gemma 3 270M and, for a GPU, Llama 3.2 1B."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOW = 2.5  # methods this many times slower than plain are timed once


def once(method: Method, data: Data, grad: bool = True) -> float:
    """Seconds of one forward and backward: of the processor, or on the clock where a GPU computes."""
    data.hidden.grad = data.weight.grad = None
    start = clock(data)
    with torch.set_grad_enabled(grad):
        loss = method(data)
    if loss.requires_grad:
        loss.backward()
    return clock(data) - start


def clock(data: Data) -> float:
    """Return the seconds of `once`, after all work that is under way."""
    if not data.hidden.is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(methods: dict[str, Method], data: Data, rounds: int) -> dict[str, float]:
    """Median seconds of each method; one round to warm up. A method that fails in it is left out, and named."""
    times: dict[str, list[float]] = {}
    warm: dict[str, float] = {}
    for name, method in methods.items():
        try:
            warm[name] = once(method, data)
        except (ImportError, RuntimeError, TypeError) as failure:  # a peer may lack a part, or not fit this torch
            print(f"left out: {name}: {str(failure).strip().splitlines()[0]}", flush=True)
    limit = SLOW * max(warm.get("plain", 0.0), 1.0)
    for _ in range(rounds):
        for name in warm:
            method = methods[name]
            if warm[name] > limit and name not in ("plain",) and not name.startswith("cut"):
                times[name] = [warm[name]]
            else:
                times.setdefault(name, []).append(once(method, data))
    return {name: statistics.median(values) for name, values in times.items()}


def timing(size: str, dtype: str, rounds: int, skip: list[str], device: str = "cpu") -> None:
    """Print one table: full and frozen unembedding."""
    tokens, dim, vocab = SIZES[size]
    for frozen in (False, True):
        data = make_data(tokens, dim, vocab, DTYPES[dtype], frozen, device)
        count = 2 if frozen else 3
        methods: dict[str, Method] = {"plain": naive, "bare products": products(tokens, vocab, count)}
        methods |= {name: OURS[name] for name in ("fused NLL", "fused cross-token")} if frozen else OURS | peers(device)
        methods = {name: method for name, method in methods.items() if not any(part in name for part in skip)}
        seconds = interleaved(methods, data, rounds)
        for name in ("fused NLL", "fused threshold, half the rows"):
            if name in seconds and not frozen:
                seconds[f"{name}, without gradient"] = statistics.median(
                    once(OURS[name], data, grad=False) for _ in range(rounds)
                )
        kind = "frozen" if frozen else "trainable"
        print(f"\n### {tokens} x {dim} x {vocab}, {dtype}, {kind} unembedding; {capability(device)}\n")
        print("| method | seconds | ratio to plain | products' share |\n|---|---|---|---|")
        for name, value in seconds.items():
            share = f"{seconds['bare products'] / value:.0%}" if name.startswith("fused") else ""
            print(f"| {name} | {value:.3g} | {value / seconds['plain']:.2f} | {share} |", flush=True)


def resident(field: str) -> float:
    """MiB of the resident set (VmRSS) or of its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status holds no {field}; memory is measured on Linux alone")


def peak(size: str, dtype: str, frozen: bool, name: str, device: str = "cpu") -> tuple[float, float]:
    """MiB that one call needs at its peak, and of the gradients among it; to be called in a fresh process."""
    method = ({"plain": naive} | OURS | peers(device))[name]
    once(method, make_data(64, 32, 1000, DTYPES[dtype], frozen, device))  # libraries and compilers set up
    data = make_data(*SIZES[size], DTYPES[dtype], frozen, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        once(method, data)
        highest = torch.cuda.max_memory_allocated() / 2**20
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        once(method, data)
        highest = resident("VmHWM")
    gradients = sum(leaf.grad.nbytes for leaf in (data.hidden, data.weight) if leaf.grad is not None)
    return highest - before, gradients / 2**20


def memory(size: str, dtype: str, skip: list[str], device: str = "cpu") -> None:
    """Print one table of peaks, each measured in its own process."""
    tokens, dim, vocab = SIZES[size]
    print(f"\n### {tokens} x {dim} x {vocab}, {dtype}\n")
    print("| method | unembedding | peak MiB | beyond the gradients |\n|---|---|---|---|")
    names = ["plain", *OURS, *(name for name in peers(device) if "torch chunked" not in name or name.endswith("mean"))]
    cases = [(name, False) for name in names] + [("plain", True), ("fused NLL", True), ("fused cross-token", True)]
    for name, frozen in cases:
        if any(part in name for part in skip):
            continue
        given = f"{size!r}, {dtype!r}, {frozen}, {name!r}, {device!r}"
        call = f"import json; from tests.benchmarks.head import peak; print(json.dumps(peak({given})))"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
        total, gradients = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {'frozen' if frozen else 'trainable'} | {total:.0f} | {total - gradients:.0f} |", flush=True)


def accuracy(size: str, dtype: str) -> None:
    """Print the mean error against float64 of logp and of the gradient on the hidden states, for p > 0.9."""
    _, dim, vocab = SIZES[size]
    data = make_data(256, dim, vocab, DTYPES[dtype], frozen=True)

    def run(head: Callable[..., HeadOutput], *leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = leaves[0].detach().requires_grad_()
        output = head(HeadInput(hidden, data.targets), Unembedding(leaves[1]), NLL())
        output.loss_sum.backward()
        assert hidden.grad is not None
        return output.scores.logp.double(), hidden.grad.double()

    exact = run(reference_head, data.hidden.double(), data.weight.double())
    sure = exact[0].exp() > 0.9
    plain, fused = (run(head, data.hidden, data.weight) for head in (reference_head, fused_head))
    row = [f"| {dim} x {vocab}, {dtype} | {int(sure.sum())} "]
    for index in range(2):
        errors = [float((got[index] - exact[index])[sure].abs().mean()) for got in (plain, fused)]
        row.append(f"| {errors[0]:.1e} | {errors[1]:.1e} | {errors[0] / errors[1]:.0f}x ")
    print("".join(row) + "|", flush=True)


def main() -> None:
    """Parse the command line and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["time", "memory", "accuracy"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["49k", "152k", "262k"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--skip", nargs="*", default=[], help="leave out methods whose name holds one of these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "accuracy" in arguments.what:
        print("| size, dtype | tokens with p > 0.9 | logp plain | fused | better | gradient plain | fused | better |")
        print("|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes if "accuracy" in arguments.what else ():
        for dtype in arguments.dtypes:
            accuracy(size, dtype)
    for size in arguments.sizes if "memory" in arguments.what else ():
        for dtype in arguments.dtypes:
            memory(size, dtype, arguments.skip, arguments.accelerator)
    for size in arguments.sizes if "time" in arguments.what else ():
        for dtype in arguments.dtypes:
            timing(size, dtype, arguments.rounds, arguments.skip, arguments.accelerator)


if __name__ == "__main__":
    main()
