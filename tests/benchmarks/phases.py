"""The phases of a training step: processor seconds of each, in any trainer that steps a torch optimizer."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import record_function

FORWARD, BACKWARD, GRADIENTS, OPTIMIZER = "forward and loss", "backward", "norm and clipping", "optimizer"
PHASES = (FORWARD, BACKWARD, GRADIENTS, OPTIMIZER)


class Phases:
    """A clock for parts of a step; what runs inside another phase counts for the inner one alone.

    The parts also bear their names in a profile of torch.
    """

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._open: list[tuple[str, Any]] = []
        self._since = 0.0

    def enter(self, name: str) -> None:
        """Begin a phase."""
        self._charge()
        span = record_function(name)
        span.__enter__()
        self._open.append((name, span))

    def leave(self) -> None:
        """End the phase that was begun last."""
        self._charge()
        self._open.pop()[1].__exit__(None, None, None)

    def taken(self) -> dict[str, float]:
        """Return the processor seconds since the last call, by phase."""
        seconds, self._seconds = dict(self._seconds), Counter()
        return seconds

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call`` as a phase."""

        @functools.wraps(call)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self._phase(name):
                return call(*args, **kwargs)

        return inside

    def watch(self, kind: str) -> None:
        """Time the phases of this process's training from here on; `Trainer.compute_loss` is the caller's to wrap.

        Args:
            kind: of contender; ``"ours"`` and ``"bare"`` have a forward pass of their own.
        """
        torch.autograd.backward = self.timed(BACKWARD, torch.autograd.backward)
        torch.nn.utils.clip_grad_norm_ = self.timed(GRADIENTS, torch.nn.utils.clip_grad_norm_)
        register_optimizer_step_pre_hook(lambda *_: self.enter(OPTIMIZER))
        register_optimizer_step_post_hook(lambda *_: self.leave())
        if kind in ("ours", "bare"):
            from lightning_sft.models.scorer import TokenScorer
            from lightning_sft.training import exact_step
            from lightning_sft.training.gradients import SharedNorm

            TokenScorer.forward = self.timed(FORWARD, TokenScorer.forward)
            exact_step.multiply_gradients = self.timed(GRADIENTS, exact_step.multiply_gradients)
            SharedNorm.look = self.timed(GRADIENTS, SharedNorm.look)
            SharedNorm.clip = self.timed(GRADIENTS, SharedNorm.clip)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self._seconds[self._open[-1][0]] += now - self._since
        self._since = now
