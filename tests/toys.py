"""Toy models and a toy tokenizer, made on the spot: tests need no network and no real weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
KINDS = {
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {"intermediate_size": 64, "tie_word_embeddings": False},
    "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (one token a byte) with a ChatML template; 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def toy_config(kind: str = "llama", **overrides: object) -> AutoConfig:
    """The configuration of a two-layer model of one architecture."""
    sizes = {} if kind == "gpt2" else SIZES
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return AutoConfig.for_model(kind, **{**sizes, "vocab_size": 263, **ids, **KINDS[kind], **overrides})


def toy_model(
    kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object
) -> PreTrainedModel:
    """A random two-layer causal LM of one architecture; its vocabulary is larger than the tokenizer's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(toy_config(kind, **overrides))
    return model.to(dtype).eval()


def save_toy(folder: Path, kind: str = "llama", **overrides: object) -> Path:
    """Write a toy model with its tokenizer as a Hugging Face folder."""
    toy_model(kind, **overrides).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder
