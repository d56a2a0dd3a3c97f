"""The critical rate of toys whose critical rate is known, and of a toy language model against plain runs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_sft.cli.compare.critical import next_of
from lightning_sft.errors import UserError
from lightning_sft.figures.sweeps import sweep_figure
from lightning_sft.sweep.critical import find_critical_rate
from lightning_sft.sweep.results import CriticalRate
from lightning_sft.sweep.session import SweepSettings
from tests.sweep.toys import Margin, Toy, between, quadratic

RESOLUTION = 0.01


def two_logits(logits: Tensor) -> Tensor:
    """Cross-entropy of the first of two logits."""
    return -logits.log_softmax(0)[0]


def margin_after(lr: float, start: float, steps: int) -> float:
    """The margin after gradient descent: it grows by twice the rate times the competitor's probability."""
    margin = start
    for _ in range(steps):
        margin += 2 * lr / (1 + math.exp(margin))
    return margin


class Shown:
    """What a log would show of a sweep's progress."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        SHOWN.append(self)

    def __call__(self, count: int) -> None:
        self.done += count


SHOWN: list[Shown] = []


def search(toy: Toy, margin: Any, folder: Path, steps: int = 6, **given: Any) -> CriticalRate:
    settings = {"low": 0.01, "high": 10.0, "points": 7, "resolution": RESOLUTION, **given}

    def work(trainer: Trainer, module: LightningModule) -> CriticalRate:
        return find_critical_rate(
            trainer, module, SweepSettings("toy", steps, None), [Margin(margin)], ["toy"], **settings
        )

    found = between(toy, work, folder)
    assert isinstance(found, CriticalRate)
    return found


def test_its_progress_has_a_total_that_it_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.sweep.session.Lines", Shown)
    SHOWN.clear()

    def work(trainer: Trainer, module: LightningModule) -> CriticalRate:
        given: dict[str, Any] = {"low": 0.01, "high": 10.0, "points": 7, "resolution": RESOLUTION}
        setting = SweepSettings("toy", 6, None)
        return find_critical_rate(trainer, module, setting, [Margin(lambda z: z[0] - z[1])], ["toy"], **given)

    found = between(Toy([-1.0, 0.5], two_logits), work, tmp_path, enable_progress_bar=True)
    (shown,) = SHOWN
    assert shown.what == "Sweep toy"
    assert shown.done == 6 * len(found.trials), "trials that ended early count whole"
    assert shown.total is not None
    assert abs(shown.total - shown.done) <= 6


@pytest.mark.parametrize("steps", [1, 6])
def test_two_logits_flip_at_their_known_rate(steps: int, tmp_path: Path) -> None:
    found = search(Toy([-1.0, 0.5], two_logits), lambda z: z[0] - z[1], tmp_path, steps)
    assert (found.status, found.monotonic) == ("found", True)
    assert found.lower is not None
    assert found.critical is not None
    assert margin_after(found.lower, -1.5, steps) <= 0 < margin_after(found.critical, -1.5, steps)
    assert found.critical / found.lower - 1 == found.resolution <= RESOLUTION
    if steps == 1:
        known = 1.5 * (1 + math.exp(-1.5)) / 2
        assert found.critical == pytest.approx(known, rel=RESOLUTION)
    assert f"{found.critical:.6g}" in found.text()
    assert [p.upper for p in found.probes] == [found.upper]
    written = json.loads(found.to_json())
    assert written["upper"] == found.critical
    assert len(written["trials"]) == len(found.trials) == len(found.to_csv().splitlines()) - 1
    assert sweep_figure(found).axes
    assert all(t.outcome == ("stopped" if t.crossed else "finished") for t in found.trials)
    assert all((t.step is not None) == t.crossed for t in found.trials)


def test_an_outcome_that_is_not_monotonic_is_told(tmp_path: Path) -> None:
    """One step from 0 lands at the rate itself: inside of (0.5, 1.5), beyond it again outside."""
    found = search(Toy([0.0], lambda x: -x.sum()), lambda x: 0.5 - (x[0] - 1).abs(), tmp_path, steps=1)
    assert found.critical == pytest.approx(0.5, rel=RESOLUTION)
    assert not found.monotonic
    assert all(rate >= 1.5 for rate in found.relapses)
    assert "NOT MONOTONIC" in found.text()
    assert found.scalars()["monotonic"] == 0.0
    assert not found.probes[0].monotonic


def test_divergence_above_the_crossing_is_seen_and_no_crossing(tmp_path: Path) -> None:
    """Above 2/L the descent explodes; from 0.9 of it on it comes near enough to zero from below only slowly."""
    found = search(
        Toy([3.0], quadratic(1.0)), lambda x: 1.0 - x[0].abs(), tmp_path, steps=6, low=0.05, high=20.0, points=6
    )
    known = 1 - (1 / 3) ** (1 / 6)
    assert found.critical == pytest.approx(known, rel=RESOLUTION)
    assert [t.outcome for t in found.trials][-1] == "diverged"
    assert found.relapses


def test_the_answer_says_where_the_runs_own_rate_stands_and_which_words_are_first(tmp_path: Path) -> None:
    found = search(
        Toy([3.0], quadratic(1.0)), lambda x: 1.0 - x[0].abs(), tmp_path, steps=6, low=0.05, high=20.0, points=6
    )
    assert found.own is not None
    for own, says in (
        (found.upper * 2, "is 2 times the critical one: high enough for that within these steps"),
        (found.upper / 2, "is 0.5 times the critical one: too low for that within these steps"),
        ((found.upper * found.lower) ** 0.5, "is within the bracket: these trials do not tell"),
    ):
        assert f"The run's own peak rate, {own:.4g}, {says}." in replace(found, own=own).sentence()
    assert "third word may still be first" in found.text()
    trials = [replace(t, first=1) if t.lr == found.upper else t for t in found.trials]
    text = replace(found, trials=trials).sentence()
    assert "as a higher rate failed, that may not be enough" in replace(found, own=21.0, relapses=[20.0]).sentence()
    assert "the right word was the first choice of all words in 1 of 1 probe." in text


@pytest.mark.parametrize(
    ("margin", "given", "status", "words"),
    [
        (lambda z: z[1] - z[0], {}, "already", "before any step"),
        (lambda z: z[0] - z[1], {"high": 0.02}, "never", "Raise `high`"),
        (lambda z: z[0] - z[1], {"low": 5.0}, "below", "Lower `low`"),
    ],
    ids=["already flipped", "never in range", "below the range"],
)
def test_no_number_is_an_answer_in_words(margin: Any, given: dict[str, float], status: str, words: str, tmp_path: Path):
    found = search(Toy([-1.0, 0.5], two_logits), margin, tmp_path, **given)
    assert found.status == status
    assert found.critical is found.chosen() is None
    assert words in found.text()
    assert len(found.trials) == (0 if status == "already" else 7)
    assert sweep_figure(found).axes
    assert "critical" not in found.scalars()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"low": 1.0, "high": 0.1}, "0 < low < high"),
        ({"points": 1}, "2 or more"),
        ({"resolution": 0.0}, "resolution is 0.0"),
        ({"criterion": "flip"}, "rank_flip, phi, first_jump, val_nll"),
        ({"quantile": 0.0}, "0.5 is the median"),
    ],
)
def test_bad_settings_say_what_is_allowed(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        search(Toy([0.0], two_logits), lambda z: z[0], tmp_path, **given)


class Several(Margin):
    """Three probes with critical rates of 0.1, 0.3 and 0.9 at one step of slope one."""

    def __init__(self) -> None:
        super().__init__(lambda x: x[0])

    def read(self, trainer: Trainer, module: Any) -> dict[str, list[float]]:
        return {"margin": (module.x.detach()[0] - torch.tensor([0.9, 0.1, 0.3])).tolist()}


@pytest.mark.parametrize(("quantile", "known"), [(0.01, 0.1), (0.5, 0.3), (1.0, 0.9)])
def test_the_quantile_over_probes_is_that_of_their_own_rates(quantile: float, known: float, tmp_path: Path) -> None:
    def work(trainer: Trainer, module: LightningModule) -> CriticalRate:
        given = {"low": 0.05, "high": 2.0, "points": 5, "resolution": RESOLUTION, "quantile": quantile}
        return find_critical_rate(trainer, module, SweepSettings("toy", 1, None), [Several()], ["c", "a", "b"], **given)

    found = between(Toy([0.0], lambda x: -x.sum()), work, tmp_path)
    assert found.critical == pytest.approx(known, rel=RESOLUTION)
    for probe, rate in zip(found.probes, (0.9, 0.1, 0.3), strict=True):
        assert probe.start == pytest.approx(-rate)
        assert probe.lower < rate <= probe.upper


def test_what_is_typed_after_a_search(tmp_path: Path) -> None:
    found = search(Toy([0.0], lambda x: -x.sum()), lambda x: 0.5 - (x[0] - 1).abs(), tmp_path, steps=1)
    given = ["--config=lr.yaml", "--lr", "1e-3", "--max_steps", "9"]
    _, command = next_of(given, found, applies=False)
    assert command.split() == ["lightning", "fit", "lr.yaml", "--max_steps", "9", "--lr", f"{found.upper:.6g}"]
    _, command = next_of(given, found, applies=True)
    assert command.split() == ["lightning", "fit", "lr.yaml", "--lr", "1e-3", "--max_steps", "9"]
    assert next_of(given, replace(found, upper=None), applies=True) == []
