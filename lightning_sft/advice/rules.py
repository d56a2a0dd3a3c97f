"""From a reading to an advice: one pure function, which `model.objective: auto` follows, too."""

from __future__ import annotations

from dataclasses import replace

from lightning_sft.advice import evidence
from lightning_sft.advice.advice import MOST_ARMS, Advice
from lightning_sft.advice.choice import (
    HALF_WAY,
    LIKELY_ONLY,
    MINUS_P,
    NLL,
    NLL_ON_SPECIAL,
    SMALL_ALPHA,
    WITH_FLOOR,
    Choice,
)
from lightning_sft.metrics.capability import UNLIKELY
from lightning_sft.metrics.capability_reading import (
    ENOUGH_ROWS,
    MIDDLE,
    STRONG,
    WEAK,
    CapabilityReading,
    GroupReading,
    Place,
)
from lightning_sft.units import are, plural, probability

#: answers that must be right, and that must be wrong, before a share of right ones says much; ours
ENOUGH_ANSWERS = 5
#: special tokens are trained, and none of them ends generation
NO_END = (
    "No trained token ends generation, although special tokens are trained: whatever the objective, nothing teaches "
    "the model to stop. If answers close with a token of the chat template, make it the tokenizer's eos_token; "
    "`lightning inspect` shows what is trained."
)
#: exact match above which there may be nothing left to teach; ours
ALREADY_KNOWN = 0.95


def advise(reading: CapabilityReading) -> Advice:
    """Return which objectives a reading speaks for, which against, why, and what that rests on."""
    place = reading.place
    found = {STRONG: _strong, MIDDLE: _intermediate, WEAK: _weak}[place](reading)
    doubts = doubts_of(reading)
    if doubts:
        found = _in_doubt(found, reading, doubts)
    if sources := _sources(reading):
        found = _with_sources(found, sources)
    if (place != WEAK or doubts) and (end := _unknown_end(reading)) is not None:  # in doubt, -p is compared
        found = _with_end_token(found, end, reading)
    elif reading.end is None and reading.special is not None:
        found = replace(found, trap=NO_END)
    limits = [*found.limits, *doubts, *_general_limits(reading)]
    return replace(found, limits=tuple(limits), evidence=(*found.evidence, evidence.NO_CUT_OFFS))


def _strong(reading: CapabilityReading) -> Advice:
    return Advice(
        place=STRONG,
        headline="The model knows this task well: lean on what it believes, and compare that with NLL.",
        try_first=(MINUS_P, NLL, LIKELY_ONLY),
        avoid=(),
        pick=MINUS_P,
        compare=True,
        why=(
            "Most supervised tokens are already likely. What NLL pulls on hardest are the few that the model holds for "
            "impossible, and on data that it knows well many of those are noise.",
            "-p (PowerFamily with alpha 1) weighs each token by its p, so these few are left alone; Thresholded drops "
            "tokens below p = 0.1 altogether.",
            "Where labels are clean the same pull teaches: there NLL was ahead in runs of ours, with a small model.",
        ),
        evidence=(evidence.STRONG_END, evidence.STRONG_END_HERE, evidence.ALPHA, evidence.UNLIKELY_TOKENS),
    )


def _intermediate(reading: CapabilityReading) -> Advice:
    return Advice(
        place=MIDDLE,
        headline="The model half knows this task, and no objective is known to win here: compare them on your data.",
        try_first=(NLL, MINUS_P, HALF_WAY),
        avoid=(),
        pick=NLL,
        compare=True,
        why=(
            "In the middle of the continuum the published differences are small and go both ways.",
            "NLL is the safe one to keep if you compare nothing: it learns what the model does not know.",
        ),
        evidence=(evidence.INTERMEDIATE,),
    )


def _weak(reading: CapabilityReading) -> Advice:
    return Advice(
        place=WEAK,
        headline="The model does not know this task: teach it with NLL.",
        try_first=(NLL, SMALL_ALPHA),
        avoid=(MINUS_P, LIKELY_ONLY, Choice("DFT")),
        pick=NLL,
        compare=False,
        why=(
            "Most supervised tokens are nearly impossible to the model. Objectives that weigh a token by its p have "
            "almost no gradient on them, so they learn little or nothing.",
        ),
        evidence=(evidence.WEAK_END, evidence.WEAK_END_HERE, evidence.ALPHA),
    )


def doubts_of(reading: CapabilityReading) -> list[str]:
    """Return why the place itself is uncertain, sentence by sentence; of a reading before training or after it."""
    found = []
    group, cut_offs = reading.judged, reading.cut_offs
    if group.rows < ENOUGH_ROWS:
        missing = ENOUGH_ROWS - group.rows
        found.append(
            f"The reading rests on {plural(group.rows, 'row')}; {ENOUGH_ROWS} are needed to say where "
            f"the model stands: {missing} {are(missing)} missing."
        )
    if group.mean_p_interval is not None:
        low, high = group.mean_p_interval
        crossed = [cut for cut in (cut_offs.weak, cut_offs.strong) if low < cut < high]
        if crossed:
            found.append(
                f"The interval of mean p, [{probability(low)}, {probability(high)}], holds the cut-off {crossed[0]:g}: "
                "the place is not certain."
            )
    return found


# ---------------------------------------------------------------------- what changes an advice

