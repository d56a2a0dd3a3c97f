"""What a person asks first of a run, answered in three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sft.places import newest_settings
from lightning_sft.report.run import Run, class_name
from lightning_sft.units import adapter_kind, plural, probability

#: of fewer answers than this, a share in per cent says more than there is
_FEW = 50
#: how verdicts begin that should be looked at
_LOOK_AT = ("Silent failure", "Still outranked", "Overconfident")


def in_short(run: Run) -> list[str]:
    """Return: what was trained and whether it learned; where the model stood before; whether it failed silently."""
    return [_learned(run), _stood(run), _silent(run)]


def _learned(run: Run) -> str:
    model = run.setting("model.model_name_or_path")
    what = f"{model} was trained" if model else "A model was trained"
    adapter = run.setting("model.adapter")
    rank = run.setting("model.adapter.init_args.r")
    if adapter:
        name = adapter_kind(str(adapter.get("class_path", ""))) or "an adapter"
        what += f" by {name}" + (f" of rank {rank}" if rank else "")
    steps = plural(run.steps, "step")
    if run.planned and run.steps < run.planned:
        steps = f"{run.steps} of {plural(run.planned, 'step')}"
    rate = run.learning_rate
    what += f" {_under(run)} for {steps}" + ("" if rate is None else f" at a learning rate of {rate:g}")
    if run.is_under_way:
        what += " so far, and is under way"
    elif not run.is_complete:
        what += " and stopped early"
    rows = _few_rows(run)
    changes = [words for words in (
        _moved(run, "val/nll", "held-out NLL", "nats per token"),
        _moved(run, "val/exact_match", "answers that are exactly right", share=True, of=rows),
        _moved(run, "val/task_accuracy", "generated answers that are right", share=True, of=rows),
    ) if words]  # fmt: skip
    if changes and rows:
        changes.append(f"these are {plural(rows, 'held-out row')}, and others may give quite other values")
    if not changes:
        changes = [words for words in (_moved(run, "train/nll", "training NLL", "nats per token"),) if words]
    return f"{what}: {'; '.join(changes)}." if changes else f"{what}; nothing was logged that says whether it learned."


def _under(run: Run) -> str:
    """Return the objectives that a run was trained under, with the step at which each took the place of another."""
    (_, first), *others = run.objectives or [(0, run.objective)]
    return "under " + ", then ".join([first, *(f"from step {step} on under {name}" for step, name in others)])


def _few_rows(run: Run) -> int | None:
    """Return how many held-out rows there are, where they are few; None where they are many, or nobody counted."""
    rows = run.logs.last_value("data/val_rows")
    return int(rows) if rows is not None and 0 < rows < _FEW else None


def _moved(run: Run, key: str, name: str, unit: str = "", share: bool = False, of: int | None = None) -> str | None:
    """Return how a value moved; a share of few answers as their count, where it is one."""
    curve = run.logs.curve(key)
    first, last = run.logs.first_value(key), run.logs.last_value(key)
    if first is None or last is None:
        return None

    # a row may hold several answers, or only some rows be asked: then the share is no whole number of them
    counts = share and of is not None and all(abs(v * of - round(v * of)) < 1e-4 for v in (first, last))

    def shown(value: float) -> str:
        if counts and of is not None:
            return f"{round(value * of)} of {of}"
        return f"{value:.1%}" if share else f"{value:.3g}"

    if len(curve) < 2:
        return f"{name} {shown(last)}{f' {unit}' if unit else ''}"
    if shown(first) == shown(last):
        return f"{name} stayed at {shown(last)}"
    verb = "fell" if last < first else "rose"
    return f"{name} {verb} from {shown(first)} to {shown(last)}{f' {unit}' if unit else ''}"


def judged(reading: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the group of a stored reading that the advice goes by: the answers' own tokens, or all."""
    return (reading or {}).get("content") or (reading or {}).get("all")


def _stood(run: Run) -> str:
    start = judged(run.capability.get("start"))
    if not start:
        return "Where the model stood before training was not read (callback CapabilityProbe)."
    low, high = start.get("mean_p_interval") or (None, None)
    bounds = "" if low is None or high is None else f" (95% interval {probability(low)} to {probability(high)})"
    headline = (run.capability.get("advice") or {}).get("headline", "")
    mean = probability(start["mean_p"])
    return f"Before training the right tokens had a mean probability of {mean}{bounds}. {headline}".strip()


def _silent(run: Run) -> str:
    verdict = run.logs.text("silent/verdict")
    if verdict is not None:
        lines = verdict.splitlines()
        return next((line for line in lines if line.startswith(_LOOK_AT)), lines[0])
    names = ("share", "flipped", "content/flipped")
    share, overtook, plain = (run.logs.last_value(f"silent/train/{name}") for name in names)
    if share is not None:
        first = "" if overtook is None else f", and {overtook:.1%} are the first choice now"
        first += "" if plain is None else f" ({plain:.1%} without special tokens, such as the end of an answer)"
        return (
            f"So far {share:.1%} of the trained tokens that were outranked at the start have a lower loss and are "
            f"still behind the same competitor{first}; the verdict comes at the end of the fit."
        )
    return "Whether it failed silently was not watched (callback SilentFailureMonitor)."


def advice_of(run: Run) -> dict[str, Any]:
    """Return the advice before training: headline, what to try and avoid, why, trap and command; empty without."""
    advice = run.capability.get("advice") or {}
    if not advice:
        return {}
    return {
        **advice,
        "try_first": [class_name(choice) for choice in advice.get("try_first", ())],
        "avoid": [class_name(choice) for choice in advice.get("avoid", ())],
        "command": str(advice.get("command", "")).replace("CONFIG", str(newest_settings(run.folder))),
    }
