"""Log keys in words, and their values as people write them."""

from __future__ import annotations

import math

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


#: a perplexity from which on it has more digits than sense
_MOST = 1e4
#: what became of the rows of a set, in words
DATA = {
    "rejected": "rows left out as bad",
    "dropped": "rows left out as too long",
    "truncated": "rows shortened",
    "leaked": "rows that an earlier set has, too",
    "leaked_dropped": "of these, left out",
    "trained_share": "trained tokens, of all",
    "pack_efficiency": "packs, how full",
}


def data_words(name: str) -> str:
    """Return a row of the data's table in words."""
    return DATA.get(name, name.replace("_", " "))


def data_count(name: str, value: str) -> str:
    """Return a number of the data's table: a share in per cent."""
    return f"{float(value):.1%}" if name in ("trained_share", "pack_efficiency") and value != "-" else value


def says_no_more(key: str, then: dict[str, float], now: dict[str, float]) -> bool:
    """Return whether a value says nothing beside the NLL: a loss that is the NLL, or a perplexity of many digits.

    >>> says_no_more("val/loss", {"val/nll": 2.0, "val/loss": 2.0}, {"val/nll": 1.0, "val/loss": 1.0})
    True
    """
    if "val/nll" not in then:
        return False
    if key == "val/loss":
        return all(math.isclose(x[key], x["val/nll"], rel_tol=1e-6) for x in (then, now))
    return key == "val/perplexity" and max(then[key], now[key]) >= _MOST
