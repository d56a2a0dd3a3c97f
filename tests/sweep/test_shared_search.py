"""A search for a critical rate whose trials several workers share, on a toy whose critical rate is known."""

import json
import math
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from lightning_sft.callbacks import CriticalLearningRateFinder
from lightning_sft.errors import UserError
from lightning_sft.sweep.critical import find_critical_rate
from lightning_sft.sweep.results import CriticalRate
from lightning_sft.sweep.session import SweepSettings
from lightning_sft.sweep.trial import Trial, TrialRunner
from tests.sweep.test_critical import margin_after, two_logits
from tests.sweep.toys import Margin, Toy, between

pytest.importorskip("optuna", reason="the extra sweep")

from lightning_sft.compare.queue import SharedQueue
from lightning_sft.compare.status import status

START, STEPS, WORKERS, BEAT = [-1.0, 0.5], 3, 3, 0.2
GRID = {"low": 0.01, "high": 10.0, "points": 3, "resolution": 0.01}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of the trials that this process runs."""
    rates: list[float] = []
    run = TrialRunner.run

    def counted(self: TrialRunner, lr: float, *args: Any, **kwargs: Any) -> Trial:
        rates.append(lr)
        return run(self, lr, *args, **kwargs)

    monkeypatch.setattr(TrialRunner, "run", counted)
    return rates


def search(folder: Path, url: str | None, start: list[float] = START) -> CriticalRate:
    def work(trainer: Trainer, module: LightningModule) -> CriticalRate:
        setting = SweepSettings("toy", STEPS, None, storage=url, beat=BEAT)
        read = [Margin(lambda z: z[0] - z[1])]
        return find_critical_rate(trainer, module, setting, read, ["toy"], workers=WORKERS, **GRID)

    found = between(Toy(start, two_logits), work, folder)
    assert isinstance(found, CriticalRate)
    return found


def outcomes(found: CriticalRate) -> list[tuple[float, bool, int]]:
    return [(trial.lr, trial.crossed, trial.steps) for trial in found.trials]


def storage(folder: Path) -> str:
    return f"journal:{folder}/shared/search.log"


def test_a_search_that_was_interrupted_goes_on_elsewhere(
    tmp_path: Path, ran: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search(tmp_path, None)
    expected, url = sorted(ran), storage(tmp_path)
    assert len(expected) == len(set(expected))
    assert margin_after(alone.lower, -1.5, STEPS) <= 0 < margin_after(alone.critical, -1.5, STEPS)
    ran.clear()
    with monkeypatch.context() as patch:
        run = TrialRunner.run

        def stopping(self: TrialRunner, *args: Any, **kwargs: Any) -> Trial:
            if len(ran) == 4:
                raise RuntimeError("the power went")
            return run(self, *args, **kwargs)

        patch.setattr(TrialRunner, "run", stopping)
        with pytest.raises(RuntimeError, match="the power went"):
            search(tmp_path, url)
    assert len(ran) == 4
    shared = search(tmp_path, url)
    assert sorted(ran) == expected, "what was done is not done again, and what was left is done"
    assert outcomes(shared) == outcomes(alone)
    said = status(url)
    assert f"toy: a search for a learning rate; {len(expected)} trials done." in said
    assert said.endswith(f": {len(expected)} trials")
    again = search(tmp_path, url)
    assert sorted(ran) == expected
    assert (again.lower, again.upper) == (alone.lower, alone.upper)


def test_two_workers_share_the_trials_of_each_round(tmp_path: Path, ran: list[float]) -> None:
    url, done, others = storage(tmp_path), threading.Event(), []
    alone = search(tmp_path, None)
    ran.clear()

    def known(lr: float) -> Trial:
        """What the toy gives, by its formula."""
        margins = [[margin_after(lr, -1.5, i + 1)] for i in range(STEPS)]
        until = next((i + 1 for i, (margin,) in enumerate(margins) if margin > 0), STEPS)
        outcome = "stopped" if margins[until - 1][0] > 0 else "finished"
        return Trial(lr, [0.0] * until, [lr] * until, {"margin": margins[:until]}, outcome, 0.0)

    def help_out() -> None:
        queue = SharedQueue(url, "toy", "memory", beat=BEAT, poll=0.02)
        queue.begin_study("search", "{}")
        while not done.is_set():
            waiting = [key for key, trial in queue._open_trials().items() if trial.state.name == "WAITING"]
            key = queue.take(waiting[-1:]) if waiting else None
            if key is None:
                done.wait(0.02)
            elif key in queue.texts():
                queue.finish(key, 0.0)
            else:
                others.append(float(key.split()[0]))
                queue.hand_in(key, json.dumps(asdict(known(others[-1]))), key, 0.0)
                queue.finish(key, 0.0)

    thread = threading.Thread(target=help_out)
    thread.start()
    try:
        found = search(tmp_path, url)
    finally:
        done.set()
        thread.join()
    assert (found.lower, found.upper) == (alone.lower, alone.upper)
    assert others
    assert Counter([*ran, *others]) == Counter(trial.lr for trial in found.trials), "each trial was run once, by one"


def test_a_trial_of_a_worker_that_died_goes_to_another(tmp_path: Path, ran: list[float]) -> None:
    url = storage(tmp_path)
    dead = SharedQueue(url, "toy", "memory", beat=60.0)
    dead.begin_study("search", "{}")
    assert dead.take(["0.01 0"]) == "0.01 0"
    found = search(tmp_path, url)
    assert found.status == "found"
    assert 0.01 in ran
    dead.give_back("0.01 0")


def test_a_worker_of_another_search_is_refused_by_what_differs(tmp_path: Path) -> None:
    search(tmp_path, storage(tmp_path))
    with pytest.raises(UserError, match=r"cannot take part in the search 'toy' .* begun with another model\. Use what"):
        search(tmp_path, storage(tmp_path), start=[-1.5, 0.5])
    assert math.isfinite(search(tmp_path, storage(tmp_path)).upper or math.nan)


def test_workers_without_a_storage_are_refused() -> None:
    with pytest.raises(UserError, match=r"workers is 3 and storage is None.*journal:shared"):
        CriticalLearningRateFinder(workers=3)
