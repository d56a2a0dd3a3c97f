"""A report for people: one sentence, and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from lightning_sft.compare.keys import Score, heading_of, score_of
from lightning_sft.compare.power import needed, resolvable
from lightning_sft.compare.report import ArmReport, Report
from lightning_sft.compare.statistics import Contrast
from lightning_sft.files import to_json
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.units import are, duration, plural

#: in place of an interval of differences that are all the same, which has no width
ALIKE = "[all alike]"
#: an interval of a share that is wider says little
_WIDE = 0.5
#: tokens of an answer, on average, below which an arm writes nothing
_EMPTY = 0.5


def sentence(report: Report) -> str:
    """Return what the comparison says in one sentence, about the best arm that was told apart."""
    first, *others = report.arms
    end = f"{report.replicates} replicates, {duration(report.wall_seconds)} of runs."
    if not others:
        return f"Only {first.name} has finished runs; {end}"
    verdicts = {arm.name: contrast_of(arm, report.score.key) for arm in others}
    order = [name for name in report.ranking if name != first.name]
    better = [name for name in order if verdicts[name].verdict == "better"]
    worse = [name for name in reversed(order) if verdicts[name].verdict == "worse"]
    if better:
        name = better[0]
        what = f"{name} beats {first.name} by {_gain(verdicts[name], report.score, sign=1)}"
    elif worse and len(worse) == len(others):
        name = order[0]
        what = f"{first.name} beats {name} by {_gain(verdicts[name], report.score, sign=-1)}"
    else:
        alike = [n for n in order if verdicts[n].verdict == "undecided"]
        name = alike[0]
        what = f"{name} and {first.name} are not told apart: {_difference(verdicts[name], report.score)}"
        what += f"; nor {are(len(alike) - 1)} {_listed(alike[1:])} told apart from {first.name}" if alike[1:] else ""
        what += f"; {_listed(worse)} {are(len(worse))} worse" if worse else ""
    drift = next((key for key in report.keys if key.startswith("drift/")), None)
    side = ""
    if drift is not None and drift in report.arm(name).readings:
        moved = _difference(contrast_of(report.arm(name), drift), score_of(drift), unit="nats")
        side = f", drift of {drift.split('/')[1]} text {moved} under {name}"
    told = [key for key in report.keys if key != report.score.key and _told_apart(report.arm(name), key)]
    apart = ""
    if verdicts[name].verdict == "undecided" and told:
        by = score_of(told[0])
        apart = f" (the table tells them apart by {by.words}: {_difference(contrast_of(report.arm(name), by.key), by)})"
    return f"{what}{apart}{side}; {end}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _told_apart(arm: ArmReport, key: str) -> bool:
    """Return whether an arm's difference from the first holds by a log key, beyond chance."""
    contrast = arm.readings[key].against_first if key in arm.readings else None
    return contrast is not None and contrast.verdict != "undecided"


def contrast_of(arm: ArmReport, key: str) -> Contrast:
    """Return an arm's difference from the first; of an arm that is not the first."""
    contrast = arm.readings[key].against_first
    assert contrast is not None
    return contrast


def _gain(contrast: Contrast, score: Score, sign: int) -> str:
    """Return by how much one side is ahead, without a sign; ``sign`` is -1 where that side is the first arm."""
    sign = sign if score.higher else -sign
    interval = contrast.difference
    ends = sorted(sign * v for v in (interval.low, interval.high) if v is not None)
    return f"{score.change(sign * interval.mean, signed=False)} {score.unit} {_bracket(score, ends, signed=False)}"


def _difference(contrast: Contrast, score: Score, unit: str | None = None) -> str:
    """Return an arm's difference from the first, with its sign."""
    interval = contrast.difference
    ends = _bracket(score, (interval.low, interval.high))
    if ends == ALIKE:
        ends = f"[the same in every replicate, so no interval; p = {contrast.p:.2g}]"
    return f"{score.change(interval.mean)} {unit or score.unit} {ends}"


