"""What a device computes well: which 16-bit products it has units for, and which it only emulates."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

HALF = (torch.bfloat16, torch.float16)
#: A product in 16 bits that takes longer than this share of float32's is emulated. With units it takes a half to a
#: sixth, without them two to four times as long: nothing lies near.
WELL = 1.0
#: Largest relative error of a product whose inputs are rounded to 16 bits and whose sums are kept in float32.
ACCURATE = 2.0**-6
#: Tokens, dim and outputs of the product that is timed: some milliseconds of a core, far more than a GPU's launch.
_SHAPE = {"cpu": (256, 512, 1024), "others": (2048, 2048, 2048)}
_ROUNDS = 5


@dataclass(frozen=True)
class Capability:
    """What a device computes well.

    Args:
        device: type of the device, such as ``cpu`` or ``cuda``.
        name: its name and instructions, for people.
        ratios: time of a product over float32's, for each 16-bit dtype that the device reports to support and
            multiplies rightly; others are missing.
    """

    device: str
    name: str
    ratios: Mapping[torch.dtype, float] = field(default_factory=dict)

    def computes_well(self, dtype: torch.dtype) -> bool:
        """Return whether products in ``dtype`` are at least as fast as in float32, and right."""
        return dtype not in HALF or self.ratios.get(dtype, float("inf")) <= WELL

    def __str__(self) -> str:
        """Return the device with the speed of its 16-bit products, such as ``cpu (EPYC, AVX512; bfloat16 2.9x)``."""
        speeds = [f"{short(dtype)} products {1 / ratio:.1f}x float32's speed" for dtype, ratio in self.ratios.items()]
        return f"{self.device} ({'; '.join([self.name, *speeds])})"


def short(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def capability(device: torch.device | str = "cpu") -> Capability:
    """Return what a device computes well, by what it reports and by short products; some 50 ms, once a process.

    What a processor reports is not enough: libraries can be held back from its units (``ONEDNN_MAX_CPU_ISA``), and
    some processors report a dtype that they compute step by step. So each dtype must also multiply two matrices faster
    than float32, and rightly.
    """
    device = torch.device(device)
    ratios = {}
    plain = _seconds(torch.float32, device)
    for dtype in HALF:
        if _reports(dtype, device) and _is_right(dtype, device):
            ratios[dtype] = _seconds(dtype, device) / plain
    return Capability(device.type, _name(device), ratios)


def fastest(can: Capability, frozen_base: bool) -> tuple[Literal["float32", "bfloat16"], str]:
    """Return the dtype of weights that is fastest here without harm, and why, as a sentence.

    Args:
        can: the device.
        frozen_base: whether an adapter trains, and the weights of the model do not. Weights that train stay in
            float32: a bfloat16 weight does not move by less than 1/256 of itself, so that small rates do nothing.
    """
    bf16 = can.computes_well(torch.bfloat16)
    if frozen_base and bf16:
        return "bfloat16", f"The frozen base is kept in bfloat16, which {can} computes well."
    if not bf16:
        return "float32", f"Weights are kept in float32: {can} has no fast bfloat16 products."
    return "float32", (
        f"Weights are kept in float32, since they train. {can} computes bfloat16 well: trainer.precision: bf16-mixed "
        "takes it for the products alone."
    )


def emulated(can: Capability, asked: str) -> str | None:
    """Return a warning for a dtype or precision that a device emulates; None where it computes it well.

    Args:
        can: the device.
        asked: a value of ``model.dtype`` or ``trainer.precision``, such as ``bfloat16`` or ``bf16-mixed``.
    """
    half = next((d for d, names in _NAMES.items() if asked.startswith(names)), None)
    if half is None or can.computes_well(half):
        return None
    remedy = "trainer.precision: 32-true" if "-" in asked else "model.dtype: fastest or float32"
    ratio = can.ratios.get(half)
    slower = (
        "it reports no units for it" if ratio is None else f"a product takes {ratio:.1f} times as long as in float32"
    )
    return f"{asked} is emulated by {can}: {slower}. Use {remedy}."


_NAMES = {torch.bfloat16: ("bfloat16", "bf16"), torch.float16: ("float16", "16", "transformer-engine-float16")}


def _reports(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device says that it has units for products in a dtype."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return True  # reports of processors name instructions, not whether a library uses them: the product tells


def _is_right(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a product has the value of its rounded inputs' product."""
    a, b = _matrices(_SHAPE["cpu"], dtype, device)
    try:
        got = torch.nn.functional.linear(a, b)
    except RuntimeError:
        return False
    right = torch.nn.functional.linear(a.cpu().double(), b.cpu().double())
    return float((got.cpu().double() - right).abs().max() / right.abs().max()) <= ACCURATE


def _seconds(dtype: torch.dtype, device: torch.device, rounds: int = _ROUNDS) -> float:
    """Return the shortest time of a product: of the processor's on a CPU, which may be busy, else on the clock."""
    a, b = _matrices(_SHAPE.get(device.type, _SHAPE["others"]), dtype, device)
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        since = clock()
        torch.nn.functional.linear(a, b)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, clock() - since)
    return max(best, 1e-9)


def _matrices(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two matrices to multiply, drawn from a stream of their own."""
    rows, dim, outputs = shape
    stream = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, dim, generator=stream, device="cpu") for n in (rows, outputs))
    return a.to(device, dtype), b.to(device, dtype)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
