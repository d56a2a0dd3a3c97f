"""Weights of tokens: what a scorer makes of them in padded, packed and flattened rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_sft.models.scorer import TokenScorer, Weighting
from lightning_sft.objectives import NLL, Objective, PowerFamily
from tests.toys import toy_model

LENGTHS = (9, 5, 7)


def row(size: int) -> dict[str, Tensor]:
    """One row: the first two tokens are a prompt, the weights of the others rise from -0.5, over 0."""
    ids = torch.arange(3, 3 + size)
    labels = torch.where(torch.arange(size) < 2, -100, ids)
    weight = 0.5 * (torch.arange(size) - 3.0)  # 0 for the fourth token
    return {"input_ids": ids, "labels": labels, "loss_weight": weight, "position_ids": torch.arange(size)}


def padded() -> dict[str, Tensor]:
    rows, length = [row(size) for size in LENGTHS], max(LENGTHS)
    fill = {"input_ids": 2, "labels": -100, "loss_weight": 1.0}
    batch = {
        k: torch.stack([torch.nn.functional.pad(r[k], (0, length - len(r[k])), value=v) for r in rows])
        for k, v in fill.items()
    }
    batch["attention_mask"] = torch.stack([(torch.arange(length) < size).long() for size in LENGTHS])
    return batch


def packed() -> dict[str, Tensor]:
    rows = [row(size) for size in LENGTHS]
    return {k: torch.cat([r[k] for r in rows])[None] for k in rows[0]}


def by_hand(objective: Objective, weighting: Weighting) -> Tensor:
    """The losses one by one, from rows without weights."""
    scorer, losses = scored(), []
    for size in LENGTHS:
        one = row(size)
        weight = one.pop("loss_weight")[2:]
        batch = {k: v[None] for k, v in one.items() if k != "position_ids"}
        plain = scorer(batch | {"attention_mask": torch.ones(1, size)}, objective).losses[weight != 0]
        weight = weight[weight != 0]
        factor = {"none": torch.ones_like(weight), "tokens": weight, "sequences": weight / len(weight)}[weighting]
        losses.append(plain * factor)
    return torch.cat(losses)


def scored() -> TokenScorer:
    return TokenScorer(toy_model("llama", attn_implementation="eager"), "fused")


@pytest.mark.parametrize("make", [padded, packed])
@pytest.mark.parametrize("weighting", ["none", "tokens", "sequences"])
@pytest.mark.parametrize("objective", [NLL(), PowerFamily(1)])
def test_losses_are_weighted_one_by_one(
    make: Callable[[], dict[str, Tensor]], weighting: Weighting, objective: Objective
):
    output = scored()(make(), objective, weighting)
    expected = by_hand(objective, weighting)
    torch.testing.assert_close(output.losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss_sum, expected.sum(), rtol=1e-4, atol=1e-5)
    assert len(output.scores) == sum(LENGTHS) - 3 * len(LENGTHS)  # prompts, and what weighs 0


def test_without_weights_every_token_weighs_one() -> None:
    batch = padded()
    del batch["loss_weight"]
    none, tokens = (scored()(batch, NLL(), weighting) for weighting in ("none", "tokens"))
    assert torch.equal(none.losses, tokens.losses)
    shares = scored()(batch, NLL(), "sequences").scores.weight
    torch.testing.assert_close(shares, torch.cat([torch.full((n - 2,), 1 / (n - 2)) for n in LENGTHS]))
