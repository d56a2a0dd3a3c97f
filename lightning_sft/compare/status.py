"""How far the comparisons of a storage are, over all workers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from lightning_sft.compare.design import Design
from lightning_sft.compare.plan import make_plan
from lightning_sft.compare.queue import DESIGN, JOB, RESULT, SEARCH, WORKER
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.storage import open_storage, require_storage, retried, shown
from lightning_sft.compare.work import time_left
from lightning_sft.units import duration, plural


def status(url: str, patience: float = 10.0) -> str:
    """Return what stands in a storage, a paragraph a comparison.

    Args:
        url: see `open_storage`.
        patience: seconds to try again where it cannot be reached.

    Raises:
        UserError: it does not exist, or cannot be reached.
    """
    require_storage(url)

    def read() -> list[tuple[str, dict[str, Any], list[Any]]]:
        storage = open_storage(url, beat=15.0)  # says so where Optuna is missing
        import optuna

        studies = [optuna.load_study(study_name=n, storage=storage) for n in optuna.get_all_study_names(storage)]
        return [(s.study_name, s.user_attrs, s.get_trials(deepcopy=False)) for s in studies]

    found = retried(read, url, patience, "each worker's folder")
    parts = [_of_one(name, attributes, trials) for name, attributes, trials in found if DESIGN in attributes]
    parts += [_of_search(name, trials) for name, attributes, trials in found if SEARCH in attributes]
    return "\n\n".join(parts) or f"There is no comparison and no search in {shown(url)}."


def _of_search(name: str, trials: list[Any]) -> str:
    done = {key for trial in trials for key in trial.user_attrs if key.startswith(RESULT)}
    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    lines = [f"{name}: a search for a learning rate; {plural(len(done), 'trial')} done."]
    lines += [
        f"  running: {trial.user_attrs[JOB].split()[0]}, by {trial.user_attrs.get(WORKER, '?')}" for trial in running
    ]
    workers = Counter(t.user_attrs.get(WORKER, "?") for t in trials for key in t.user_attrs if key.startswith(RESULT))
    return "\n".join([*lines, *(f"  {worker}: {plural(count, 'trial')}" for worker, count in sorted(workers.items()))])


def _of_one(name: str, attributes: dict[str, Any], trials: list[Any]) -> str:
    design = Design.of(json.loads(attributes[DESIGN]))
    results: dict[str, RunResult] = {}
    workers: Counter[str] = Counter()
    for trial in trials:
        for key, text in trial.user_attrs.items():
            if key.startswith(RESULT):
                results.setdefault(key.removeprefix(RESULT), RunResult.of(json.loads(text)))
                workers[trial.user_attrs.get(WORKER, "?")] += 1
    plan = make_plan(design, results)
    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    lines = [f"{name}: {plan.finished} of {plan.expected} runs done."]
    if plan.jobs and results:
        left = time_left(plan, list(results.values()), len(running))
        lines[0] += f" About {duration(left)} left for {plural(len(running) or 1, 'worker')}."
    for trial in running:
        lines.append(f"  running: {trial.user_attrs[JOB]}, by {trial.user_attrs.get(WORKER, '?')}")
    lines += [f"  {worker}: {plural(count, 'run')}" for worker, count in sorted(workers.items())]
    bad = Counter(result.outcome for result in results.values() if result.outcome != "finished")
    lines += [f"  {outcome}: {plural(count, 'run')}" for outcome, count in sorted(bad.items())]
    return "\n".join(lines)
