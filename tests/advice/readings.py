"""Planted readings, and a reading by plain transformers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lightning_sft.metrics import CutOffs, TokenTable, read_capability
from lightning_sft.metrics.capability import END, EXACT, PLAIN, WRONG
from lightning_sft.metrics.capability_reading import CapabilityReading


def planted(
    levels: Mapping[str, float], rows: int = 60, end: float | None = 0.9, exact: bool = False, noise: float = 0.0
) -> CapabilityReading:
    """The reading of rows of five tokens and an end, whose p is that of their source.

    Args:
        levels: p by source.
        rows: of each source.
        end: p of the token that ends an answer; None for rows without one.
        exact: whether all answers are right.
        noise: by how much p goes up and down from row to row.
    """
    lines = []
    for source, level in enumerate(levels.values()):
        for row in range(rows):
            p = level + noise * (1 if row % 2 else -1)
            number = source * rows + row
            tokens = [[p, PLAIN, 0]] * 5 + ([] if end is None else [[end, END, 0]])
            for i, (value, kind, answer) in enumerate(tokens):
                whole = (EXACT if exact else WRONG) if i == 0 and end is not None else answer
                lines.append([value, float(exact), value, 1.0, number, source, kind, whole])
    matrix = torch.tensor(lines, dtype=torch.float64)
    matrix[:, 0] = matrix[:, 0].log()
    return read_capability(TokenTable.from_matrix(matrix), tuple(levels), CutOffs())


def by_transformers(model: Any, rows: Iterable[tuple[list[int], list[bool]]], ends: set[int]) -> dict[str, float]:
    """Mean p, NLL, top-1 share, entropy and exact match, row by row in float64, from the model's own logits.

    Args:
        model: a transformers model.
        rows: ids and which of them are trained.
        ends: ids of the tokens that end an answer.
    """
    p, hits, entropy, exact = [], [], [], []
    for ids, trained in rows:
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        right, ended = True, False
        for t in range(1, len(ids)):
            if not trained[t]:
                continue
            before = logp[t - 1]
            p.append(before[ids[t]].exp().item())
            hits.append(bool(before.argmax() == ids[t]))
            entropy.append(-(before.exp() * before).sum().item())
            if not ended:
                right &= hits[-1]
                ended = ids[t] in ends
        exact += [right] if ended else []
    mean = {"mean_p": p, "top1_share": hits, "entropy": entropy, "exact_match": exact}
    found = {name: sum(values) / len(values) for name, values in mean.items() if values}
    return {**found, "nll": -torch.tensor(p, dtype=torch.float64).log().mean().item(), "tokens": len(p)}
