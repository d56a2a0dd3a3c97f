"""Any finished model for reading: a Hugging Face model, an adapter on its base, or a checkpoint of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from lightning_sft.checkpoints import shards
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.checkpoints.state import KEY, check_weights
from lightning_sft.errors import UserError, first_line
from lightning_sft.head import HeadOutput
from lightning_sft.metrics.answers import AnswerReading, answer_spans, read_answers
from lightning_sft.models.adapters import stored_config
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.generation import end_tokens
from lightning_sft.models.loading import Dtype
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.tokenizer import TokenizerSettings
from lightning_sft.objectives import NLL, Objective

Kind = Literal["model", "adapter", "checkpoint"]
#: under which names a checkpoint of ours holds the weights of the model that it trained
_WEIGHTS = "scorer.model."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class FinishedModel:
    """A model that nobody trains here: frozen, in eval mode, with its tokenizer.

    Attributes:
        name: as it was asked for.
        kind: what stood under the name.
        base: what the adapter stands on, or what the checkpoint's run began with; None for whole models.
        scorer: decoder and head.
        tokenizer: the model's own, with its chat template.
        step: optimizer steps that its run had taken, where a checkpoint says so.
        settings: those that the checkpoint's run was made with; empty for others.
    """

    name: str
    kind: Kind
    base: str | None
    scorer: TokenScorer
    tokenizer: PreTrainedTokenizerBase
    step: int | None
    settings: Mapping[str, Any]

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with its adapters in it."""
        return self.scorer.causal_lm

    @property
    def device(self) -> torch.device:
        """Where its input embeddings are."""
        weight = self.causal_lm.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight.device

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any], objective: Objective | None = None) -> HeadOutput:
        """Score the labels of a padded batch without gradients; no (tokens, vocab) tensor is made by the fused head.

        Args:
            batch: see `TokenScorer.forward`; moved to the model's device.
            objective: whose losses are wanted; NLL by default.

        Returns:
            Losses and scores of the supervised tokens: ``logp``, ``is_top1``, ``row``, ``source``.
        """
        here = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        output = self.scorer(here, objective or NLL())
        assert isinstance(output, HeadOutput)
        return output

    def answers(self, batch: Mapping[str, Any], output: HeadOutput) -> AnswerReading:
        """Judge the answers of a batch by what `score` returned for it: ``exact`` and ``logp`` of each."""
        labels = batch["labels"].to(output.scores.logp.device)
        return read_answers(output.scores, answer_spans(labels, end_tokens(self.causal_lm, self.tokenizer)))