#: what is tried at a place, in a sentence
_WHERE: dict[Place, str] = {
    STRONG: "If the model knows the task well, -p may be ahead of NLL, above all where labels are noisy.",
    MIDDLE: "If it half knows the task, no objective is known to win, and the published differences are small.",
    WEAK: "If it does not know the task, NLL is far ahead of -p, which has almost no gradient there.",
}


def _in_doubt(advice: Advice, reading: CapabilityReading, doubts: list[str]) -> Advice:
    """Return an advice that compares, with no word for or against an objective that the reading does not bear out."""
    tried = tuple(dict.fromkeys((NLL, *advice.try_first, *advice.avoid)))[:MOST_ARMS]
    return replace(
        advice,
        headline=(
            f"Where the model stands is not certain ({reading.standing}): compare objectives on your data, or train "
            "under NLL."
        ),
        try_first=tried,
        avoid=(),
        pick=NLL,
        compare=True,
        why=(*(_WHERE[place] for place in reading.places), "NLL learns at every place, so it is the one to keep."),
        doubts=tuple(doubts),
    )


def _unknown_end(reading: CapabilityReading) -> GroupReading | None:
    """Return the reading of the tokens that end an answer, or else of special tokens, if they are unlikely."""
    group = reading.end or reading.special
    return group if group is not None and group.mean_p < UNLIKELY else None


def _with_end_token(advice: Advice, end: GroupReading, reading: CapabilityReading) -> Advice:
    which = "the token that ends an answer" if reading.end is not None else "the special tokens"
    swapped = {MINUS_P: WITH_FLOOR, LIKELY_ONLY: NLL_ON_SPECIAL}
    safe = (*(swapped.get(choice, choice) for choice in advice.try_first), NLL_ON_SPECIAL)
    return replace(
        advice,
        try_first=tuple(dict.fromkeys(safe)),
        avoid=(*advice.avoid, MINUS_P),
        pick=swapped.get(advice.pick, advice.pick),
        trap=(
            f"End-of-turn trap: {which} has mean p {end.mean_p:.2g}. An objective that weighs a token by its p "
            "hardly trains it: the lower that p, the later the model learns to stop, if it ever does. Keep a floor "
            "under the weight (PowerFamily, floor 0.1), or put NLL on special tokens (SpecialTokens)."
        ),
        evidence=(*advice.evidence, evidence.END_TOKEN, evidence.END_TOKEN_HERE),
    )


def _sources(reading: CapabilityReading) -> dict[str, str]:
    """Return the place of each source that was read well enough, if they are not all the same."""
    places = {n: reading.judged_of(n).place for n, group in reading.sources.items() if group.rows >= ENOUGH_ROWS}
    return dict(places) if len(set(places.values())) > 1 else {}


def _with_sources(advice: Advice, sources: dict[str, str]) -> Advice:
    by_place = {STRONG: MINUS_P, MIDDLE: NLL, WEAK: NLL}
    objectives = {name: by_place[place] for name, place in sources.items()}  # type: ignore[index]
    told = ", ".join(f"{name}: {place}" for name, place in sources.items())
    mixed = (Choice("PerSource", {"objectives": objectives, "default": NLL}),) if MINUS_P in objectives.values() else ()
    return replace(
        advice,
        try_first=(*mixed, *advice.try_first),
        pick=NLL,
        compare=True,
        why=(*advice.why, f"The sources stand at different places ({told}), so one objective for all is a compromise."),
        evidence=(*advice.evidence, *([evidence.MIXTURES] if mixed else [])),
    )


def _general_limits(reading: CapabilityReading) -> list[str]:
    """Return what the reading does not say."""
    limits = []
    for name, group in reading.sources.items() if len(reading.sources) > 1 else ():
        if group.rows < ENOUGH_ROWS:
            limits.append(
                f"Source {name!r}: {plural(group.rows, 'row')} read, {ENOUGH_ROWS - group.rows} too few to judge it by "
                "itself. Read more rows (CapabilityProbe's `rows`), or all."
            )
    if (few := few_answers(reading.all)) is not None:
        limits.append(few)
    if reading.all.exact_match is not None and reading.all.exact_match >= ALREADY_KNOWN:
        limits.append(
            f"{reading.all.exact_match:.1%} of the answers are already the model's own first choice: there may be "
            "little left to teach."
        )
    limits.append(
        "The published results are of models of 1.5 to 8 billion parameters that were trained in full, at one learning "
        "rate for all objectives of a task; yours may differ in each. A comparison on your data beats any table."
    )
    return limits


def few_answers(group: GroupReading) -> str | None:
    """Return in words that a share of right answers rests on a handful of them; None where it does not."""
    if group.exact_match is None or group.exact_match_interval is None:
        return None
    fewer, kind = min((group.exact_answers, "right"), (group.answers - group.exact_answers, "wrong"))
    if fewer >= ENOUGH_ANSWERS:
        return None
    low, high = group.exact_match_interval
    return (
        f"Exact match is thin evidence here: {fewer or 'none'} of {group.answers} answers "
        f"{'is' if fewer < 2 else 'are'} {kind}, so the share of right ones may be anything from {low:.1%} to "
        f"{high:.1%} (95%, if answers are independent). A change of it will be hard to see: watch the NLL, too."
    )
