"""From settings to a TokenScorer: load, adapt, check the head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import PeftConfig, PeftType
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import Self

from lightning_sft.errors import UserError, first_line
from lightning_sft.head import HeadKind
from lightning_sft.models.access import backbone, find_causal_lm, input_embeddings
from lightning_sft.models.adapters import add_adapter, load_adapter, require_stored_rows, stored_config
from lightning_sft.models.checkpoint_tensors import NotByShards
from lightning_sft.models.checkpointing import enable_checkpointing
from lightning_sft.models.flat import DocumentRows
from lightning_sft.models.loading import Dtype, Init, grow_embeddings, load_causal_lm
from lightning_sft.models.neftune import EmbeddingNoise
from lightning_sft.models.proofs import check_causal
from lightning_sft.models.quantization import Quantization
from lightning_sft.models.reach import measure_reach
from lightning_sft.models.reference import FrozenReference, Reference, Snapshot, check_rows
from lightning_sft.models.router import asks_for_router_loss, router_coefficient
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.shard_loading import ShardLoading
from lightning_sft.models.targets import adaptable_weights
from lightning_sft.models.trials import checked_head, copy_to_try, try_new_rows, try_new_rows_on
from lightning_sft.models.tuners import changes_base
from lightning_sft.objectives import Objective

#: kinds of adapters that are drawn at random or constant; where a variant of them is not (DoRA), that shows
_DRAWN = (PeftType.LORA, PeftType.ADALORA, PeftType.IA3, PeftType.LOHA, PeftType.LOKR)


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

    @property
    def copies_embeddings(self) -> bool:
        """Whether the adapter begins with copies of other modules or of single rows, most often of the embeddings."""
        return any(getattr(self.adapter_config, name, None) for name in ("modules_to_save", "trainable_token_indices"))

    def describe(self) -> str:
        """Return a short description for messages and checkpoints."""
        adapter = "" if self.adapter is None else f" with {type(self.adapter).__name__}"
        adapter = adapter if self.adapter_path is None else f" with the adapter {self.adapter_path!r}"
        return f"{self.name!r} ({self.init}){adapter}"


def build_scorer(
    settings: ModelSettings,
    objective: Objective,
    vocabulary: int,
    *,
    packed: bool = False,
    flat: bool = False,
    shards: ShardLoading | None = None,
) -> TokenScorer:
    """Load the model, add the adapter, choose the head and switch on what the settings ask for.

    Args:
        settings: which model, and how.
        objective: decides whether a reference model is kept, and which.
        vocabulary: number of token ids that the embeddings must hold.
        packed: whether rows will hold several documents: an error where the model does not keep them apart.
        flat: whether rows may lie end to end; ``flat_refusal`` of the scorer says why not. Either decides which
            attention is the default.
        shards: leave weights out of the model, and let this read them when it is sharded. Where that is not possible
            they are loaded, and the log says why.

    Raises:
        UserError: on a model, an adapter or a head that cannot work.
    """
    asked = (packed, flat, settings.attn_implementation)
    if shards is not None:
        random = torch.get_rng_state()
        try:
            return _build(settings, objective, vocabulary, DocumentRows(*asked), shards)
        except NotByShards as why:
            shards.give_up(str(why))
            torch.set_rng_state(random)
    return _build(settings, objective, vocabulary, DocumentRows(*asked), None)


def _build(
    settings: ModelSettings, objective: Objective, vocabulary: int, rows: DocumentRows, shards: ShardLoading | None
) -> TokenScorer:
    """Build a scorer; with ``shards`` without weights, on which nothing can be tried but on a small copy.

    Raises:
        NotByShards: the weights are needed before they are there.
    """
    if shards is not None:
        _require_no_weights(settings)
    model: nn.Module = load_causal_lm(
        settings.name,
        init=settings.init,
        dtype=settings.dtype,
        config_overrides=settings.config_overrides,
        attn_implementation=settings.attn_implementation,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
        shards=shards,
    )
    if shards is not None and (vocabulary > len(input_embeddings(find_causal_lm(model))) or settings.copies_embeddings):
        causal_lm = find_causal_lm(model)
        shards.read_now(causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    new_rows = grow_embeddings(find_causal_lm(model), vocabulary, settings.init)
    if shards is None:
        try_new_rows(find_causal_lm(model), new_rows)
    usual_attention = rows.choose_attention(find_causal_lm(model))
    copy_to_look_at = copy_to_try(find_causal_lm(model), needed=shards is not None)
    if shards is not None:
        try_new_rows_on(copy_to_look_at, new_rows)
    check_causal(find_causal_lm(model), copy_to_look_at)
    rows.prove(find_causal_lm(model), copy_to_look_at, usual_attention)
    reference: Reference | None = _frozen_reference(settings, objective, find_causal_lm(model), rows, shards)
    with contextlib.nullcontext() if shards is None or not settings.has_adapter else shards.standing_in(model):
        weights = adaptable_weights(find_causal_lm(model)) if settings.has_adapter else {}
        model = _adapted(settings, find_causal_lm(model), shards)
        reach = measure_reach(weights, model) if settings.has_adapter else None
    causal_lm = find_causal_lm(model)
    if settings.base_comes_back and new_rows:
        require_stored_rows(causal_lm, new_rows, settings.name)
    if settings.gradient_checkpointing:
        enable_checkpointing(causal_lm)
    head = checked_head(settings.head, model, None if shards is None else copy_to_look_at)
    if reference is not None and head != "reference":
        tried = None if shards is None else copy_to_try(find_causal_lm(reference), needed=True)
        head = checked_head(settings.head, reference, tried)
    if objective.snapshot_every:
        reference = Snapshot(model)
    scorer = TokenScorer(model, head, reference)
    scorer.with_boundaries, scorer.flat_refusal = rows.with_boundaries, rows.flat_refusal
    if asks_for_router_loss(causal_lm):
        scorer.router_coefficient = router_coefficient(causal_lm, copy_to_look_at)
    scorer.adapter_reach = reach
    if settings.neftune_noise_alpha is not None:
        scorer.noise = EmbeddingNoise(causal_lm.get_input_embeddings(), settings.neftune_noise_alpha)
    if settings.torch_compile:
        backbone(causal_lm).compile()
    if shards is not None:
        shards.check(scorer)
    return scorer.train()


def _require_no_weights(settings: ModelSettings) -> None:
    """Raise if settings are such that the weights must be there before the model is sharded.

    Raises:
        NotByShards: says which.
    """
    adapter = settings.adapter_config
    if settings.init == "random":
        raise NotByShards("its weights are drawn at random")
    if changes_base(adapter) or (adapter is not None and adapter.peft_type not in _DRAWN):
        raise NotByShards(f"its adapter ({type(adapter).__name__}) may begin with what it makes of the weights")


def _adapted(settings: ModelSettings, model: PreTrainedModel, shards: ShardLoading | None) -> nn.Module:
    """Return the model with the adapter of the settings, if they have one."""
    try:
        if settings.adapter is not None:
            return add_adapter(model, settings.adapter)
        if settings.adapter_path is not None:
            return load_adapter(model, settings.adapter_path)
    except Exception as error:  # peft may compute with weights that are not there, in any way
        if shards is None:
            raise
        raise NotByShards(f"its adapter is not made without weights: {first_line(error)}") from error
    return model


def _frozen_reference(
    settings: ModelSettings,
    objective: Objective,
    model: PreTrainedModel,
    rows: DocumentRows,
    shards: ShardLoading | None,
) -> FrozenReference | None:
    """Return the frozen model that an objective compares with; None where it needs none, or the model itself will do.

    Args:
        settings: name another checkpoint, if wanted; else it is a copy of the model, if there is no adapter to
            switch off.
        objective: says what it compares with.
        model: before it has an adapter.
        rows: what is known about documents in one row.
        shards: leaves out weights.

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
            shards=shards,
        )
        check_rows(reference, model, settings.reference)
        usual_attention = rows.choose_attention(reference)
        rows.prove_reference(reference, copy_to_try(reference), usual_attention, settings.reference)
    elif settings.has_adapter and not changes_base(settings.adapter):
        return None
    else:
        reference = copy.deepcopy(model)
        if shards is not None:
            shards.copied(model, reference)
    return FrozenReference(reference)
