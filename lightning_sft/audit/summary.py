"""What an audit found in a few sentences, and what to try next."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from lightning_sft.audit.render import Block, Command, as_code
from lightning_sft.audit.result import Audit
from lightning_sft.probes.verdict import Verdict

CONTEXTS = "contexts.jsonl"
STILL = 0.0005  # nats per token that are no change


def title(audit: Audit) -> str:
    """Return the page's title."""
    against = "" if audit.before is None else f", compared with {short_name(audit.before.name)}"
    return f"Audit of {short_name(audit.after.name)}{against}"


def short_name(name: str) -> str:
    """Return the end of a path, and a hub name as it is."""
    parts = name.rstrip("/").split("/")
    return name if len(parts) <= 2 else "/".join(parts[-2:])


def next_steps(audit: Audit, folder: Path) -> list[Block]:
    """Return what to try, from the first verdict that asks for something, or from places too few for a verdict."""
    outcomes = [verdict.outcome for verdict in audit.verdicts if verdict.failed]
    too_few = audit.trained == "yes" and audit.verdicts[0].outcome == "nothing to judge"
    if not outcomes and not (too_few and audit.before is not None and audit.contexts):
        return []
    start = "lightning fit --config RUN.yaml"
    if outcomes[:1] == ["overconfident"]:
        return [
            "Train again with less certainty, RUN.yaml being the configuration that trained the model:",
            Command(f"{start} --model.objective LabelSmoothing"),
            "Fewer epochs or a lower learning rate do the same.",
        ]
    file = folder / CONTEXTS
    return [
        "Train again with a margin between the right words and their competitors, or weigh those places more. RUN.yaml "
        "is the configuration that trained the model; with another trainer, weigh the tokens that the file names.",
        Command(f"{start} --model.objective RunnerUpMargin --model.objective.pairs {file}"),
        Command(f"{start} --data.loss_weights.contexts '{{\"{file}\": 4}}'"),
        "A higher learning rate or more steps help where the right word was simply not pushed far enough.",
    ]


def in_short(audit: Audit) -> list[str]:
    """Return what was found, a sentence or two an entry."""
    lines = []
    if audit.before is not None:
        lines.append(_loss(audit))
    for verdict in audit.verdicts:
        asks = audit.trained == "unknown" and len(audit.verdicts) > 1
        condition = ""
        if asks:
            condition = "If it was trained on these rows: " if verdict is audit.verdicts[0] else "If it was not: "
        lines.append(f"{condition}{verdict.sentence}")
    if audit.probes and audit.before is not None:
        outcomes = Counter(outcome(o.verdict) for o in audit.probes if o.verdict is not None)
        counts = "; ".join(f"{count} {name}" for name, count in outcomes.most_common())
        lines.append(f"Of {len(audit.probes)} near-synonym probes: {counts}.")
    f = audit.forgetting
    if f is not None and f.changed is not None and f.nll_before is not None:
        rose = f.nll - f.nll_before
        loss = (
            f"rose by {rose:.3f}" if rose >= STILL else f"fell by {-rose:.3f}" if rose <= -STILL else "did not change"
        )
        lines.append(
            f"Forgetting: on {f.tokens} tokens of other text (guard set {as_code(f.name)}) the loss {loss}, and the "
            f"first choice changed at {f.changed:.1%}."
        )
    lines.append(_calibration(audit))
    return lines


def _loss(audit: Audit) -> str:
    change, low, high = audit.nll_change
    r = audit.silent
    figures = f"mean NLL {r.nll_before:.3f} -> {r.nll:.3f} nats per token"
    if math.isnan(change):
        return f"Loss: {figures}."
    what = "fell" if change < 0 else "rose"
    interval = ""
    if not math.isnan(low):
        interval = f", 95% interval {low:+.3f} to {high:+.3f}"
        what = "fell" if high < 0 else "rose" if low > 0 else "did not clearly change"
    if abs(change) < STILL:
        what = "did not change"
    return f"The loss {what}: {figures} ({change:+.3f}{interval})."


def _calibration(audit: Audit) -> str:
    now = audit.after
    sure = f"its first choice has a probability of {now.confidence:.1%} on average and is right at {now.accuracy:.1%}"
    error = f"expected calibration error {now.calibration:.3f}"
    if audit.before is not None:
        error += f", before {audit.before.calibration:.3f}"
    return f"Calibration: {sure} ({error}; 0 is perfect)."


def outcome(verdict: Verdict) -> str:
    """Return a probe's outcome in a few words; two models know no step at which it flipped."""
    return verdict.outcome if verdict.outcome == "flipped" else verdict.title
