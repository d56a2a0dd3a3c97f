"""What an audit found in a few sentences."""

from __future__ import annotations

import math
from collections import Counter

from lightning_sft.audit.headline import is_almost_unchanged
from lightning_sft.audit.probing import ProbeOutcome
from lightning_sft.audit.render import as_code
from lightning_sft.audit.result import Audit
from lightning_sft.audit.special import special_sentence
from lightning_sft.places import CHECKPOINTS
from lightning_sft.probes.verdict import VerdictSettings
from lightning_sft.units import plural

CONTEXTS = "contexts.jsonl"
STILL = 0.0005  # nats per token that are no change
ROUGH = 100  # tokens below which calibration is a rough figure


def title(audit: Audit) -> str:
    """Return the page's title."""
    against = "" if audit.before is None else f", compared with {short_name(audit.before.name)}"
    return f"Audit of {short_name(audit.after.name)}{against}"


def short_name(name: str) -> str:
    """Return the end of a path, with the run of a checkpoint, and a hub name as it is.

    >>> short_name("/home/me/lightning_logs/NLL_1/checkpoints/last.ckpt"), short_name("Qwen/Qwen3-0.6B")
    ('NLL_1/checkpoints/last.ckpt', 'Qwen/Qwen3-0.6B')
    """
    parts = name.rstrip("/").split("/")
    kept = 3 if parts[-2:-1] == [CHECKPOINTS] else 2
    return name if len(parts) <= kept else "/".join(parts[-kept:])


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
        # the first line has said the loss of all tokens
        said = verdict.sentence if audit.before is None else verdict.without_loss or verdict.sentence
        lines.append(f"{condition}{said}")
    if audit.special is not None and (sentence := special_sentence(audit.special, compared=audit.before is not None)):
        lines.append(sentence)
    if audit.probes and audit.before is not None:
        outcomes = Counter(outcome(o) for o in audit.probes if o.verdict is not None)
        counts = "; ".join(f"{count} x {name}" for name, count in outcomes.most_common())
        lines.append(f"Of {plural(len(audit.probes), 'near-synonym probe')}: {counts}.")
    f = audit.forgetting
    if f is not None and f.changed is not None and f.nll_before is not None:
        rose = f.nll - f.nll_before
        loss = (
            f"rose by {rose:.3f}" if rose >= STILL else f"fell by {-rose:.3f}" if rose <= -STILL else "did not change"
        )
        empty = (
            " That says nothing of forgetting: the model hardly changed at all." if is_almost_unchanged(audit) else ""
        )
        text = f"{plural(f.tokens, 'token')} of text outside the task (guard set {as_code(f.name)})"
        lines.append(f"Forgetting: on {text} the loss {loss}, and the first choice changed at {f.changed:.1%}.{empty}")
    lines.append(_calibration(audit))
    return lines


def _loss(audit: Audit) -> str:
    change, low, high = audit.nll_change
    r = audit.silent
    figures = f"mean NLL of all {plural(r.tokens, 'token')} {r.nll_before:.3f} -> {r.nll:.3f} nats per token"
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
    rough = f" A rough figure, from {plural(audit.silent.tokens, 'token')}." if audit.silent.tokens < ROUGH else ""
    return f"Calibration: {sure} ({error}; 0 is perfect).{rough}"


def outcome(found: ProbeOutcome) -> str:
    """Return a probe's outcome in a few words, empty without a first model; two models know no step of a flip."""
    verdict = found.verdict
    if verdict is None or found.before is None:
        return ""
    if verdict.outcome == "loss did not fall" and found.after["loss"] < found.before["loss"]:
        return f"loss fell by less than {VerdictSettings.fall:g} nats"
    if verdict.outcome not in ("flipped", "never behind"):
        return verdict.title
    return verdict.outcome + (", but other words are ahead" if verdict.others_ahead else "")
