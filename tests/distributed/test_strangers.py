"""StepAccumulator in other people's modules and loops, over two ranks."""

from itertools import product
from pathlib import Path

import pytest

from tests.distributed.ranks import two_ranks
from tests.distributed.strangers import assert_exact, whole_step

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
#: rows of a micro-batch: one, two or four micro-batches a rank
CASES = list(product(("Exact", "ExactByHand"), TOLERANCE, (4, 2, 1)))


@pytest.mark.ranks
def test_two_ranks_have_the_gradient_of_the_whole_step(tmp_path: Path) -> None:
    expected = {dtype: whole_step(dtype) for dtype in TOLERANCE}
    for results in two_ranks("strangers:all_steps", tmp_path, cases=CASES):
        assert len(results) == len(CASES)
        for (_, dtype, _), got in zip(CASES, results, strict=True):
            assert_exact(got, expected[dtype], TOLERANCE[dtype])


@pytest.mark.ranks
def test_two_ranks_of_plain_torch_have_it_too(tmp_path: Path) -> None:
    cases = list(product(("ddp", "fsdp2"), TOLERANCE, (4, 1)))
    expected = {dtype: whole_step(dtype) for dtype in TOLERANCE}
    for results in two_ranks("strangers:all_torch_loops", tmp_path, cases=cases):
        for (_, dtype, _), got in zip(cases, results, strict=True):
            assert_exact(got, expected[dtype], TOLERANCE[dtype])
