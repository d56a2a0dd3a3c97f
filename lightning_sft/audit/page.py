"""The page of an audit, for someone who has nothing but the page."""

from __future__ import annotations

import math
from collections import Counter
from importlib import metadata

from lightning_sft.audit.render import Block, Listing, Section, Table, as_code
from lightning_sft.audit.result import Audit, Context, ReadModel
from lightning_sft.metrics.silent import SilentReading

SHOWN = 12  # contexts on the page; the rest is in the files beside it
PHANTOM = 0.05  # share of the embeddings below which a change is the readout's alone


def title(audit: Audit) -> str:
    """Return the page's title."""
    against = "" if audit.before is None else f", compared with {audit.before.name}"
    return f"Audit of {audit.after.name}{against}"


def sections(audit: Audit) -> list[Section]:
    """Return the page."""
    found = [Section("In short", [Listing(in_short(audit))])]
    found += [_contexts(audit), _numbers(audit)]
    if audit.sources:
        found.append(_sources(audit))
    if audit.probes:
        found.append(_probes(audit))
    if audit.forgetting is not None:
        found.append(_forgetting(audit))
    return [*found, _how(audit), _words(audit)]


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
        outcomes = Counter(o.verdict.outcome for o in audit.probes if o.verdict is not None)
        counts = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
        lines.append(f"Of {len(audit.probes)} near-synonym probes: {counts}.")
    if audit.forgetting is not None and audit.forgetting.changed is not None:
        f = audit.forgetting
        assert f.nll_before is not None
        rose = f.nll - f.nll_before
        lines.append(
            f"Forgetting: on {f.tokens} tokens of general text the loss {'rose' if rose > 0 else 'fell'} from "
            f"{f.nll_before:.3f} to {f.nll:.3f} nats per token, and the first choice changed at {f.changed:.1%}."
        )
    lines.append(_calibration(audit))
    return lines


def _loss(audit: Audit) -> str:
    change, low, high = audit.nll_change
    r = audit.silent
    figures = f"mean NLL {r.nll_before:.3f} -> {r.nll:.3f} nats per token"
    if math.isnan(change):
        return f"Loss: {figures}."
    what = "fell" if change < 0 else "did not fall"
    interval = ""
    if not math.isnan(low):
        interval = f", 95% interval {low:+.3f} to {high:+.3f}"
        what = "fell" if high < 0 else "rose" if low > 0 else "did not clearly change"
    return f"The loss {what}: {figures} ({change:+.3f}{interval})."


def _calibration(audit: Audit) -> str:
    now = audit.after
    sure = f"its first choice has a probability of {now.confidence:.1%} on average and is right at {now.accuracy:.1%}"
    error = f"expected calibration error {now.calibration:.3f}"
    if audit.before is not None:
        error += f", before {audit.before.calibration:.3f}"
    return f"Calibration: {sure} ({error}; 0 is perfect)."


def _contexts(audit: Audit) -> Section:
    blocks: list[Block] = []
    compared = audit.before is not None
    if not audit.contexts:
        none = "got a lower loss and stayed behind the same competitor" if compared else "is outranked"
        return Section("Words that stayed outranked", [f"No token {none}."])
    blocks.append(
        "At each of these places the loss of the right word fell, and the model still prefers the same other word, its "
        "competitor. The worst first:"
        if compared
        else "At each of these places the model prefers another word, the competitor. The worst first:"
    )
    head = ["before the word", "right word", "competitor", "p right", "p competitor", "NLL of the right word"]
    blocks.append(Table(head, [_context_row(c) for c in audit.contexts[:SHOWN]]))
    if len(audit.contexts) > SHOWN:
        blocks.append(f"{len(audit.contexts)} of them are in `contexts.jsonl` beside this page.")
    return Section("Words that stayed outranked" if compared else "Outranked words", blocks)


def _context_row(c: Context) -> list[str]:
    def moved(before: float | None, now: float, digits: int = 3) -> str:
        return f"{now:.{digits}f}" if before is None else f"{before:.{digits}f} -> {now:.{digits}f}"

    return [
        as_code("..." + c.context),
        as_code(c.correct),
        as_code(c.competitor),
        moved(c.p_correct_before, c.p_correct),
        moved(c.p_competitor_before, c.p_competitor),
        moved(c.nll_before, c.nll, 2),
    ]