def _bracket(score: Score, ends: Sequence[float | None], *, signed: bool = True) -> str:
    known = [v for v in ends if v is not None]
    if len(known) == 2 and abs(known[1] - known[0]) <= 1e-9 * max(abs(v) for v in known):
        return ALIKE
    if score.share:  # two shares differ by 1 at most
        ends = [None if v is None else min(max(v, -1.0), 1.0) for v in ends]
    return f"[{', '.join(score.change(v, signed=signed) for v in ends)}]"


def markdown(report: Report) -> str:
    """Return the table, an arm a row, and below it what a reader has to know."""
    return "\n".join([*_lines(_rows(report)), "", *explanation(report)])


def narrow(report: Report) -> str:
    """Return the same with an arm a column, which a terminal has room for."""
    return "\n".join([*_lines([list(row) for row in zip(*_rows(report), strict=True)]), "", *explanation(report)])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = rows
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {' | '.join(row)} |" for row in others)]


def _rows(report: Report) -> list[list[str]]:
    """Return the cells of the table, its head first."""
    keys = report.keys
    timed = any(arm.seconds_to_reach for arm in report.arms)
    reach = ["as good as the first arm's best after"] if timed else []
    rows = [["arm", "learning rate", *(heading_of(key) for key in keys), *reach, "diverged"]]
    if report.start:
        before = [_own(report, key).show(report.start.get(key)) for key in keys]
        rows.append(["(before)", "", *before, *([""] if timed else []), ""])
    for number, arm in enumerate(report.arms):
        cells = [_cell(report, arm, key, first=number == 0) for key in keys]
        rate = "its own" if arm.rate is None else f"{arm.rate:.3g}"
        edge = f" (at the {arm.at_edge} end)" if arm.at_edge else ""
        lost = f"{arm.diverged} of {report.replicates}" + (f", {arm.failed} failed" if arm.failed else "")
        rows.append([arm.name, f"{rate}{edge}", *cells, *([_reach(arm)] if timed else []), lost])
    return rows


def to_json_text(report: Report) -> str:
    """Return all of a report as strict JSON; numbers that are not finite become null."""
    more = {"ranking": report.ranking, "sentence": sentence(report), "table": markdown(report)}
    return to_json({**asdict(report), **more}, 1) + "\n"


def explanation(report: Report) -> list[str]:
    """Return what a reader of the table has to know, a line each."""
    trials = len(report.arms[0].search)
    how = f"found by {trials} trials of each arm on rows that are not judged, by {report.score.key}"
    lines = [
        f"Means over {report.replicates} replicates ({report.replicate}; the same for all arms){_judged_by(report)}; "
        f"in parentheses the difference from {report.arms[0].name} with its 95% t-interval over paired replicates; * "
        "where it holds at 5% over all arms (Holm). Learning rates: "
        f"{how if trials else 'those of the configuration'}."
    ]
    if any(arm.seconds_to_reach for arm in report.arms):
        lines.append(
            "As good as the first arm's best: after that training time and so many trained tokens "
            f"{report.score.words} was as good as {report.arms[0].name}'s best of the same replicate; the median."
        )
    if any(key.startswith("silent/") for key in report.keys):
        lines.append(
            "Silent share: of the tokens that were outranked at the start, those whose loss fell and that are still "
            "behind the same competitor. Those behind another word by now, and those whose loss did not fall, stand "
            "apart from it."
        )
    table = "\n".join(map(" ".join, _rows(report)))
    if report.judged_rows and min(report.judged_rows) < MIN_ROWS:
        few = plural(min(report.judged_rows), "row")
        lines.append(
            f"{few} to judge a replicate by: too few to trust. Hold out at least {MIN_ROWS}: --data.val_split."
        )
    if ALIKE in table:
        lines.append(f"{ALIKE}: the same difference in every replicate, so there is no interval.")
    if any(_width(report, arm) > _WIDE for arm in report.arms[1:]):
        lines.append(
            "An interval that covers half of what a share can be, or more, says little: give more --replicates."
        )
    for arm in report.arms:
        lines += _empty(arm)
        if arm.at_edge:
            lines.append(
                f"{arm.name}: its best rate is the {arm.at_edge}est that was tried; a better one may lie beyond "
                f"({'lower --low' if arm.at_edge == 'low' else 'raise --high'}, or --grow)."
            )
        if arm.error:
            lines.append(
                f"{arm.name}: {arm.failed} of {report.replicates} runs failed and count as the worst: {arm.error}"
            )
        elif arm.diverged:
            lines.append(f"{arm.name}: {arm.diverged} of {report.replicates} runs diverged and count as the worst.")
    lines += [f"{name} failed in every run and is left out: {error}" for name, error in report.left_out.items()]
    return [*lines, *report.notes]


