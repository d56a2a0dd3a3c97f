"""What an advice rests on: published results, reports of users, measurements of ours, guesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_sft.places import DOCS

Kind = Literal["published", "reported", "measured here", "guess"]


@dataclass(frozen=True)
class Evidence:
    """One thing that an advice rests on.

    Attributes:
        kind: whose it is.
        what: the finding in a sentence.
        link: where it can be looked up.
    """

    kind: Kind
    what: str
    link: str


_PAPER = "https://arxiv.org/abs/2510.00526"
_PAGE = f"{DOCS}/which_objective.md"
_STUDY = f"{DOCS}/studies/continuum.md"

STRONG_END = Evidence(
    "published",
    "Mathematics, mean p .76 to .81 before training: -p beats NLL on each of four models of 1.5 to 8 billion "
    "parameters (Qwen2.5-Math-1.5B 32.75 against 17.00, Llama-3.1-8B 10.56 against 6.49).",
    f"{_PAPER} (table 1)",
)
INTERMEDIATE = Evidence(
    "published",
    "Medicine, mean p .50 to .59: NLL ahead on three of four models, by 0.1 to 1.7 points, -p by 0.3 on the fourth.",
    f"{_PAPER} (table 2)",
)
WEAK_END = Evidence(
    "published",
    "Figlet font puzzles, mean p .01 to .07: NLL reaches 35.20% exact match with Qwen2.5-7B and 1.08% with "
    "Llama-3.2-3B, the objective -p 0% with both.",
    f"{_PAPER} (table 3)",
)
ALPHA = Evidence(
    "published",
    "Over the exponent alpha of the power family the strong end rises up to 1 and then stays; the weak end is best at "
    "0.1 and collapses towards 1.",
    f"{_PAPER} (figure 6)",
)
UNLIKELY_TOKENS = Evidence(
    "published",
    "On the strong end the 10% least likely tokens explain most of what NLL loses; with 30% of the labels of "
    "OpenBookQA flipped, NLL reaches 27 and -p 85 to 92.",
    _PAPER,
)
STRONG_END_HERE = Evidence(
    "measured here",
    "SmolLM2-135M trained in full on the first letters of four words, mean p .71, eight replicates: on clean rows "
    "NLL is ahead of -p by 15.9 points of exact match [11.8, 20.1]; with three in ten labels wrong they are not told "
    "apart (-p ahead by 1.8 [-0.1, 3.7]).",
    _STUDY,
)
WEAK_END_HERE = Evidence(
    "measured here",
    "SmolLM2-135M trained in full on the first letters of four words, mean p .07, eight replicates: NLL is ahead of "
    "-p by 54.2 points of exact match on clean rows [52.1, 56.4], and by 31.0 with three in ten labels wrong "
    "[27.1, 34.9].",
    _STUDY,
)
NO_CUT_OFFS = Evidence(
    "guess",
    "No paper gives cut-offs between weak, intermediate and strong. Ours are round numbers between published groups.",
    f"{_PAGE}#what-is-a-guess",
)
END_TOKEN = Evidence(
    "reported",
    "Base models trained with DFT (the gradient of -p) under a chat template never learned the end token and did not "
    "stop; DFT's author recommends that no token weighs less than 0.1.",
    "https://github.com/yongliang-wu/DFT/issues/1",
)
END_TOKEN_HERE = Evidence(
    "measured here",
    "With a new end token -p never stops, on a toy and on SmolLM2-135M; with NLL on special tokens it does (8 of 8 "
    "answers), with a floor of 0.1 more slowly (on the latter 5 of 8 after 24 steps, all after 40).",
    f"{_PAGE}#the-end-of-turn-trap",
)
MIXTURES = Evidence(
    "guess",
    "That each source of a mixture wants what it would want alone follows from nothing that was published or measured.",
    f"{_PAGE}#what-is-a-guess",
)
RATES_HERE = Evidence(
    "measured here",
    "On small models (1.1 million parameters, four tasks, all weights and LoRA, 24 runs of 24 steps) such a test names "
    "a tenth of its lowest rate in 19 runs, and that lost 18.3% of what the best rate gains (all weights 16.0%, LoRA "
    "20.8%), mostly as too low for so short a run; the longer a run, the lower its best rate. Trying rates for a "
    "quarter of the run each, and taking the one with the lowest validation NLL, lost 4.5%.",
    f"{DOCS}/studies/rates.md",
)
