"""What a capability reading holds, and how it is written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lightning_sft.errors import UserError
from lightning_sft.files import to_json, write_text
from lightning_sft.units import plural, probability

Place = Literal["strong", "intermediate", "weak"]
STRONG: Place = "strong"
MIDDLE: Place = "intermediate"
WEAK: Place = "weak"
PLACES = (WEAK, MIDDLE, STRONG)
#: rows below which a group's reading says too little; ours
ENOUGH_ROWS = 20
Bounds = tuple[float, float] | None
FORMAT = "lightning_sft.capability.v1"
FILE = "capability.json"


@dataclass(frozen=True)
class CutOffs:
    """Where the continuum is cut into three places. The paper gives none: these are ours.

    Attributes:
        weak: mean p at and below which a model is called weak on the task.
        strong: mean p at and above which it is called strong.

    Raises:
        UserError: they are not in order within [0, 1].
    """

    weak: float = 0.10
    strong: float = 0.70

    def __post_init__(self) -> None:
        """Check the order."""
        if not 0.0 <= self.weak < self.strong <= 1.0:
            raise UserError(
                f"The cut-offs of the capability continuum are weak={self.weak} and strong={self.strong}. Allowed: "
                "0 <= weak < strong <= 1, such as 0.1 and 0.7."
            )


@dataclass(frozen=True)
class Histogram:
    """Counts of tokens in bins.

    Attributes:
        edges: bounds of the bins, rising, one more than ``counts``.
        counts: tokens in each bin.
    """

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class GroupReading:
    """The reading of one group of supervised tokens.

    Attributes:
        rows: rows that have such a token.
        tokens: number of tokens.
        mean_p: arithmetic mean of the targets' probability.
        mean_p_interval: its 95% interval by a bootstrap over rows; None with fewer than 8.
        nll: mean negative log-likelihood, nats per token.
        nll_interval: its interval.
        top1_share: share of tokens whose target is the first choice.
        top1_share_interval: its interval, no narrower than the exact one of as many independent tokens.
        place: on the continuum, by ``mean_p`` and the cut-offs.
        share_unlikely: share of tokens with p < 0.1.
        share_known: share of tokens with p > 0.55.
        entropy: mean entropy of the predictions, nats.
        calibration_error: expected calibration error of the first choice, see `first_choice_calibration`.
        answers: complete answers, those with a token that ends generation.
        exact_match: share of them whose every token is the first choice; None without any.
        p_quantiles: quantiles of p, by ``"5%"`` to ``"95%"``.
        entropy_quantiles: of the entropy in nats.
        p_histogram: of p, in 20 bins of equal width.
        log10_p_histogram: of log10 p, from -8 (and below) to 0.
        fine_p_histogram: of p, fine near 0 and 1: percentiles are taken from it.
    """

    rows: int
    tokens: int
    mean_p: float
    mean_p_interval: Bounds
    nll: float
    nll_interval: Bounds
    top1_share: float
    top1_share_interval: Bounds
    place: Place
    share_unlikely: float
    share_known: float
    entropy: float
    calibration_error: float
    answers: int
    exact_match: float | None
    p_quantiles: dict[str, float]
    entropy_quantiles: dict[str, float]
    p_histogram: Histogram
    log10_p_histogram: Histogram
    fine_p_histogram: Histogram

    @property
    def exact_answers(self) -> int:
        """How many of the complete answers are right."""
        return round((self.exact_match or 0.0) * self.answers)

    @property
    def exact_match_interval(self) -> Bounds:
        """The exact (Clopper-Pearson) 95% interval of exact match, for independent answers; None without any."""
        if not self.answers:
            return None
        from scipy.stats import binomtest  # a second that only a reading needs

        found = binomtest(self.exact_answers, self.answers).proportion_ci(0.95)
        return float(found.low), float(found.high)

    def scalars(self) -> dict[str, float]:
        """Return the numbers worth a curve by their log key's last part."""
        values = {
            "mean_p": self.mean_p,
            "nll": self.nll,
            "top1_share": self.top1_share,
            "share_unlikely": self.share_unlikely,
            "share_known": self.share_known,
            "entropy": self.entropy,
            "calibration_error": self.calibration_error,
        }
        for name, bounds in (("mean_p", self.mean_p_interval), ("nll", self.nll_interval)):
            if bounds is not None:
                values |= {f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
        return values if self.exact_match is None else {**values, "exact_match": self.exact_match}


@dataclass(frozen=True)
class CapabilityReading:
    """The reading of a set: all supervised tokens, those of each source, and some kinds of tokens apart.

    The place on the continuum is that of the answers' own tokens, ``judged``: where answers are short, the token that
    ends each of them would lift or lower the mean of all tokens, whatever the model knows of the task.

    Attributes:
        all: every supervised token.
        sources: by the name of the source.
        special: special tokens and those that end generation; None if none is supervised.
        end: the tokens that end generation; None if none is supervised.
        cut_offs: of the places.
        rows_of_set: rows that the set has, whether read or not; None if unknown.
        content: the answers' own tokens: all but the special ones; None if there are no others.
        content_of_sources: the same by the name of the source.
    """

    all: GroupReading
    sources: dict[str, GroupReading]
    special: GroupReading | None
    end: GroupReading | None
    cut_offs: CutOffs
    rows_of_set: int | None = None
    content: GroupReading | None = None
    content_of_sources: dict[str, GroupReading] = field(default_factory=dict)

    @property
    def judged(self) -> GroupReading:
        """The group by which the place is judged: the answers' own tokens, or all where there are no others."""
        return self.content or self.all

    @property
    def leaves_out(self) -> bool:
        """Whether there are special tokens beside those by which the place is judged."""
        return self.special is not None and self.content is not None

    @property
    def place(self) -> Place:
        """Where the model stands on the continuum."""
        return self.judged.place

    @property
    def places(self) -> tuple[Place, ...]:
        """All places that the interval of mean p allows, that of the mean first."""
        cuts, (low, high) = (self.cut_offs.weak, self.cut_offs.strong), self.judged.mean_p_interval or (0.0, 0.0)
        crossed = [i for i, cut in enumerate(cuts) if low < cut < high]
        allowed = [name for i, name in enumerate(PLACES) if {i - 1, i} & {*crossed}]
        return tuple(dict.fromkeys((self.place, *allowed)))

    @property
    def standing(self) -> str:
        """Where the model stands in words, as certain as the reading is: *strong or intermediate*, *perhaps weak*."""
        return "perhaps " * (self.judged.rows < ENOUGH_ROWS) + " or ".join(self.places)

    def scalars(self) -> dict[str, float]:
        """Return the reading as log keys."""
        # what the place is judged by has keys of its own in every run, so that curves of runs can be compared
        groups = {"": self.all, "content/": self.judged, "special/": self.special, "end/": self.end}
        if len(self.sources) > 1:
            groups |= {f"source/{name}/": group for name, group in self.sources.items()}
        some = {prefix: group for prefix, group in groups.items() if group is not None}
        return {f"capability/{prefix}{key}": v for prefix, group in some.items() for key, v in group.scalars().items()}

    def in_short(self, *, explains: bool = True, totals: bool = True) -> str:
        """Return the place, and the figures that it rests on, in two sentences.

        Args:
            explains: whether to say where the places begin and end.
            totals: whether to give the second one, of all tokens.
        """
        group, judged = self.all, self.judged
        low_high = judged.mean_p_interval
        bounds = " (too few rows for an interval)"
        if low_high is not None:
            bounds = f" [{probability(low_high[0])}, {probability(low_high[1])}]"
        apart = self.leaves_out
        tokens = f", special tokens left out ({probability(group.mean_p)} with them)" if apart else ""
        exact = (
            "" if group.exact_match is None else f", {group.exact_answers} of {plural(group.answers, 'answer')} exact"
        )
        cut_offs = f"; up to {self.cut_offs.weak:g} we call weak, from {self.cut_offs.strong:g} strong" * explains
        of_all = f" Of all {plural(group.tokens, 'token')} in {plural(group.rows, 'row')}: NLL {group.nll:.2f}"
        whole = f"{of_all}, right first choice {group.top1_share:.1%}{exact}." * totals
        return (
            f"{self.standing}. The right token has a probability of {probability(judged.mean_p)}{bounds} on average"
            f"{tokens}{cut_offs}.{whole}"
        )

    def judged_of(self, source: str) -> GroupReading:
        """Return the group by which the place of a source is judged."""
        return self.content_of_sources.get(source, self.sources[source])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as a checkpoint or a JSON file holds it."""
        return {**asdict(self), "place": self.place}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CapabilityReading:
        """Return the reading of what `to_dict` gave, perhaps by way of JSON."""
        # readings of earlier releases do not tell the answers' own tokens apart
        content = {"content": None, "content_of_sources": {}, **content}
        some = {name: content[name] and _group(content[name]) for name in ("special", "end", "content")}
        return cls(
            all=_group(content["all"]),
            sources={name: _group(group) for name, group in content["sources"].items()},
            content_of_sources={n: _group(group) for n, group in content["content_of_sources"].items()},
            cut_offs=CutOffs(**content["cut_offs"]),
            rows_of_set=content["rows_of_set"],
            **some,
        )


def _group(content: Mapping[str, Any]) -> GroupReading:
    values = {f.name: content[f.name] for f in fields(GroupReading)}
    for name, value in values.items():
        if name.endswith("_interval") and value is not None:
            values[name] = tuple(value)
        elif name.endswith("_histogram"):
            values[name] = Histogram(**value)
    return GroupReading(**values)


def save_reading(path: Path, start: CapabilityReading | None, end: CapabilityReading | None, **more: Any) -> None:
    """Write a run's ``capability.json``.

    Args:
        path: the file.
        start: before the first optimizer step; None if it was not read.
        end: of the same tokens after the fit; None before that.
        more: plain data to keep beside them.
    """
    readings = {name: reading and reading.to_dict() for name, reading in (("start", start), ("end", end))}
    write_text(path, to_json({"format": FORMAT, **readings, **more}, indent=1) + "\n")


def load_reading(path: str | Path) -> CapabilityReading:
    """Read the capability before training from a run's ``capability.json``.

    Raises:
        UserError: the file is missing, or holds no reading.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return CapabilityReading.from_dict(content["start"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} holds no capability reading ({type(error).__name__}: {error}). Needed: the capability.json "
            "of a run, or of `lightning advise`."
        ) from error
