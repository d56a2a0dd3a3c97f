"""A tiny random model of any type that AutoModelForCausalLM knows, with weights large enough for effects to show.

The sizes of a type are those of its configuration's defaults, made small by the names of its fields, and what a few
types want otherwise. Windows, chunks and the like are `WINDOW` positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.toys import toy_tokenizer

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 300
WINDOW = 28
DELETED = object()  # in a type's own sizes: a field that goes back to its default

#: value -> the integer fields that get it
SIZES: dict[float, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input encoder_vocab_size decoder_vocab_size",
    64: "hidden_size d_model n_embd embedding_dim emb_dim word_embed_proj_dim embedding_size lru_width codebook_size",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads attention_heads num_heads "
    "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads index_n_heads num_experts "
    "linear_num_value_heads n_routed_experts num_local_experts moe_num_experts num_memory_tokens cls_token_id",
    96: "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim dff dim_ff n_inner ffn_hidden_size d_inner "
    "feed_forward_size intermediate_size_mlp dense_intermediate_size",
    48: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size",
    512: "max_position_embeddings n_positions n_ctx max_target_positions max_source_positions max_sequence_length "
    "max_seq_len context_length",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok moe_topk moe_k top_k_experts "
    "moe_top_k linear_num_key_heads type_vocab_size o_groups scale_emb logits_scaling "
    "eos_token_id",
    16: "head_dim global_head_dim dim_head d_head kv_channels swa_head_dim qk_head_dim v_head_dim index_head_dim "
    "linear_key_head_dim linear_value_head_dim mamba_d_state mamba_d_head state_size ssm_state_size mamba_head_dim "
    "rel_extent hidden_size_per_layer_input block_multiple_of o_lora_rank hc_lowrank router_hidden_size "
    "query_pre_attn_scalar",
    24: "q_lora_rank kv_lora_rank",
    8: "qk_rope_head_dim qk_nope_head_dim mamba_n_heads mamba_dt_rank time_step_rank mamba_num_heads d_rel laurel_rank "
    "rotary_dim gated_norm_rank adapter_rank",
    1: "n_group topk_group num_expert_group first_k_dense_replace n_groups bos_token_id decoder_start_token_id",
    WINDOW: "sliding_window sliding_window_size local_attention attention_window_size attention_chunk_size window_size "
    "keep_window_size index_topk mamba_chunk_size",
    128: "mamba_d_ssm",
    32: "chunk_size block_size dim_model_base",
    80: "num_mel_bins",
    0: "pad_token_id",
    3: "sep_token_id eod_token_id",
    # factors that would hide at 1
    0.3: "attention_multiplier logit_scale",
    0.7: "residual_multiplier",
    0.8: "attention_in_multiplier",
    0.9: "ssm_out_multiplier",
    1.2: "key_multiplier ssm_in_multiplier",
    1.3: "attention_out_multiplier",
    1.5: "embedding_multiplier",
    1.7: "lm_head_multiplier",
    5.0: "final_logit_softcapping logits_soft_cap output_logit_soft_cap",
    2.5: "logits_mup_width_multiplier",
    10.0: "attn_logit_softcapping",
}
FIELDS = {name: value for value, names in SIZES.items() for name in names.split()}
LAYERS = (
    "num_hidden_layers n_layer n_layers decoder_layers encoder_layers num_layers num_decoder_layers num_encoder_layers "
    "num_blocks depth"
).split()
PER_LAYER = "layer_rope_theta activation_sparsity_pattern moe_layers".split()


def _own_sizes() -> dict[str, dict[str, Any]]:
    """What types want beside `SIZES`."""
    latent = {"head_dim": 8, "num_key_value_heads": 4}
    window = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    sliding_last = {"layer_types": ["full_attention", "sliding_attention"]}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    indexer = {"heads": 4, "kv_heads": 1, "head_dim": 16, "budget": WINDOW, "compress_ratio": 4}
    indexed = {**{f"indexer_{k}" if k != "heads" else "indexer_n_heads": v for k, v in indexer.items()}, "hc_count": 2}
    zamba = {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
    }
    four = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    no_inputs = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    own: dict[str, dict[str, Any]] = {
        **{t: dict(latent) for t in ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "longcat_flash")},
        **{t: dict(latent) for t in ("youtu", "minicpm3", "glm4_moe_lite")},
        **{t: {"head_dim": 16} for t in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
        **{t: {**window, **sliding_last} for t in ("qwen2", "qwen3", "qwen2_moe")},
        "qwen3_moe": window,  # of every layer: it knows no layer_types
        **{
            t: {**latent, "num_experts_per_token": 2, "linear_head_dim": 16, "linear_num_heads": 4}
            for t in ("bailing_hybrid", "kimi_linear")
        },
        "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 3, "layer_types": DELETED},
        "cohere_compass_text": {
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
            "layer_types": ["full_attention", "sliding_attention"],
            "num_key_value_heads": 4,
        },
        "dbrx": {
            "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "deepseek_v2": {**latent, "num_experts_per_tok": 2, "moe_layer_freq": 1},
        "dots1": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "head_dim": 16,
            **sliding_last,
        },
        "dots3_note": {"text_config": {"num_key_value_heads": 4, "head_dim": 16}},
        "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16},
        "gemma3n_text": {**four, "num_kv_shared_layers": 2, "intermediate_size": [96] * 4}
        | {"activation_sparsity_pattern": [0.0] * 4},
        "gemma4_assistant": {"text_config": no_inputs},
        "gemma4_text": {**four, "num_kv_shared_layers": 0, "num_global_key_value_heads": 2},
        "gpt_neo": {
            "attention_types": [[["global", "local"], 1]],
            "attention_layers": ["global", "local"],
            "window_size": WINDOW,
        },
        "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_hidden_layers": 3},
        "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1},
        "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
        "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
        "llama4_text": {"no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]}
        | {"moe_layers": [0, 1], "interleave_moe_layer_step": 1},
        "mamba2": {"num_heads": 8, "head_dim": 16},
        "minimax_m3_vl_text": {"index_block_size": 32, "index_topk_blocks": 1, "index_local_blocks": 1},
        "mistral": {"sliding_window": WINDOW},
        "mixtral": {"sliding_window": WINDOW},
        "nemotron": {"num_key_value_heads": 2},
        "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
        "qwen4_exp": {"text_config": indexed},
        "qwen4_exp_text": indexed,
        "recurrent_gemma": {"num_hidden_layers": 3},
        "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 64], "axial_pos_embds_dim": [32, 32]}
        | {"num_buckets": 8, "is_decoder": True},
        "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
        "smollm3": {"no_rope_layers": [1, 0]},
        "xmod": {"default_language": "en_XX"},
        "zamba": {**zamba, "n_mamba_heads": 2},
        "zamba2": {**zamba, "n_mamba_heads": 8, "mamba_headdim": 16, "hybrid_layer_ids": [1, 3]}
        | {"kv_channels": 16, "num_query_groups": 4},
        "zaya": {"num_experts_per_tok": 1},
    }
    return own


OWN_SIZES = _own_sizes()
#: types that see both sides unless their configuration says that they decode
BOTH_SIDES = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
).split()


def tiny_config(kind: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of one type; the BERT family decodes."""
    cls = CONFIG_MAPPING[kind]
    try:
        defaults = cls().to_dict()
    except Exception:  # some configurations cannot be made without sizes
        defaults = {}
    decodes = {"is_decoder": True} if kind in BOTH_SIDES else {}
    return cls(**_merged(shrunk(defaults), {**decodes, **OWN_SIZES.get(kind, {}), **overrides}))