def _numbers(audit: Audit) -> Section:
    r, b, a = audit.silent, audit.before, audit.after
    blank = "" if b is None else "-"

    def line(name: str, before: str | None, after: str) -> list[str]:
        return [name, after] if b is None else [name, blank if before is None else before, after]

    rows = [
        line("loss (mean NLL, nats per token)", _number(r.nll_before), _number(r.nll)),
        line("outranked: the right token is not the first choice", _share(1 - b.accuracy) if b else None,
             _share(r.outranked)),
        line("expected: outranked, if it were calibrated", _share(1 - b.confidence) if b else None, _share(r.expected)),
        line("excess: outranked - expected", _signed(b.confidence - b.accuracy) if b else None,
             f"{_signed(r.excess)}{_bounds(r.excess_low, r.excess_high)}"),
        line("expected calibration error", _number(b.calibration) if b else None, _number(a.calibration)),
        line("answers written word by word (greedy)", _exact(b) if b else None, _exact(a)),
    ]  # fmt: skip
    head = ["of all tokens", "value"] if b is None else ["of all tokens", "before", "after"]
    blocks: list[Block] = [Table(head, rows)]
    if b is not None:
        first = r.tokens - r.behind
        blocks.append(
            Table(
                ["of the tokens that were ...", "share", "tokens"],
                [
                    ["outranked before: lower loss, still behind the same competitor (**silent failure**)",
                     f"{_share(r.share)}{_bounds(r.share_low, r.share_high)}", f"of {r.behind}"],
                    ["outranked before: now the first choice", _share(r.flipped), f"of {r.behind}"],
                    ["the first choice before: not any more", _share(r.lost), f"of {first}"],
                ],
            )
        )  # fmt: skip
    return Section("Numbers", blocks)


def _sources(audit: Audit) -> Section:
    def row(name: str, r: SilentReading) -> list[str]:
        loss = _number(r.nll) if audit.before is None else f"{_number(r.nll_before)} -> {_number(r.nll)}"
        compared = [] if audit.before is None else [f"{_share(r.share)}{_bounds(r.share_low, r.share_high)}"]
        return [as_code(name), str(r.tokens), loss, _share(r.outranked), _signed(r.excess), *compared]

    head = ["source", "tokens", "loss", "outranked", "excess"] + ([] if audit.before is None else ["silent failure"])
    return Section("By source", [Table(head, [row(name, r) for name, r in audit.sources.items()])])


def _probes(audit: Audit) -> Section:
    compared = audit.before is not None
    rows = []
    for o in audit.probes:
        was = o.before or o.after

        def moved(name: str, was: dict[str, float] = was, now: dict[str, float] = o.after, digits: int = 3) -> str:
            return f"{now[name]:.{digits}f}" if not compared else f"{was[name]:.{digits}f} -> {now[name]:.{digits}f}"

        verdict = [] if o.verdict is None else [_outcome(o.verdict.outcome, o.verdict.modes)]
        share = o.cause_share if o.cause_share is not None else o.embeddings_share
        part = [] if not compared else ["unknown" if share is None else f"{share:.0%}"]
        rows.append(
            [as_code(o.probe.name), *verdict, moved("p_correct"), moved("p_competitor"), moved("phi"), moved("signal"),
             moved("drag"), *part]
        )  # fmt: skip
    head = ["probe", *(["what happened"] if compared else []), "p right", "p competitor", "order parameter", "signal",
            "drag", *(["embeddings' share"] if compared else [])]  # fmt: skip
    blocks: list[Block] = [
        "A probe is a context whose right next word has a near-synonym that the model may prefer. **Kinematic** "
        "failure: the signal, the right word's lead, stayed small: too little training for this word. **Structural** "
        "failure: the drag, what the rest of the vocabulary adds, got worse while the loss fell.",
        Table(head, rows),
    ]
    advice = {f"{_outcome(o.verdict.outcome, o.verdict.modes)}: {o.verdict.advice}": None for o in audit.probes
              if o.verdict is not None and o.verdict.advice}  # fmt: skip
    if advice:
        blocks.append(Listing(list(advice)))
    if compared:
        shares = [s for o in audit.probes if (s := o.cause_share) is not None]
        if shares and max(shares) < PHANTOM:
            blocks.append(
                "The embeddings had next to no part in what changed: it was made by the layers in between (under LoRA "
                "it must be). A sudden jump of the order parameter would be a phantom here, in the readout and not in "
                "the geometry of the words; two finished models cannot show whether there was one."
            )
    return Section("Near-synonym probes", blocks)


