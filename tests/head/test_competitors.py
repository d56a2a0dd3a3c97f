"""The strongest competitor of each target, out of the head's own pass."""

import pytest
import torch

from lightning_sft.head import HeadInput, fused_head, reference_head
from lightning_sft.head.sizes import Sizes
from lightning_sft.metrics.silent import TokenReading
from lightning_sft.objectives import NLL
from tests.head.cases import OBJECTIVES, SMALL, Largest, make

HEADS = {
    "fused": fused_head,
    "small tiles": lambda *a, **k: fused_head(*a, sizes=SMALL, **k),
    "reference": reference_head,
}


def run(head, case, objective=None):
    inputs = HeadInput(case.hidden, case.targets, competitors=True)
    return HEADS[head](inputs, case.unembedding(), NLL() if objective is None else objective).scores


def plain(case):
    """Logits as a model makes them, in float64 from what the head is given."""
    logits = case.hidden.detach().double() @ case.weight.detach().double().T
    if case.bias is not None:
        logits += case.bias.detach().double()
    logits *= case.scale
    return logits if case.softcap is None else case.softcap * torch.tanh(logits / case.softcap)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_equals_the_second_largest_logit_in_float64(head: str, name: str, softcap: float | None, device: torch.device):
    case = make(tokens=60, vocab=301, bias=True, scale=0.7, softcap=softcap, confident=3.0, device=device)
    scores, want = run(head, case, OBJECTIVES[name]), TokenReading.of_logits(plain(case), case.targets)
    assert torch.equal(scores.competitor, want.competitor)
    torch.testing.assert_close(scores.margin, want.margin, rtol=1e-11, atol=1e-12)
    assert torch.equal(scores.is_top1, want.margin >= 0)
    assert 0 < int(scores.is_top1.sum()) < 60


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_names_a_candidate_that_rounding_cannot_tell_from_the_strongest(head: str, dtype: torch.dtype):
    case = make(tokens=60, dim=32, vocab=301, dtype=dtype)
    scores, logits = run(head, case), plain(case)
    others = logits.scatter(1, case.targets[:, None], float("-inf"))
    behind = others.amax(1) - others.gather(1, scores.competitor[:, None])[:, 0]
    assert float((behind / others.amax(1)).max()) < 2 * torch.finfo(dtype).eps
    margin = logits.gather(1, case.targets[:, None])[:, 0] - others.amax(1)
    assert scores.margin.dtype == torch.float32
    bound = 4 * torch.finfo(dtype).eps * float(logits.abs().max())
    assert float((scores.margin - margin).abs().max()) < bound


@pytest.mark.parametrize("head", HEADS)
def test_of_equals_the_lowest_id_counts_in_whatever_tile(head: str):
    case = make(tokens=4, vocab=40)
    with torch.no_grad():
        case.weight[:], case.hidden[:] = 0.0, 1.0  # whole numbers, so that no sum rounds
        case.weight[[3, 15, 27]] = 1.0  # three tiles of ten
        case.targets[:] = torch.tensor([0, 15, 3, 3])
    scores = run(head, case)
    assert scores.competitor.tolist() == [3, 3, 15, 15]
    assert scores.margin[1:].tolist() == [0.0, 0.0, 0.0]
    assert scores.is_top1.tolist() == [False, True, True, True]


@pytest.mark.parametrize("head", HEADS)
def test_nothing_competes_in_a_vocabulary_of_one(head: str):
    scores = run(head, make(tokens=5, vocab=1))
    assert scores.competitor.tolist() == [-1] * 5
    assert bool((scores.margin > 1e30).all())
    reading = TokenReading.of_scores(scores)
    assert reading.competitor_logp.exp().tolist() == [0.0] * 5
    assert bool(reading.is_top1.all())


@pytest.mark.parametrize("head", HEADS)
def test_scores_and_gradients_are_bitwise_the_same_and_nothing_is_there_unless_asked_for(head: str):
    case = make(tokens=30, vocab=50, dtype=torch.float32)
    results = []
    for asked in (False, True):
        case.hidden.grad = case.weight.grad = None
        output = HEADS[head](HeadInput(case.hidden, case.targets, competitors=asked), case.unembedding(), NLL())
        output.loss_sum.backward()
        assert (output.scores.margin is not None) is asked
        assert (output.scores.competitor is not None) is asked
        results.append([output.losses, output.scores.logp, output.scores.is_top1, case.hidden.grad, case.weight.grad])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_no_tensor_of_tokens_times_vocabulary_is_made():
    case = make(tokens=64, dim=4, vocab=640)
    inputs = HeadInput(case.hidden, case.targets, competitors=True)
    with torch.no_grad(), Largest() as seen:
        fused_head(inputs, case.unembedding(), NLL(), sizes=Sizes(chunk=16, tile=64, block=16, rows=600))
    assert seen.numel < 64 * 640 / 8


def test_nan_is_no_first_choice():
    case = make(tokens=3, vocab=20)
    with torch.no_grad():
        case.hidden[1] = float("nan")
    output = fused_head(HeadInput(case.hidden, case.targets, competitors=True), case.unembedding(), NLL(), strict=False)
    assert not output.scores.is_top1[1]
    assert not TokenReading.of_scores(output.scores).is_top1[1]
