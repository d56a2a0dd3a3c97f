"""What an audit found: numbers and sentences, before they become a page."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lightning_sft.audit.contexts import Context
from lightning_sft.audit.guard import Forgetting
from lightning_sft.audit.probing import ProbeOutcome
from lightning_sft.audit.rows import AuditRows
from lightning_sft.audit.special import SpecialTokens
from lightning_sft.audit.tokens import TokenPass
from lightning_sft.metrics.calibration import first_choice_calibration
from lightning_sft.metrics.silent import SilentReading, TokenReading, bootstrap_interval, read_silent
from lightning_sft.metrics.silent_verdict import SilentVerdict, judge
from lightning_sft.metrics.wide import wide

Trained = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class ReadModel:
    """A model that was read.

    Attributes:
        name: as it was asked for.
        base: what it stands on or began with; None for whole models.
        step: optimizer steps of its run; None if unknown.
        kind: class of the transformers model.
        dtype: of its weights as they were read.
        device: where.
        calibration: expected calibration error of its first choices.
        confidence: mean probability of its first choices.
        accuracy: share of tokens whose target is the first choice.
        answers: complete answers in the rows.
        exact: share of them that it would write word by word; nan without any.
    """

    name: str
    base: str | None
    step: int | None
    kind: str
    dtype: str
    device: str
    calibration: float
    confidence: float
    accuracy: float
    answers: int
    exact: float


@dataclass(frozen=True)
class Asked:
    """The command that asked for an audit.

    Attributes:
        arguments: all of them, without those that say where to write.
        configs: the configuration files among them.
        lr: learning rate of the configuration; None if unknown.
    """

    arguments: list[str]
    configs: list[str]
    lr: float | None


@dataclass(frozen=True)
class Audit:
    """Everything that an audit found.

    Attributes:
        after: the model.
        before: what it is compared with; None without.
        rows: rows that were read.
        total_rows: rows of the set.
        set: which set of the data.
        trained: whether the rows were trained on.
        min_fall: nats by which a token's NLL must have fallen to count as learned.
        masks: rows by where it is known from which tokens count.
        template: whose chat template was used.
        notes: what a reader must know of how the two were compared.
        silent: all tokens.
        synonyms: tokens that a near-synonym outranks (in the first model, where there is one); None without any.
        sources: tokens of each source, where there is more than one.
        nll_change: mean NLL after minus before, with the bounds of its 95% bootstrap interval over rows; nan without a
            first model, bounds nan with few rows.
        contexts: the worst ones.
        probes: empty without probes.
        forgetting: None without a guard set.
        verdicts: on the tokens; two of them where it is unknown whether the rows were trained on.
        special: special tokens such as the end of an answer, apart from all others; None without any.
        asked: how the audit was asked for; None from Python.
    """

    after: ReadModel
    before: ReadModel | None
    rows: int
    total_rows: int
    set: str
    trained: Trained
    min_fall: float
    masks: dict[str, int]
    template: str
    notes: list[str]
    silent: SilentReading
    synonyms: SilentReading | None
    sources: dict[str, SilentReading]
    nll_change: tuple[float, float, float]
    contexts: list[Context]
    probes: list[ProbeOutcome] = field(default_factory=list)
    forgetting: Forgetting | None = None
    verdicts: list[SilentVerdict] = field(default_factory=list)
    special: SpecialTokens | None = None
    asked: Asked | None = None

    @property
    def plain(self) -> SilentReading:
        """The tokens that are not special; all of them where none or each is."""
        return self.silent if self.special is None else self.special.words or self.silent

    @property
    def headline(self) -> float:
        """What ``--fail_above`` looks at: the share of silent failures or, without a first model, the excess.

        Of all tokens or of those that are not special, whichever is larger.
        """
        if self.before is None:
            return self.silent.excess
        shares = (self.silent.share, self.plain.share)
        return max((share for share in shares if not math.isnan(share)), default=math.nan)

    @property
    def headline_name(self) -> str:
        """What `headline` is called."""
        return "The excess" if self.before is None else "The share of silent failures"

    @property
    def is_broken(self) -> bool:
        """Whether scores are not finite."""
        return not math.isfinite(self.silent.outranked)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def verdicts(
    reading: SilentReading,
    trained: Trained,
    *,
    compared: bool,
    special: SpecialTokens | None = None,
    more: str = "",
    all_read: str = "",
) -> list[SilentVerdict]:
    """Return the verdicts on the tokens of some rows.

    Args:
        reading: of all tokens.
        trained: whether the rows were trained on.
        compared: whether there is a first model.
        special: special tokens and the rest of them; None where none is special.
        more: what lets one look at more rows, see `judge`.
        all_read: which rows were read where there are no more, see `judge`.
    """
    plain, as_trained = None if special is None else special.plain, None
    if compared:
        as_trained = judge(reading, "trained tokens", trained=True, plain=plain, more=more, all_read=all_read)
    as_held_out = judge(reading, "tokens", trained=False)
    if trained == "yes":
        return [as_trained or as_held_out]
    if trained == "no" or as_trained is None:
        return [as_held_out]
    return [as_trained, as_held_out]


def read_model(model: Any, tokens: TokenPass) -> ReadModel:
    """Return what stands in the table of models.

    Args:
        model: a `FinishedModel`.
        tokens: its reading.
    """
    top, right = tokens.tokens.top_logp.exp(), tokens.tokens.is_top1
    return ReadModel(
        name=model.name,
        base=model.base,
        step=model.step,
        kind=type(model.causal_lm).__name__,
        dtype=str(model.causal_lm.dtype).removeprefix("torch."),
        device=str(model.device),
        calibration=first_choice_calibration(top, right),
        confidence=float(wide(top).mean()),
        accuracy=float(wide(right).mean()),
        answers=tokens.answers,
        exact=tokens.exact,
    )


def among(
    rows: AuditRows, now: TokenReading, before: TokenReading | None, min_fall: float, chosen: Tensor
) -> SilentReading | None:
    """Return the reading of some of the tokens, chosen by a mask, (tokens,); None if there is none of them."""
    if not bool(chosen.any()):
        return None
    return read_silent(now.at(chosen), rows.row[chosen], None if before is None else before.at(chosen), min_fall)


def by_source(
    rows: AuditRows, now: TokenReading, before: TokenReading | None, min_fall: float
) -> dict[str, SilentReading]:
    """Return a reading a source, empty where there is one source alone."""
    readings: dict[str, SilentReading] = {}
    for source in sorted(set(rows.source.tolist())):
        reading = among(rows, now, before, min_fall, rows.source == source)
        assert reading is not None
        readings[rows.source_names[source]] = reading
    return readings if len(readings) > 1 else {}


def nll_change(rows: AuditRows, now: TokenReading, before: TokenReading | None) -> tuple[float, float, float]:
    """Return the change of the mean NLL with its interval over rows; see `Audit`."""
    if before is None:
        return math.nan, math.nan, math.nan
    change = wide(before.logp - now.logp).numpy()
    place, count = rows.row.numpy(), int(rows.row.max()) + 1
    sums = np.bincount(place, weights=change, minlength=count).astype(np.float64)
    tokens = np.bincount(place, minlength=count).astype(np.float64)
    if not np.isfinite(change).all():
        return math.nan, math.nan, math.nan
    return (float(change.mean()), *bootstrap_interval(sums, tokens))
