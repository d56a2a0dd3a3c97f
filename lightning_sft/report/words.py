"""Log keys in words, and their values as people write them."""

from __future__ import annotations

#: log key -> words, in the order of the table before and after
WORDS = {
    "val/nll": "NLL, nats per token",
    "val/exact_match": "answers exactly right",
    "val/task_accuracy": "generated answers right",
    "val/token_accuracy": "right first choices",
    "val/mean_p": "mean p of the right token, special tokens too",
    "val/perplexity": "perplexity",
    "val/stop_share": "answers that end by themselves",
    "val/answer_tokens": "tokens of an answer",
    "val/repetition": "repetition within answers",
    "val/pass_at_1": "mean probability of the whole answer",
    "val/loss": "loss under the objective",
}
#: speeds whose keys leave open what they count
SPEEDS = {"perf/tokens_per_second": "trained tokens per second"}
#: keys whose values are shares
SHARES = {f"val/{name}_accuracy" for name in ("task", "token")} | {
    f"val/{name}" for name in ("exact_match", "pass_at_1", "repetition", "stop_share")
}


def number(value: float, key: str) -> str:
    """Return a value of a log key: shares in per cent."""
    return f"{value:.1%}" if key in SHARES else f"{value:.4g}"


def signed(value: float, key: str) -> str:
    """Return a change of a log key: shares in percentage points."""
    if key in SHARES:
        return f"{round(100 * value, 1) + 0.0:+.1f} points"  # + 0.0: no "-0.0"
    return f"{value:+.3g}"
