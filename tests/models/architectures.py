"""Two-layer models of many architectures, and a few documents as padded and as packed batches."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 99
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COMMON = {
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
HEAD = {**GROUPED, "head_dim": 8}
WINDOW = {"sliding_window": 4}  # shorter than most documents below
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "arcee": GROUPED,
    "cohere": GROUPED,
    "cohere2": {**GROUPED, **MIXED},
    "exaone4": {**GROUPED, **MIXED},
    "gemma": HEAD,
    "gemma2": {**HEAD, **MIXED},
    "gemma3_text": {**HEAD, **MIXED},
    "glm": HEAD,
    "glm4": HEAD,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "granite": GROUPED,
    "helium": HEAD,
    "hunyuan_v1_dense": HEAD,
    "llama": GROUPED,
    "mistral": {**GROUPED, **WINDOW},
    "mixtral": {**GROUPED, **WINDOW, "num_local_experts": 4},
    "nemotron": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **MIXED},
    "persimmon": {},
    "phi": GROUPED,
    "phi3": {**GROUPED, **WINDOW},
    "qwen2": {**GROUPED, **MIXED, "use_sliding_window": True},
    "qwen3": {**HEAD, **MIXED, "use_sliding_window": True},
    "qwen3_moe": {**HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "seed_oss": HEAD,
    "smollm3": {**GROUPED},
    "stablelm": GROUPED,
    "starcoder2": {**GROUPED, **WINDOW},
    # cannot be packed
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"new_decoder_architecture": False},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "mamba": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
PACKS = [[0, 1, 3], [2, 4], [5]]


def tiny_model(kind: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of one architecture, in eval mode."""
    sizes = COMMON if kind == "gpt2" else {**SIZES, **COMMON}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**sizes, **KINDS[kind]})
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():  # some architectures begin so small that a leak would hide
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()


def documents(lengths: tuple[int, ...] = (7, 3, 11, 1, 9, 5)) -> list[Tensor]:
    """Random documents."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def padded(docs: list[Tensor]) -> dict[str, Tensor]:
    """One document a row, padded on the right; the source of document i is i % 2."""
    length = max(map(len, docs))
    batch = {k: torch.full((len(docs), length), v) for k, v in (("input_ids", 2), ("attention_mask", 0))}
    labels = torch.full((len(docs), length), -100)
    for i, doc in enumerate(docs):
        batch["input_ids"][i, : len(doc)] = labels[i, : len(doc)] = doc
        batch["attention_mask"][i, : len(doc)] = 1
    return {**batch, "labels": labels, "source": torch.arange(len(docs)) % 2}


def packed(docs: list[Tensor], packs: list[list[int]] = PACKS, room: int = 2) -> dict[str, Tensor]:
    """The same documents, several in a row, with at least ``room`` positions of padding."""
    length = max(sum(len(docs[i]) for i in pack) for pack in packs) + room
    keys = {"input_ids": 2, "labels": -100, "position_ids": 0, "row": -1, "source": -1}
    batch = {k: torch.full((len(packs), length), v) for k, v in keys.items()}
    for b, pack in enumerate(packs):
        at = 0
        for i in pack:
            part = slice(at, at + len(docs[i]))
            batch["input_ids"][b, part] = docs[i]
            batch["labels"][b, at + 1 : part.stop] = docs[i][1:]
            batch["position_ids"][b, part] = torch.arange(len(docs[i]))
            batch["row"][b, part], batch["source"][b, part] = i, i % 2
            at = part.stop
        batch["position_ids"][b, at:] = torch.arange(length - at)
    return batch
