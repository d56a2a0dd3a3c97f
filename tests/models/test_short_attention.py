"""Plain products in place of torch's kernel, for short 16-bit documents on a CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_sft.models import attention
from lightning_sft.models.attention import SHORT, attention_per_document


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Layer(nn.Module):
    """What attention functions read of a layer."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def leaves(dtype: torch.dtype, heads: int, groups: int, length: int, dim: int) -> list[Tensor]:
    return [torch.randn(1, n, length, dim).to(dtype).requires_grad_() for n in (heads, groups, groups)]


def run(inputs: list[Tensor], heads: int, groups: int) -> list[Tensor]:
    """Output and gradients, in float64."""
    out = attention_per_document(Layer(heads // groups), *inputs, None)[0]
    grads = torch.autograd.grad(out.double().square().sum(), inputs)
    return [tensor.detach().double() for tensor in (out, *grads)]


@pytest.mark.parametrize(("heads", "groups", "length", "dim"), [(9, 3, 70, 64), (4, 4, 7, 16), (8, 1, 33, 80)])
def test_bf16_is_as_close_to_float64_as_plain_attention(heads: int, groups: int, length: int, dim: int):
    """Against the kernel's own error; what rounds more is the products, as in transformers' eager attention."""
    half = leaves(torch.bfloat16, heads, groups, length, dim)
    exact = run([leaf.detach().double().requires_grad_() for leaf in half], heads, groups)
    short = run(half, heads, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SHORT", 0)
        kernel = run(half, heads, groups)
    for name, e, s, k in zip(("output", "query", "key", "value"), exact, short, kernel, strict=True):
        assert not torch.equal(s, k), "the kernel ran twice"
        assert (s - e).norm() <= 2.5 * (k - e).norm(), name


def test_the_future_is_not_seen():
    inputs = leaves(torch.bfloat16, 4, 2, 20, 16)
    before = attention_per_document(Layer(2), *inputs, None)[0]
    with torch.no_grad():
        for leaf in inputs:
            leaf[:, :, 12:] = 7.0
    after = attention_per_document(Layer(2), *inputs, None)[0]
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 16), (torch.bfloat16, SHORT + 1)])
def test_others_use_the_kernel(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int):
    monkeypatch.setattr(attention, "_causal_products", None)
    attention_per_document(Layer(2), *leaves(dtype, 2, 1, length, 8), None)
