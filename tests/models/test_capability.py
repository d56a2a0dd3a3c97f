"""Which dtype is the fastest that a device computes well: on this one, and on simulated ones."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from lightning_sft import SFTModule
from lightning_sft.models import capability as module
from lightning_sft.models.capability import HALF, Capability, capability, emulated, fastest
from tests.devices import RunIf
from tests.running import run, toy_arguments, write_rows

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LAPTOP = Capability("cpu", "a laptop, AVX2", {BF16: 4.0, FP16: 4.2})
SERVER = Capability("cpu", "a server, AVX512", {BF16: 0.4, FP16: 4.2})
OLD_GPU = Capability("cuda", "a GPU of 2018", {FP16: 0.2})
GPU = Capability("cuda", "a GPU", {BF16: 0.1, FP16: 0.1})
NOTHING = Capability("cpu", "an old processor")


@pytest.mark.parametrize(
    ("can", "frozen", "dtype", "why"),
    [
        (LAPTOP, True, "float32", "no fast bfloat16 products"),
        (LAPTOP, False, "float32", "no fast bfloat16 products"),
        (
            SERVER,
            True,
            "bfloat16",
            "frozen base is kept in bfloat16, which cpu (a server, AVX512; bfloat16 products 2.5x",
        ),
        (SERVER, False, "float32", "trainer.precision: bf16-mixed"),
        (OLD_GPU, True, "float32", "no fast bfloat16 products"),
        (GPU, True, "bfloat16", "a GPU"),
        (GPU, False, "float32", "since they train"),
        (NOTHING, True, "float32", "no fast bfloat16 products"),
    ],
)
def test_fastest_dtype(can: Capability, frozen: bool, dtype: str, why: str) -> None:
    chosen, reason = fastest(can, frozen)
    assert chosen == dtype
    assert why in reason


@pytest.mark.parametrize(
    ("can", "asked", "warning"),
    [
        (LAPTOP, "bfloat16", "bfloat16 is emulated by cpu (a laptop, AVX2; .*4.0 times.*Use model.dtype: fastest"),
        (LAPTOP, "bf16-mixed", "4.0 times as long.*Use trainer.precision: 32-true"),
        (LAPTOP, "16-true", "4.2 times as long"),
        (OLD_GPU, "bf16-mixed", "no units"),
        (SERVER, "float16", "4.2 times"),
        *((can, asked, None) for can in (LAPTOP, SERVER, GPU) for asked in ("float32", "32-true", "64-true", "auto")),
        *((GPU, asked, None) for asked in ("bfloat16", "float16", "bf16-mixed", "16-mixed", "bf16-true")),
        (SERVER, "bf16-mixed", None),
        (OLD_GPU, "16-mixed", None),
    ],
)
def test_emulated_dtypes_are_told(can: Capability, asked: str, warning: str | None) -> None:
    told = emulated(can, asked)
    if warning is None:
        assert told is None
    else:
        assert told is not None
        assert re.search(warning.replace("(", r"\("), told)


def test_a_gpu_is_timed_on_a_product_that_outlasts_its_launch() -> None:
    """A product of 0.3 GFLOP takes an H100 less time than its launch: bfloat16 then looked no faster than float32."""
    rows, dim, outputs = module._SHAPE["others"]
    launch, fastest_half = 10e-6, 1e15  # seconds; FLOP/s
    assert 2 * rows * dim * outputs / fastest_half > launch


@RunIf(min_cuda_gpus=1)
def test_a_gpu_with_units_computes_16_bits_several_times_as_fast() -> None:
    assert all(ratio < 0.5 for ratio in capability("cuda").ratios.values())


@pytest.mark.parametrize(("ratio", "well"), [(0.3, True), (3.0, False)])
def test_capability_is_measured(monkeypatch: pytest.MonkeyPatch, ratio: float, well: bool) -> None:
    monkeypatch.setattr(module, "_seconds", lambda dtype, device: 2.0 if dtype == FP32 else 2.0 * ratio)
    can = capability.__wrapped__("cpu")
    assert can.ratios == pytest.approx({BF16: ratio, FP16: ratio})
    assert can.computes_well(BF16) is well
    assert can.computes_well(FP32)
    assert can.computes_well(torch.float64)


def test_wrong_products_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear(a, b) * (1.1 if a.dtype in HALF else 1.0)

    monkeypatch.setattr(torch.nn.functional, "linear", wrong)
    assert not capability.__wrapped__("cpu").ratios


def test_units_that_libraries_may_not_use_do_not_count() -> None:
    """A processor with bfloat16 units, held back to AVX2, is one without them."""
    if not capability().computes_well(BF16):
        pytest.skip("this processor has no bfloat16 units")
    code = "from lightning_sft.models.capability import capability; import torch; c = capability();"
    code += "print(c.computes_well(torch.bfloat16), c.computes_well(torch.float32))"
    held_back = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **held_back}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def built(folder: Path, can: Capability, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> torch.dtype:
    monkeypatch.setattr("lightning_sft.training.start.capability", lambda device: can)
    module = SFTModule(str(folder), **settings)
    module.configure_model()
    return module.scorer.causal_lm.model.embed_tokens.weight.dtype


@pytest.mark.parametrize(
    ("can", "adapter", "dtype"), [(SERVER, True, BF16), (SERVER, False, FP32), (LAPTOP, True, FP32), (GPU, True, BF16)]
)
def test_fastest_decides_the_weights(
    can: Capability,
    adapter: bool,
    dtype: torch.dtype,
    toy_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = LoraConfig(r=2, target_modules="all-linear") if adapter else None
    with caplog.at_level("INFO"):
        assert built(toy_folder, can, monkeypatch, dtype="fastest", adapter=given) == dtype
    assert str(can) in caplog.text


def test_a_config_that_names_an_emulated_dtype_warns(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match=r"bfloat16 is emulated by cpu \(a laptop.*Use model.dtype: fastest"):
        assert built(toy_folder, LAPTOP, monkeypatch, dtype="bfloat16") == BF16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert built(toy_folder, SERVER, monkeypatch, dtype="bfloat16") == BF16
        assert built(toy_folder, LAPTOP, monkeypatch, dtype="float32") == FP32


def test_precision_that_is_emulated_warns(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.training.start.capability", lambda device: LAPTOP)
    arguments = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), trainer__precision="bf16-mixed")
    with pytest.warns(UserWarning, match=r"bf16-mixed is emulated.*Use trainer.precision: 32-true"):
        run("fit", arguments)
