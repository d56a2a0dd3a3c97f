"""Rounding: the fused head is nowhere less exact than the plain one, and far more so for confident tokens."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_sft.head import HeadInput, HeadOutput, fused_head, reference_head
from lightning_sft.head.sizes import IN_PLACE, Sizes
from lightning_sft.objectives import NLL, PowerFamily
from tests.head.cases import OBJECTIVES, Case, make

many_chunks = partial(fused_head, sizes=Sizes(chunk=16, tile=100, block=32, rows=8 * 400 * 4))

# as many as a bf16 gradient of the unembedding sums in place
eight_chunks = partial(fused_head, sizes=Sizes(chunk=512 // IN_PLACE, tile=100, block=64, rows=8 * 400 * 4))

one_chunk = partial(fused_head, sizes=Sizes(chunk=512, tile=100, block=64, rows=8 * 400 * 4))


def rounded(case: Case) -> Case:
    """The same numbers, exactly, in float64."""
    leaves = [
        None if leaf is None else leaf.detach().double().requires_grad_()
        for leaf in (case.hidden, case.weight, case.bias)
    ]
    return Case(*leaves, case.targets, case.scale, case.softcap)


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("head", [many_chunks, eight_chunks, one_chunk], ids=["many", "eight", "one"])
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("name", ["nll", "power", "smoothed", "weighed", "centred"])
def test_bf16_error_is_not_above_that_of_plain(
    name: str, softcap: float | None, head: Callable[..., HeadOutput], device: torch.device
):
    sizes = {"tokens": 512, "dim": 32, "vocab": 400}
    case = make(**sizes, dtype=torch.bfloat16, bias=True, softcap=softcap, scale=0.25, confident=1.5, device=device)
    exact = rounded(case).run(reference_head, OBJECTIVES[name])
    plain, fused = case.run(reference_head, OBJECTIVES[name]), case.run(head, OBJECTIVES[name])
    # a GPU rounds the plain gradient of the weight once, at the end of its one product; ours that of the target, too
    often = 2**0.5 if device.type == "cuda" else 1.0
    for index, more in ((1, 1.0), (2, 1.0), (5, 1.0), (6, often), (7, 1.0)):  # losses, logp, hidden, weight, bias
        assert error(fused[index], exact[index]) <= more * error(plain[index], exact[index]), index
    assert [tensor.dtype for tensor in fused] == [tensor.dtype for tensor in plain]


@pytest.mark.parametrize(("dtype", "logp", "gradient"), [(torch.bfloat16, 5, 3), (torch.float32, 15, 15)])
def test_confident_tokens(dtype: torch.dtype, logp: float, gradient: float, device: torch.device):
    """For p > 0.9, logp and the gradient on the hidden states are several times closer to float64."""
    case = make(tokens=400, dim=64, vocab=2000, dtype=dtype, scale=0.25, confident=7.0, device=device)
    exact = rounded(case).run(reference_head, NLL())
    sure = exact[2].exp() > 0.9
    assert sure.sum() > 100
    for index, better in ((2, logp), (5, gradient)):
        plain, fused = (
            (case.run(head, NLL())[index].double()[sure] - exact[index][sure]).abs().mean()
            for head in (reference_head, many_chunks)
        )
        assert better * fused <= plain, index


@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype):
    """Products run in autocast's dtype, as the model's own would; gradients come out in the leaves' fp32."""
    case = make(tokens=128, dim=32, vocab=400, dtype=torch.float32, bias=True, scale=0.25, confident=1.5)
    exact = rounded(case).run(reference_head, OBJECTIVES[name])
    with torch.autocast("cpu", dtype):
        plain, fused = case.run(reference_head, OBJECTIVES[name]), case.run(many_chunks, OBJECTIVES[name])
    for index in (1, 2, 5, 6, 7):
        assert fused[index].dtype == torch.float32
        assert error(fused[index], exact[index]) <= 1.05 * error(plain[index], exact[index]), index


def test_float64_is_left_alone_by_autocast():
    case = make()
    want = case.run(reference_head, NLL())
    with torch.autocast("cpu", torch.bfloat16):
        got = case.run(many_chunks, NLL())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
def test_gradient_scaler(name: str):
    """A loss scale beyond fp16's range arrives intact, since it meets gradients kept in fp32."""
    case = make(tokens=64, dim=32, vocab=400, dtype=torch.float32, scale=0.25)
    with torch.autocast("cpu", torch.float16):
        scale = 2.0**20
        big = case.run(many_chunks, OBJECTIVES[name], factor=scale)
        one = case.run(many_chunks, OBJECTIVES[name], factor=1.0)
    for index in (5, 6):
        assert torch.isfinite(big[index]).all()
        torch.testing.assert_close(big[index] / scale, one[index])


def test_small_gradients_survive_fp16_weights():
    """Gradients that fp16 could not hold unscaled arrive scaled."""
    case = make(tokens=64, dim=32, vocab=400, dtype=torch.float16, scale=0.25, confident=10.0)
    exact = rounded(case).run(reference_head, PowerFamily(1.0), factor=1024.0)
    fused = case.run(many_chunks, PowerFamily(1.0), factor=1024.0)
    for index in (5, 6):
        assert error(fused[index], exact[index]) < 2e-3


def test_many_repeats_of_one_target_add_up_in_bf16():
    """A frequent target's row gets hundreds of small parts; summed in bf16 they would get lost."""
    hidden = torch.ones(4096, 4, dtype=torch.bfloat16).requires_grad_()
    weight = torch.zeros(2, 4, dtype=torch.bfloat16).requires_grad_()
    case = Case(hidden, weight, None, torch.zeros(4096, dtype=torch.long))
    for head in (fused_head, many_chunks):
        output = head(HeadInput(hidden, case.targets), case.unembedding(), NLL())
        weight.grad = None
        output.loss_sum.backward()
        assert weight.grad.tolist() == [[-2048.0] * 4, [2048.0] * 4]
