"""Any Hugging Face causal language model, by hub name, folder, GGUF file or installed Python package."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError, first_line
from lightning_sft.hub import require_on_hub
from lightning_sft.models.access import input_embeddings, require_accessors
from lightning_sft.models.beside_text import freeze_beside_text
from lightning_sft.models.gguf import converted_folder, quiet_progress
from lightning_sft.models.quantization import Quantization, quantization_config
from lightning_sft.models.shard_loading import ShardLoading
from lightning_sft.places import PACKAGE_SCHEME, package_file, require_model_place

Dtype = Literal["auto", "fastest", "float32", "bfloat16", "float16", "float64"]
Init = Literal["pretrained", "random"]
#: what transformers raises of configurations that it cannot read, or whose values contradict each other
BAD_CONFIG = (OSError, ValueError, KeyError, ImportError, NotImplementedError, StrictDataclassError)


def resolve(model_name_or_path: str) -> str:
    """Return a folder or a hub name that transformers loads, converting a GGUF file on the way.

    Raises:
        UserError: a path that does not exist, or that is not a model; a hub name, and no hub to ask.
    """
    require_model_place(model_name_or_path)
    if model_name_or_path.startswith(PACKAGE_SCHEME):
        return str(converted_folder(package_file(model_name_or_path)))
    path = Path(model_name_or_path).expanduser()
    if path.suffix == ".gguf":
        return str(converted_folder(path))
    if path.is_dir():
        return str(path)
    require_on_hub(model_name_or_path)
    return model_name_or_path


def load_tokenizer(
    name_or_path: str,
    *,
    chat_template: str | None = None,
    add_special_tokens: tuple[str, ...] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name_or_path: as for models.
        chat_template: a Jinja template, or the path of a file that holds one; None keeps the tokenizer's own.
        add_special_tokens: special tokens to add; the model's embeddings are resized to hold them.
        revision: revision of a hub name.
        trust_remote_code: run code that a hub repository brings along.

    Raises:
        UserError: there is no such tokenizer.
    """
    folder = Path(name_or_path).expanduser()
    alone = (folder / "tokenizer_config.json").is_file()  # perhaps without a model, as beside an adapter
    source = str(folder) if alone else resolve(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except BAD_CONFIG as error:
        raise UserError(f"No tokenizer could be loaded from {name_or_path!r}: {first_line(error)}") from error
    if chat_template is not None:
        path = Path(chat_template).expanduser()
        looks_like_path = "{" not in chat_template
        if looks_like_path and not path.is_file():
            raise UserError(f"chat_template is {chat_template!r}, which is neither a Jinja template nor a file.")
        tokenizer.chat_template = path.read_text(encoding="utf-8") if looks_like_path else chat_template
    if add_special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(add_special_tokens)})
    if tokenizer.pad_token is None:
        # Only generation needs one; masks are made of lengths and spans, never of the pad token's id.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_causal_lm(
    name_or_path: str,
    *,
    init: Init = "pretrained",
    dtype: Dtype = "float32",
    config_overrides: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    shards: ShardLoading | None = None,
) -> PreTrainedModel:
    """Load a causal language model, or make one with random weights from its configuration.

    Args:
        name_or_path: hub name, local folder, GGUF file or ``pkg://package/file.gguf``.
        init: ``"pretrained"`` weights, or ``"random"`` ones (pretraining from scratch).
        dtype: dtype of the weights; ``"auto"`` is the checkpoint's own. ``"fastest"`` depends on what trains, and must
            have been decided, see ``models/capability.py``.
        config_overrides: fields of the model's configuration to change, such as ``{"attention_dropout": 0.1}``.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...; None is transformers' choice.
        revision: revision of a hub name.
        trust_remote_code: run code that a hub repository brings along.
        quantization: quantise the linear layers while loading; needs bitsandbytes.
        shards: leave the weights out, and let this read them later.

    Raises:
        NotByShards: they cannot be read later.
        UserError: no such model, not a causal language model, or a configuration field that does not exist.
    """
    source = resolve(name_or_path)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except BAD_CONFIG as error:
        raise UserError(f"No model could be loaded from {name_or_path!r}: {first_line(error)}") from error
    change_fields(config, config_overrides or {})
    config.use_cache = False  # training never uses it, and some architectures pay for it; generation asks for it
    _require_causal(config, name_or_path)
    # Lightning calls this under its own device and dtype contexts; from_pretrained refuses the meta device.
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
    if quantization is not None:
        kwargs["quantization_config"] = quantization_config(quantization)
    with torch.device("cpu"), quiet_progress():
        if init == "random":
            model = _from_config(config, name_or_path, dtype, **kwargs)
        else:
            with nullcontext() if shards is None else shards.without_weights():
                model = _from_pretrained(source, name_or_path, config=config, dtype=dtype, revision=revision, **kwargs)
    # from_pretrained leaves the model in eval mode, and Lightning keeps the mode it finds: dropout would stay off.
    model.train()
    assert isinstance(model, PreTrainedModel)
    require_accessors(model, name_or_path)
    freeze_beside_text(model)
    return model


