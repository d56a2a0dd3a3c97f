"""`lightning sweep critical`: a worker of a search for the critical learning rate, which trains nothing after it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_sft.advice.options import RATE, files_first, without
from lightning_sft.callbacks import (
    CapabilityProbe,
    CriticalLearningRateFinder,
    FinalValidation,
    GenerationMonitor,
    SilentFailureMonitor,
)
from lightning_sft.callbacks.sweeping import SweepEnded, check_name
from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.present import require_present
from lightning_sft.cli.front.words import tidy
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.errors import UserError
from lightning_sft.progress import note
from lightning_sft.sweep.results import CriticalRate
from lightning_sft.training.signals import WATCH, Stopped


class _SearchCLI(SFTCLI):
    """A fit that ends with its search.

    Args:
        args: of the command line.
        asked: options of the verb; those that are None leave what the configuration says.
    """

    def __init__(self, args: list[str], asked: argparse.Namespace) -> None:
        self._asked = asked
        super().__init__(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
        finders = [c for c in callbacks if isinstance(c, CriticalLearningRateFinder)]
        if len(finders) != 1:
            raise UserError(
                f"The configuration has {len(finders)} CriticalLearningRateFinder among trainer.callbacks. Allowed: "
                "one; configs/experiment/critical_lr.yaml shows it."
            )
        (finder,) = finders
        asked = self._asked
        finder.share(asked.storage or finder.storage, asked.workers or finder.workers, asked.beat, asked.patience)
        if asked.name is not None:
            check_name(asked.name)
            finder.name = asked.name
        finder.only = True
        asked.finder = finder
        kept = finder.keep_callbacks
        needed = [c for c in callbacks if c is finder or isinstance(c, ProgressBar) or type(c).__name__ in kept]
        # what would read the model before its first step, or at an end that does not come
        still = [CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False), FinalValidation(enabled=False)]
        trainer.callbacks = [*needed, *still, GenerationMonitor(samples=0, limit=0)]  # type: ignore[attr-defined]
        return trainer


def search(arguments: list[str], asked: argparse.Namespace) -> None:
    """Take part in a search until its bracket is found, and print it.

    Args:
        arguments: settings of ``fit``.
        asked: options of the verb: storage, workers, name, folder, beat and patience.
    """
    if asked.isolate:
        raise UserError("--isolate is of `lightning sweep worker`: trials of a search are steps of one process.")
    arguments = tidy(arguments, takes_files=True)
    remarks = check("fit", arguments)
    require_present("fit", arguments)
    for line in remarks:
        note(f"note: {line}")
    place = [] if asked.folder is None else [f"--output={asked.folder}"]
    WATCH.speaks = False  # the verb says that a later search by the same command finds the trials
    try:
        _SearchCLI(["fit", *arguments, *place], asked)
    except SweepEnded:
        found = asked.finder.result
        if isinstance(found, CriticalRate) and (lines := next_of(arguments, found, applies=asked.finder.apply)):
            rank_zero_info("\n".join(lines))
        return
    except Stopped as stopped:
        stopped.done = "the trials so far are kept"
        raise
    finally:
        WATCH.speaks = True
    raise UserError(
        "The run ended before its search: it has fewer steps than at_step of the CriticalLearningRateFinder."
    )


def next_of(arguments: Sequence[str], found: CriticalRate, *, applies: bool) -> list[str]:
    """Return what one types after a search, line by line; nothing where it has found no rate.

    Args:
        arguments: of the verb, settings of ``fit``.
        found: its result.
        applies: whether the finder sets the rate that it finds.
    """
    if found.upper is None:
        return []
    rate = [] if applies else ["--lr", f"{found.upper:.6g}"]
    which = "at the critical rate, which a search before the first step finds again" if applies else "at this rate"
    kept = files_first(without(arguments, RATE if rate else []))
    return [f"Next       Train {which}:", f"             {shlex.join(['lightning', 'fit', *kept, *rate])}"]
