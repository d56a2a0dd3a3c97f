"""TensorBoard's first screen: which curves stand together, and the table that compares runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

#: title of a chart -> its kind and its tags, as SummaryWriter.add_custom_scalars takes them
Charts = dict[str, list[Any]]

#: settings by which TensorBoard's HParams tab compares runs: name -> heading
SETTINGS = {
    "objective": "objective",
    "learning_rate": "learning rate",
    "adapter": "adapter",
    "rows_per_step": "rows per step",
    "steps": "steps planned",
    "seed": "seed",
    "model": "model",
    "capability": "capability before (mean p)",
}
#: those that are texts, and not numbers
WORDS = ("objective", "adapter", "model")
#: what it shows of each run, its last value: log key -> heading
OUTCOMES = {
    "val/nll": "held-out NLL",
    "val/exact_match": "held-out exact match",
    "val/task_accuracy": "generated answers right",
    "silent/train/share": "silent failure, trained rows",
    "silent/val/excess": "overconfidence, held-out rows",
    "capability/content/mean_p": "mean p after",
    "synonyms/flip": "probes flipped",
}


@dataclass(frozen=True)
class Parts:
    """What a run logs beside its training.

    Attributes:
        validates: whether held-out rows are read.
        generates: whether answers are generated.
        state: whether the objective logs a state of its own.
        silent: whether tokens are watched for silent failure.
        capability: whether capability is read.
        guards: names of the guard sets of drift.
        probes: prefixes of probe keys by area (``synonyms``, ``order``), such as ``order`` or ``order/mine``.
        sweeps: names of the sweeps.
    """

    validates: bool = False
    generates: bool = False
    state: bool = False
    silent: bool = False
    capability: bool = False
    guards: Sequence[str] = ()
    probes: Mapping[str, Sequence[str]] | None = None
    sweeps: Sequence[str] = ()


def layout(parts: Parts) -> dict[str, Charts]:
    """Return the sections of the custom scalars tab, those that the run fills.

    A chart of one title has the same curves in every run: TensorBoard shows it twice where two runs differ in them.
    """
    probes = parts.probes or {}
    overview: Charts = {"Is it learning? NLL, nats per token": _lines("val/nll", "train/nll")}
    if parts.validates:
        overview["Answers that are right, share"] = _lines("val/exact_match", "val/task_accuracy")
    if parts.silent:
        overview["Silent failure, share of outranked tokens"] = _lines("silent/train/share", "silent/val/share")
    if parts.guards:
        overview["Drift on other text, KL in nats per token"] = _lines(*(f"drift/{name}/kl" for name in parts.guards))
    overview["Learning rate"] = _lines("train/lr")
    sections = {"Overview": overview, "Objective": _objective(parts)}
    if parts.capability:
        sections["Capability"] = {
            "Where the model stands: mean p with its 95% interval, special tokens left out": [
                "Margin",
                [f"capability/content/mean_p{bound}" for bound in ("", "_low", "_high")],
            ],
            "Share of tokens known (p > 0.55) and unlikely (p < 0.1), special tokens left out": _lines(
                "capability/content/share_known", "capability/content/share_unlikely"
            ),
            "First choices (special tokens left out) and whole answers that are right": _lines(
                "capability/content/top1_share", "capability/exact_match"
            ),
        }
    if parts.silent:
        sections["Silent failure"] = {
            f"{words}: stayed behind, behind another word, became first, fell back": _lines(
                *(f"silent/{name}/{key}" for key in ("share", "displaced", "flipped", "lost"))
            )
            for name, words in (("train", "Trained rows"), ("val", "Held-out rows"))
        } | {"Outranked more often than its own confidence says": _lines("silent/train/excess", "silent/val/excess")}
    for prefix in probes.get("synonyms", ()):
        sections[_title("Synonyms", prefix)] = {
            "Share of probes whose right word is ahead": _lines(f"{prefix}/flip"),
            "Lead of the right word, logits": _lines(f"{prefix}/margin"),
            "Rank of the right word (1 = top)": _lines(f"{prefix}/rank"),
        }
    for prefix in probes.get("order", ()):
        sections[_title("Order parameter", prefix)] = {
            "Phi = S (commitment) + D (drag)": _lines(f"{prefix}/phi", f"{prefix}/signal", f"{prefix}/drag"),
            "Probability of the right word and of its competitor": _lines(
                f"{prefix}/p_correct", f"{prefix}/p_competitor"
            ),
            "Share of probes that jump": _lines(f"{prefix}/jump"),
        }
    if parts.sweeps:
        sections["Sweep"] = {
            f"{name}: chosen learning rate and bracket": _lines(
                *(f"sweep/{name}/{key}" for key in ("chosen", "critical_lower", "critical_upper", "valley", "edge"))
            )
            for name in parts.sweeps
        }
    sections["Speed"] = {
        "Trained tokens per second": _lines("perf/tokens_per_second"),
        "Padding, share of positions": _lines("perf/padding_share"),
    }
    return sections


def _objective(parts: Parts) -> Charts:
    charts: Charts = {
        "Loss under the objective": _lines("train/loss", "val/loss"),
        "Mean p of the right token": _lines("train/mean_p", "val/mean_p"),
        "Right first choices, share of tokens": _lines("train/token_accuracy", "val/token_accuracy"),
    }
    if parts.state:  # else the chart would stay empty
        charts["State of the objective"] = ["Multiline", ["train/objective/.*"]]
    return {**charts, "Gradient norm before clipping": _lines("train/grad_norm")}


def _lines(*tags: str) -> list[Any]:
    return ["Multiline", [f"{tag}$" for tag in tags]]  # TensorBoard matches beginnings of tags


def _title(words: str, prefix: str) -> str:
    _, _, name = prefix.partition("/")
    return f"{words}: {name}" if name else words


def log_layout(logger: TensorBoardLogger, parts: Parts) -> None:
    """Write the sections; runs of one log folder share theirs."""
    logger.experiment.add_custom_scalars(layout(parts))


def log_settings(logger: TensorBoardLogger, settings: Mapping[str, str | float], outcomes: Sequence[str]) -> None:
    """Write a row of the HParams tab: settings now, outcomes as the last values of their curves.

    Args:
        logger: whose event file it goes to.
        settings: values for keys of `SETTINGS`.
        outcomes: keys of `OUTCOMES` that the run logs.
    """
    from tensorboard.plugins.hparams import summary_v2  # its module `api` imports TensorFlow
    from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_FLOAT64, DATA_TYPE_STRING
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    # every run declares all columns: TensorBoard takes them from the first run that it finds
    metrics = [summary_v2.Metric(key, display_name=OUTCOMES[key]) for key in OUTCOMES if key in outcomes]
    columns = [summary_v2.HParam(name, display_name=heading) for name, heading in SETTINGS.items()]
    config = summary_v2.hparams_config_pb(columns, metrics)
    (value,) = config.value
    assert value.tag == EXPERIMENT_TAG
    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in data.experiment.hparam_infos:  # a type without a domain of values cannot be given to HParam
        info.type = DATA_TYPE_STRING if info.name in WORDS else DATA_TYPE_FLOAT64
    value.metadata.plugin_data.content = data.SerializeToString()
    writer = logger.experiment.file_writer
    writer.add_summary(config)
    place = Path(logger.log_dir)
    # the column is narrow: what tells runs apart stands first
    writer.add_summary(summary_v2.hparams_pb(dict(settings), trial_id=f"{place.name} in {place.parent}"))
