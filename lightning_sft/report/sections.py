"""What stands on the page, section by section; a section without content is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_sft.report import charts
from lightning_sft.report.charts import Chart, Series, curves
from lightning_sft.report.opposite import why_opposite
from lightning_sft.report.parts import Part, Section, Table
from lightning_sft.report.run import Run
from lightning_sft.report.sentences import advice_of, judged
from lightning_sft.report.tables import before_a_word, one_line, rows_of, spoken, without_what_all_share, word
from lightning_sft.report.words import SPEEDS, WORDS, data_count, data_words, number, says_no_more, signed
from lightning_sft.units import duration

#: how a line begins that says what the next command is for
WHY = "To try next, "
#: contexts and samples that are shown at most
CONTEXTS, SAMPLES = 12, 8


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections that these runs can fill."""
    several = len(runs) > 1

    def each(make: Callable[[Run], Part]) -> list[Part]:
        parts = [_safely(make, run) for run in runs]
        for part, run in zip(parts, runs, strict=True):
            part.run = run.name if several else ""
        return [part for part in parts if not part.is_empty]

    found = [
        Section("Before and after", "Held-out rows, read before the first step and after the last.",
                [_curves(runs), *each(_before_and_after)]),
        Section("Capability", "How likely the model finds the right tokens of the training data: this place on the "
                "continuum says which objectives are worth a try.", each(_capability)),
        Section("Silent failure", "A token fails silently where its loss falls and the same wrong token stays ahead of "
                "it: the curves look well, and the model goes on to write the wrong word.",
                [_silent_curves(runs), *each(_silent)]),
        Section("Near-synonym probes", "S (commitment) pulls towards the right word, D (drag) is the pull of all other "
                "words, and Phi is their sum: the right word wins where it is above 0.", each(_probes)),
        Section("Drift", "What the fit did to text outside its task: KL from the start, and the share of first choices "
                "that changed.", [_drift(runs)]),
        Section("Learning rate", "Trials beside the run, which left no trace in it.", each(_sweeps)),
        Section("Samples", "The same held-out prompts before and after.", each(_samples)),
        Section("Data", "Rows that were used, cut and left out.", each(_data)),
        Section("Speed and memory", "", [_speed(runs), *each(_speed_table)]),
    ]  # fmt: skip
    for section in found:
        section.parts = [part for part in section.parts if not part.is_empty]
    return [section for section in found if section.parts]


def _safely(make: Callable[[Run], Part], run: Run) -> Part:
    """Return a part; an empty one, and a problem of the run, where its files are not as this version writes them."""
    try:
        return make(run)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        name = make.__name__.strip("_").replace("_", " ")
        run.problems.append(
            f"The part {name!r} is left out: its files look different ({type(error).__name__}: {error})."
        )
        return Part()


def _together(
    runs: Sequence[Run], keys: dict[str, str], title: str, y: str, note: str = "", dashed: str = "", **options: Any
) -> Chart | None:
    """Return curves of several keys (log key -> label) and runs: the first key solid, the others dashed.

    The note says what is ``dashed`` where such curves are drawn.
    """
    several = len(runs) > 1
    if dashed and any(run.logs.curve(key) for run in runs for key in list(keys)[1:]):
        note = f"{note} Dashed: {dashed}.".strip()
    series = [
        Series(", ".join(filter(None, (run.label if several else "", label))) or title, run.logs.curve(key), i > 0,
               number if several else None)
        for number, run in enumerate(runs)
        for i, (key, label) in enumerate(keys.items())
    ]  # fmt: skip
    return curves(title, y, series, note=note, **options)


def _kept(charts_: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts_ if chart is not None]


def _curves(runs: Sequence[Run]) -> Part:
    both = {"val/nll": "held out", "train/nll": "training"}
    return Part(charts=_kept([
        _together(runs, both, "NLL", "nats per token", note="Lower is better.", dashed="training rows"),
        _together(runs, {"val/exact_match": "first choices", "val/task_accuracy": "generated"},
                  "Answers that are right", "share", share=True,
                  note="Right: every token is the first choice.", dashed="answers that the model writes"),
        _together(runs, {"val/mean_p": "held out", "train/mean_p": "training"}, "Mean p of the right token", "p",
                  dashed="training rows"),
        _together(runs, {"train/lr": ""}, "Learning rate", "learning rate"),
    ]))  # fmt: skip


def _before_and_after(run: Run) -> Part:
    keys = [key for key in run.logs.curves if key.startswith("val/")]
    ordered = [key for key in WORDS if key in keys] + sorted(key for key in keys if key not in WORDS)
    rows, (then, now) = [], ({key: run.logs.curve(key)[at][1] for key in ordered} for at in (0, -1))
    for key in (key for key in ordered if not says_no_more(key, then, now)):
        curve = run.logs.curve(key)
        shown = [number(x[key], key) for x in (then, now)]
        other = key.endswith("/loss") and curve[0][0] < run.objectives[-1][0]
        change = "" if len(curve) < 2 else "another objective" if other else signed(now[key] - then[key], key)
        rows.append([WORDS.get(key, key), *(shown if len(curve) > 1 else ["", shown[1]]), change])
    if not rows:
        return Part()
    steps = sorted({step for key in ordered for step in (run.logs.curve(key)[0][0], run.logs.curve(key)[-1][0])})
    head = ["held out", "before" if steps[0] == 0 else f"step {steps[0]}", f"step {steps[-1]}", "change"]
    return Part(tables=[Table(head, rows)], lines=[*filter(None, [why_opposite(then, now)])])


