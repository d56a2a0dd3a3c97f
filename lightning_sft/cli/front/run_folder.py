"""A run's folder in place of its settings and its checkpoint: ``lightning validate RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.front.meant import a_run_in
from lightning_sft.cli.front.words import Word, join, split
from lightning_sft.errors import UserError
from lightning_sft.places import CHECKPOINTS, LAST, RUN_SETTINGS, newest_settings

#: verbs that read settings and a checkpoint; ``fit`` goes on from the last one, the others read the best
READERS = ("fit", "validate", "test", "predict", "score")
#: verbs that read a checkpoint alone
OF_CHECKPOINTS = ("chat", "export")


def spell_out_run(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return arguments with a run's settings and checkpoint in place of its folder.

    Args:
        verb: of the command line.
        arguments: after it, in one spelling.

    Raises:
        UserError: a word by itself that is no folder of a run, or a run without checkpoints.
    """
    words = list(split(arguments))
    runs = [Path(v[0]) for name, v, _ in words if name in ("--config", "-c") and v and Path(v[0]).is_dir()]
    if verb in OF_CHECKPOINTS and words and not words[0][0]:
        runs, words = _only_run(verb, words[0][1]), words[1:]
    if not runs:
        return list(arguments)
    goes_on = verb in (*READERS, *OF_CHECKPOINTS) and not any(name == "--model" for name, _, _ in words)
    made: list[Word] = [_settings(word, goes_on) for word in words]
    if not goes_on:
        return join(made)
    run, last = str(runs[-1]), str(runs[-1] / CHECKPOINTS / LAST)
    named = [i for i, (name, _, _) in enumerate(made) if name == "--ckpt_path"]
    if not named and not (runs[-1] / CHECKPOINTS).is_dir():
        raise UserError(
            f"{run!r} has a {RUN_SETTINGS} and no checkpoints. Allowed: a run that has some. For its settings alone, "
            f"write {runs[-1] / RUN_SETTINGS}."
        )
    if not named:
        return join([*made, ("--ckpt_path", [last if verb == "fit" else run], True)])
    for i in named:
        name, values, joined = made[i]
        made[i] = (name, [{"last": last, "best": run}.get(value, value) for value in values], joined)
    return join(made)


def _settings(word: Word, goes_on: bool) -> Word:
    """Return a run's settings in place of its folder: those of its last part where that goes on, or is read."""
    name, values, joined = word
    if name not in ("--config", "-c") or not values or not Path(values[0]).is_dir():
        return word
    folder = Path(values[0])
    return name, [str(newest_settings(folder) if goes_on else folder / RUN_SETTINGS), *values[1:]], joined


def _only_run(verb: str, words: Sequence[str]) -> list[Path]:
    if len(words) > 1:
        raise UserError(f"{verb} got {len(words)} words by themselves: {' '.join(words)}. Allowed: one run's folder.")
    run = Path(words[0])
    if not (run / CHECKPOINTS).is_dir():
        why = "is no run's folder with checkpoints" if run.exists() else "does not exist"
        within = a_run_in(run)
        given = f" Did you mean {str(within)!r}?" if within is not None else ""
        raise UserError(
            f"{words[0]!r} stands by itself and {why}.{given} Allowed: a run's folder, which has {CHECKPOINTS}; or "
            "--ckpt_path with 'best', 'last' or a checkpoint."
        )
    return [run]
