"""One training step tried on tensors without data: what is alive when, for any architecture and adapter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim import Optimizer
from transformers import masking_utils
from transformers.integrations import moe

from lightning_sft.errors import UserError, first_line
from lightning_sft.estimate.bare import bare_model, bytes_of, split_config, without_data
from lightning_sft.estimate.head import head_allocations, plain_loss
from lightning_sft.estimate.live import LiveMemory
from lightning_sft.head.sizes import Sizes, sizes_in_place
from lightning_sft.models.access import backbone, find_causal_lm, unembedding
from lightning_sft.models.beside_text import freeze_beside_text
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.loading import Dtype
from lightning_sft.models.sharding import decoder_layers
from lightning_sft.objectives.base import Reads

#: bytes of a weight of a linear layer: nf4 with quantised scales of 64 weights, int8 with a scale a row
_QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / 64 / 256}


@dataclass(frozen=True)
class StepPlan:
    """A training step, as far as memory depends on it.

    Attributes:
        model: settings of the model; their dtype is decided.
        rows: of a micro-batch.
        length: tokens of a row, padding included.
        accumulates: whether gradients of an earlier micro-batch are there when one is computed.
        supervised: share of the tokens that the head sees.
        optimizer: makes the optimizer from parameter groups.
        reads: what the objective reads.
        autocast: dtype of products under mixed precision; None computes in the weights' own.
        sizes: of the head's blocks.
        splits: ranks that share out each layer.
        compares: whether a reference model is read, too.
        padded: whether batches carry a mask.
    """

    model: ModelSettings
    rows: int
    length: int
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    accumulates: bool = False
    supervised: float = 1.0
    reads: Reads = "logp"
    autocast: torch.dtype | None = None
    sizes: Sizes = field(default_factory=Sizes)
    splits: int = 1
    compares: bool = False
    padded: bool = False


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one device that holds everything.

    Attributes:
        parameters: number of them, and how many train.
        weights: of the model, adapter included.
        trained: of the weights that train: what their gradients take.
        states: of the optimizer; None where it would not say, and two fp32 numbers a weight are assumed.
        states_known: whether the optimizer said it.
        layer: the largest decoder layer's weights, and those of them that train.
        root: the same of everything outside of the layers.
        activations: alive when the decoder has run.
        head: alive beside them at the head's peak.
        curve: (bytes of gradients, the most of everything but weights and states that was alive beside them).
    """

    parameters: tuple[int, int]
    weights: int
    trained: int
    states: int
    states_known: bool
    layer: tuple[int, int]
    root: tuple[int, int]
    activations: int
    head: int
    curve: tuple[tuple[int, int], ...]

    def moving(self, share: float = 1.0) -> int:
        """Return the most bytes of gradients and everything that comes and goes, if a rank keeps a share of the former.

        Args:
            share: of a gradient that a rank keeps once it is complete.
        """
        return max(int(share * gradients) + rest for gradients, rest in self.curve)

    def moving_whole(self, share: float) -> int:
        """Return the same where gradients are whole until they are sent.

        Those outside of the layers are sent last of all, and those of a layer when the next one is through.

        Args:
            share: of a gradient that a rank keeps once it is sent.
        """
        found = []
        for gradients, rest in self.curve:
            outside = min(gradients, self.root[1])
            of_layers = gradients - outside
            waiting = min(of_layers, 2 * self.layer[1])
            found.append(int(outside + waiting + share * (of_layers - waiting)) + rest)
        return max(found)


def try_step(plan: StepPlan, config: Any) -> StepMemory:
    """Run one training step without data, and return what was alive.

    Args:
        plan: of the step.
        config: of the model; it is not changed.

    Raises:
        UserError: the model cannot be made, not be split, or not be run without data.
    """
    config = copy.deepcopy(config)
    if plan.splits > 1:
        split_config(config, plan.splits)
    model = bare_model(plan.model, config)
    if not plan.model.has_adapter:  # else the base is frozen as a whole
        freeze_beside_text(find_causal_lm(model))
    weights, layer, root = _sizes_of(model, plan.model.quantization)
    trained = [p for p in model.parameters() if p.requires_grad]
    states, known = _states(trained, plan.optimizer)
    activations, head, curve = _forward_and_backward(plan, model)
    return StepMemory(
        parameters=(sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trained)),
        weights=weights,
        trained=bytes_of(trained),
        states=states,
        states_known=known,
        layer=layer,
        root=root,
        activations=activations,
        head=head,
        curve=curve,
    )


def dtype_of(dtype: Dtype, config: Any) -> Dtype:
    """Return the dtype that ``auto`` means for a model, or the given one."""
    if dtype != "auto":
        return dtype
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return cast("Dtype", str(stored or torch.float32).removeprefix("torch."))


