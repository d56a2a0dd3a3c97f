"""How a run that was watched for silent failure ends: its verdicts are told, logged and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_sft.callbacks.next_step import NextStep, after_verdicts, ends_with_commands, longer
from lightning_sft.callbacks.silent_rows import bound_of
from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.figures.loggers import log_text
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.metrics.silent_verdict import SilentOutcome, SilentVerdict, judge
from lightning_sft.places import near
from lightning_sft.probes.contexts import contexts_table, write_contexts
from lightning_sft.probes.watched_set import WatchedSet

#: outcome -> what the last line says of a set with it
_IN_SHORT: dict[SilentOutcome, str] = {
    "silent failure": "SILENT FAILURE on the {} tokens",
    "still outranked": "STILL OUTRANKED on the {} tokens",
    "overconfident": "overconfident on the {} tokens",
    "too early": "too early to tell from the {} tokens",
    "undecided": "undecided on the {} tokens",
    "no failure": "no failure on the {} tokens",
    "nothing to judge": "cannot tell from the {} tokens",
}
_SETS = {"train": "training", "val": "validation"}


def verdict_on(watched: WatchedSet, min_fall: float, max_share: float, length: RunLength) -> SilentVerdict | None:
    """Return the verdict on a watched set; None where none of its tokens was read.

    Args:
        watched: the set.
        min_fall: nats by which a token's NLL must have fallen.
        max_share: see `judge`.
        length: of the run.
    """
    reading = watched.reading(min_fall)
    if reading is None:
        return None
    bound, value = bound_of(watched)
    return judge(
        reading,
        f"{_SETS[watched.name]} tokens" if watched.name in _SETS else f"tokens of {watched.name}",
        trained=watched.trained,
        plain=watched.plain_reading(min_fall),
        max_share=max_share,
        length=length,
        more=f"{bound} of SilentFailureMonitor, here {value}" if bound else "",
        all_read="" if bound else "all training rows",
    )


def tell_verdicts(
    trainer: Trainer,
    verdicts: Mapping[str, SilentVerdict],
    contexts: Sequence[Mapping[str, Any]],
    file: str,
    watch_more: str,
) -> tuple[NextStep | None, str]:
    """Tell and log the verdicts, and write the worst contexts into the run's folder; a collective.

    Args:
        trainer: of the run, at its end.
        verdicts: by set.
        contexts: the worst ones.
        file: their name in the folder.
        watch_more: how the next run watches more training rows, see `to_watch_more`.

    Returns:
        What to train next, and all of it in one line, to be said last.
    """
    folder = None if trainer.fast_dev_run else run_folder(trainer)  # type: ignore[attr-defined]
    folder = trainer.strategy.broadcast(folder)
    told = [verdict.sentence for verdict in verdicts.values()]
    outcomes = {verdict.outcome for verdict in verdicts.values()}
    rose = any(verdict.loss_rose for verdict in verdicts.values())
    next_step, line = after_verdicts(
        outcomes, folder, file, longer(trainer), _started_from(trainer), watch_more=watch_more, loss_rose=rose
    )
    whole = "\n".join([*told, line] if line else told)
    rank_zero_info("\n".join(told) if next_step and ends_with_commands(trainer) else whole)
    log_text(trainer, "silent/verdict", whole, trainer.global_step)
    if contexts:
        log_text(trainer, "silent/contexts", contexts_table(contexts), trainer.global_step)
    if folder is not None and trainer.is_global_zero:
        write_contexts(folder / file, contexts)
    return next_step, _in_one_line(verdicts, len(contexts), None if folder is None else folder / file)


def _started_from(trainer: Trainer) -> str | None:
    """Return what the run's model began as, as a verb takes it; None if unknown, or where no checkpoint is kept."""
    hparams = getattr(trainer.lightning_module, "hparams", {})
    name = hparams.get("model_name_or_path") if trainer.checkpoint_callbacks else None
    return name if isinstance(name, str) else None


def _in_one_line(verdicts: Mapping[str, SilentVerdict], contexts: int, file: Path | None) -> str:
    """Return the verdicts in a few words, and where the contexts are; empty without verdicts."""
    if not verdicts:
        return ""
    said = "; ".join(_IN_SHORT[v.outcome].format(_SETS.get(name, name)) for name, v in verdicts.items())
    where = "in no file, since the run has no folder" if file is None else f"in {near(file)}"
    return f"SilentFailureMonitor: {said}. {contexts} context{'s' * (contexts != 1)} that stayed behind {where}"
