"""One rule for all instruments: which model they read, and what they refuse to misread."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_sft.callbacks import (
    CriticalLearningRateFinder,
    DriftMonitor,
    OrderParameterLogger,
    SynonymRankMonitor,
)
from lightning_sft.errors import UserError
from lightning_sft.models.instruments import model_to_read
from lightning_sft.probes.mine import mine_probes
from lightning_sft.sweep.predict import predict_critical_lr
from tests.callbacks.stranger import PROBES, Stranger, fit
from tests.toys import toy_model, toy_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft

SIZES = {"vocab_size": 263, "pad_token_id": 2, "eos_token_id": 2}


def _t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes, **SIZES, decoder_start_token_id=1))


def _bart() -> PreTrainedModel:
    layers = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in _BART.items()}
    return BartForConditionalGeneration(
        BartConfig(d_model=32, **layers, **SIZES, bos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None)
    )


_BART = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}

NO_DECODERS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "T5": (_t5, "T5ForConditionalGeneration has an encoder"),
    "BART": (_bart, "BartForConditionalGeneration has an encoder"),
    "BERT": (lambda: BertForMaskedLM(BertConfig(**_BERT, vocab_size=263)), "BertForMaskedLM is no decoder"),
    "BERT with a causal head": (
        lambda: BertLMHeadModel(BertConfig(**_BERT, vocab_size=263)),
        "BertLMHeadModel is no decoder",
    ),
}

INSTRUMENTS: dict[str, Callable[[], Callback]] = {
    "SynonymRankMonitor": lambda: SynonymRankMonitor(PROBES),
    "OrderParameterLogger": lambda: OrderParameterLogger(PROBES),
    "DriftMonitor": lambda: DriftMonitor({"own": ["one, two, three"]}),
    "CriticalLearningRateFinder": lambda: CriticalLearningRateFinder(PROBES, steps=2),
}


class Around(Stranger):
    """A module around any model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch, labels=batch).loss


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("kind", NO_DECODERS)
def test_models_that_are_no_decoders_are_refused_by_name(kind: str, instrument: str, tmp_path: Path) -> None:
    make, words = NO_DECODERS[kind]
    with pytest.raises(UserError, match=words):
        fit(Around(make()), [INSTRUMENTS[instrument]()], tmp_path, max_steps=1)


def test_functions_on_models_refuse_them_too() -> None:
    with pytest.raises(UserError, match="has an encoder"):
        predict_critical_lr(_t5(), toy_tokenizer(), PROBES[:1])
    with pytest.raises(UserError, match="is no decoder"):
        mine_probes(NO_DECODERS["BERT"][0](), toy_tokenizer(), ["some text"])


class SoftEmbedding(nn.Module):
    """Soft prompt tuning as it is often written: learned vectors in the place of the first tokens."""

    def __init__(self, embedding: nn.Embedding, tokens: int = 5) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.learned = nn.Parameter(torch.randn(tokens, embedding.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        learned = self.learned.expand(len(ids), -1, -1)
        return torch.cat([learned, nn.functional.embedding(ids[:, len(self.learned) :], self.weight)], 1)


class Prepending(SoftEmbedding):
    """Learned vectors in front of the tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.learned.expand(len(ids), -1, -1), nn.functional.embedding(ids, self.weight)], 1)


@pytest.mark.parametrize("kind", [SoftEmbedding, Prepending])
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_soft_prompts_are_refused(kind: type[SoftEmbedding], instrument: str, tmp_path: Path) -> None:
    module = Stranger()
    adapted = get_peft_model(module.net, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    module.net = adapted
    with pytest.raises(UserError, match="PromptTuningConfig acts on the prompt"):
        fit(module, [INSTRUMENTS[instrument]()], tmp_path, max_steps=1)
    module = Stranger()
    module.net.set_input_embeddings(kind(module.net.get_input_embeddings()))
    with pytest.raises(UserError, match=f"{kind.__name__}.*a soft prompt"):
        fit(module, [INSTRUMENTS[instrument]()], tmp_path, max_steps=1)


def test_a_decoder_is_found_beside_encoders_and_with_adapters_on_its_embeddings() -> None:
    decoder = toy_model("llama")
    both = nn.ModuleDict({"reward": NO_DECODERS["BERT"][0](), "policy": decoder, "translator": _t5()})
    assert model_to_read(both) is decoder
    causal = BertLMHeadModel(BertConfig(**_BERT, vocab_size=263, is_decoder=True))
    assert model_to_read(causal) is causal
    untied = toy_model("llama", tie_word_embeddings=False)
    lora = get_peft_model(untied, LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    assert model_to_read(lora) is lora.base_model.model
    scaled = toy_model("gemma2")
    assert model_to_read(scaled) is scaled
    with pytest.raises(UserError, match="2 Hugging Face models"):
        model_to_read(nn.ModuleList([toy_model("llama"), toy_model("gpt2")]))
    with pytest.raises(UserError, match="no Hugging Face model"):
        model_to_read(nn.Linear(2, 2))
