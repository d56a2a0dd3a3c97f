"""How well critical rates are predicted over a grid: `python -m tests.benchmarks.predict_grid --part last`.

Toys of 23 architectures (2 layers), optimizers, schedules and lengths of a run. In each cell one answer token is
trained (fp32, no dropout); the prediction stands beside trials of all steps, which close in on the critical rate until
it stands in a bracket of 0.002%.

What is kept aside is kept aside whole: see `tests/benchmarks/predict_cells.py`. The widths of the intervals were
calibrated by group on `judged`, `strangers` and `more`, and committed before a cell of `last` was run. `--widths`
prints by what factor those of the cells in FILE would differ, by group, and how often half of the architectures,
schedules and classes, judged by the others, would meet what is asked of `last`.

FILE keeps what was run, a line a cell; with the same file the command goes on where it stopped.
"""

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lightning_sft.errors import UserError
from lightning_sft.probes import Probe, encode_probes
from lightning_sft.sweep.prediction.model import ModelRunner
from lightning_sft.sweep.prediction.predict import LONGEST_SHORT_RUN, START, make_target, predict_set
from lightning_sft.sweep.prediction.refine import Replays
from lightning_sft.sweep.prediction.widths import group_of, replay_width
from tests import toys
from tests.benchmarks.predict_cells import CONTEXTS, OPTIMIZERS, SCHEDULES, SEEN_CONTEXTS, SIZES, cells
from tests.benchmarks.predict_strangers import INSTALLED, strangers
from tests.benchmarks.predict_widths import LEVEL, covers, interval, rehearsed, rejected, widths

PARTS = ("design", "kept", "fresh", "unseen", "strangers", "judged", "more", "last")
#: of optimizer classes that others wrote, those of which these parts have cells
CLASSES = {"strangers": ("strangers",), "judged": ("judged",), "more": ("strangers", "judged"), "last": ("last",)}
LETTERS = "abcdefghijkl"
RESOLUTION = 2e-5
#: trials that bisection alone would need from a bracket of a factor of 100, and as many again
MOST_TRIALS = 60


def toy(kind, seed=0):
    """Return a wide toy with logits that are far apart."""
    toys.KINDS.setdefault(kind, {})
    model = toys.toy_model(kind, seed, **SIZES[kind])
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(True).eval()


def probe_of(model, tokenizer, context):
    """Return the probe of a context: the third weakest of twelve letters against the third strongest."""
    ids = {letter: tokenizer(letter).input_ids[0] for letter in LETTERS}
    with torch.no_grad():
        z = model(torch.tensor([tokenizer(context).input_ids])).logits[0, -1]
    ordered = sorted(LETTERS, key=lambda letter: float(z[ids[letter]]))
    return Probe(context, ordered[2], ordered[-3], leading_space=False)


def furthest(model, encoded, make, rates):
    """Return the largest gap after any step of an ordinary training run, which ends at a flip."""
    start = [p.detach().clone() for p in model.parameters()]
    optimizer, most = make(list(model.parameters())), -math.inf
    try:
        for step in range(len(rates) + 1):
            z = model(encoded.input_ids, use_cache=False).logits[0, -1]
            gap = float((z[encoded.correct[0]] - z[encoded.competitor[0]]).detach())
            most = max(most, gap) if step else most
            if step == len(rates) or most > 0 or not math.isfinite(gap):
                return most if math.isfinite(gap) else -math.inf
            optimizer.zero_grad()
            cross_entropy(z[None], encoded.correct).backward()
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            optimizer.step()
    finally:
        with torch.no_grad():
            for p, before in zip(model.parameters(), start, strict=True):
                p.copy_(before)
                p.grad = None


