"""The page of an audit, for someone who has nothing but the page."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path

from lightning_sft.advice.options import value_of
from lightning_sft.audit.contexts import Context
from lightning_sft.audit.headline import headline, is_almost_unchanged
from lightning_sft.audit.next_steps import next_steps
from lightning_sft.audit.page_probes import probes_section
from lightning_sft.audit.render import Block, Listing, Section, Table, as_code, as_token
from lightning_sft.audit.result import Audit, ReadModel
from lightning_sft.audit.summary import CONTEXTS, in_short
from lightning_sft.data.types import MaskFrom
from lightning_sft.metrics.silent import SilentReading
from lightning_sft.units import plural

INTERVALS = (
    "Intervals are 95% bootstrap intervals over rows; those of silent failures are no narrower than the exact ones of "
    "as many independent tokens."
)
SHOWN = 12  # contexts on the page; the rest is in the files beside it


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
    found = [Section("In short", [f"**{headline(audit)}**", asked, Listing(in_short(audit))])]
    if steps := next_steps(audit, folder):
        found.append(Section("What to try next", steps))
    found += [_contexts(audit), _numbers(audit)]
    if audit.sources:
        found.append(_sources(audit))
    if audit.probes:
        found.append(probes_section(audit))
    if audit.forgetting is not None:
        found.append(_forgetting(audit))
    return [*found, _how(audit), _words(audit)]


def _contexts(audit: Audit) -> Section:
    blocks: list[Block] = []
    compared = audit.before is not None
    if not audit.contexts:
        lower = f"got a loss lower by more than {audit.min_fall:g} nats and stayed outranked"
        none = lower if compared else "is outranked"
        return Section("Words that stayed outranked", [f"No token {none}."])
    first = "Those where the competitor leads by the largest difference in probability come first:"
    blocks.append(
        f"At each of these places the loss of the right word fell by more than {audit.min_fall:g} nats, and the model "
        "still prefers another word: the same one as before, which is a silent failure, or one that took its place. "
        f"{first}"
        if compared
        else f"At each of these places the model prefers another word, the competitor. {first}"
    )
    ahead = ["was behind", "is behind"] if compared else ["competitor"]
    odds = ["p right", "p of the one ahead" if compared else "p competitor"]
    head = ["before the word", "right word", *ahead, *odds, "NLL of the right word"]
    blocks.append(Table(head, [_context_row(c) for c in audit.contexts[:SHOWN]]))
    if len(audit.contexts) > SHOWN:
        blocks.append(f"{len(audit.contexts)} of them are in `{CONTEXTS}` beside this page.")
    return Section("Words that stayed outranked" if compared else "Outranked words", blocks)


def _context_row(c: Context) -> list[str]:
    def moved(before: float | None, now: float, digits: int = 3) -> str:
        return f"{now:.{digits}f}" if before is None else f"{before:.{digits}f} -> {now:.{digits}f}"

    return [
        as_code("..." + c.context),
        as_token(c.correct),
        *([] if c.competitor_start is None else [as_token(c.competitor_start)]),
        as_token(c.competitor),
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
        line("excess: outranked - expected, in percentage points", _signed(b.confidence - b.accuracy) if b else None,
             f"{_signed(r.excess)}{_point_bounds(r.excess_low, r.excess_high)}"),
        line("expected calibration error", _number(b.calibration) if b else None, _number(a.calibration)),
        line("answers that greedy decoding writes exactly", _exact(b) if b else None, _exact(a)),
    ]  # fmt: skip
    head = ["of all tokens", "value"] if b is None else ["of all tokens", "before", "after"]
    blocks: list[Block] = [Table(head, rows)]
    if b is not None:
        first, near = r.tokens - r.behind, audit.synonyms
        lower = f"loss lower by more than {audit.min_fall:g} nats"
        synonyms: list[list[str]] = []
        if near is not None:
            share = f"{_share(near.share)}{_bounds(near.share_low, near.share_high)}"
            synonyms = [["outranked by a near-synonym", f"{lower}, still behind it", share, f"of {near.behind}"]]
        else_behind = [
            ["outranked", f"{lower}, behind another word than before", _share(r.displaced), f"of {r.behind}"],
            ["outranked", "outranked, without such a loss", _share(r.unlearned), f"of {r.behind}"],
        ]
        blocks.append(
            Table(
                ["before", "now", "share", "tokens"],
                [
                    ["outranked", f"{lower}, still behind the same competitor (**silent failure**)",
                     f"{_share(r.share)}{_bounds(r.share_low, r.share_high)}", f"of {r.behind}"],
                    *synonyms,
                    *else_behind,
                    ["outranked", "the first choice", _share(r.flipped), f"of {r.behind}"],
                    *_plain_rows(audit, lower),
                    ["the first choice", "outranked", _share(r.lost), f"of {first}"],
                ],
            )
        )  # fmt: skip
    return Section("Numbers", blocks)


def _plain_rows(audit: Audit, lower: str) -> list[list[str]]:
    """Return how the tokens fared that are not special; nothing where all of them are, or none is."""
    w = audit.plain
    if w is audit.silent:
        return []
    before, of = "outranked, no special token", f"of {w.behind}"
    return [
        [
            before,
            f"{lower}, still behind the same competitor",
            f"{_share(w.share)}{_bounds(w.share_low, w.share_high)}",
            of,
        ],
        [before, "the first choice", _share(w.flipped), of],
    ]


def _sources(audit: Audit) -> Section:
    def row(name: str, r: SilentReading) -> list[str]:
        loss = _number(r.nll) if audit.before is None else f"{_number(r.nll_before)} -> {_number(r.nll)}"
        compared = [] if audit.before is None else [f"{_share(r.share)}{_bounds(r.share_low, r.share_high)}"]
        return [as_code(name), str(r.tokens), loss, _share(r.outranked), _signed(r.excess), *compared]

    head = ["source", "tokens", "loss", "outranked", "excess"] + ([] if audit.before is None else ["silent failure"])
    return Section("By source", [Table(head, [row(name, r) for name, r in audit.sources.items()])])


def _forgetting(audit: Audit) -> Section:
    f = audit.forgetting
    assert f is not None
    if f.kl is None or f.changed is None or f.nll_before is None:
        rows = [["loss (mean NLL, nats per token)", _number(f.nll)]]
        return Section(
            "General text", [Table([f"guard set {as_code(f.name)}, {plural(f.tokens, 'token')}", "value"], rows)]
        )
    rows = [
        ["loss (mean NLL, nats per token)", f"{_number(f.nll_before)} -> {_number(f.nll)}"],
        ["KL(before || after), nats per token", f"{f.kl:.2e}"],
        ["tokens whose first choice changed", _share(f.changed)],
    ]
    return Section("Forgetting", [
        "The guard set is text outside the task, read by both models: every movement there is a side effect."
        + (" Here the model hardly changed at all, so this says nothing of forgetting." if is_almost_unchanged(audit)
           else ""),
        Table([f"guard set {as_code(f.name)}, {plural(f.tokens, 'token')}", "value"], rows),
    ])  # fmt: skip


def _how(audit: Audit) -> Section:
    models = [m for m in (audit.before, audit.after) if m is not None]
    names = ["before", "after"] if audit.before is not None else ["model"]
    table = Table(
        ["", "model", "made from", "class", "step", "read as"],
        [[name, as_code(m.name), as_code(m.base) if m.base else "-", m.kind, "-" if m.step is None else str(m.step),
          f"{m.dtype} on {m.device}"]
         for name, m in zip(names, models, strict=True)],
    )  # fmt: skip
    some = f"{audit.rows} of {audit.total_rows} rows, spread evenly," if audit.rows < audit.total_rows else "all rows"
    trained = {
        "yes": "the model was trained on them (so says `--trained`, or the configuration)",
        "no": "the model was not trained on them (so says `--trained`, or the configuration)",
        "unknown": "whether they were trained on is not known (say it with `--trained yes` or `no`)",
    }[audit.trained]
    masks = ", ".join(f"{name} ({count} rows)" for name, count in audit.masks.items())
    items = [
        f"Rows: {some} of {_source(audit)}, {plural(audit.silent.tokens, 'token')}; {trained}.",
        f"Which tokens of a row are looked at (those that training would learn) was taken from: {masks}.",
        f"Chat template: {_template(audit)}.{' Both models read the same token ids.' if audit.before else ''}",
        *([INTERVALS] if _has_intervals(audit) else []),
        *audit.notes,
        f"Written by lightning-sft {metadata.version('lightning-sft')}; nothing was trained.",
    ]  # fmt: skip
    return Section("How this was read", [table, Listing(items)])


def _has_intervals(audit: Audit) -> bool:
    r = audit.silent
    return not all(math.isnan(bound) for bound in (r.share_low, r.excess_low, audit.nll_change[1]))


def _template(audit: Audit) -> str:
    """Return whose template the rows were read with."""
    bare = {MaskFrom.ROW.value, MaskFrom.ROW_WITH_CONTROL_TOKENS.value}
    return "none was used" if set(audit.masks) <= bare else audit.template


def _words(audit: Audit) -> Section:
    items = [
        "**Word**: a token of the model, which may be a part of a word, a sign, or the end of an answer. "
        "The sign `\u2423` is a space at its start or end.",
        "**Outranked**: the model's first choice at this place is another token than the one in the data.",
        "**Competitor**: the strongest token beside the right one.",
        "**Expected**: a model that is right as often as it is sure is outranked at 1 - p of its first choice. "
        "Held-out text surprises even a perfect model, so only the excess over it is a fault there.",
        f"**Silent failure**: the loss of a token fell by more than {audit.min_fall:g} nats, and the same competitor "
        "is still ahead of it: greedy decoding writes the same wrong word as before. On rows that were trained on, "
        "this is a failure. Where another word has taken that one's place, the right word is no less outranked, and is "
        "counted apart.",
    ]
    return Section("Words used here", [Listing(items if audit.before is not None else items[:4])])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(100 * value, 1) + 0.0:+.1f} points"


def _bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({low:.1%} to {high:.1%})"


def _point_bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f})"


def _exact(model: ReadModel) -> str:
    return "-" if math.isnan(model.exact) else f"{model.exact:.1%} of {model.answers}"


def _source(audit: Audit) -> str:
    """Return where the rows are from: the file of ``--data``, whole, or a set of the settings."""
    file = None if audit.asked is None else value_of(audit.asked.arguments, "--data")
    return f"the set `{audit.set}` of the settings" if file is None else f"the file {as_code(file)}"