def _outcome(outcome: str, modes: tuple[str, ...]) -> str:
    return f"failed: {' and '.join(modes) or 'unclassified'}" if outcome == "failed" else outcome


def _forgetting(audit: Audit) -> Section:
    f = audit.forgetting
    assert f is not None
    if f.kl is None or f.changed is None or f.nll_before is None:
        rows = [["loss (mean NLL, nats per token)", _number(f.nll)]]
        return Section("General text", [Table([f"guard set {as_code(f.name)}, {f.tokens} tokens", "value"], rows)])
    rows = [
        ["loss (mean NLL, nats per token)", f"{_number(f.nll_before)} -> {_number(f.nll)}"],
        ["KL(before || after), nats per token", f"{f.kl:.4f}"],
        ["tokens whose first choice changed", _share(f.changed)],
    ]
    return Section("Forgetting", [
        "Text outside the task, read by both models: every movement there is a side effect.",
        Table([f"guard set {as_code(f.name)}, {f.tokens} tokens", "value"], rows),
    ])  # fmt: skip


def _how(audit: Audit) -> Section:
    models = [m for m in (audit.before, audit.after) if m is not None]
    names = ["before", "after"] if audit.before is not None else ["model"]
    table = Table(
        ["", "model", "stands on", "class", "step"],
        [[name, as_code(m.name), as_code(m.base) if m.base else "-", m.kind, "-" if m.step is None else str(m.step)]
         for name, m in zip(names, models, strict=True)],
    )  # fmt: skip
    some = f"{audit.rows} of {audit.total_rows} rows, spread evenly" if audit.rows < audit.total_rows else "all rows"
    trained = {
        "yes": "trained on, as was said",
        "no": "not trained on, as was said",
        "unknown": "whether they were trained on is not known (say it with `--trained yes` or `no`)",
    }[audit.trained]
    masks = ", ".join(f"{name} ({count} rows)" for name, count in audit.masks.items())
    items = [
        f"Rows: {some} of the set `{audit.set}`, {audit.silent.tokens} tokens; {trained}.",
        f"Which tokens count is known from: {masks}.",
        f"Chat template: {audit.template}. Both models read the same token ids." if audit.before is not None
        else f"Chat template: {audit.template}.",
        "Intervals are 95% bootstrap intervals over rows.",
        *audit.notes,
        f"Written by lightning-sft {metadata.version('lightning-sft')}; nothing was trained.",
    ]  # fmt: skip
    return Section("How this was read", [table, Listing(items)])


def _words(audit: Audit) -> Section:
    items = [
        "**Outranked**: the model's first choice at this place is another token than the one in the data.",
        "**Competitor**: the strongest token beside the right one.",
        "**Expected**: a model that is right as often as it is sure is outranked at 1 - p of its first choice. "
        "Held-out text surprises even a perfect model, so only the excess over it is a fault there.",
        "**Silent failure**: the loss fell, since the right token got likelier, and the same competitor is still "
        "ahead: greedy decoding writes the same wrong word as before. On rows that were trained on, this is a failure.",
    ]
    return Section("Words used here", [Listing(items if audit.before is not None else items[:3])])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1%}"


def _bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({low:.1%} to {high:.1%})"


def _exact(model: ReadModel) -> str:
    return "-" if math.isnan(model.exact) else f"{model.exact:.1%} of {model.answers}"
