"""BestCheckpoint: the best checkpoint among those that keep what must not get worse."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import astuple
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_sft._lightning import callbacks_of
from lightning_sft.callbacks.bounds import Bound
from lightning_sft.callbacks.drift import READINGS, DriftMonitor
from lightning_sft.errors import UserError
from lightning_sft.metrics.sets import ALWAYS

#: a start of less is rounding, as a KL divergence from the start itself
_NOTHING = 1e-6


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint by one value, among the validations at which others keep their bounds.

    A ModelCheckpoint that saves right after validations, under the name ``best.ckpt``. It works in any
    LightningModule. A validation that did not read ``monitor`` or one of the bounded keys, as with named sets that are
    read at every fourth one, is passed over: no checkpoint, and no step towards ``patience``. Of keys that training
    logs, such as readings of probes, the last value counts. Where no reading has kept the bounds, nothing is saved,
    and the end of the fit says so, with the one that came closest.

    Args:
        monitor: log key to be best in.
        subject_to: bounds by log key: a number (the most it may be), ``"<= 2.5"``, ``">= 0.3"``, ``"+2%"`` (it may rise
            by 2% of its value at the start) or ``"-5%"`` (it may fall by so much). The start is what a `DriftMonitor`
            read before the first step or, for other keys, the complete sanity check
            (``trainer.num_sanity_val_steps: -1``).
        mode: whether the best is the lowest (``min``) or the highest (``max``).
        patience: end the fit after so many readings in a row without a new best, those that broke a bound counted;
            None never does.
        save_top_k: how many of the best to keep.
        filename: as for ModelCheckpoint.
        dirpath: as for ModelCheckpoint; default is ``checkpoints`` in the run's folder.
        save_weights_only: leave out what only a resume needs.
        verbose: tell every decision.

    Attributes:
        start: values at the start by log key.
        readings, kept: validations that were judged, and those that kept the bounds.
        waited: judged validations since the last new best.

    Raises:
        UserError: a bound that cannot be read; a key that is known at the start of the fit never to be logged, else at
            the first validation; a relative bound whose start is unknown or 0; a fit without validation.
    """

    def __init__(
        self,
        monitor: str = "val/nll",
        subject_to: dict[str, str | float] | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int | None = None,
        save_top_k: int = 1,
        filename: str | None = None,
        dirpath: str | None = None,
        save_weights_only: bool = False,
        verbose: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise UserError(f"BestCheckpoint got mode={mode!r}. Allowed: min, max.")
        if patience is not None and patience < 1:
            raise UserError(f"BestCheckpoint got patience={patience}. Allowed: 1 or more, or null.")
        self.bounds = [Bound.parse(key, given) for key, given in (subject_to or {}).items()]
        super().__init__(
            dirpath=dirpath,
            filename=filename or ("best" if save_top_k == 1 else None),
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            verbose=verbose,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.patience = patience
        self.start: dict[str, float] = {}
        self.readings = self.kept = self.waited = 0
        self._closest: tuple[float, str] | None = None  # by how much the nearest miss broke its bounds, in words
        self._stale: dict[str, Tensor] = {}
        self._seen: set[str] = set()  # keys that validations log
        self._forgot = False
        self._allowed = False

    @property
    def _keys(self) -> list[str]:
        assert self.monitor is not None
        return [self.monitor, *(bound.key for bound in self.bounds)]

    # ------------------------------------------------------------------ the start

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        monitors = [c for c in callbacks_of(trainer) if isinstance(c, DriftMonitor)]
        guarded = [name for monitor in monitors for name in monitor.texts]
        named = getattr(getattr(trainer, "datamodule", None), "named_sets", None)
        sets = [] if named is None else named.get("val", [])
        for key in self._keys:
            stage, _, rest = key.partition("/")
            name, _, reading = rest.rpartition("/")
            if stage == "drift" and name and (name not in guarded or reading not in READINGS):
                known = [f"drift/{g}/{r}" for g in guarded for r in READINGS]
                raise UserError(
                    f"BestCheckpoint reads {key!r}, which no DriftMonitor of this run logs. "
                    + (f"Logged are: {', '.join(known)}." if known else "Add the callback DriftMonitor.")
                )
            ours = named is not None and hasattr(pl_module, "unread") and reading in ALWAYS
            if stage == "val" and name and ours and name not in [s.name for s in sets]:
                raise UserError(
                    f"BestCheckpoint reads {key!r}, and data.val has no set {name!r}. Its sets: "
                    f"{', '.join(repr(s.name) for s in sets) or 'none, as it is no mapping'}."
                )
            waits = next((s for s in sets if s.every > 1 and key.startswith(f"val/{s.name}/")), None)
            if waits is not None:
                rank_zero_info(f"BestCheckpoint judges every {waits.every}th validation: those that read {key}.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._forgot:
            rank_zero_warn("BestCheckpoint: the run goes on under other bounds, so its best so far is forgotten.")
            self._forgot = False
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # saves nothing, and has no sanity check
            return
        if not trainer.enable_validation:
            raise UserError(
                "BestCheckpoint judges validations, and this fit has none. Add validation rows (data.val), or leave "
                "the callback out."
            )
        for monitor in (c for c in callbacks_of(trainer) if isinstance(c, DriftMonitor)):
            self.start = {**monitor.at_start, **self.start}
        for bound in self.bounds:
            start = self.start.get(bound.key)
            if not bound.relative or (start is not None and math.isfinite(start) and abs(start) > _NOTHING):
                continue
            what = "is not known" if start is None else f"is {start:.2g}"
            raise UserError(
                f"subject_to: {bound.key} is bounded relative to the start, and its value there {what}. "
                + ("Set trainer.num_sanity_val_steps: -1, which reads it, or give" if start is None else "Give")
                + " an absolute bound, such as '<= 2.5'."
            )

    # ------------------------------------------------------------------ readings

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a tensor that is the same object as before was left by the last validation, and not logged by this one
        metrics = trainer.callback_metrics
        self._stale = {key: metrics[key].clone() for key in self._keys if key in metrics}
        metrics.update(self._stale)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.barebones:
            return
        metrics = trainer.callback_metrics
        unread = tuple(f"val/{s.name}/" for s in getattr(pl_module, "unread", ()))
        known = [key for key in self._keys if key in metrics and not key.startswith(unread)]
        logged = {key for key in known if metrics[key] is not self._stale.get(key)}
        self._seen |= logged
        if trainer.sanity_checking:
            if trainer.num_sanity_val_steps == math.inf and trainer.global_step == 0:  # a resumed run is past its start
                self.start = {**{key: float(metrics[key]) for key in logged}, **self.start}
            return
        self._require_logged(set(metrics), unread)
        # what no validation logs is logged by training, as readings of probes: there the last value counts
        values = {key: float(metrics[key]) for key in known if key in logged or key not in self._seen}
        if len(values) < len(set(self._keys)):
            return  # a set that is not read this time
        self._judge(trainer, values)
        super().on_validation_end(trainer, pl_module)
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
            rank_zero_info(
                f"BestCheckpoint: no new best {self.monitor} in {self.waited} readings; the fit ends at step "
                f"{trainer.global_step}."
            )

    def _require_logged(self, logged: Collection[str], unread: tuple[str, ...]) -> None:
        """Raise at the first validation that should have logged a key and did not."""
        for key in self._keys:
            if key not in logged and key not in self._seen and not key.startswith(unread):
                what = "monitors" if key == self.monitor else "is subject to"
                raise UserError(
                    f"BestCheckpoint {what} {key!r}, which this validation did not log. Logged are: "
                    f"{', '.join(sorted(k for k in logged if not k.startswith(('train/', 'perf/'))))}."
                )

    def _judge(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Decide, the same on all ranks, whether this reading may be saved, and count it."""
        assert self.monitor is not None
        value = values[self.monitor]
        broken = [b for b in self.bounds if not b.keeps(values[b.key], self.start.get(b.key))]
        allowed = not broken and math.isfinite(value)
        self._allowed = trainer.strategy.reduce_boolean_decision(allowed, all=True)
        best = self.best_model_score
        better = best is None or (value < float(best) if self.mode == "min" else value > float(best))
        improves = trainer.strategy.reduce_boolean_decision(self._allowed and better, all=True)
        self.readings += 1
        self.kept += self._allowed
        self.waited = 0 if improves else self.waited + 1
        if self._allowed or not broken:
            return
        said = ", ".join(f"{values[b.key]:.5g} for {b.describe(self.start.get(b.key))}" for b in broken)
        excess = max(self._excess(b, values[b.key]) for b in broken)
        if self._closest is None or excess < self._closest[0]:
            self._closest = (excess, f"step {trainer.global_step} with {said}")
        if self.verbose:
            rank_zero_info(f"BestCheckpoint: step {trainer.global_step} is not saved: {said}.")

    def _excess(self, bound: Bound, value: float) -> float:
        """Return by how much a value breaks a bound, as a share of the limit."""
        limit = bound.limit(self.start.get(bound.key))
        return abs(value - limit) / max(abs(limit), 1e-12) if math.isfinite(value) else math.inf

    @override
    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        return self._allowed and super().check_monitor_top_k(trainer, current)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.kept:
            return
        why = "no validation read all of its keys"
        if self.readings:
            bounds = "; ".join(b.describe(self.start.get(b.key)) for b in self.bounds)
            why = f"none of {self.readings} readings kept {bounds or f'{self.monitor} finite'}"
        closest = "" if self._closest is None else f" The closest was {self._closest[1]}."
        rank_zero_warn(f"BestCheckpoint saved no checkpoint: {why}.{closest}")

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"start": self.start, "readings": self.readings, "kept": self.kept, "waited": self.waited}
        further = {"closest": self._closest, "seen": sorted(self._seen), "bounds": [astuple(b) for b in self.bounds]}
        return {**super().state_dict(), **own, **further}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = dict(state_dict["start"])
        if [Bound(*bound) for bound in state_dict["bounds"]] != self.bounds:
            self._forgot = True  # told where a fit goes on; a test of the checkpoint has no use for it
            return
        super().load_state_dict(state_dict)
        self.readings, self.kept = state_dict["readings"], state_dict["kept"]
        self.waited, self._seen = state_dict["waited"], set(state_dict["seen"])
        self._closest = None if state_dict["closest"] is None else tuple(state_dict["closest"])
