"""What the study of rates consists of: blocks and stages; plain data that a commit freezes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sft.compare.rates import RateSearch

STUDY, ARM = "rates", "grid"
#: of a run, and of pretraining
STEPS, ROWS, JUDGED, VAL, RANGE, PRETRAIN, PRETRAIN_ROWS = 24, 8, 160, 32, 24, 250, 32
WARM_UP = 0.1


@dataclass(frozen=True)
class Block:
    """A cell of the study: what is fine-tuned, on which task, and how.

    Attributes:
        model: name of the model's size.
        task: name of the task.
        lora: whether LoRA is trained instead of all weights.
    """

    model: str
    task: str
    lora: bool

    @property
    def name(self) -> str:
        """Its name in cells and tables."""
        return f"{self.task}, {self.model}, {'LoRA' if self.lora else 'full'}"


def _blocks(models: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[Block, ...]:
    return tuple(Block(model, task, lora) for model in models for task in tasks for lora in (False, True))


@dataclass(frozen=True)
class Stage:
    """A part of the study.

    Attributes:
        name: in cells.
        blocks: that it runs.
        replicates: units of each block.
        registered: whether its seeds follow from the commit that registers it.
        arms: a unit tries all rates of the grid: one arm.
        search, search_replicates, rates_of: no rate is searched for before a unit.
    """

    name: str
    blocks: tuple[Block, ...]
    replicates: int = 3
    registered: bool = True
    arms: tuple[str, ...] = (ARM,)
    search: RateSearch = field(default_factory=lambda: RateSearch(points=0, refine=0))
    search_replicates: int = 0
    rates_of: str = ""


MAIN = Stage("confirmatory", _blocks(("1M",), ("kinds", "words", "sums", "initials")))
PILOT = Stage("pilot", _blocks(("1M",), ("spelling", "sentences")), replicates=1, registered=False)
OTHERS = Stage("sizes", (*_blocks(("0.3M",), ("kinds", "sums")), *_blocks(("5M",), ("kinds", "sums"))), replicates=1)
STAGES = {stage.name: stage for stage in (PILOT, MAIN, OTHERS)}


def sizes_of(small: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the numbers of a run, or a toy's own.

    Args:
        small: other ``steps``, ``rows`` a step, ``judged`` rows, ``val`` rows that a rate may be chosen by, steps of a
            ``range`` test, steps of ``pretrain``, and ``pretrain_rows`` a step.
    """
    own = {
        "steps": STEPS, "rows": ROWS, "judged": JUDGED, "val": VAL, "range": RANGE, "pretrain": PRETRAIN,
        "pretrain_rows": PRETRAIN_ROWS,
    }  # fmt: skip
    return {**own, **(small or {})}


def plain() -> dict[str, Any]:
    """Return the design as plain data, as it is registered."""
    return {
        "sizes": sizes_of(),
        "stages": {
            name: {"blocks": [block.name for block in stage.blocks], "replicates": stage.replicates}
            for name, stage in STAGES.items()
        },
    }


HYPOTHESES = {
    "H1": "The rate that the band recommends loses less than the pilot's constants: the geometric means of the best "
    "rates of two other tasks on the same model, for all weights and for LoRA.",
    "H2": "The rate that the band recommends loses less than the published formula 5e-5 (2000 / width)^0.781, "
    "ten times for LoRA.",
    "H3": "Over units, the rate at which one step of the run's own optimizer lowers the validation NLL most, read "
    "before the run, rises with the best rate of the run.",
}
REGISTERED = {
    "study": STUDY,
    "hypotheses": HYPOTHESES,
    "primary outcome": (
        "The share of the possible gain that a rule's rate loses: (NLL at the rule's rate - NLL at the best rate) / "
        "(NLL before - NLL at the best rate), of the judged rows at the end of the run, at least 0 and at most 1. The "
        "best rate is the best of the grid of the same block and seed; between two rates of the grid the NLL is "
        "interpolated in the logarithm of the rate. A rate that diverges, or lies between one that does and one that "
        "does not, and a rule that names none lose 1; a rate outside of the grid counts as the grid's end."
    ),
    "decision rule": (
        "H1 and H2: paired t-tests over the 8 blocks of the confirmatory stage, each the mean of its 3 seeds, of the "
        "band's loss minus the rule's. H3: Spearman's correlation over the 24 units, the one-sided p of 20000 "
        "permutations of whole blocks. Holm over the three; supported at an adjusted p of at most .05 with the sign "
        "that is named, contradicted with the other sign, undecided else. Nothing is decided before all 24 units are "
        "there. The band wins only if H1 and H2 are supported: constants that were tuned on models of this size are "
        "what a free rule is for those who know their models, while 2e-5 and 1e-4 lose on small models by "
        "construction, and beating them shows nothing. If the band does not win, `advise` and the finders do not "
        "recommend it, and the page names the finder or published formula that loses least. The stage 'sizes' has one "
        "seed a block, and decides nothing."
    ),
}
SCRIPTS = (
    *(f"studies/rates/{name}.py" for name in ("analysis", "design", "models", "rules", "texts", "unit")),
    "studies/cure/texts.py",
    "studies/findings.py",
)
