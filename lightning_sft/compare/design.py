"""What a comparison is: arms, replicates, the runs that they make, and the digest of all that decides a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_sft.compare.keys import is_validated
from lightning_sft.compare.rates import RateSearch
from lightning_sft.errors import UserError
from lightning_sft.files import to_json

Kind = Literal["search", "judged"]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: in tables.
        config: the whole configuration of its runs, YAML, without what a run sets: seed, rows, rate, folder.
        facts: what its runs depend on beside it, by name: digests of model and data files, device, dtype, versions.
    """

    name: str
    config: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One training run of a comparison.

    Attributes:
        kind: ``search``: it helps to find a rate; ``judged``: it stands in the table.
        replicate: which one of its kind, from 0.
        arm: name of its arm.
        rate: peak learning rate; None is that of the arm's configuration.
    """

    kind: Kind
    replicate: int
    arm: str
    rate: float | None

    @property
    def key(self) -> str:
        """Its name within the comparison."""
        rate = "own rate" if self.rate is None else f"{self.rate:.12g}"
        return f"{self.kind} {self.replicate} {self.arm} {rate}"


@dataclass(frozen=True)
class Draw:
    """What makes a replicate: its seed, and its part of judged rows that can only be dealt out.

    Attributes:
        seed: of everything random, and of its rows.
        part: its own among ``parts``.
        parts: 1 where its rows are drawn afresh, or are what they are.
        deal: seed by which rows are dealt out.
    """

    seed: int
    part: int
    parts: int
    deal: int


@dataclass(frozen=True)
class Design:
    """A comparison before it runs.

    Attributes:
        name: of the comparison.
        arms: the first is what all others are compared with.
        replicates: that are judged.
        seed: a text that all seeds follow from.
        search: of rates.
        search_replicates: that rates are selected on; none of them is judged.
        select: log key that selects rates and stands first in the table; ``auto`` decides by the first runs.
        parts: judged rows are dealt out in parts, since they cannot be drawn afresh.
    """

    name: str
    arms: tuple[Arm, ...]
    replicates: int = 8
    seed: str = "0"
    search: RateSearch = field(default_factory=RateSearch)
    search_replicates: int = 1
    select: str = "auto"
    parts: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(f"The arms to compare are {names}. Allowed: two or more, with different names.")
        if self.replicates < 2 or self.search_replicates < 1:
            raise UserError(
                f"replicates is {self.replicates} and search_replicates is {self.search_replicates}. Allowed: 2 or "
                "more replicates (an interval needs two), and 1 or more for the search."
            )

    def arm(self, name: str) -> Arm:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def draw(self, spec: RunSpec) -> Draw:
        """Return what a run's replicate is made of; the same for all arms."""
        part = spec.replicate if spec.kind == "search" else self.search_replicates + spec.replicate
        parts = self.search_replicates + self.replicates if self.parts else 1
        own = f"{self.seed} {spec.kind} {spec.replicate}"
        return Draw(_number(own), part if self.parts else 0, parts, _number(f"{self.seed} deal"))

    def digest_of(self, spec: RunSpec) -> str:
        """Return the digest of everything that decides a run; equal digests mean equal runs, whatever they are for."""
        arm = self.arm(spec.arm)
        only = ["validation alone"] if self.needs_validation_alone(spec) else []
        return short_digest([arm.config, dict(arm.facts), spec.rate, asdict(self.draw(spec)), *only])

    def needs_validation_alone(self, spec: RunSpec) -> bool:
        """Return whether all that is wanted of a run is what a validation itself reads, and no callback beside it."""
        return spec.kind == "search" and (self.select == "auto" or is_validated(self.select))

    @property
    def digest(self) -> str:
        """The digest of the whole comparison."""
        return short_digest(self.plain())

    def plain(self) -> dict[str, Any]:
        """Return the design as plain data."""
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Design:
        """Return the design of plain data."""
        arms = tuple(Arm(**arm) for arm in plain["arms"])
        return Design(**{**plain, "arms": arms, "search": RateSearch(**plain["search"])})


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def short_digest(value: object) -> str:
    """Return a digest of plain data."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:24]