def _forward_and_backward(plan: StepPlan, model: nn.Module) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return the bytes of activations, those of the head beside them, and the curve of the whole."""
    ids_shape = (plan.rows, plan.length)
    tokens = max(1, round(plan.supervised * plan.rows * plan.length))
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_data(model)
        causal_lm = find_causal_lm(model)
        with LiveMemory([*model.parameters(), *model.buffers()]) as live:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(
                        lambda p: live.declare_gradient(p.grad) if p.grad is not None else None
                    )
            mask = torch.empty(plan.rows, 1, plan.length, plan.length, dtype=torch.bool) if plan.padded else None
            with _in_words(causal_lm), _plain_rows(), _experts_of_any_dtype():
                with _autocast(plan.autocast):
                    ids = torch.zeros(ids_shape, dtype=torch.long)
                    hidden = backbone(causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
                    activations = live.rest
                    chosen = hidden.flatten(0, 1).index_select(0, torch.zeros(tokens, dtype=torch.long))
                    of_decoder = live.curve.copy()
                    live.curve.clear()
                    loss = _loss(plan, causal_lm, chosen)
                    head = max(live.curve.values()) - activations
                    live.curve[0] = max(live.curve[0], *of_decoder.values())
                del hidden, chosen
                loss.backward()
                del loss
            del mask
            if plan.accumulates:  # all gradients are there from the first micro-batch on, and are added to
                return activations, head, ((max(live.curve), max(live.curve.values())),)
            return activations, head, tuple(live.curve.items())


def _loss(plan: StepPlan, model: Any, hidden: torch.Tensor) -> torch.Tensor:
    try:
        matrix = unembedding(model)
    except UserError:  # an adapter on it, or scales in words: the model's own logits
        return plain_loss(hidden, model.get_output_embeddings().weight)
    if plan.model.head == "reference":
        return plain_loss(hidden, matrix.weight)
    dtype = hidden.dtype if plan.autocast is None else plan.autocast
    sizes = plan.sizes
    if plan.reads == "logp" and matrix.weight.dtype == torch.bfloat16 and matrix.weight.requires_grad:
        sizes = sizes_in_place(sizes, *hidden.shape)
    more = int(plan.compares), matrix.softcap is not None
    return head_allocations(hidden, matrix.weight, dtype, plan.reads, sizes, *more)


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


@contextlib.contextmanager
def _plain_rows() -> Iterator[None]:
    """Let transformers see that no row is packed, which it reads from values, and builds masks where it cannot."""
    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


@contextlib.contextmanager
def _experts_of_any_dtype() -> Iterator[None]:
    """Multiply experts by transformers' own operator: without data torch's knows its shapes in bfloat16 alone."""
    can_use = getattr(moe, "_can_use_grouped_mm", None)
    if can_use is None:
        yield
        return
    moe._can_use_grouped_mm = lambda *_args: False
    try:
        yield
    finally:
        moe._can_use_grouped_mm = can_use


@contextlib.contextmanager
def _in_words(model: Any) -> Iterator[None]:
    """Say of an architecture that it cannot be run without data."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise UserError(
            f"What {type(model).__name__} does depends on the values in its tensors ({first_line(error)}), so its "
            "step cannot be tried without data. Measure it instead: lightning advise --skip data,capability,rate."
        ) from error


def _sizes_of(model: nn.Module, quantization: str | None) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Return the bytes of all weights, and of the largest layer and the rest: (all, those that train)."""
    causal_lm = find_causal_lm(model)
    output = causal_lm.get_output_embeddings()
    packed = {
        id(module.weight)
        for module in model.modules()
        if quantization and isinstance(module, nn.Linear) and module is not output and not module.weight.requires_grad
    }
    factor = _QUANTISED[quantization.partition("-")[0]] if quantization else 1.0

    def size(tensors: Any) -> int:
        own = {id(t): t for t in tensors}.values()
        return int(sum(t.numel() * (factor if id(t) in packed else t.element_size()) for t in own))

    def both(module: nn.Module) -> tuple[int, int]:
        return size(module.parameters()), size(p for p in module.parameters() if p.requires_grad)

    whole = both(model)
    try:
        layers = [both(layer) for layer in decoder_layers(causal_lm).values()]
    except UserError:
        layers = [(0, 0)]
    rest = tuple(total - sum(parts) for total, parts in zip(whole, zip(*layers, strict=True), strict=True))
    buffers = size(model.buffers())
    return whole[0] + buffers, max(layers), (rest[0], rest[1])


def _states(trained: list[nn.Parameter], make: Callable[[list[dict[str, Any]]], Optimizer]) -> tuple[int, bool]:
    """Let an optimizer take a step on parameters without data; return the bytes of its states, and whether it did."""
    twins = [nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta")) for p in trained]
    for twin in twins:
        twin.grad = torch.empty_like(twin)
    groups = [{"params": [t for t in twins if (t.ndim >= 2) == decays]} for decays in (True, False)]
    optimizer = make([group for group in groups if group["params"]])
    with contextlib.suppress(RuntimeError, NotImplementedError):  # one that reads values has made its states by then
        optimizer.step()
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    known = bool(held) or not any(name in type(optimizer).__name__.lower() for name in ("ada", "lion", "8bit"))
    return (bytes_of(held), True) if known else (8 * sum(t.numel() for t in twins), False)
