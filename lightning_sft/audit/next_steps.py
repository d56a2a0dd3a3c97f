"""What to try next, as commands to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.advice.options import files_first, without
from lightning_sft.audit.headline import has_forgotten, is_almost_unchanged, loss_rose
from lightning_sft.audit.render import Block, Command
from lightning_sft.audit.result import Audit
from lightning_sft.audit.summary import CONTEXTS
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.units import plural

#: a learning rate that changed next to nothing is multiplied by it, and one under which the loss rose divided
FASTER = 10
#: below this share of exact answers more training is suggested, though nothing failed silently
FEW_EXACT = 0.5
_PUSH = "A higher learning rate or more steps help where the right word was simply not pushed far enough."


def next_steps(audit: Audit, folder: Path) -> list[Block]:
    """Return what to try: more rows where nothing can be told, another fit where something failed or hardly moved.

    Args:
        audit: what was found.
        folder: where the page will stand, for commands that read a file beside it.
    """
    outcomes = [verdict.outcome for verdict in audit.verdicts]
    blocks: list[Block] = []
    if audit.is_broken:
        return blocks
    if is_almost_unchanged(audit) and audit.trained != "no":
        blocks += _faster(audit)
    if {"undecided", "nothing to judge"} & set(outcomes) and (audit.before is None or audit.silent.behind):
        blocks += _more_rows(audit)
    elif audit.trained == "unknown" and audit.before is not None and any(v.failed for v in audit.verdicts):
        blocks += ["Say whether the model was trained on these rows, for one verdict in place of two:"]
        blocks += _again(audit, ["--trained"], "--trained yes")
    failed = [verdict.outcome for verdict in audit.verdicts if verdict.failed]
    few = audit.before is not None and audit.trained == "yes" and outcomes[0] == "nothing to judge"
    if failed[:1] == ["overconfident"]:
        return [
            *blocks,
            f"Train again with less certainty{_which(audit)}:",
            Command(f"{_fit(audit)} --objective LabelSmoothing"),
            "Fewer epochs or a lower learning rate do the same.",
        ]
    if failed[:1] == ["still outranked"]:
        if is_almost_unchanged(audit):  # a faster or longer run is said already
            return blocks
        rose = loss_rose(audit) or audit.verdicts[0].loss_rose
        return [*blocks, *(_slower(audit) if rose else _further(audit, folder / CONTEXTS))]
    if failed or (few and audit.contexts):
        return [*blocks, *_at_the_places(audit, folder / CONTEXTS), _PUSH]
    if has_forgotten(audit):
        return [*blocks, *_gentler(audit)]
    if outcomes[:1] == ["no failure"] and audit.before is not None and audit.trained == "yes":
        blocks += _to_exact_answers(audit)
    return blocks


def first_step(audit: Audit, folder: Path) -> list[str]:
    """Return the first thing to try, why and what to type, in lines for a terminal; none where there is no command.

    Args:
        audit: what was found.
        folder: where the page will stand.
    """
    blocks = next_steps(audit, folder)
    at = next((i for i, block in enumerate(blocks) if isinstance(block, Command)), None)
    if at is None:
        return []
    why, command = blocks[at - 1] if at else "", blocks[at]
    assert isinstance(command, Command)
    lines = ([why] if isinstance(why, str) and why else []) + [command.text]
    return [f"{'' if i else 'Next':<11}{line}" for i, line in enumerate(lines)]


def _further(audit: Audit, file: Path) -> list[Block]:
    """Return how to push right words further, of which most are not the first choice yet."""
    step, why = audit.after.step, "Most right words are not the first choice yet: train for more steps"
    blocks: list[Block] = []
    if step and audit.asked is not None and audit.asked.configs:
        blocks = [f"{why} than {step}, or at a higher learning rate:", Command(f"{_fit(audit)} --max_steps {2 * step}")]
    first = "" if blocks else f"{why}, or at a higher learning rate. "
    if not audit.contexts:
        return blocks or [first.strip()]
    return [*blocks, *_at_the_places(audit, file, first)]


def _at_the_places(audit: Audit, file: Path, first: str = "") -> list[Block]:
    weights = shlex.quote(f'{{"{file}": 4}}')
    return [
        f"{first}Train again with a margin between the right words and their competitors, or weigh those places more"
        f"{_which(audit)}; with another trainer, weigh the tokens that the file names.",
        Command(f"{_fit(audit)} --objective RunnerUpMargin --objective.pairs {shlex.quote(str(file))}"),
        Command(f"{_fit(audit)} --data.loss_weights.contexts {weights}"),
    ]


def _to_exact_answers(audit: Audit) -> list[Block]:
    """Return what makes more answers exact, where most are not, though no token failed silently."""
    now, step = audit.after, audit.after.step
    if not now.answers or now.exact >= FEW_EXACT:
        return []
    exact = f"Only {round(now.exact * now.answers)} of {plural(now.answers, 'answer')} would be written exactly"
    why = f"{exact}: train for more steps"
    if step and audit.asked is not None and audit.asked.configs:
        return [f"{why} than {step}:", Command(f"{_fit(audit)} --max_steps {2 * step}")]
    return [f"{why}."]


def _gentler(audit: Audit) -> list[Block]:
    """Return how to forget less."""
    lr = None if audit.asked is None else audit.asked.lr
    why = "It forgot other text: train again at a lower learning rate"
    if lr is None:
        return [f"{why}, or for fewer steps."]
    return [f"{why} (it was {lr:g}), or for fewer steps:", Command(f"{_fit(audit)} --lr {lr / FASTER:g}")]


def _faster(audit: Audit) -> list[Block]:
    lr = None if audit.asked is None else audit.asked.lr
    if lr is None:
        return ["The model is almost unchanged: train it again with a higher learning rate or more steps."]
    return [
        f"The model is almost unchanged: train it again with a higher learning rate (it was {lr:g}) or more steps:",
        Command(f"{_fit(audit)} --lr {FASTER * lr:g}"),
    ]


def _slower(audit: Audit) -> list[Block]:
    lr = None if audit.asked is None else audit.asked.lr
    why = "The loss of these rows rose: train again at a lower learning rate"
    return [f"{why}."] if lr is None else [f"{why} (it was {lr:g}):", Command(f"{_fit(audit)} --lr {lr / FASTER:g}")]


def _more_rows(audit: Audit) -> list[Block]:
    if audit.rows < audit.total_rows:
        return [
            f"Read all {audit.total_rows} rows in place of {audit.rows}:",
            *_again(audit, ["--rows"], "--rows null"),
        ]
    if audit.set == "train":  # there are no others that it was trained on
        return []
    kind = {"yes": " that the model was trained on", "no": " that it was not trained on", "unknown": ""}[audit.trained]
    known = "" if audit.trained == "unknown" else f" --trained {audit.trained}"
    names = ["--rows", "--data", "--set", "--trained"]
    return [
        f"The set has no more rows. To read others{kind}, at least {MIN_ROWS}, ROWS.jsonl being their file:",
        *_again(audit, names, f"--data ROWS.jsonl{known}"),
    ]


def _again(audit: Audit, replaced: Sequence[str], by: str) -> list[Block]:
    """Return the command of this audit with some options replaced; without one, only what to change."""
    if audit.asked is None:
        return [Command(f"lightning audit ... {by}")]
    return [Command(f"lightning audit {shlex.join(files_first(without(audit.asked.arguments, replaced)))} {by}")]


def _fit(audit: Audit) -> str:
    configs = [] if audit.asked is None else audit.asked.configs
    return shlex.join(["lightning", "fit", *(configs or ["RUN.yaml"])])


def _which(audit: Audit) -> str:
    if audit.asked is not None and audit.asked.configs:
        return ""
    return ", RUN.yaml being the configuration that trained the model"
