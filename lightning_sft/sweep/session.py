"""A sweep in progress: runs trials or reuses finished ones, counts them in a progress bar, keeps them on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import Self

from lightning_sft._lightning import callbacks_of
from lightning_sft.progress import Lines
from lightning_sft.sweep.batches import TrialBatches
from lightning_sft.sweep.digest import digests, over_ranks
from lightning_sft.sweep.fingerprint import fingerprint
from lightning_sft.sweep.store import TrialStore
from lightning_sft.sweep.trial import Observer, Trial, TrialRunner, Values
from lightning_sft.training.signals import WATCH, Stopped, goes_on_with, stop_requested


@dataclass(frozen=True)
class SweepSettings:
    """Settings that every kind of sweep needs.

    Attributes:
        name: distinguishes the sweeps of a run, in files and log keys.
        steps: optimizer steps of a trial.
        folder: the run's folder; None keeps nothing on disk.
        callbacks: callbacks that take part in trials.
        divergence: a trial ends once its loss is above this multiple of its first loss.
        facts: further settings that outcomes depend on, as plain data.
        trial_batches: what trials are trained on; None: what the fit sees next.
        storage: that workers share, see `open_storage`; None: this process runs every trial.
        beat: seconds between two signs of life of a worker.
        patience: seconds to try again where that storage cannot be reached.
    """

    name: str
    steps: int
    folder: Path | None
    callbacks: tuple[Callback, ...] = ()
    divergence: float = 4.0
    facts: dict[str, Any] | None = None
    trial_batches: TrialBatches | None = None
    storage: str | None = None
    beat: float = 15.0
    patience: float = 120.0


class Session:
    """Trials of one sweep; a context manager around `TrialRunner`.

    Leaving it restores the model, after an exception or Ctrl-C too. If the settings name a folder, every finished trial
    is on disk by then, and a later session whose digest is the same takes it from there.

    Args:
        trainer: in a fit.
        module: its module.
        setting: of the sweep.
        observers: what its trials are read by; stored trials of others are not taken.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        setting: SweepSettings,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._observers = tuple(observers)
        self.trainer = trainer
        self.module = module
        self.setting = setting
        self.runner = TrialRunner(
            trainer, module, setting.steps, setting.trial_batches, setting.callbacks, setting.divergence
        )
        self.digest = ""
        self.fresh = 0  # trials that were run and not remembered
        self._counted = 0  # steps of trials that are behind us: taken, remembered or left out

    def __enter__(self) -> Self:
        self.runner.__enter__()
        try:
            facts = {"steps": self.setting.steps, "divergence": self.setting.divergence, **(self.setting.facts or {})}
            facts["callbacks"] = [type(c).__name__ for c in self.setting.callbacks]
            parts = digests(
                self.trainer,
                self.module,
                self.runner.trial_batches(),
                facts,
                objects=[*map(vars, self.setting.callbacks), *self._observers],
                steps=self.setting.steps,
            )
            self.digest = over_ranks(self.trainer, parts, self.module.device)
            self._store = self._open_store(parts)
        except BaseException as error:
            self.runner.__exit__(type(error), error, error.__traceback__)
            raise
        bar = self.trainer.progress_bar_callback
        shown = bar is not None and getattr(bar, "is_enabled", True) and self.trainer.is_global_zero
        terminal = sys.stderr.isatty()
        what = f"Sweep {self.setting.name}"
        self._bar = Tqdm(desc=what, unit="step", disable=not (shown and terminal), leave=False)
        self._lines = Lines(what, None, "steps of trials") if shown and not terminal else None
        return self

    def _open_store(self, parts: dict[str, str]) -> TrialStore:
        own = (self.trainer, self.setting.folder, self.setting.name, self.digest)
        if self.setting.storage is None:
            return TrialStore(*own)
        from lightning_sft.sweep.shared_store import SharedTrialStore

        return SharedTrialStore(*own, parts, self.setting.storage, self.setting.beat, self.setting.patience)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self.runner.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt | Stopped):
            lost = "; its trials are lost, since the run has no folder to keep them in"
            kept = lost if self.setting.folder is None else "; the finished trials are kept, the same command continues"
            rank_zero_info(f"Sweep {self.setting.name}: interrupted, the model is as it was before{kept}.")

    def expect(self, steps: int) -> None:
        """Say how many steps of trials are still ahead at most, so that the progress has a total."""
        total = self._counted + steps
        self._bar.reset(total)
        self._bar.update(self._counted)
        if self._lines is not None:
            self._lines.total = total

    def _stepped(self, steps: int = 1) -> None:
        self._counted += steps
        self._bar.update(steps)
        if self._lines is not None:
            self._lines(steps)

    def start(self, observers: Sequence[Observer]) -> Values:
        """Return what the observers read before the first step, the same on every rank."""
        values: Values = self.trainer.strategy.broadcast(self.runner.start(observers))
        return values

    def trial(
        self,
        lr: float,
        observers: Sequence[Observer] = (),
        stop: Callable[[Values], bool] | None = None,
        rates: Sequence[float] | None = None,
        order: int = 0,
        variant: str = "",
        depends: object = None,
        *,
        last_only: bool = False,
    ) -> Trial:
        """Run a trial, or return the same one finished earlier; arguments as of `TrialRunner.run`.

        Args:
            lr: peak rate.
            observers: read after every step.
            stop: ends the trial early.
            rates: a rate for each step.
            order: of the rows.
            variant: what else distinguishes this trial, in words, such as an objective's name.
            depends: what else this trial depends on, of any kind, such as the objective itself.
            last_only: observers are read after the last step alone.
        """
        key = _key(lr, order, variant, self._rest(rates, order, depends))
        planned = self.setting.steps if rates is None else len(rates)
        known = self._store.get(key)
        if known is not None:
            self._stepped(planned)
            return known
        before = self._counted
        self._bar.set_postfix_str(f"lr {lr:.4g} {variant}")
        ran = self.runner.run(lr, observers, stop, rates, order, self._stepped, last_only=last_only)
        self._stepped(max(0, planned - (self._counted - before)))  # a trial that ended early
        # rank 0's numbers for all: different devices may differ in the last bit, and decisions may not
        trial: Trial = self.trainer.strategy.broadcast(ran)
        self._store.put(key, trial)
        self.fresh += 1
        return trial

    def trials(
        self,
        rates: Sequence[float],
        observers: Sequence[Observer] = (),
        make_stop: Callable[[], Callable[[Values], bool] | None] = lambda: None,
    ) -> dict[float, Trial]:
        """Return a trial at each of some rates, which do not depend on each other: other workers may run some of them.

        Args:
            rates: peak rates.
            observers: read after every step.
            make_stop: gives what ends a trial early, anew for each.
        """
        keys = {_key(rate): rate for rate in rates}
        while True:
            self._store.refresh()
            found = {key: trial for key in keys if (trial := self._store.get(key)) is not None}
            if len(found) == len(keys):
                return {rate: found[key] for key, rate in keys.items()}
            key = self._store.claim([key for key in keys if key not in found])
            if key is None:
                self._wait()
                continue
            try:
                self.trial(keys[key], observers, make_stop())
            except BaseException:
                self._store.leave(key)
                raise

    def _wait(self) -> None:
        """Wait for other workers; a signal ends the run meanwhile, too."""
        self._bar.set_postfix_str("waits for other workers")
        self._store.wait()
        if self.trainer.received_sigterm:
            raise SIGTERMException
        if stop_requested(self.trainer):
            trainer, lost = self.trainer, self.trainer.global_step == 0
            WATCH.stop("in a sweep", speak=trainer.is_global_zero, lost=lost, go_on=goes_on_with(callbacks_of(trainer)))

    def _rest(self, rates: Sequence[float] | None, order: int, depends: object) -> str:
        """Return a digest of what a trial depends on beyond the session, empty where that is nothing.

        Rank 0's decides: others may have other rows.
        """
        rows = [b.batch for b in self.runner.trial_batches(order).batches] if order else None
        if rates is None and rows is None and depends is None:
            return ""
        own: str = self.trainer.strategy.broadcast(fingerprint(rates and list(rates), rows, depends)[:16])
        return own


def _key(lr: float, order: int = 0, variant: str = "", rest: str = "") -> str:
    return " ".join(filter(None, [repr(lr), str(order), variant, rest]))
