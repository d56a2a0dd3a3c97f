"""Terms that a subclass adds to the loss, averaged over micro-batches and ranks beside gradients exact to the token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_sft.errors import UserError
from lightning_sft.training.accumulation import WithValue


class ExtraLoss:
    """Joins the term ``extra_loss`` of a returned mapping to the loss of the step.

    The gradient of the losses is multiplied by one number at the end of the optimizer step, when its tokens are known.
    A term of its own must not be, so it enters the backward pass of the last micro-batch, divided by that number; the
    graphs of earlier micro-batches' terms are kept until then.

    Attributes:
        own: the loss that the module itself made for the micro-batch under way; None outside.
        depth: overrides of ``training_step`` that are under way, one inside of the other.
        factor: what the gradients of the step under way are to be multiplied by, where that is known early.
    """

    def __init__(self) -> None:
        self.own: Tensor | None = None
        self.factor: float | None = None
        self._held: list[Tensor] = []
        self.depth = 0

    @property
    def keeps_graph(self) -> bool:
        """Whether the backward pass must leave the graph, as a term that is still to come may share it."""
        return bool(self._held)

    def reset(self) -> None:
        """Forget the terms of a step that was never finished."""
        self.own, self.factor, self._held = None, None, []

    def taken(self) -> float | None:
        """Return the early factor, and forget it."""
        factor, self.factor = self.factor, None
        return factor

    def read(self, output: Any) -> Tensor | None:
        """Return the term of a returned mapping, or None.

        Raises:
            UserError: the loss is not the one that the module made, or the term is no scalar.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not self.own:
            raise UserError(
                "training_step returned another loss than super().training_step made. The gradient of that loss is "
                "that of a sum over tokens, divided by all tokens of the optimizer step at its end, so a term added to "
                "it would be scaled, too. Leave out['loss'] as it is, and return the term as out['extra_loss']: it is "
                "averaged over micro-batches and ranks. To change the losses of tokens, write an objective."
            )
        extra = output.get("extra_loss") if isinstance(output, Mapping) else None
        if extra is not None and (not isinstance(extra, Tensor) or extra.numel() != 1):
            what = f"a tensor of shape {tuple(extra.shape)}" if isinstance(extra, Tensor) else type(extra).__name__
            raise UserError(f"extra_loss is {what}. Allowed: a scalar tensor, the term of this micro-batch.")
        return None if extra is None else extra.reshape(())

    def hold(self, extra: Tensor | None, parameters: Any) -> None:
        """Keep the term of a micro-batch that is not the last of its step.

        Raises:
            UserError: the parameters are sharded: graphs do not outlive a backward pass there.
        """
        if extra is None:
            return
        if any(isinstance(p, DTensor) for p in parameters):
            raise UserError(
                "extra_loss with accumulate_grad_batches above 1 cannot be exact where parameters are sharded. Use "
                "accumulate_grad_batches: 1, or trainer.strategy: ddp."
            )
        self._held.append(extra)

    def joined(self, extra: Tensor | None, *, micro_batches: int, divided_by: int, last: float | None) -> Tensor:
        """Return the loss of a micro-batch with its term: its value is the sum of both.

        Args:
            extra: the term of this micro-batch.
            micro_batches: of the step.
            divided_by: what the caller divides the loss by.
            last: what gradients are multiplied by after the backward pass, if it is the step's last; None: it is not.
        """
        assert self.own is not None
        loss = self.own
        if last is not None:
            terms = [*self._held, *([] if extra is None else [extra])]
            self._held = []
            if terms and last:
                loss = loss + sum(terms).to(loss.dtype) * (divided_by / (last * micro_batches))  # type: ignore[union-attr]
        if extra is None:
            shown = self.own.detach()
        else:
            shown = self.own.detach() + extra.detach().to(loss.dtype) * divided_by
        value = WithValue.apply(loss, shown)  # type: ignore[no-untyped-call]  # torch types it so
        assert isinstance(value, Tensor)
        return value


class TakesExtraLoss:
    """A base of the module whose subclasses may return ``extra_loss``: their ``training_step`` is wrapped.

    The module has ``steps``, whose ``joined`` gets what the outermost override has returned.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        made_here = TakesExtraLoss in cls.__bases__  # the module itself, which makes the loss
        step = getattr(cls, "training_step", None)
        if made_here or step is None or getattr(step, "joins", False) or step in _own_steps(cls):
            return
        cls.training_step = _joining(step)  # type: ignore[attr-defined]


def _own_steps(cls: type) -> list[Any]:
    """Return the ``training_step`` of the module that a class derives from, as it was written."""
    return [vars(base).get("training_step") for base in cls.__mro__ if TakesExtraLoss in base.__bases__]


def _joining(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a ``training_step``, so that the outermost of a chain of overrides joins its terms to the loss."""

    @functools.wraps(step)
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra: ExtraLoss = self.steps.extra
        extra.depth += 1
        try:
            returned = step(self, *args, **kwargs)
        finally:
            extra.depth -= 1
        if extra.depth or extra.own is None:  # None: an override that made its loss without the module's
            return returned
        return self.steps.joined(returned, self.trainer, self.scorer.parameters)

    training_step.joins = True  # type: ignore[attr-defined]
    return training_step