def change_fields(config: Any, overrides: Mapping[str, Any]) -> None:
    """Change fields of a model's configuration, in place.

    Args:
        config: of the model.
        overrides: field -> value.

    Raises:
        UserError: a field that it does not have, or a value that it does not take.
    """
    for field, value in overrides.items():
        if not hasattr(config, field):
            raise UserError(
                f"config_overrides names {field!r}, which {type(config).__name__} does not have. Its fields: "
                f"{', '.join(sorted(k for k in config.to_dict() if not k.startswith('_')))}."
            )
        try:
            setattr(config, field, value)
        except StrictDataclassError as error:
            raise UserError(
                f"config_overrides sets {field!r} to {value!r}, which {type(config).__name__} does not take: "
                f"{first_line(error)}"
            ) from error


def grow_embeddings(model: PreTrainedModel, vocabulary: int, init: Init) -> range:
    """Let the embeddings hold a vocabulary; return the rows that are new: drawn at random, around the mean of the old.

    Args:
        model: a model on the CPU.
        vocabulary: number of token ids; a model that has as many or more rows stays as it is.
        init: how the old rows came about; the mean of random ones is not looked at.
    """
    known = int(input_embeddings(model).shape[0])
    if vocabulary > known:
        with torch.device("cpu"):
            model.resize_token_embeddings(vocabulary, mean_resizing=init == "pretrained")
    return range(known, max(vocabulary, known))


def _from_config(config: Any, name: str, dtype: Dtype, **kwargs: Any) -> PreTrainedModel:
    weights = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=weights, **kwargs)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"No model could be made from the configuration of {name!r}: {first_line(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _from_pretrained(source: str, name: str, **kwargs: Any) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **kwargs)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"The weights of {name!r} could not be loaded: {first_line(error)}") from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    if missing := sorted(found["missing_keys"]):
        spare = sorted(found["unexpected_keys"])
        raise UserError(
            f"The weights of {name!r} do not fit {type(model).__name__}: {_some(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not among them and would be drawn at random"
            f"{f'; it does not know {_some(spare)}' if spare else ''}. Is it a model without its head, or of another "
            "class than `architectures` in its config.json says? Give the whole model, or train it from scratch with "
            "init: random."
        )
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _require_causal(config: Any, name: str) -> None:
    known = type(config) in AutoModelForCausalLM._model_mapping
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    architectures = [a for a in (getattr(config, "architectures", None) or []) if isinstance(a, str)]
    causal = getattr(AutoModelForCausalLM._model_mapping[type(config)], "__name__", None) if known else None
    endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    other = [a for a in architectures if a != causal and not a.endswith(endings)]
    if (known or remote) and not (other and len(other) == len(architectures)):
        return
    raise UserError(
        f"{name!r} is a {config.model_type!r} model ({', '.join(architectures) or 'no architecture named'}), not a "
        "causal language model. Allowed: models that transformers.AutoModelForCausalLM loads, such as Llama, Qwen, "
        "Gemma, GPT-2, GPT-NeoX or OPT."
    )
