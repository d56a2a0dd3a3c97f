"""Why context parallelism is refused: what torch's does with our models, on two ranks."""

from pathlib import Path

import pytest

from tests.benchmarks.context_parallel import second_half


@pytest.mark.ranks
def test_rows_that_ranks_share_out_are_refused_by_torch_or_wrong(tmp_path: Path) -> None:
    """Should torch learn it, or fail in another way, docs/how_to/strategies.md is to be written anew."""
    for row in ("one document", "two end to end"):
        assert "Error: " in second_half(tmp_path, "llama", row, torchs=True)
    assert float(second_half(tmp_path, "mamba", "one document", torchs=True)) > 1e-3, "without a word"
    assert float(second_half(tmp_path, "llama", "one document", torchs=False)) < 1e-5, "plain causal attention"
    assert float(second_half(tmp_path, "lfm2", "one document", torchs=False)) > 1e-3, "a convolution ends at the seam"