def tiny_model(kind: str, std: float | None = 0.1, **overrides: Any) -> PreTrainedModel:
    """A tiny model of one type in fp32; ``std`` of its matrices, None keeps the type's own start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **overrides)).float()
    return model if std is None else enlarged(model, std)


@torch.no_grad()
def enlarged(model: PreTrainedModel, std: float = 0.1) -> PreTrainedModel:
    """Draw matrices anew, and move vectors off their start."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std) if parameter.ndim > 1 else parameter.add_(0.05 * noise)
    return model


def save_tiny(folder: Path, kind: str, std: float | None = 0.1, **overrides: Any) -> str:
    """Write a tiny model and the toy tokenizer as a Hugging Face folder."""
    tiny_model(kind, std, **overrides).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that are made small, those of its parts included."""
    kinds = list(dict.fromkeys(values.get("layer_types") or ()))
    count = max(2, len(kinds))
    found: dict[str, Any] = {"layer_types": (kinds * 2)[:count]} if kinds else {}
    for name, value in values.items():
        if isinstance(value, dict):
            is_part = name.endswith("_config") or name in ("decoder", "text_encoder", "audio_encoder", "encoder")
            if is_part and value.get("model_type") is not None:
                found[name] = {"model_type": value["model_type"], **shrunk(value)}
        elif isinstance(value, list):
            found |= _shrunk_list(name, value, count)
        elif isinstance(value, bool) or value is None:
            continue
        elif name in LAYERS and isinstance(value, int):
            found[name] = count
        elif "drop" in name.lower() and isinstance(value, float):
            found[name] = 0.0
        elif name in FIELDS and not (name == "chunk_size" and isinstance(value, int) and value < 0):
            found[name] = FIELDS[name]
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY - 20:
            found[name] = VOCABULARY - 10
    return found


def _shrunk_list(name: str, value: list[Any], count: int) -> dict[str, Any]:
    fixed = {"no_rope_layers": [1, 0], "indexer_types": ["full", "shared"], "num_attention_heads_per_layer": [4]}
    if name in fixed:
        return {name: (fixed[name] * count)[:count]}
    if name == "mlp_layer_types":
        return {name: (list(dict.fromkeys(value)) * count)[:count]}
    if name in PER_LAYER:
        return {name: value[:count]}
    return {name: [2]} if name.endswith(("token_id", "token_index")) else {}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    for name, value in other.items():
        if value is DELETED:
            one.pop(name, None)
        elif isinstance(value, dict) and isinstance(one.get(name), dict):
            _merged(one[name], value)
        else:
            one[name] = value
    return one
