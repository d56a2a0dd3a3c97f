"""TrainingMetrics: loss, accuracy, gradient norm, learning rate and speed of each optimizer step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_sft._lightning import callbacks_of, has_hook, log_interval
from lightning_sft.objectives import Objective
from lightning_sft.training.accumulation import accumulator_of
from lightning_sft.training.gradients import SharedNorm
from lightning_sft.training.strategies import adapter_of
from lightning_sft.training.totals import StepTotals

#: sum of a step -> what its mean is called
MEANS = {"nll": "nll", "hits": "token_accuracy", "p": "mean_p"}


class TrainingMetrics(Callback):
    """Log each optimizer step's exact token averages, gradient norm, learning rate and speed.

    The values are sums over all micro-batches and ranks of the step, divided by its supervised tokens (the loss by the
    weights or the sequences, where the gradient is): they do not depend on how the step was split. Keys: ``train/loss``
    (under the objective), ``train/nll``, ``train/perplexity``, ``train/token_accuracy``, ``train/mean_p``,
    ``train/grad_norm`` (before clipping), ``train/lr``, ``train/skipped_steps``, ``train/nonfinite_steps``,
    ``train/objective/...``, with several training sources ``train/source/<name>/nll`` and
    ``train/source/<name>/token_share``, ``perf/tokens_per_second`` (trained tokens), ``perf/padding_share``,
    and ``train/router_loss`` and ``train/adapter_loss`` where there is one.

    Works in modules that have a `StepAccumulator` among their attributes, such as
    [`SFTModule`][lightning_sft.module.SFTModule]. Where that counts no more than losses and tokens, the keys that come
    from scores of tokens are left out.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._tokens = 0.0

    def restart_clock(self) -> None:
        """Restart the speed measurement, for example after a validation."""
        self._since, self._tokens = time.perf_counter(), 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart_clock()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart_clock()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        accumulator = accumulator_of(pl_module)
        if accumulator is None or not accumulator.totals:
            return
        totals = accumulator.totals
        self._tokens += float(totals["supervised"])
        if (trainer.global_step + 1) % log_interval(trainer):
            return
        now = time.perf_counter()
        values: dict[str, Any] = {f"train/{name}": totals.mean(key) for key, name in MEANS.items() if key in totals}
        values["train/loss"] = totals.loss(accumulator.denominator)
        if "nll" in totals:
            values["train/perplexity"] = float(torch.tensor(values["train/nll"], dtype=torch.float64).exp())
        if "positions" in totals:
            values["perf/padding_share"] = float(totals["padding"]) / max(float(totals["positions"]), 1.0)
        values |= {
            "train/lr": optimizer.param_groups[0]["lr"],
            "train/skipped_steps": float(accumulator.skipped_steps),
            "train/nonfinite_steps": float(getattr(getattr(pl_module, "loss_watch", None), "steps", 0)),
        }
        norm = SharedNorm(optimizer, adapter_of(trainer).gradient_norm).look(keep=self._is_last(trainer))
        values |= {} if norm is None else {"train/grad_norm": norm.to(torch.float32)}
        objective = getattr(pl_module, "objective", None)
        if isinstance(objective, Objective):
            values |= {f"train/objective/{k}": v for k, v in objective.logged().items()}
        whole = totals.denominator(accumulator.denominator)
        extra = {k.removeprefix("extra/"): float(v) for k, v in totals.items() if k.startswith("extra/")}
        values |= {f"train/{name}": value / whole for name, value in extra.items()}
        values |= _by_source(totals, getattr(getattr(trainer, "datamodule", None), "source_names", ()))
        values["perf/tokens_per_second"] = self._tokens / max(now - self._since, 1e-9)
        pl_module.log_dict(values, batch_size=1)
        short = {"loss": values["train/loss"], "trained tokens/s": values["perf/tokens_per_second"]}
        pl_module.log_dict(short, prog_bar=True, logger=False, batch_size=1)
        self._since, self._tokens = now, 0.0

    def _is_last(self, trainer: Trainer) -> bool:
        """Return whether no other hook may write to the gradients between this one and clipping."""
        callbacks = callbacks_of(trainer)
        after = callbacks[callbacks.index(self) + 1 :] if self in callbacks else callbacks
        others = [callback for callback in after if not getattr(callback, "leaves_gradients", False)]
        return not has_hook(trainer, "on_before_optimizer_step", others)


def _by_source(totals: StepTotals, names: Sequence[str]) -> dict[str, float]:
    """Return the step's NLL and share of tokens of each source that it had tokens of."""
    if "source_tokens" not in totals:
        return {}
    result: dict[str, float] = {}
    pairs = zip(names, totals["source_tokens"].tolist(), totals["source_nll"].tolist(), strict=False)
    for name, tokens, nll in pairs:
        if tokens:
            result[f"train/source/{name}/nll"] = nll / tokens
            result[f"train/source/{name}/token_share"] = tokens / float(totals["supervised"])
    return result
