"""What generated answers are worth: how long, how repetitive, how often right; sums that are exact over ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: length of the runs of tokens that are looked for twice in an answer
N_GRAM = 4


def repetition(tokens: Sequence[int], n: int = N_GRAM) -> float:
    """Return the share of an answer's n-grams that stand in it before: 1 - distinct / all; 0 for fewer than n tokens.

    Source: Welleck et al. 2020, Neural Text Generation with Unlikelihood Training (seq-rep-n).
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def unbiased_pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the estimate, without bias, of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code.

    Args:
        samples: n, how many were drawn.
        right: c, how many of them are right.
        k: at most ``samples``.
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


class AnswerSums:
    """Sums over the answers of each of some sets, one row a set, in float64.

    Args:
        sets: number of sets.
        pass_at: the k of ``sampled_pass_at_<k>``.
        device: where the sums are kept; one that has float64.
    """

    def __init__(self, sets: int, pass_at: Sequence[int] = (), device: torch.device | str = "cpu") -> None:
        self._passes = [f"sampled_pass_at_{k}" for k in pass_at]
        self._pass_at = tuple(pass_at)
        self.names = [
            *("answers", "stopped", "tokens", "repetition", "entropy", "predictions", "scored", "score", "sampled"),
            *self._passes,
        ]
        self.sums = torch.zeros(sets, len(self.names), dtype=torch.float64, device=device)

    def add(self, which: int, tokens: Sequence[int], stopped: bool, score: float | None) -> None:
        """Add a greedy answer.

        Args:
            which: its set.
            tokens: before the one that ends it.
            stopped: whether it ended by itself.
            score: 0 to 1; None where answers of its source are not scored.
        """
        values = {"answers": 1.0, "stopped": float(stopped), "tokens": len(tokens), "repetition": repetition(tokens)}
        self._add(which, values if score is None else {**values, "scored": 1.0, "score": score})

    def add_entropy(self, which: int, entropy: float, predictions: int) -> None:
        """Add the sum of the entropies, in nats, of the predictions of a greedy answer, and how many these are."""
        self._add(which, {"entropy": entropy, "predictions": predictions})

    def add_samples(self, which: int, scores: Sequence[float | None]) -> None:
        """Add the sampled answers to a prompt by their scores; 1 is right. Without any score they do not count."""
        if any(score is not None for score in scores):
            right = sum(score == 1 for score in scores)
            passes = (unbiased_pass_at_k(len(scores), right, k) for k in self._pass_at)
            self._add(which, {"sampled": 1.0, **dict(zip(self._passes, passes, strict=True))})

    def _add(self, which: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[which, self.names.index(name)] += value

    def means(self, sums: Tensor) -> dict[str, float]:
        """Return what is logged of some sets together, by the end of its key.

        Args:
            sums: (columns,), of one row or of several added up, over all ranks.
        """
        total = dict(zip(self.names, sums.tolist(), strict=True))
        if not total["answers"]:
            return {}
        found = {
            "stop_share": total["stopped"] / total["answers"],
            "answer_tokens": total["tokens"] / total["answers"],
            "repetition": total["repetition"] / total["answers"],
        }
        if total["scored"]:
            found["task_accuracy"] = total["score"] / total["scored"]
        if total["sampled"]:
            found |= {name: total[name] / total["sampled"] for name in self._passes}
        return found

    def entropy(self, sums: Tensor) -> float:
        """Return the mean entropy of a prediction, in nats, of some sets together that have answers."""
        total = dict(zip(self.names, sums.tolist(), strict=True))
        return float(total["entropy"] / total["predictions"])
