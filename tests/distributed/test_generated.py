"""Generated answers on two ranks are those of one: every key, the samples' included."""

from pathlib import Path

import pytest

from tests.callbacks.test_generation_monitor import WORDS, knowing, rows  # noqa: F401
from tests.distributed.generated import readings
from tests.distributed.ranks import two_ranks

pytestmark = pytest.mark.ranks


def test_two_ranks_read_what_one_reads(knowing: Path, tmp_path: Path) -> None:  # noqa: F811
    files = {
        "odd": rows(tmp_path / "odd.jsonl", [(word, word) for word in WORDS[:5]]),
        "few": rows(tmp_path / "few.jsonl", [(word, word) for word in WORDS[5:7]]),
    }
    given = {"model": str(knowing), "rows": files}
    cases = {strategy: {**given, "strategy": strategy} for strategy in ("ddp", "fsdp2")}
    one = readings(0, **given, strategy="one")
    assert 0 < one["val/sampled_pass_at_1"] < 1
    assert {f"val/{name}/{key}" for name in files for key in ("stop_share", "sampled_pass_at_3")} <= one.keys()
    for results in two_ranks("generated:all_readings", tmp_path, cases=cases):
        for strategy in cases:
            assert results[strategy] == pytest.approx(one, rel=1e-5), strategy
