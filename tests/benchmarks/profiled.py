"""Where the time of a training step goes, by phase and operator: ``python -m tests.benchmarks.profiled``.

One contender of `tests.benchmarks.step`, in this process, under torch's profiler, which adds some microseconds to each
operator. Seconds are those of the clock, so the machine should be quiet.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks import step
from tests.benchmarks.phases import FORWARD, PHASES, Phases
from tests.benchmarks.trainers import train
from tests.benchmarks.turns import Gate

HEAD, REST = "head", "the rest"
COLUMNS = (FORWARD, HEAD, *PHASES[1:], REST)


class Done(Exception):
    """Enough steps are profiled."""


class Watched(Gate):
    """A gate that lets every step through and profiles those after the first ``warm`` ones.

    Args:
        warm: steps before the profile.
        steps: steps in it.
    """

    def __init__(self, warm: int, steps: int) -> None:
        self.phases = Phases()
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self._warm, self._last, self._turn = warm, warm + steps, 0

    def note(self, batch: Mapping[str, Any]) -> None:
        """Take nothing down."""

    def stop(self) -> None:
        """Go on."""

    def wait(self) -> None:
        """Begin or end the profile where it is time to.

        Raises:
            Done: the last step is over.
        """
        if self._turn == self._warm:
            self.profiler.start()
        elif self._turn == self._last:
            self.profiler.stop()
            raise Done
        self._turn += 1


def by_phase(events: Iterable[Any]) -> dict[str, Counter[str]]:
    """Return the seconds that each operator takes by itself, without those that it calls, in each phase."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        above = event
        while above is not None and above.name not in COLUMNS:
            above = above.cpu_parent
        phase = REST if above is None else above.name
        name = "Python between operators" if above is event else event.name
        found[name][phase] += event.self_cpu_time_total / 1e6
    return found


def table(found: Mapping[str, Counter[str]], steps: int, rows: int) -> None:
    """Print the operators that take most, in milliseconds of one step."""
    total = sum(sum(phases.values()) for phases in found.values())
    largest = sorted(found, key=lambda name: -sum(found[name].values()))
    print(f"| ms of a step | {' | '.join(COLUMNS)} | all | share |")
    print(f"|---|{'---|' * (len(COLUMNS) + 2)}")
    lines = {name: found[name] for name in largest[:rows]}
    lines["others"] = sum((found[name] for name in largest[rows:]), Counter())
    lines["all"] = sum(found.values(), Counter())
    for name, phases in lines.items():
        seconds = [phases[column] for column in COLUMNS]
        cells = [f"{1000 * value / steps:.1f}" for value in [*seconds, sum(seconds)]]
        print(f"| {name} | {' | '.join(cells)} | {sum(seconds) / total:.1%} |")


def main(argv: list[str] | None = None) -> None:
    """Profile one contender and print one table."""
    parser = step.parser(__doc__)
    parser.add_argument("--contender", choices=step.CONTENDERS, default=step.OURS)
    parser.add_argument("--rows", type=int, default=25, help="operators to show")
    arguments = parser.parse_args(argv)
    settings: dict[str, Any] = step.CONTENDERS[arguments.contender]
    torch.set_num_threads(arguments.threads[0])
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        common = step.prepared(arguments, Path(name), arguments.precisions[0], arguments.threads[0])
        gate = Watched(arguments.warm, arguments.rounds)
        if settings["kind"] in ("ours", "bare"):
            from lightning_sft.models.scorer import TokenScorer

            TokenScorer._scored = gate.phases.timed(HEAD, TokenScorer._scored)
        try:
            train({**common, **settings}, gate)
        except Done:
            print(f"{arguments.contender}, {arguments.rounds} steps\n")
            table(by_phase(gate.profiler.events()), arguments.rounds, arguments.rows)


if __name__ == "__main__":
    main()