def swept(model, encoded, make, shares, guess):
    """Return the critical rate from a bracket of RESOLUTION, None if trials find none within a factor of 100.

    Secants between the ends of the bracket, each a little beyond, so that it closes from the other side.
    """

    def gap(log_rate):
        return furthest(model, encoded, make, [math.exp(log_rate) * share for share in shares])

    fine, beyond = math.log1p(RESOLUTION), 0.45 * math.log1p(RESOLUTION)
    below, above, at, step = None, None, math.log(guess), 5e-4
    for _ in range(MOST_TRIALS):
        if below is not None and above is not None and above[0] - below[0] <= fine:
            return math.exp((below[0] + above[0]) / 2)
        seen = (at, gap(at))
        if seen[1] > 0:
            above = seen
        else:
            below = seen
        if below is None or above is None:
            at += step if above is None else -step
            step *= 2
            if abs(at - math.log(guess)) > math.log(100):
                return None
            continue
        (low, under), (high, over) = below, above
        middle, at = (low + high) / 2, low + (high - low) * -under / (over - under)
        at += beyond if at < middle else -beyond
        if not low < at < high:
            at = middle
    return None


def run_cell(cell, known, critical=None):
    """Return one line of the file: the prediction of a cell, and what trials say, unless that is known."""
    _, kind, number, optimizer, schedule, steps = cell
    seed = number // SEEN_CONTEXTS  # weights that no cell had before, for contexts that none had
    model, tokenizer = known["models"].setdefault((kind, seed), toy(kind, seed)), known["tokenizer"]
    encoded = encode_probes([probe_of(model, tokenizer, CONTEXTS[number % len(CONTEXTS)])], tokenizer)
    make, shares = known["optimizers"][optimizer], [SCHEDULES[schedule](t, steps) for t in range(steps)]
    found = {"cell": list(cell), "group": None, "critical": None, "predicted": None}
    with ModelRunner(model, encoded, make) as runner:
        try:
            gains = runner.gains(max(steps, LONGEST_SHORT_RUN))
        except UserError as error:
            if critical is None:  # a refusal counts as one where there is a rate that it does not tell
                critical = swept(model, encoded, make, shares, START / steps)
            return {**found, "critical": critical, "status": f"refused: {error}"}
        target = make_target(steps, runner.beta, shares, gains)
        group, width = (of(runner.new_optimizer(), shares) for of in (group_of, replay_width))
        said = predict_set(runner, ["probe"], target, whole=Replays(runner, target), width=width)
        estimate, spent = said[0].estimate, runner.steps
    guess = estimate.lr or START * max(estimate.d0, 0.1) / steps
    if critical is None and estimate.d0 > 0:
        critical = swept(model, encoded, make, shares, guess)
    own = {"predicted": estimate.lr, "low": estimate.low, "high": estimate.high, "uniform": estimate.uniform_lr}
    found.update(critical=critical, group=group)
    return {**found, "status": estimate.status, "d0": estimate.d0, "gradients": spent, **own}


def error(line):
    """Return the log ratio of prediction to critical rate, in percent."""
    return 100 * math.log(line["predicted"] / line["critical"])


def score(line, alpha=0.2):
    """Return the interval score of the log rate, in percent: width, and 2 / alpha times what it misses by."""
    low, high, true = (100 * math.log(line[k]) for k in ("low", "high", "critical"))
    return high - low + 2 / alpha * (max(low - true, 0) + max(true - high, 0))


def coverage(lines):
    """Return hits, count, and the Clopper-Pearson interval of the share."""
    hits, count = sum(map(covers, lines)), len(lines)
    return hits, count, *interval(hits, count)


