import pytest
import torch
from peft import LoraConfig, get_peft_model

from lightning_sft.probes import encode_probes
from lightning_sft.probes.forward import evaluation, is_plain, layer_rows, read_probes, within_shards
from tests.callbacks.stranger import PROBES
from tests.toys import KINDS, toy_model, toy_tokenizer

# peft asks transformers 5 by the old name when it wraps a model
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def alone(model, probe, tokenizer):
    """Hugging Face's own logits of one unpadded context, read in the model's precision."""
    ids = torch.tensor([tokenizer(probe.context).input_ids])
    with torch.no_grad():
        return model.eval()(ids).logits[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_one_padded_forward_equals_hugging_face_on_each_context(kind):
    tokenizer, model = toy_tokenizer(), toy_model(kind, dtype=torch.float64)
    reading = read_probes(model, encode_probes(PROBES, tokenizer))
    expected = torch.stack([alone(model, p, tokenizer) for p in PROBES])
    # Gemma's norm computes in fp32 whatever the model's dtype
    torch.testing.assert_close(reading.logits, expected, rtol=0, atol=1e-6 if kind == "gemma2" else 1e-10)
    assert reading.plain


def test_low_precision_logits_are_computed_again_in_fp32():
    tokenizer, model = toy_tokenizer(), toy_model(dtype=torch.bfloat16)
    encoded = encode_probes(PROBES, tokenizer)
    reading = read_probes(model, encoded)
    assert reading.plain
    assert reading.hidden.dtype == torch.bfloat16
    expected = reading.hidden.double() @ model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(reading.logits.double(), expected, rtol=0, atol=1e-5)
    again = read_probes(model, encoded, plain=True)
    assert torch.equal(again.logits, reading.logits)


def test_logits_that_are_not_plain_are_the_models_own():
    model = get_peft_model(
        toy_model(tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"])
    ).base_model.model
    torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
    reading = read_probes(model, encode_probes(PROBES, tokenizer := toy_tokenizer()))
    assert not reading.plain
    expected = torch.stack([alone(model, p, tokenizer) for p in PROBES])
    torch.testing.assert_close(reading.logits, expected, rtol=0, atol=1e-5)


def test_modes_and_random_state_are_put_back():
    model = toy_model("gpt2").train()
    model.transformer.h[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    with evaluation(model):
        assert not any(m.training for m in model.modules())
        torch.rand(3)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_without_shards_the_body_just_runs():
    model, ran = toy_model(), []
    within_shards(torch.nn.Sequential(model), model, lambda: ran.append(torch.is_grad_enabled()))
    assert ran == [False]


@pytest.mark.parametrize("target", ["lora", "modules_to_save", "plain", "scaled"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_rows_are_those_the_layer_works_by(target, side):
    model = toy_model("llama", tie_word_embeddings=False, dtype=torch.float64)
    name = "embed_tokens" if side == "input" else "lm_head"
    if target == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=[name])).base_model.model
        layer = model.get_input_embeddings() if side == "input" else model.get_output_embeddings()
        b = (layer.lora_embedding_B if side == "input" else layer.lora_B)["default"]
        torch.nn.init.normal_(b if isinstance(b, torch.nn.Parameter) else b.weight)
    elif target == "modules_to_save":
        config = LoraConfig(target_modules=["q_proj"], modules_to_save=[name])
        model = get_peft_model(model, config).base_model.model
        layer = model.get_input_embeddings() if side == "input" else model.get_output_embeddings()
        with torch.no_grad():
            layer.modules_to_save["default"].weight.mul_(2.0).add_(0.1)
    else:
        layer = model.get_input_embeddings() if side == "input" else model.get_output_embeddings()
        if target == "scaled":
            layer.__class__ = type(
                "Scaled", (type(layer),), {"forward": lambda self, x: 3.0 * super(type(self), self).forward(x)}
            )
    rows = layer_rows(layer)
    assert is_plain(layer) == (target == "plain")
    vocab, dim = rows.shape
    with torch.no_grad():
        if side == "input":
            expected = layer(torch.arange(vocab))
        else:
            x = torch.randn(3, dim, dtype=torch.float64)
            torch.testing.assert_close(x @ rows.T, layer(x), rtol=0, atol=1e-10)
            expected = rows
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-12)
