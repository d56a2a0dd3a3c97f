"""The page of an audit, for someone who has nothing but the page."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path

from lightning_sft.audit.render import Block, Listing, Section, Table, as_code
from lightning_sft.audit.result import Audit, Context, ReadModel
from lightning_sft.audit.summary import CONTEXTS, in_short, next_steps, outcome
from lightning_sft.data.types import MaskFrom
from lightning_sft.metrics.silent import SilentReading

SHOWN = 12  # contexts on the page; the rest is in the files beside it
PHANTOM = 0.05  # share of the embeddings below which a change is the readout's alone


def sections(audit: Audit, folder: Path) -> list[Section]:
    """Return the page.

    Args:
        audit: what was found.
        folder: where the page will stand, for commands that read a file beside it.
    """
    compared = audit.before is not None
    asked = (
        "A fine-tuned model can get a lower loss and still write the same wrong words: the right word became likelier, "
        "and another one stayed ahead of it. This page says whether that happened here."
        if compared
        else "How often the model's first choice is another word than the one in the data, and whether it knows that."
    )
    found = [Section("In short", [asked, Listing(in_short(audit))])]
    if next_steps(audit, folder):
        found.append(Section("What to try next", next_steps(audit, folder)))
    found += [_contexts(audit), _numbers(audit)]
    if audit.sources:
        found.append(_sources(audit))
    if audit.probes:
        found.append(_probes(audit))
    if audit.forgetting is not None:
        found.append(_forgetting(audit))
    return [*found, _how(audit), _words(audit)]


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
        blocks.append(f"{len(audit.contexts)} of them are in `{CONTEXTS}` beside this page.")
    return Section("Words that stayed outranked" if compared else "Outranked words", blocks)


def _context_row(c: Context) -> list[str]:
    def moved(before: float | None, now: float, digits: int = 3) -> str:
        return f"{now:.{digits}f}" if before is None else f"{before:.{digits}f} -> {now:.{digits}f}"

    return [
        as_code("..." + c.context),
        as_code(c.correct),
        as_code(c.competitor),
        moved(c.p_correct_start, c.p_correct),
        moved(c.p_competitor_start, c.p_competitor),
        moved(c.nll_start, c.nll, 2),
    ]


def _numbers(audit: Audit) -> Section:
    r, b, a = audit.silent, audit.before, audit.after

    def line(name: str, before: str | None, after: str) -> list[str]:
        return [name, after] if before is None else [name, before, after]

    rows = [
        line("loss (mean NLL, nats per token)", _number(r.nll_before) if b else None, _number(r.nll)),
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
        first, near = r.tokens - r.behind, audit.synonyms
        synonyms: list[list[str]] = []
        if near is not None:
            share = f"{_share(near.share)}{_bounds(near.share_low, near.share_high)}"
            synonyms = [["outranked before by a near-synonym: lower loss, still behind it", share, f"of {near.behind}"]]
        blocks.append(
            Table(
                ["of the tokens that were ...", "share", "tokens"],
                [
                    ["outranked before: lower loss, still behind the same competitor (**silent failure**)",
                     f"{_share(r.share)}{_bounds(r.share_low, r.share_high)}", f"of {r.behind}"],
                    *synonyms,
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

        verdict = [] if o.verdict is None else [outcome(o.verdict)]
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
        "failure: the drag, what the rest of the vocabulary adds, got worse while the loss fell. The order parameter "
        "is signal plus drag, and positive where the prediction leans towards the right word. The embeddings' share "
        "is how much of its change came from moved embeddings and not from the layers in between.",
        Table(head, rows),
    ]
    verdicts = [o.verdict for o in audit.probes if o.verdict is not None and o.verdict.advice]
    advice = {f"{outcome(verdict)}: {verdict.advice}": None for verdict in verdicts}
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


def _forgetting(audit: Audit) -> Section:
    f = audit.forgetting
    assert f is not None
    if f.kl is None or f.changed is None or f.nll_before is None:
        rows = [["loss (mean NLL, nats per token)", _number(f.nll)]]
        return Section("General text", [Table([f"guard set {as_code(f.name)}, {f.tokens} tokens", "value"], rows)])
    rows = [
        ["loss (mean NLL, nats per token)", f"{_number(f.nll_before)} -> {_number(f.nll)}"],
        ["KL(before || after), nats per token", f"{f.kl:.2e}"],
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
        ["", "model", "stands on", "class", "step", "read as"],
        [[name, as_code(m.name), as_code(m.base) if m.base else "-", m.kind, "-" if m.step is None else str(m.step),
          f"{m.dtype} on {m.device}"]
         for name, m in zip(names, models, strict=True)],
    )  # fmt: skip
    some = f"{audit.rows} of {audit.total_rows} rows, spread evenly" if audit.rows < audit.total_rows else "all rows"
    trained = {
        "yes": "trained on (as you or the configuration say)",
        "no": "not trained on (as you or the configuration say)",
        "unknown": "whether they were trained on is not known (say it with `--trained yes` or `no`)",
    }[audit.trained]
    masks = ", ".join(f"{name} ({count} rows)" for name, count in audit.masks.items())
    items = [
        f"Rows: {some} of the set `{audit.set}`, {audit.silent.tokens} tokens; {trained}.",
        f"Which tokens count is known from: {masks}.",
        f"Chat template: {_template(audit)}.{' Both models read the same token ids.' if audit.before else ''}",
        "Intervals are 95% bootstrap intervals over rows.",
        *audit.notes,
        f"Written by lightning-sft {metadata.version('lightning-sft')}; nothing was trained.",
    ]  # fmt: skip
    return Section("How this was read", [table, Listing(items)])


def _template(audit: Audit) -> str:
    """Return whose template the rows were read with."""
    bare = {MaskFrom.ROW.value, MaskFrom.ROW_WITH_CONTROL_TOKENS.value}
    return "none was used" if set(audit.masks) <= bare else audit.template


def _words(audit: Audit) -> Section:
    items = [
        "**Word**: a token of the model, which may be a part of a word, a sign, or the end of an answer.",
        "**Outranked**: the model's first choice at this place is another token than the one in the data.",
        "**Competitor**: the strongest token beside the right one.",
        "**Expected**: a model that is right as often as it is sure is outranked at 1 - p of its first choice. "
        "Held-out text surprises even a perfect model, so only the excess over it is a fault there.",
        f"**Silent failure**: the loss of a token fell by more than {audit.min_fall:g} nats, and the same competitor "
        "is still ahead of it: greedy decoding writes the same wrong word as before. On rows that were trained on, "
        "this is a failure.",
    ]
    return Section("Words used here", [Listing(items if audit.before is not None else items[:4])])


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