def _capability(run: Run) -> Part:
    start, end = run.capability.get("start"), run.capability.get("end")
    before, after = judged(start), judged(end)
    if not start or not before:
        return Part()
    readings = [("before", before)] + ([("after", after)] if after else [])
    part = Part(charts=[charts.continuum(readings, start["cut_offs"]), charts.histogram(readings)])
    advice = advice_of(run)
    part.lines += [f"Before: {doubt}" for doubt in advice.get("doubts", ())]
    part.lines += [f"After: {doubt}" for doubt in run.capability.get("doubts_after", ())]
    if advice:
        part.lines.append(str(advice["headline"]))
        part.lines += [advice["trap"]] if advice.get("trap") else []
        part.lines.append(f"Try first: {', '.join(advice['try_first'])}.")
        part.lines += [f"Avoid: {', '.join(advice['avoid'])}."] if advice["avoid"] else []
        part.lines += [" ".join(advice.get("why", ()))]
        if not _silent(run).command:  # what the trained model speaks for counts more than a reading before training
            part.command, part.why = advice["command"], "To try next, by this reading before training:"
    return part


def _silent_curves(runs: Sequence[Run]) -> Part:
    fell, sets = "although their loss fell", {"train": "trained rows", "val": "held-out rows"}
    titles = (("share", f"Stayed behind the same word {fell}"), ("displaced", f"Are behind another word {fell}"),
              ("flipped", "Became the first choice"),
              ("content/flipped", "Became the first choice, special tokens left out"))  # fmt: skip
    return Part(charts=_kept([
        _together(runs, {f"silent/{of}/{key}": words for of, words in sets.items()}, title,
                  "share of outranked tokens", dashed=sets["val"], share=True) for key, title in titles
    ]))  # fmt: skip


def _silent(run: Run) -> Part:
    verdict = run.logs.text("silent/verdict")
    part = Part(lines=[] if verdict is None else [line for line in verdict.splitlines() if line])
    commands = [line for line in part.lines if line.startswith("Next: ")]
    if commands:
        reasons = [line for line in part.lines if line.startswith(WHY)]
        part.lines = [line for line in part.lines if line not in (*commands, *reasons)]
        part.command, part.why = commands[0].removeprefix("Next: "), reasons[0] if reasons else "To try next:"
    contexts = without_what_all_share([str(c.get("context", "")) for c in run.contexts[:CONTEXTS]], ends=False)
    rows = [_context_row(text, c) for text, c in zip(contexts, run.contexts, strict=False)]
    if rows:
        head = ["before the word", "right word", "was ahead", "is ahead", "p right / ahead", "NLL", "where"]
        part.tables.append(Table(head, rows, wide=True))
        if len(run.contexts) > CONTEXTS:
            part.lines.append(f"The worst {CONTEXTS} of {len(run.contexts)} contexts; all of them: silent.jsonl.")
    return part


def _context_row(text: str, context: Mapping[str, Any]) -> list[str]:
    c = context
    names = ("correct", "competitor_start" if "competitor_start_id" in c else "competitor", "competitor")
    return [
        before_a_word(text),
        *(word(str(c.get(name, c.get(f"{name}_id", "")))) for name in names),
        f"{c.get('p_correct', 0):.3f} / {c.get('p_competitor', 0):.3f}",
        f"{c.get('nll_start', 0):.2f} \u2192 {c.get('nll', 0):.2f}",
        " ".join(str(c[name]) for name in ("set", "source", "row") if c.get(name) is not None),
    ]


def _probe_row(v: Mapping[str, Any]) -> list[str]:
    return [
        *(word(str(v[name])) for name in ("probe", "correct", "competitor", "verdict")),
        f"{v['loss_start']:.2f} \u2192 {v['loss_end']:.2f}",
        f"{v['p_correct_end']:.3f} / {v['p_competitor_end']:.3f}",
        f"{v['phi_start']:+.2f} \u2192 {v['phi_end']:+.2f}",
        str(v["advice"]),
    ]


def _probes(run: Run) -> Part:
    part = Part()
    for name, content in run.probes.items():
        rows = [_probe_row(verdict) for verdict in content.get("verdicts", ())]
        head = ["probe", "right", "near-synonym", "verdict", "NLL", "p right / synonym", "Phi", "try next"]
        if rows:
            part.tables.append(Table(head, rows, wide=True))
        prefix = "/".join(["order", *name.split("-", 1)[1:]])
        part.charts += _kept([
            _together([run], {f"{prefix}/phi": "Phi = S + D", f"{prefix}/signal": "S (commitment)",
                              f"{prefix}/drag": "D (drag)"},
                      "Mean over the probes", "overlap", note="Above 0 the right words win."),
            _together([run], {f"{prefix}/p_correct": "right word", f"{prefix}/p_competitor": "near-synonym"},
                      "Probability, mean over the probes", "p"),
        ])  # fmt: skip
    return part


