"""CriticalLearningRateFinder: the smallest rate at which the correct tokens overtake their near-synonyms in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.errors import UserError
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.probe import Probe
from lightning_sft.sweep.critical import Criterion, check_critical, find_critical_rate
from lightning_sft.sweep.observers import HeldOutObserver, ProbeObserver
from lightning_sft.sweep.results import SweepResult


class CriticalLearningRateFinder(SweepCallback):
    """Find the critical learning rate of a run: data order, dropout, optimizer and schedule are the run's own.

    Trials of ``steps`` optimizer steps start from the run's state; a trial ends as soon as enough probes have
    crossed. All points of a geometric grid are tried, then the bracket is bisected to ``resolution``. Reported are
    the bracket, every trial, every probe's own bracket, and any higher rate at which the probes do not cross. The
    critical rate is the bracket's upper end: the smallest rate seen to work. Keys: ``sweep/<name>/critical``,
    ``.../critical_lower``, ``.../critical_upper``, ``.../monotonic``, ``.../trials``, ``.../chosen``; a table
    ``.../report`` and a figure ``.../figure``.

    The notion is reconstructed from the abstract of arXiv 2606.07559.

    Args:
        probes: ``"library"``, ``"library:train"``, ``"library:test"``, a YAML or JSON-lines file, or probes. Controls
            among them are left out.
        low: lowest rate of the grid.
        high: highest.
        points: of the grid.
        steps: T, the optimizer steps within which the probes must cross.
        resolution: width of the bracket to reach; 0.02 is 2%.
        criterion: ``"rank_flip"``: the correct token is above its competitor; ``"phi"``: Phi > 0; ``"first_jump"``:
            Phi jumps; ``"val_nll"``: the validation NLL is at ``target`` or below, which needs no probes.
        quantile: share of the probes that must cross; 0.5 is the median probe.
        target: nats per token, for ``"val_nll"``.
        val_batches: the most validation batches of a rank, for ``"val_nll"``; None is all.
        predict: before the sweep, predict its outcome from a few short runs and write that, with a hash of its inputs,
            to ``<run folder>/sweep/<name>.prediction.<hash>.json``; only with ``"rank_flip"``.
        apply: set the critical rate and scale the schedule to it; otherwise only report.
        storage: an Optuna storage that several workers share (``journal:FILE``, ``sqlite:///FILE``, a database): the
            same run, started any number of times with it, shares the trials; see docs/sweeps.md.
        workers: how many share them: a bracket is split into one part more, so that each has a trial to run at once.
        at_step: the optimizer step before which to sweep; 0 is the start of the run.
        name: part of the log keys, the files and the state in checkpoints.
        keep_callbacks: class names of the run's callbacks that take part in trials.
        divergence: a trial ends once its loss is above this multiple of its first loss.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Raises:
        UserError: settings that cannot work, or no near-synonym probe.
    """

    def __init__(
        self,
        probes: str | Sequence[Probe] = "library:train",
        low: float = 1e-7,
        high: float = 1e-4,
        points: int = 7,
        steps: int = 12,
        resolution: float = 0.02,
        criterion: Criterion = "rank_flip",
        quantile: float = 0.5,
        target: float | None = None,
        val_batches: int | None = None,
        predict: bool = False,
        apply: bool = False,
        storage: str | None = None,
        workers: int = 1,
        at_step: int = 0,
        name: str = "critical",
        keep_callbacks: Sequence[str] = (),
        divergence: float = 4.0,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(name, at_step, apply, keep_callbacks, divergence)
        check_critical(criterion, low, high, points, steps, resolution, quantile)
        if (criterion == "val_nll") != (target is not None):
            raise UserError(
                f"criterion is {criterion!r} and target is {target}. Allowed: a target, in nats per token, with "
                "criterion val_nll, and none with the others."
            )
        if predict and criterion != "rank_flip":
            raise UserError(
                f"predict is true and criterion is {criterion!r}. Allowed: predictions of the rank flip only; set "
                "criterion to rank_flip, or predict to false."
            )
        given = load_probes(probes) if criterion != "val_nll" else ()
        self.probes = tuple(p for p in given if p.kind == "synonym")
        if not self.probes and criterion != "val_nll":
            raise UserError("There is no near-synonym probe among the given ones. Give at least one, not a control.")
        self.low = low
        self.high = high
        self.points = points
        self.steps = steps
        self.resolution = resolution
        self.criterion: Criterion = criterion
        self.quantile = quantile
        self.target = target
        self.val_batches = val_batches
        self.predict = predict
        self.share(storage, workers)
        self._model = model
        self._tokenizer = tokenizer

    def share(self, storage: str | None, workers: int, beat: float = 15.0, patience: float = 120.0) -> None:
        """Share the trials with other workers.

        Args:
            storage: as of the class.
            workers: likewise.
            beat: seconds between two signs of life of this worker.
            patience: seconds to try again where the storage cannot be reached.

        Raises:
            UserError: no worker, or several without a storage.
        """
        if workers < 1 or (workers > 1 and storage is None):
            raise UserError(
                f"workers is {workers} and storage is {storage!r}. Allowed: 1 or more, and above 1 a storage that they "
                "share, such as journal:shared/critical.log."
            )
        self.storage = storage
        self.workers = workers
        self._beat, self._patience = beat, patience

    @override
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> SweepResult:
        facts = {
            "criterion": self.criterion,
            "quantile": self.quantile,
            "target": self.target,
            "val_batches": self.val_batches,
            "probes": [repr(p) for p in self.probes],
        }
        observer = (
            HeldOutObserver(trainer, self.val_batches)
            if self.criterion == "val_nll"
            else ProbeObserver(
                self.probes,
                module if self._model is None else self._model,
                phi=self.criterion in ("phi", "first_jump"),
                tokenizer=self._tokenizer,
            )
        )
        return find_critical_rate(
            trainer,
            module,
            replace(
                self.setting(trainer, self.steps, folder, **facts),
                storage=self.storage,
                beat=self._beat,
                patience=self._patience,
            ),
            [observer],
            [p.name for p in self.probes] or ["validation"],
            low=self.low,
            high=self.high,
            points=self.points,
            resolution=self.resolution,
            criterion=self.criterion,
            quantile=self.quantile,
            target=self.target,
            predict=self.predict,
            workers=self.workers,
        )
