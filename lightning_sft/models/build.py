"""From settings to a TokenScorer: load, adapt, check the head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from lightning_sft.errors import UserError, first_line
from lightning_sft.head import HeadKind, Unembedding, choose_head
from lightning_sft.models.access import backbone, find_causal_lm, unembedding, vocabulary_size
from lightning_sft.models.adapters import add_adapter, load_adapter, require_stored_rows, stored_config
from lightning_sft.models.flat import DocumentRows
from lightning_sft.models.loading import Dtype, Init, grow_embeddings, load_causal_lm
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.neftune import EmbeddingNoise
from lightning_sft.models.proofs import check_causal
from lightning_sft.models.quantization import Quantization
from lightning_sft.models.reach import measure_reach
from lightning_sft.models.reference import FrozenReference, Reference, Snapshot, check_rows
from lightning_sft.models.router import asks_for_router_loss, router_coefficient
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.small_copy import CopyFailed, small_copy
from lightning_sft.models.targets import adaptable_weights
from lightning_sft.models.tuners import changes_base
from lightning_sft.objectives import Objective


@dataclass(frozen=True)
class ModelSettings:
    """Everything that decides which model is trained; the fields are those of `SFTModule`."""

    name: str
    adapter: PeftConfig | None = None
    head: HeadKind = "auto"
    init: Init = "pretrained"
    dtype: Dtype = "float32"
    config_overrides: dict[str, Any] | None = None
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    neftune_noise_alpha: float | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    adapter_path: str | None = None
    quantization: Quantization | None = None
    reference: str | None = None
    reference_dtype: Dtype = "auto"

    @classmethod
    def among(cls, given: Mapping[str, Any]) -> Self:
        """Pick the fields out of the arguments of a module, where ``name`` is called ``model_name_or_path``."""
        own = {field.name for field in fields(cls)}
        return cls(given["model_name_or_path"], **{name: value for name, value in given.items() if name in own})

    def __post_init__(self) -> None:
        """Raise on settings that exclude each other.

        Raises:
            UserError: names both.
        """
        if self.adapter is not None and self.adapter_path is not None:
            raise UserError(
                f"adapter ({type(self.adapter).__name__}) and adapter_path ({self.adapter_path!r}) are both given: one "
                "makes a fresh adapter, the other goes on with a stored one, whose configuration is in its folder. "
                "Give one of them."
            )
        if self.quantization is not None and not self.has_adapter:
            raise UserError(
                f"quantization is {self.quantization!r} without an adapter: quantised weights cannot train. Add "
                "adapter: peft.LoraConfig, or set quantization: null."
            )
        if self.quantization is not None and self.init == "random":
            raise UserError(f"quantization is {self.quantization!r} with init: random. Use init: pretrained.")

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter trains and the base is frozen."""
        return self.adapter is not None or self.adapter_path is not None

    @property
    def adapter_config(self) -> PeftConfig | None:
        """The configuration of the adapter, given or stored."""
        return self.adapter if self.adapter_path is None else stored_config(self.adapter_path)

    @property
    def base_comes_back(self) -> bool:
        """Whether the frozen weights can be left out of checkpoints, as the model's source brings them back."""
        return self.has_adapter and self.init == "pretrained" and not changes_base(self.adapter_config)

    def describe(self) -> str:
        """Return a short description for messages and checkpoints."""
        adapter = "" if self.adapter is None else f" with {type(self.adapter).__name__}"
        adapter = adapter if self.adapter_path is None else f" with the adapter {self.adapter_path!r}"
        return f"{self.name!r} ({self.init}){adapter}"


def build_scorer(
    settings: ModelSettings, objective: Objective, vocabulary: int, *, packed: bool = False, flat: bool = False
) -> TokenScorer:
    """Load the model, add the adapter, choose the head and switch on what the settings ask for.

    Args:
        settings: which model, and how.
        objective: decides whether a reference model is kept, and which.
        vocabulary: number of token ids that the embeddings must hold.
        packed: whether rows will hold several documents: an error where the model does not keep them apart.
        flat: whether rows may lie end to end; ``flat_refusal`` of the scorer says why not. Either decides which
            attention is the default.

    Raises:
        UserError: on a model, an adapter or a head that cannot work.
    """
    model: nn.Module = load_causal_lm(
        settings.name,
        init=settings.init,
        dtype=settings.dtype,
        config_overrides=settings.config_overrides,
        attn_implementation=settings.attn_implementation,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
    )
    new_rows = grow_embeddings(find_causal_lm(model), vocabulary, settings.init)
    _try_new_rows(find_causal_lm(model), new_rows)
    rows = DocumentRows(packed, flat, settings.attn_implementation)
    usual_attention = rows.choose_attention(find_causal_lm(model))
    copy_to_look_at = _small_copy(find_causal_lm(model))
    check_causal(find_causal_lm(model), copy_to_look_at)
    rows.prove(find_causal_lm(model), copy_to_look_at, usual_attention)
    reference: Reference | None = _frozen_reference(settings, objective, find_causal_lm(model), rows)
    weights = adaptable_weights(find_causal_lm(model)) if settings.has_adapter else {}
    if settings.adapter is not None:
        model = add_adapter(find_causal_lm(model), settings.adapter)
    if settings.adapter_path is not None:
        model = load_adapter(find_causal_lm(model), settings.adapter_path)
    causal_lm = find_causal_lm(model)
    if settings.base_comes_back and new_rows:
        require_stored_rows(causal_lm, new_rows, settings.name)
    if settings.gradient_checkpointing:
        _enable_checkpointing(causal_lm)
    head = checked_head(settings.head, model)
    if reference is not None and head != "reference":
        head = checked_head(settings.head, reference)
    if objective.snapshot_every:
        reference = Snapshot(model)
    scorer = TokenScorer(model, head, reference)
    scorer.with_boundaries, scorer.flat_refusal = rows.with_boundaries, rows.flat_refusal
    if asks_for_router_loss(causal_lm):
        scorer.router_coefficient = router_coefficient(causal_lm, copy_to_look_at)
    scorer.adapter_reach = measure_reach(weights, model) if settings.has_adapter else None
    if settings.neftune_noise_alpha is not None:
        scorer.noise = EmbeddingNoise(causal_lm.get_input_embeddings(), settings.neftune_noise_alpha)
    if settings.torch_compile:
        backbone(causal_lm).compile()
    return scorer.train()