def _drift(runs: Sequence[Run]) -> Part:
    names = sorted({key.split("/")[1] for run in runs for key in run.logs.curves if key.startswith("drift/")})
    return Part(charts=_kept([
        _together(runs, {f"drift/{name}/{key}": name for name in names}, title, y, share=key == "changed")
        for key, title, y in (("kl", "Drift from the start", "KL, nats per token"),
                              ("changed", "First choices that changed", "share of tokens"),
                              ("nll", "NLL of other text", "nats per token"))
    ]))  # fmt: skip


def _sweeps(run: Run) -> Part:
    part = Part()
    for name, sweep in run.sweeps.items():
        if "smoothed" in sweep:
            part.charts.append(_range_test(sweep))
        elif "trials" in sweep and "status" in sweep:
            bracket = (sweep["lower"], sweep["upper"]) if sweep.get("lower") and sweep.get("upper") else None
            together = (run.predictions.get(name) or {}).get("together") or {}
            part.charts.append(
                charts.trials(f"Critical rate: {sweep['criterion']} within {sweep['steps_allowed']} steps",
                              sweep["trials"], bracket, together.get("estimate") or {})
            )  # fmt: skip
        text = str(sweep.get("text", ""))
        part.lines += [f"{name}: {line}" for line in text.splitlines() if line and not line.startswith("|")]
        if "report" in sweep and (rows := rows_of(text)):
            part.tables.append(Table(rows[0], rows[1:], wide=True))
    return part


def _range_test(sweep: dict[str, Any]) -> Chart:
    suggested = {k.replace("_", " "): v for k, v in sweep["suggestions"].items() if v is not None}
    good = [v for k, v in suggested.items() if k != "edge"]
    band = (min(good), max(good)) if len(good) > 1 else None
    raw, smooth = (
        [(x, y) for x, y in zip(sweep["rates"], sweep[key], strict=False) if y is not None]
        for key in ("losses", "smoothed")
    )
    return charts.rate_curve(f"Range test: {sweep['reads']}", "nats per token", raw, smooth, suggested, band)


def _samples(run: Run) -> Part:
    texts = run.logs.texts.get("val/samples", {})
    if not texts:
        return Part()
    first, last = rows_of(texts[min(texts)]), rows_of(texts[max(texts)])
    first, last = ([[*row, "", "", ""][:4] for row in rows[1:]] for rows in (first, last))
    before = {row[0]: row for row in first}
    prompts = without_what_all_share([row[0] for row in last])
    rows = []
    for prompt, (full, reference, answer, score) in list(zip(prompts, last, strict=True))[:SAMPLES]:
        earlier = before.get(full, [""] * 4)
        rows.append(
            [one_line(spoken(prompt)), one_line(reference), _scored(earlier[2], earlier[3]), _scored(answer, score)]
        )
    if len(texts) == 1:
        return Part(tables=[Table(["prompt", "reference", f"answer at step {max(texts)}"],
                                  [[a, b, d] for a, b, _, d in rows], wide=True)])  # fmt: skip
    head = ["prompt", "reference", f"answer at step {min(texts)}", f"answer at step {max(texts)}"]
    return Part(tables=[Table(head, rows, wide=True)])


def _scored(answer: str, score: str) -> str:
    return one_line(answer) + (f" (score {score})" if score else "")


def _data(run: Run) -> Part:
    rows = rows_of(run.logs.text("data/report") or "")
    sets = list(dict.fromkeys(row[0] for row in rows[1:]))
    values = {(row[0], row[1]): row[2] for row in rows[1:] if len(row) > 2}
    counts = list(dict.fromkeys(row[1] for row in rows[1:]))
    table = [[data_words(what), *(data_count(what, values.get((name, what), "-")) for name in sets)] for what in counts]
    return Part(tables=[Table(["", *sets], table)] if table else [])


def _speed(runs: Sequence[Run]) -> Part:
    return Part(charts=_kept([_together(runs, dict.fromkeys(SPEEDS, ""), "Speed", *SPEEDS.values())]))


def _speed_table(run: Run) -> Part:
    rows, lines = [], []
    if run.logs.first is not None and run.logs.last is not None:
        lines = [f"From the first entry to the last: {duration(run.logs.last - run.logs.first)}."]
    for key in sorted(k for k in run.logs.curves if k.startswith("perf/")):
        values = sorted(value for _, value in run.logs.curve(key) if value == value)
        if values:
            name = SPEEDS.get(key, key.removeprefix("perf/").replace("_", " "))
            rows.append([name, f"{values[len(values) // 2]:,.4g}", f"{values[-1]:,.4g}"])
    return Part(lines=lines, tables=[Table(["", "median", "highest"], rows)] if rows else [])
