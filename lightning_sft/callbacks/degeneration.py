"""DegenerationGuard: the warnings of GenerationMonitor about answers that collapse and losses that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_sft.metrics.degeneration import AnswerHealth, LossTrend, implausible
from lightning_sft.scores import TokenScores


class DegenerationGuard:
    """Follows the losses and the answers of a fit, and warns after a validation; the same on every rank."""

    def __init__(self) -> None:
        self._health = AnswerHealth()
        self._trend = LossTrend()
        self._is_nll = False  # whether the training loss is one, and not what another module calls its loss
        self._first_val: float | None = None
        self._entropy: float | None = None
        self._complaints: dict[str, list[str]] = {}
        self._implausible: set[str] = set()  # losses that were called so

    def see_loss(self, outputs: Any) -> None:
        """Add a micro-batch: what ``training_step`` returned, whose NLL counts if it holds scores, else its loss."""
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._is_nll = isinstance(scores, TokenScores)
        if isinstance(scores, TokenScores):
            self._trend.add(-scores.logp.sum(), len(scores))
        elif isinstance(loss, Tensor):
            self._trend.add(loss.mean(), 1)

    def see_answers(
        self, key: str, means: Mapping[str, float], entropy: float, vocabulary: int, *, judge: bool
    ) -> None:
        """Look at the answers of a set, or of all sets together.

        Args:
            key: what the log keys of the set begin with.
            means: by the end of their keys.
            entropy: mean entropy of the model's predictions in the answers, in nats; the lowest is remembered.
            vocabulary: number of tokens that the model chooses from.
            judge: compare the answers with those before; see `AnswerHealth.complaints`.
        """
        self._entropy = entropy if self._entropy is None else min(entropy, self._entropy)
        if judge and (found := self._health.complaints(key, means, entropy, vocabulary)):
            self._complaints[key] = found

    def warn(self, trainer: Trainer, module: LightningModule) -> None:
        """Say what is wrong after a validation of a fit, once the module has logged its loss; a collective."""
        own = self._trend.sums(module.device)
        total = trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(total, Tensor)
        first, first_tokens, last, last_tokens = total.tolist()
        logged = trainer.callback_metrics.get("val/nll")
        val = None if logged is None else float(logged)
        losses: list[tuple[str, float, float]] = []
        if first_tokens and last_tokens:
            losses.append(("the training loss", first / first_tokens, last / last_tokens))
        if val is not None:
            self._first_val = val if self._first_val is None else self._first_val
            losses.append(("val/nll", self._first_val, val))
        falls = [f"{name} falls from {before:.3g} to {now:.3g}" for name, before, now in losses if now < before]
        for key, complaints in self._complaints.items():
            if falls:
                rank_zero_warn(
                    f"The answers of {key} collapse while {' and '.join(falls)}: {'; '.join(complaints)}. Look at "
                    "val/samples. Usual causes are a learning rate that is too high, too many epochs, and training "
                    "answers without their end; answers that have grown longer than max_new_tokens do not end either."
                )
            else:
                self._health.told.pop(key)  # not said, so it may be said later
        self._complaints = {}
        self._warn_of_loss(val, last / last_tokens if last_tokens and self._is_nll else None)

    def _warn_of_loss(self, val: float | None, train: float | None) -> None:
        for name, nll, entropy in (("val/nll", val, self._entropy), ("the training loss", train, None)):
            wrong = None if nll is None or name in self._implausible else implausible(nll, entropy)
            if wrong:
                self._implausible.add(name)
                rank_zero_warn(
                    f"An implausible loss: {name} {wrong}. Either the answers stand in what the model reads (a leak), "
                    "or the loss counts other tokens than the answers'. `lightning-sft inspect` shows what is trained."
                )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to warn as this one would, plain data."""
        return {
            "trend": self._trend.state_dict(),
            "best": self._health.best,
            "told": self._health.told,
            "first_val": self._first_val,
            "entropy": self._entropy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier run has seen."""
        self._trend.load_state_dict(state["trend"])
        self._health.best, self._health.told = dict(state["best"]), dict(state["told"])
        self._first_val, self._entropy = state["first_val"], state["entropy"]