def row(name, lines):
    """Return a row of the table."""
    crossing = [line for line in lines if line["critical"]]
    told = [line for line in crossing if line["predicted"]]
    refused = f"{sum(not line['predicted'] for line in lines)} of {len(lines)}"
    if not told:
        return f"| {name} | {len(lines)} | | | {refused} | | | | |"
    errors = sorted(abs(error(line)) for line in told)
    plain = [abs(100 * math.log(line["uniform"] / line["critical"])) for line in told if line["uniform"]]
    hits, count, low, high = coverage(told)
    cells = [name, len(lines), f"{statistics.median(errors):.2f}%", f"{errors[-1]:.2f}%", refused,
             f"{hits} of {count} ({low:.2f} to {high:.2f})", f"{statistics.fmean(map(score, told)):.2f}",
             f"{statistics.median(plain):.1f}%" if plain else "",
             f"{statistics.fmean(line['gradients'] for line in told):.1f}"]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def tables(lines):
    """Return the page's tables as text."""
    blocks = defaultdict(list)
    for line in lines:
        block, kind, _, optimizer, schedule, steps = line["cell"]
        name = {"architectures": f"{optimizer}, {schedule}", "optimizers": optimizer, "schedules": schedule}
        blocks[f"{block}: {name.get(block, f'{optimizer}, {schedule}')}, T = {steps}"].append(line)
        if block == "architectures":
            blocks[f"architecture {kind}"].append(line)
    head = "| cells | n | median | largest | refused | covered (80%) | score | uniform motion | gradients |"
    text = [head, "|---" * 9 + "|", *(row(name, own) for name, own in blocks.items())]
    parts = dict.fromkeys(line["cell"][0] for line in lines)
    text += [row(f"all: {name}", [line for line in lines if line["cell"][0] == name]) for name in parts]
    text.append(row("all", lines))
    whole = {part: [line for line in lines if line["cell"][0] == part] for part in parts}
    text += ["", f"Rows whose coverage is not .80 at Holm .05: {rejected(blocks) or 'none'}"]
    return "\n".join([*text, f"Parts whose coverage is not .80 at Holm .05: {rejected(whole) or 'none'}"])


def main():
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="design")
    parser.add_argument("--cells", type=Path, default=Path("predict_grid.jsonl"), help="file of cells")
    parser.add_argument("--only-known", action="store_true", help="run nothing: print what the file holds")
    parser.add_argument(
        "--widths", action="store_true", help="of all cells in the file: how wide intervals would hold 80%%"
    )
    parser.add_argument("--again", type=Path, help="predict anew, with the critical rates that this file holds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.cells.read_text() if arguments.cells.is_file() else ""
    done = {tuple(line["cell"]): line for line in map(json.loads, text.splitlines())}
    part = arguments.part
    kinds, without = strangers(*(CLASSES["more"] if arguments.widths else CLASSES.get(part, ())))
    optimizers = {**kinds, **OPTIMIZERS}
    if arguments.widths:
        for name, (times, count, units, held) in widths(list(done.values()), optimizers).items():
            print(
                f"{name}: {times:.3f} times as wide hold {LEVEL} of {count} cells, {units} units; left out {held:.2f}"
            )
        print(f"{rehearsed(list(done.values()), optimizers):.2f} of rehearsals meet what is asked")
        return
    if part in CLASSES:
        print(f"{len(kinds)} classes that others wrote; take no steps by themselves: {', '.join(without) or 'none'}")
        if not INSTALLED:
            print("pytorch_optimizer is not installed: classes of torch alone. pip install --no-deps pytorch_optimizer")
    again = arguments.again.read_text().splitlines() if arguments.again else []
    rates = {tuple(line["cell"]): line["critical"] for line in map(json.loads, again)}
    known = {"models": {}, "tokenizer": toys.toy_tokenizer(), "optimizers": optimizers}
    wanted = cells(part, sorted(kinds))
    for cell in random.Random(0).sample(wanted, len(wanted)):  # so that what is run so far is a fair part
        if cell not in done and not arguments.only_known:
            try:
                done[cell] = run_cell(cell, known, rates.get(cell))
            except Exception as error:  # whatever an optimizer of another package raises in a plain training run
                known["models"].clear()
                done[cell] = {"cell": list(cell), "critical": None, "predicted": None, "status": f"no run: {error}"}
            with arguments.cells.open("a") as file:
                file.write(json.dumps(done[cell]) + "\n")
    print(tables([done[cell] for cell in wanted if cell in done]))


if __name__ == "__main__":
    main()