def _frozen_reference(
    settings: ModelSettings, objective: Objective, model: PreTrainedModel, rows: DocumentRows
) -> FrozenReference | None:
    """Return the frozen model that an objective compares with; None where it needs none, or the model itself will do.

    Args:
        settings: name another checkpoint, if wanted; else it is a copy of the model, if there is no adapter to
            switch off.
        objective: says what it compares with.
        model: before it has an adapter.
        rows: what is known about documents in one row.

    Raises:
        UserError: a checkpoint is named for an objective that compares with snapshots, has too few rows of logits, or
            keeps packed documents apart in another way than the model.
    """
    if objective.reference == "none":
        return None
    if objective.snapshot_every:
        if settings.reference is not None:
            raise UserError(
                f"model.reference is {settings.reference!r}, but {type(objective).__name__} compares the model with "
                "snapshots of itself. Set model.reference: null, or take another objective."
            )
        return None
    if settings.reference is not None:
        reference = load_causal_lm(
            settings.reference,
            dtype=settings.reference_dtype,
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
        )
        check_rows(reference, model, settings.reference)
        usual_attention = rows.choose_attention(reference)
        rows.prove_reference(reference, _small_copy(reference), usual_attention, settings.reference)
    elif settings.has_adapter and not changes_base(settings.adapter):
        return None
    else:
        reference = copy.deepcopy(model)
    return FrozenReference(reference)


def _small_copy(model: PreTrainedModel) -> PreTrainedModel | None:
    try:
        return small_copy(model)
    except CopyFailed:
        return None


def _enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass, without reentrant autograd, which DDP and frozen inputs dislike."""
    arguments = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # the name in late releases of transformers 5
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    except ValueError as error:
        raise UserError(
            f"gradient_checkpointing is true, but {first_line(error)} Set gradient_checkpointing: false; a smaller "
            "data.batch_size with trainer.accumulate_grad_batches saves memory, too."
        ) from error


@torch.no_grad()
def _try_new_rows(model: PreTrainedModel, rows: range) -> None:
    """Run the model on the last of its new tokens: some keep tables by token that do not grow with the embeddings."""
    if not rows:
        return
    ids = torch.tensor([[rows.start - 1, rows.stop - 1]], device=model.device)
    try:
        with eval_mode(model), _attention_for(model):
            model(input_ids=ids, use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The vocabulary of {type(model).__name__} grew from {rows.start} to {rows.stop} tokens, and it cannot run "
            f"on the new ones: {first_line(error)}. It keeps other tables by token than its embeddings. Leave "
            "add_special_tokens out, or use unused tokens of its tokenizer."
        ) from error


@contextlib.contextmanager
def _attention_for(model: PreTrainedModel) -> Iterator[None]:
    """Attend in plain products while a model that is to train with flash attention is still on the CPU."""
    chosen = str(model.config._attn_implementation)
    if "flash" not in chosen or model.device.type != "cpu":
        yield
        return
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


@torch.no_grad()
def checked_head(kind: HeadKind, model: nn.Module) -> HeadKind:
    """Compare the head's logits with the model's own on a few tokens, and decide."""
    if kind == "reference":
        return kind
    causal_lm = find_causal_lm(model)
    ids = torch.arange(8, device=causal_lm.device)[None] % vocabulary_size(causal_lm)

    def parts() -> tuple[Tensor, Unembedding]:
        hidden = backbone(causal_lm)(input_ids=ids, use_cache=False).last_hidden_state[0]
        matrix = unembedding(causal_lm)
        if hidden.shape[-1] != matrix.weight.shape[1]:
            raise UserError(
                f"its hidden states have {hidden.shape[-1]} values and its unembedding takes {matrix.weight.shape[1]}; "
                "something stands between them."
            )
        return hidden, matrix

    with eval_mode(causal_lm), _attention_for(causal_lm):
        return choose_head(kind, lambda: causal_lm(input_ids=ids, use_cache=False).logits[0], parts)
