"""What lines of ``silent.jsonl`` say beside the fields of a probe."""

from __future__ import annotations

#: fields of a line that say what was seen there, and where
EVIDENCE = (
    "p_correct", "p_competitor", "nll_start", "nll", "near_synonym", "set", "source", "row", "position", "step",
    "competitor_start", "competitor_start_id",
)  # fmt: skip