def _judged_by(report: Report) -> str:
    """Return by how many rows a replicate is judged, behind a comma; empty where that is not known."""
    if not report.judged_rows:
        return ""
    least, most = min(report.judged_rows), max(report.judged_rows)
    return f", each judged by {plural(most, 'row')}" if least == most else f", each judged by {least} to {most} rows"


def _width(report: Report, arm: ArmReport) -> float:
    """Return the width of the widest interval of a share of an arm in the table."""
    found = [arm.readings[key].against_first for key in report.keys if key in arm.readings and _own(report, key).share]
    ends = [(c.difference.low, c.difference.high) for c in found if c is not None]
    return max(
        (min(high, 1.0) - max(low, -1.0) for low, high in ends if low is not None and high is not None), default=0.0
    )


def _empty(arm: ArmReport) -> Iterator[str]:
    """Say where an arm writes nothing, so that other figures look better than it is."""
    reading = arm.readings.get("val/answer_tokens")
    number = 0 if reading is None else sum(value < _EMPTY for value in reading.values)
    if reading is not None and number:
        yield (
            f"{arm.name}: in {number} of {plural(len(reading.values), 'replicate')} its answers are empty. Such "
            "answers end by themselves, so the stop share says nothing good of it."
        )


def width_note(report: Report, wish: float | None) -> str | None:
    """Return a sentence about few replicates, and about the number that a wished difference needs; None without need.

    Args:
        report: of the comparison.
        wish: the difference that is wished for, in the score's units.
    """
    others = report.arms[1:]
    few = report.replicates < 4
    if not others or (wish is None and not few):
        return None
    key = report.score.key
    first = report.arms[0].readings[key].values
    spreads = [_spread(arm.readings[key].values, first) for arm in others]
    spread = max(spreads)
    if not spread:
        return f"{report.replicates} replicates are few, and all gave the same difference." if few else None
    arms = len(report.arms)
    smallest = resolvable(report.replicates, arms) * spread
    score = report.score
    text = (
        f"{report.replicates} replicates resolve a difference of {score.change(smallest, signed=False)} {score.unit} "
        "(80% power, by the spread that was seen)"
    )
    if wish is not None:
        count = needed(wish / spread, arms)
        text += f"; one of {score.change(wish, signed=False)} needs {count or 'more than 10000'}"
    return f"{'Intervals are wide: ' if few else ''}{text}."


def _spread(values: Sequence[float], first: Sequence[float]) -> float:
    return statistics.stdev(a - b for a, b in zip(values, first, strict=True))


def _own(report: Report, key: str) -> Score:
    return report.score if key == report.score.key else score_of(key)


def _cell(report: Report, arm: ArmReport, key: str, *, first: bool) -> str:
    reading = arm.readings.get(key)
    if reading is None:
        return "-"
    score = _own(report, key)
    mean = score.show(reading.mean.mean)
    contrast = reading.against_first
    if first or contrast is None:
        return mean
    bounds = _bracket(score, (contrast.difference.low, contrast.difference.high))
    star = "*" if contrast.verdict != "undecided" else ""
    return f"{mean} ({score.change(contrast.difference.mean)} {bounds}{star})"


def _reach(arm: ArmReport) -> str:
    """Return the median time and tokens to the first arm's best, and how many replicates got there."""
    pairs = [(s, t) for s, t in zip(arm.seconds_to_reach, arm.tokens_to_reach, strict=True) if s is not None and t]
    if not pairs:
        return "never"
    seconds, tokens = (statistics.median(column) for column in zip(*pairs, strict=True))
    share = "" if len(pairs) == len(arm.seconds_to_reach) else f" ({len(pairs)} of {len(arm.seconds_to_reach)})"
    return f"{duration(seconds)} ({tokens:,.0f} trained tokens){share}"
