"""Short runs on a plain Hugging Face model, which is restored afterwards to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import PreTrainedModel
from typing_extensions import Self

from lightning_sft.errors import UserError
from lightning_sft.models.access import input_embeddings
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.probes.forward import evaluation
from lightning_sft.sweep.prediction.gains import step_gains
from lightning_sft.sweep.prediction.replay import Field, Gradients, length

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return AdamW with torch's settings and without weight decay; its fused form, where there is one."""
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, weight_decay=0.0, fused=fused)


def first_beta(optimizer: Optimizer) -> float:
    """Return the decay of the optimizer's first moment, 0 if it has none."""
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def only(encoded: EncodedProbes, index: int) -> EncodedProbes:
    """Return one probe of a batch, without its padding."""
    one = slice(index, index + 1)
    length = int(encoded.last[index]) + 1
    ids, mask = encoded.input_ids[one, :length], encoded.attention_mask[one, :length]
    return EncodedProbes(
        encoded.probes[one], ids, mask, encoded.last[one], encoded.correct[one], encoded.competitor[one]
    )


class ModelRunner:
    """Trains a model on the answers of its probes alone, in one batch, without dropout; a context manager.

    Leaving it, the parameters, their gradients, the training modes and the random state are as on entering.

    Args:
        model: the model; parameters that require no gradient stay as they are.
        encoded: probes to train and to read.
        optimizer: builds the optimizer. Rates of parameter groups keep the ratios it gives them.

    Raises:
        UserError: nothing is trainable.
    """

    def __init__(self, model: PreTrainedModel, encoded: EncodedProbes, optimizer: OptimizerFactory = adamw) -> None:
        self._model = model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise UserError("No parameter of the model requires a gradient, so no rate is critical. Unfreeze some.")
        self._make_optimizer = optimizer
        self.encoded = encoded.to(input_embeddings(model).device)
        self.steps = 0
        self._before: list[Tensor] = []
        self._gradients: list[Tensor | None] = []
        self.field = Field()  # gradients along the last run

    def __enter__(self) -> Self:
        self._before = [p.detach().clone() for p in self._parameters]
        self._gradients = [p.grad for p in self._parameters]
        self._clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._before, self._gradients, self.field = [], [], Field()

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.copy_(before)

    @property
    def beta(self) -> float:
        """Decay of the optimizer's first moment."""
        return first_beta(self.new_optimizer())

    def gains(self, steps: int) -> list[float]:
        """Return what each step of the optimizer moves, per unit of rate; see `step_gains`."""
        return step_gains(self.new_optimizer(), steps)

    def new_optimizer(self) -> Optimizer:
        """Return an optimizer as each run begins with."""
        return self._make_optimizer(self._parameters)

    def describe_optimizer(self) -> dict[str, Any]:
        """Return the optimizer's class and settings as plain data."""
        optimizer = self.new_optimizer()
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return {"class": type(optimizer).__qualname__, "groups": groups}

    def train_on(self, encoded: EncodedProbes) -> None:
        """Train and read other probes from now on."""
        self.field = Field()
        self.encoded = encoded.to(self.encoded.last.device)

    def __call__(self, rates: Sequence[float]) -> list[list[float]]:
        """Take a step at each rate from the start, and keep the gradients as `field`; see `GapRunner`."""
        self.begin()
        found, gaps = Field(), []
        for rate in rates:
            read, gradients = self.gradients()
            gaps.append(read)
            found.add(self.distance(), gradients)
            self.move(gradients, rate)
        if rates:
            self.field = found
        return [*gaps, self.gaps()]

    # ------------------------------------------------------------------ step by step: see `Steerable`

    def begin(self) -> None:
        """Go back to the start, with a new optimizer."""
        self._restore()
        self._optimizer = self.new_optimizer()
        first = float(self._optimizer.param_groups[0]["lr"])
        self._ratios = [float(group["lr"]) / first if first else 1.0 for group in self._optimizer.param_groups]

    def gradients(self) -> tuple[list[float], Gradients]:
        """Return gaps and gradients here."""
        with evaluation(self._model), torch.enable_grad():
            logits = self._answers()
            cross_entropy(logits, self.encoded.correct).backward()
        self.steps += 1
        own = [p.grad for p in self._parameters]
        self._clear()
        return self._gaps(logits.detach()), own

    def gaps(self) -> list[float]:
        """Return the gaps here."""
        with evaluation(self._model), torch.no_grad():
            return self._gaps(self._answers())

    def move(self, gradients: Gradients, rate: float) -> None:
        """Take one step of the optimizer on given gradients; parameter groups keep their ratios."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            # a copy: an optimizer may write into what it is given
            parameter.grad = None if gradient is None else gradient.clone()
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio
        self._optimizer.step()
        self._clear()

    @torch.no_grad()
    def distance(self) -> float:
        """Return the Euclidean distance of the weights from their start."""
        return length([p - before for p, before in zip(self._parameters, self._before, strict=True)])

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _answers(self) -> Tensor:
        """Return the logits at the answer positions, (probes, vocab), at least fp32."""
        rows = torch.arange(len(self.encoded.probes), device=self.encoded.last.device)

        def keep_answers(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][rows, self.encoded.last][:, None], *args[1:])

        hook = self._model.get_output_embeddings().register_forward_pre_hook(keep_answers)
        try:
            ids, mask = self.encoded.input_ids, self.encoded.attention_mask
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        finally:
            hook.remove()
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _gaps(self, logits: Tensor) -> list[float]:
        answers = logits.double()
        gap = answers.gather(1, self.encoded.correct[:, None]) - answers.gather(1, self.encoded.competitor[:, None])
        return [float(g) for g in gap[:, 0]]
