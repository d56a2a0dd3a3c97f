"""Predict critical learning rates from a few gradients; a sweep takes ten times as many and more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.models.instruments import model_to_read
from lightning_sft.probes.competitors import lacks_competitors, name_competitors
from lightning_sft.probes.encode import encode_probes
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.forward import read_probes
from lightning_sft.probes.probe import Probe
from lightning_sft.sweep.prediction.estimate import Estimate, GapRunner, Target, estimate, plan_runs
from lightning_sft.sweep.prediction.gains import rates_of_progress
from lightning_sft.sweep.prediction.model import ModelRunner, OptimizerFactory, adamw, only
from lightning_sft.sweep.prediction.record import (
    CriticalLRPrediction,
    ProbePrediction,
    code_hash,
    probes_inputs,
    versions,
    weights_hash,
)
from lightning_sft.sweep.prediction.refine import REPLAYS, TRIALS, Replays, WholeRun, refine, refined, unsettled
from lightning_sft.sweep.prediction.widths import OF_TRIAL, Width, replay_width

#: steps of the longest of the short runs
LONGEST_SHORT_RUN = 4
#: Sum of rates of the first short run, for each logit of D0: a round number of the right size for AdamW on all weights.
START = 8e-6
#: The two rules beside a prediction: sums of rates at which probes flip, the median probe's and a logit's of D0. They
#: are medians over the half of the shipped probes that the predictor was designed on (SmolLM2-135M-Instruct, full
#: fine-tuning).
CONSTANT_TOTAL = 1.41e-5
TOTAL_PER_LOGIT = 8.34e-6


def predict_critical_lr(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: str | Path | Sequence[Probe | Mapping[str, Any]] = "library",
    *,
    steps: int = 12,
    schedule: Sequence[float] | None = None,
    optimizer: OptimizerFactory = adamw,
    together: bool = False,
    quantile: float = 0.5,
    start: float = START,
    path: str | Path | None = None,
) -> CriticalLRPrediction:
    """Predict the smallest learning rate at which correct tokens overtake their competitors within some steps.

    Each probe's answer is trained alone, from the model's present weights: in runs of two and four large steps, then in
    replays of the whole run by the optimizer itself, with gradients computed at three places. That takes 11 to 16
    gradients, as a rule. The model is afterwards as it was, to the bit. Reconstructed from the abstract of arXiv
    2606.07559.

    Args:
        model: a causal language model; what requires a gradient is trained, without dropout.
        tokenizer: its tokenizer.
        probes: the probes, or where they are; see `load_probes`.
        steps: optimizer steps within which the flip must happen.
        schedule: each step's rate as a share of the peak rate, (steps,); None is a constant rate.
        optimizer: builds the optimizer from an iterable of parameters.
        together: train all probes as one batch, and predict for the set, too.
        quantile: share of the set that must have flipped.
        start: sum of rates of the first short run, for each logit of D0; far off, it costs steps, not accuracy.
        path: a JSON file to write the prediction to; must not exist.

    Returns:
        The predictions, with 80% intervals.

    Raises:
        UserError: probes, steps, a schedule, a quantile or a start that cannot be.
    """
    model = model_to_read(model)
    encoded = encode_probes(load_probes(probes), tokenizer)
    if lacks_competitors(encoded):
        encoded = name_competitors(encoded, read_probes(model, encoded).logits, model, tokenizer)
    names = [p.name for p in encoded.probes]
    with ModelRunner(model, encoded, optimizer) as runner:
        target = make_target(steps, runner.beta, schedule, runner.gains(max(steps, LONGEST_SHORT_RUN)))
        inputs = {
            "model": {"class": type(model).__name__, "weights": weights_hash(model)},
            **probes_inputs(encoded, tokenizer),
            **settings_inputs(target, together, quantile, start),
            "optimizer": runner.describe_optimizer(),
        }
        replays, width = Replays(runner, target), replay_width(runner.new_optimizer(), target.shares)
        if together:
            whole, single = predict_set(runner, names, target, quantile, start, replays, width)
            prediction = CriticalLRPrediction(single, replace(whole, steps=runner.steps), inputs)
        else:
            single = []
            for i, name in enumerate(names):
                runner.train_on(only(encoded, i))
                before = runner.steps
                said, _ = predict_set(runner, [name], target, quantile, start, replays, width)
                single.append(replace(said, steps=runner.steps - before))
            prediction = CriticalLRPrediction(single, None, inputs)
    if path is not None:
        prediction.write(path)
    return prediction


def predict_set(
    run: GapRunner,
    names: Sequence[str],
    target: Target,
    quantile: float = 0.5,
    start: float = START,
    whole: WholeRun | None = None,
    width: Width = OF_TRIAL,
) -> tuple[ProbePrediction, list[ProbePrediction]]:
    """Predict for probes that are trained together, with any runner.

    The short runs are aimed at the crossing of the set. Probes that cross far from there are extrapolated,
    and their intervals are wide.

    Args:
        run: trains and reads all probes.
        names: of the probes.
        target: the run that is asked about.
        quantile: share of the probes that must have flipped.
        start: progress of the first short run, for each logit of D0.
        whole: makes the whole run at a rate; None: short runs alone.
        width: of the intervals of what whole runs say; that of trials makes one of them enough, mostly.

    Returns:
        The prediction for the set (named after its probe if it has but one), and one for each probe. Steps are those of
        the short runs; whoever counts others adds them.

    Raises:
        UserError: a quantile or a start that cannot be.
    """
    if not 0 < quantile <= 1:
        raise UserError(f"quantile is {quantile}. Allowed: above 0, at most 1; 0.5 is half of the probes.")
    if not 0 < start < math.inf:
        raise UserError(f"start is {start}. Allowed: a positive sum of rates; {START} is the default.")
    began = time.perf_counter()
    needed = math.ceil(quantile * len(names) - 1e-9)

    def of_set(gaps: Sequence[float]) -> float:
        """Return the gap that is above zero as soon as enough probes have flipped."""
        if any(map(math.isnan, gaps)):
            return math.nan
        return sorted(gaps, reverse=True)[needed - 1]

    def of_probe(i: int) -> Callable[[Sequence[float]], float]:
        return lambda gaps: gaps[i]

    gains = target.gains or (1.0,) * LONGEST_SHORT_RUN
    runs = plan_runs(lambda progress: run(rates_of_progress(progress, gains)), of_set, start)
    said, each = estimate(runs, of_set, target), [estimate(runs, of_probe(i), target) for i in range(len(names))]
    if whole is not None and said.d0 > 0:
        found = refine(whole, of_set, target, runs, said, *(TRIALS if width is OF_TRIAL else REPLAYS))
        if found is None and said.status == "predicted":  # whole runs do not cross where short runs say they do
            said, each = unsettled(said), [unsettled(one) if one.lr else one for one in each]
        elif found is not None:
            if isinstance(whole, Replays):
                found = replace(found, coarser=whole.coarser())
            said = refined(said, found, of_set, width) or said
            each = [
                (refined(one, found, of_probe(i), width) if one.d0 > 0 else None) or one for i, one in enumerate(each)
            ]
    single = [_named(name, one, target) for name, one in zip(names, each, strict=True)]
    one_for_all = _named(names[0] if len(names) == 1 else "all", said, target)
    spent = sum(r.steps for r in runs)
    return replace(one_for_all, steps=spent, seconds=time.perf_counter() - began), single


def make_target(
    steps: int, beta: float, schedule: Sequence[float] | None = None, gains: Sequence[float] = ()
) -> Target:
    """Describe the run whose critical rate is asked for.

    Args:
        steps: its optimizer steps.
        beta: of the optimizer's first moment.
        schedule: each step's rate as a share of the peak rate; None is a constant rate.
        gains: of the optimizer (`step_gains`), for at least as many steps as the run and the short runs have.

    Raises:
        UserError: no step, or a schedule that does not fit.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}. Allowed: 1 or more optimizer steps.")
    shares = [1.0] * steps if schedule is None else [float(share) for share in schedule]
    if len(shares) != steps or not all(0 <= s < math.inf for s in shares) or not sum(shares) > 0:
        raise UserError(
            f"The schedule has {len(shares)} shares of the peak rate ({min(shares, default=0)} to "
            f"{max(shares, default=0)}) for {steps} steps. Allowed: one for each step, none negative, not all zero."
        )
    return Target(tuple(shares), beta, tuple(gains))


def settings_inputs(target: Target, together: bool, quantile: float, start: float) -> dict[str, Any]:
    """Return what a prediction depends on in settings and code."""
    return {
        "target": asdict(target),
        "together": together,
        "quantile": quantile,
        "start": start,
        "code": code_hash(),
        "versions": versions(),
    }


def _named(name: str, said: Estimate, target: Target) -> ProbePrediction:
    per_logit = TOTAL_PER_LOGIT * max(said.d0, 0.0) / target.multiplier
    return ProbePrediction(name, said, CONSTANT_TOTAL / target.multiplier, per_logit)