def load_finished(
    name: str | Path,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    dtype: Dtype = "float32",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FinishedModel:
    """Load a finished model, whoever trained it.

    Args:
        name: a folder or hub name of a whole model or of an adapter, a checkpoint of ours (a file or a folder of
            shards), a GGUF file, or ``pkg://package/file.gguf``.
        base: what an adapter stands on, in place of what its adapter_config.json names; for a checkpoint, what its
            run began with, in place of the name in its settings.
        tokenizer: another tokenizer than the model's own.
        chat_template: a Jinja template or a file that holds one, in place of the tokenizer's own.
        dtype: of the weights; adapters stay in fp32, except under float64.
        device: where to put it; None: the accelerator, where there is one.
        attn_implementation: transformers' attention; None is its choice.
        revision: of a hub name.
        trust_remote_code: run code that a hub repository brings along.

    Raises:
        UserError: there is no such model, an adapter's base is missing, or a checkpoint is not one of ours.
    """
    if dtype == "fastest":
        raise UserError("dtype is 'fastest', which depends on what trains. Allowed: auto, float32, bfloat16, float16.")
    path = Path(name).expanduser()
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        how["attn_implementation"] = attn_implementation
    content: dict[str, Any] = {}
    if (path.is_file() and path.suffix != ".gguf") or (path / ".metadata").is_file():
        content = read_checkpoint(path)
        kind, settings, words = _of_checkpoint(path, content, base, how)
    elif folder := _adapter_folder(str(name), path, revision):
        kind, settings, words = _of_adapter(folder, base, how)
    elif base is not None:
        raise UserError(f"base is {base!r}, but {str(name)!r} is a whole model and stands on nothing. Leave base out.")
    else:
        kind, settings = "model", ModelSettings(str(name), revision=revision, **how)
        words = TokenizerSettings(str(name), revision=revision, trust_remote_code=trust_remote_code)
    words = replace(words, chat_template=chat_template or words.chat_template)
    words = words if tokenizer is None else replace(words, name=tokenizer, revision=None)
    loaded = words.load()
    # new rows would be drawn at random: only a run or an adapter brings the values of those that it added
    scorer = build_scorer(settings, NLL(), 0 if kind == "model" else len(loaded))
    if kind == "checkpoint":
        _load_weights(path, content, scorer, settings)
    scorer = scorer.to(device or _accelerator(), torch.float64 if dtype == "float64" else None)
    return FinishedModel(
        name=str(name),
        kind=kind,
        base=None if kind == "model" else settings.name,
        scorer=scorer.requires_grad_(False).eval(),
        tokenizer=loaded,
        step=content.get("global_step"),
        settings=content.get("hyper_parameters", {}),
    )


def _of_adapter(folder: str, base: str | None, how: dict[str, Any]) -> tuple[Kind, ModelSettings, TokenizerSettings]:
    """Return how to build an adapter's model; the tokenizer beside the adapter goes before that of the base."""
    config = stored_config(folder)
    named = base or config.base_model_name_or_path
    if not named:
        raise UserError(
            f"The adapter {folder!r} does not say what it stands on: its adapter_config.json has no "
            "base_model_name_or_path. Name the base (--base on the command line, base= in Python)."
        )
    revision = None if base else config.revision
    settings = ModelSettings(named, revision=revision, adapter_path=folder, **how)
    has_own = any((Path(folder) / file).is_file() for file in _TOKENIZER_FILES)
    remote = how["trust_remote_code"]
    own = TokenizerSettings(folder, trust_remote_code=remote)
    words = own if has_own else TokenizerSettings(named, revision=revision, trust_remote_code=remote)
    _require_base(named, f"The adapter {folder!r}", settings)
    return "adapter", settings, words


def _adapter_folder(name: str, path: Path, revision: str | None) -> str | None:
    """Return the folder of an adapter under a name, fetched from the hub if need be; None if it is no adapter."""
    if path.is_dir():
        return str(path) if (path / "adapter_config.json").is_file() else None
    if path.suffix == ".gguf" or name.startswith(("pkg://", ".", "/", "~")) or name.count("/") != 1:
        return None
    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        from huggingface_hub import snapshot_download

        return snapshot_download(name, revision=revision, ignore_patterns=["checkpoint-*", "runs/*"])
    except (OSError, ValueError) as error:
        raise UserError(f"No adapter could be loaded from {name!r}: {first_line(error)}") from error


def _of_checkpoint(
    path: Path, content: dict[str, Any], base: str | None, how: dict[str, Any]
) -> tuple[Kind, ModelSettings, TokenizerSettings]:
    """Return how to build the model of a checkpoint as its run built it."""
    given = dict(content.get("hyper_parameters", {}))
    if KEY not in content or "model_name_or_path" not in given:
        raise UserError(
            f"{str(path)!r} is a checkpoint of Lightning, but not of an SFTModule, so its model is not known here. "
            "Save its model as a Hugging Face folder (save_pretrained), and give that."
        )
    if "adapter" not in given:
        raise UserError(
            f"{str(path)!r} is of an SFTModule whose adapter was given as a Python object, which a checkpoint does not "
            "hold. Write the model as a folder in Python, with the same object, and give that:\n"
            f"    module = SFTModule.load_from_checkpoint({str(path)!r}, adapter=...)\n"
            '    lightning_sft.export.folder.write_folder(module, "folder")'
        )
    if base is not None:
        given |= {"model_name_or_path": base, "revision": None}
    given["adapter"] = _as_object(given["adapter"], path)
    given |= {"reference": None, "neftune_noise_alpha": None, "torch_compile": False, "gradient_checkpointing": False}
    given |= {**how, "trust_remote_code": how["trust_remote_code"] or given["trust_remote_code"]}
    settings = ModelSettings.among(given)
    _require_base(settings.name, f"The checkpoint {str(path)!r}", settings)
    return "checkpoint", settings, TokenizerSettings.among(given)


def _as_object(adapter: Any, path: Path) -> PeftConfig | None:
    """Return an adapter's configuration from the plain data that the command line left in a checkpoint."""
    if adapter is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PeftConfig, "adapter")
    try:
        with warnings.catch_warnings():
            # peft is given LoraConfig's default spelled out
            warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
            made = parser.instantiate_classes(parser.parse_object({"adapter": adapter})).adapter
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(
            f"The adapter in the settings of {str(path)!r} cannot be made here: {error}. Read it with the version of "
            "peft that trained it, or give a folder that `lightning-sft export` wrote there."
        ) from error
    assert isinstance(made, PeftConfig)
    return made


def _require_base(base: str, whose: str, settings: ModelSettings) -> None:
    """Raise if what a model stands on is a folder or file that does not exist."""
    place = Path(base).expanduser()
    looks_local = base.startswith((".", "/", "~")) or base.count("/") > 1 or place.suffix == ".gguf"
    if base.startswith("pkg://") or not looks_local or place.exists():
        return
    raise UserError(
        f"{whose} stands on {base!r}, which does not exist (looked from {Path.cwd()}). Name the place where that model "
        "is now (--base on the command line, base= in Python)."
    )


def _load_weights(path: Path, content: dict[str, Any], scorer: TokenScorer, settings: ModelSettings) -> None:
    """Put a checkpoint's weights into the model that was built for it; its frozen base may be left out."""
    stored = shards.weights(path) if path.is_dir() else content["state_dict"]
    prefix = _WEIGHTS.removesuffix("model.")
    weights = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(_WEIGHTS)}
    check_weights(weights, scorer, content[KEY].get("model", "another model"), settings.describe())
    scorer.load_state_dict(weights, strict=not settings.base_comes_back)


def _accelerator() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
