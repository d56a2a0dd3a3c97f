"""Any finished model for reading: a Hugging Face model, an adapter on its base, or a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.checkpoints import shards
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.checkpoints.state import KEY, check_weights
from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.metrics.answers import AnswerReading, answer_spans, read_answers
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.found import Kind, adapter_folder, of_adapter, of_checkpoint
from lightning_sft.models.generation import end_tokens
from lightning_sft.models.loading import Dtype
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.tokenizer import TokenizerSettings
from lightning_sft.objectives import NLL, Objective

#: under which names a checkpoint of ours holds the weights of the model that it trained
_WEIGHTS = "scorer.model."


@dataclass(frozen=True)
class FinishedModel:
    """A model that nobody trains here: frozen, in eval mode, with its tokenizer.

    Attributes:
        name: as it was asked for.
        base: what the adapter stands on, or what the checkpoint's run began with; None for whole models.
        scorer: decoder and head.
        tokenizer: the model's own, with its chat template.
        step: optimizer steps that its run had taken, where a checkpoint says so.
    """

    name: str
    base: str | None
    scorer: TokenScorer
    tokenizer: PreTrainedTokenizerBase
    step: int | None

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
            Losses and scores of the supervised tokens: ``logp``, ``is_top1``, ``margin``, ``competitor``, ``row`` and
            ``source``.
        """
        here = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        output = self.scorer(here, objective or NLL())
        assert isinstance(output, HeadOutput)
        return output

    def answers(self, batch: Mapping[str, Any], output: HeadOutput) -> AnswerReading:
        """Judge the answers of a batch by what `score` returned for it: ``exact`` and ``logp`` of each."""
        labels = batch["labels"].to(output.scores.logp.device)
        return read_answers(output.scores, answer_spans(labels, end_tokens(self.causal_lm, self.tokenizer)))


@dataclass(frozen=True)
class FoundModel:
    """A finished model that is not loaded yet.

    Attributes:
        name: as it was asked for.
        kind: what stands under the name.
        settings: how its model is built.
        tokenizer_settings: which tokenizer it has.
        content: of a checkpoint, its tensors left on the disk; empty for others.
    """

    name: str
    kind: Kind
    settings: ModelSettings
    tokenizer_settings: TokenizerSettings
    content: Mapping[str, Any]

    @property
    def base(self) -> str | None:
        """What the adapter stands on, or what the checkpoint's run began with; None for whole models."""
        return None if self.kind == "model" else self.settings.name

    @property
    def step(self) -> int | None:
        """Optimizer steps that its run had taken, where a checkpoint says so."""
        return self.content.get("global_step")

    def load(self, device: str | torch.device | None = None) -> FinishedModel:
        """Load it.

        Args:
            device: where to put it; None: the accelerator, where there is one.

        Raises:
            UserError: weights that do not fit, or a model that cannot be read.
        """
        tokenizer = self.tokenizer_settings.load()
        # new rows would be drawn at random: only a run or an adapter brings the values of those that it added
        scorer = build_scorer(self.settings, NLL(), 0 if self.kind == "model" else len(tokenizer))
        if self.kind == "checkpoint":
            _load_weights(Path(self.name).expanduser(), self.content, scorer, self.settings)
        scorer.with_competitors = True
        scorer = scorer.to(device or _accelerator(), torch.float64 if self.settings.dtype == "float64" else None)
        return FinishedModel(self.name, self.base, scorer.requires_grad_(False).eval(), tokenizer, self.step)


def load_finished(
    name: str | Path, *, base: str | None = None, device: str | torch.device | None = None, **how: Any
) -> FinishedModel:
    """Load a finished model, whoever trained it.

    Args:
        name: a folder or hub name of a whole model or of an adapter, a checkpoint of ours (a file or a folder of
            shards), a GGUF file, or ``pkg://package/file.gguf``.
        base: what an adapter stands on, in place of what its adapter_config.json names; for a checkpoint, what its
            run began with, in place of the name in its settings.
        device: where to put it; None: the accelerator, where there is one.
        how: further arguments of `find_finished`, such as ``dtype``.

    Raises:
        UserError: there is no such model, an adapter's base is missing, or a checkpoint is not one of ours.
    """
    return find_finished(name, base=base, **how).load(device)


def find_finished(
    name: str | Path,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FoundModel:
    """Find out what stands under a name, without loading weights.

    Args:
        name: see `load_finished`.
        base: see `load_finished`.
        tokenizer: another tokenizer than the model's own.
        chat_template: a Jinja template or a file that holds one, in place of the tokenizer's own.
        dtype: of the weights; adapters stay in fp32, except under float64.
        attn_implementation: transformers' attention; None is its choice.
        revision: of a hub name.
        trust_remote_code: run code that a hub repository brings along.

    Raises:
        UserError: an adapter's base is missing, or a checkpoint is not one of ours.
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
        kind, settings, words = of_checkpoint(path, content, base, how)
    elif folder := adapter_folder(str(name), path, revision):
        kind, settings, words = of_adapter(folder, base, how)
    elif base is not None:
        raise UserError(f"base is {base!r}, but {str(name)!r} is a whole model and stands on nothing. Leave base out.")
    else:
        kind, settings = "model", ModelSettings(str(name), revision=revision, **how)
        words = TokenizerSettings(str(name), revision=revision, trust_remote_code=trust_remote_code)
    words = replace(words, chat_template=chat_template or words.chat_template)
    words = words if tokenizer is None else replace(words, name=tokenizer, revision=None)
    return FoundModel(str(name), kind, settings, words, content)


def _load_weights(path: Path, content: Mapping[str, Any], scorer: TokenScorer, settings: ModelSettings) -> None:
    """Put a checkpoint's weights into the model that was built for it; its frozen base may be left out."""
    stored = shards.weights(path) if path.is_dir() else content["state_dict"]
    prefix = _WEIGHTS.removesuffix("model.")
    weights = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(_WEIGHTS)}
    check_weights(weights, scorer, content[KEY].get("model", "another model"), settings.describe())
    scorer.load_state_dict(weights, strict=not settings.base_comes_back)


def _accelerator() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
