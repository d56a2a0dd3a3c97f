"""The fused head serves a model only if its logits are the model's own; here, toys of every architecture."""

import warnings

import pytest
import torch
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.head import HeadInput, Unembedding, choose_head, fused_head, plain_logits, reference_from_logits
from lightning_sft.head.sizes import Sizes
from lightning_sft.models.access import backbone, unembedding
from tests.head.cases import OBJECTIVES, Largest
from tests.toys import KINDS, toy_model

IDS = torch.arange(3, 131).reshape(4, 32) * 7 % 263


def hidden_states(model: PreTrainedModel) -> torch.Tensor:
    return backbone(model)(input_ids=IDS, use_cache=False).last_hidden_state


def choose(kind: str, model: PreTrainedModel, unembed: Unembedding | None = None) -> str:
    return choose_head(
        kind,  # type: ignore[arg-type]
        lambda: model(input_ids=IDS, use_cache=False).logits,
        lambda: (hidden_states(model), unembed or unembedding(model)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_served(kind: str, dtype: torch.dtype):
    model = toy_model(kind, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an automatic fallback is a failure
        assert choose("auto", model) == "fused"
        assert choose("fused", model) == "fused"


@pytest.mark.parametrize("name", ["nll", "power", "smoothed", "centred"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_architecture_are_the_models_own(kind: str, name: str):
    """Every parameter gets the gradient that plain scoring of Hugging Face's own logits gives it, in float64."""
    model = toy_model(kind, dtype=torch.float64)
    supervised = torch.zeros_like(IDS, dtype=torch.bool)
    supervised[:, 8:] = True
    mask, targets = supervised[:, 1:], IDS[:, 1:][supervised[:, 1:]]

    own = reference_from_logits(
        model(input_ids=IDS, use_cache=False).logits[:, :-1][mask],
        HeadInput(torch.zeros(len(targets), 1), targets),
        OBJECTIVES[name],
    )
    own.loss_sum.backward()
    want = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()

    hidden = hidden_states(model)[:, :-1][mask]
    with Largest() as seen:
        fused = fused_head(HeadInput(hidden, targets), unembedding(model), OBJECTIVES[name], Sizes(16, 50, 20, 20000))
    fused.loss_sum.backward()
    assert seen.numel <= max(16 * 263, 263 * 32)
    torch.testing.assert_close(fused.losses, own.losses, rtol=1e-9, atol=1e-9)
    assert torch.equal(fused.scores.is_top1, own.scores.is_top1)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("gemma2", {"softcap": None}),
        ("gemma2", {"scale": 0.9}),
        ("llama", {"bias": torch.linspace(-0.2, 0.2, 263)}),
        ("llama", {"scale": 1.05}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_logits_fall_back_with_the_reason(kind: str, wrong: dict, dtype: torch.dtype):
    model = toy_model(kind, dtype=dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 5  # logits large enough for the capping to matter
    right = unembedding(model)
    unembed = Unembedding(**{**vars(right), **wrong})
    with pytest.warns(UserWarning, match=r"are not hidden states times unembedding.*differ by"):
        assert choose("auto", model, unembed) == "reference"
    with pytest.raises(UserError, match=r"head=fused cannot serve this model.*differ by"):
        choose("fused", model, unembed)
    assert choose("reference", model, unembed) == "reference"


def test_a_model_without_parts_falls_back():
    logits = torch.zeros(2, 3, 5)

    def parts() -> tuple[torch.Tensor, Unembedding]:
        raise UserError("Strange keeps no decoder.")

    with pytest.warns(UserWarning, match="Strange keeps no decoder"):
        assert choose_head("auto", lambda: logits, parts) == "reference"
    with pytest.raises(UserError, match="Strange keeps no decoder"):
        choose_head("fused", lambda: logits, parts)


def test_other_shapes_and_nan_are_mismatches():
    hidden, unembed = torch.randn(2, 3, 4), Unembedding(torch.randn(5, 4))
    own = plain_logits(hidden.flatten(0, 1), unembed).view(2, 3, 5)
    assert choose_head("fused", lambda: own, lambda: (hidden, unembed)) == "fused"
    with pytest.raises(UserError, match=r"shape \(6, 4\).*\(6, 5\)"):
        choose_head("fused", lambda: own[..., :4], lambda: (hidden, unembed))
    with pytest.raises(UserError, match="differ by nan"):
        choose_head("fused", lambda: own * float("nan"), lambda: (hidden, unembed))


def test_unknown_kind():
    with pytest.raises(UserError, match=r"head='liger' is unknown\. Allowed: auto, fused, reference"):
        choose_head("liger", lambda: torch.zeros(1), lambda: (torch.zeros(1), Unembedding(torch.zeros(1, 1))))  # type: ignore[arg-type]
