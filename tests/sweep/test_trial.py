"""Trials of toys with known outcomes: divergence, interruption, continuation, the rate's schedule."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.figures.sweeps import sweep_figure
from lightning_sft.sweep.range_test import range_test
from lightning_sft.sweep.rates import peak_rate, set_peak_rate
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import TrialRunner
from tests.distributed.work import sgd_module
from tests.fitting import KeepLosses, batches, loader
from tests.fitting import trainer as quiet_trainer
from tests.sweep.toys import Between, Margin, Toy, between, fit, quadratic


def at(folder: Path | None = None, steps: int = 5, **given: Any) -> SweepSettings:
    return SweepSettings("toy", steps, folder, **given)


def test_a_trial_is_plain_gradient_descent_and_is_taken_back(tmp_path: Path) -> None:
    module = Toy([3.0], quadratic(1.0))

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        with TrialRunner(trainer, toy, 4) as runner:
            trial = runner.run(0.5, [Margin(lambda x: x[0])])
            assert toy.x.tolist() == [3.0]
            return trial, runner.run(0.5, rates=[0.1, 0.5])

    trial, ramp = between(module, work, tmp_path)
    assert trial.readings["margin"] == [[1.5], [0.75], [0.375], [0.1875]]
    assert trial.losses == [4.5, 1.125, 0.28125, 0.0703125]
    assert (trial.outcome, trial.rates) == ("finished", [0.5] * 4)
    assert ramp.losses == [4.5, pytest.approx(0.5 * 2.7**2)]
    assert ramp.rates == [0.1, 0.5]
    assert float(module.x[0].detach()) == 0.0, "the fit's own step has its own rate of 1"


@pytest.mark.parametrize(
    ("loss", "lr"),
    [(quadratic(1.0), 10.0), (lambda x: (x * torch.where(x < 3, math.nan, 1.0)).sum(), 0.1)],
    ids=["explodes", "nan"],
)
def test_a_diverging_trial_is_a_result(loss: Any, lr: float, tmp_path: Path) -> None:
    module = Toy([3.0], loss)

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        with TrialRunner(trainer, toy, 5) as runner:
            return runner.run(lr), toy.x.tolist()

    trial, start = between(module, work, tmp_path)
    assert trial.outcome == "diverged"
    assert trial.steps == 2
    assert start == [3.0]


def test_a_language_model_diverges_in_a_trial_and_trains_on_as_if_there_was_none(toy_folder: Path) -> None:
    def losses(lr: float | None) -> tuple[Any, list[Tensor], list[float]]:
        module, losses = sgd_module(str(toy_folder)), KeepLosses()

        def work(trainer: Trainer, module: LightningModule) -> Any:
            if lr is None:
                return None
            with TrialRunner(trainer, module, 6) as runner:
                return runner.run(lr)

        callback = Between(work)
        quiet_trainer(callbacks=[callback, losses]).fit(module, loader(batches()))
        return callback.result, [p.detach() for p in module.scorer.parameters()], losses.losses

    _, expected, plain = losses(None)
    for lr, outcome in ((1e3, "diverged"), (0.5, "finished")):
        trial, weights, seen = losses(lr)
        assert trial.outcome == outcome
        assert (trial.steps < 6) == (outcome == "diverged")
        assert trial.losses[0] == pytest.approx(plain[0], rel=1e-6), "before its first step a trial is the run itself"
        assert seen == plain
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, expected, strict=True))
    # the trial that finished saw the losses of the run, whose rate it had; rows that are used up begin again
    assert trial.losses[: len(plain)] == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("reads", ["train", "val"])
def test_the_range_test_finds_the_edge_of_a_quadratic(reads: Any, tmp_path: Path) -> None:
    def work(trainer: Trainer, toy: LightningModule) -> Any:
        return range_test(trainer, toy, at(steps=160), low=0.01, high=10.0, reads=reads, choice="edge")

    found = between(Toy([3.0], quadratic(4.0)), work, tmp_path)
    assert found.suggestions.edge == pytest.approx(2 / 4.0, rel=0.05)
    assert found.chosen() == found.suggestions.edge
    assert len(found.to_csv().splitlines()) == len(found.losses) + 1
    assert json.loads(found.to_json())["suggestions"]["edge"] == found.suggestions.edge
    assert sweep_figure(found).axes


def test_constant_rates_find_the_edge_that_a_rising_rate_crosses_unnoticed(tmp_path: Path) -> None:
    """The sharp direction is flat by the time the rate passes 2/4: the curve's minimum comes late."""

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        given = {"low": 0.01, "high": 10.0}
        return [range_test(trainer, toy, at(steps=160), **given, edge_steps=steps) for steps in (0, 60)]

    rising, constant = between(Toy([3.0, 30.0], quadratic(4.0, 0.04)), work, tmp_path)
    assert rising.suggestions.edge > 1.2 * 2 / 4.0
    assert constant.suggestions.edge == pytest.approx(2 / 4.0, rel=0.05)


class Interrupted(Toy):
    """Ctrl-C in the middle of the second trial."""

    total = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        type(self).total += 1
        if type(self).total == 8:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)


def test_an_interrupted_sweep_restores_the_model_and_goes_on_from_its_trials(tmp_path: Path) -> None:
    Interrupted.total = 0
    seen: dict[str, Any] = {}

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        try:
            with Session(trainer, toy, at(tmp_path / "run_0")) as session:
                trials = [session.trial(lr) for lr in (0.1, 0.2, 0.3)]
            return [t.lr for t in trials], session.fresh
        except KeyboardInterrupt:
            seen["x"] = toy.x.detach().clone()
            raise

    with pytest.raises(SystemExit):  # Lightning's answer to Ctrl-C
        fit(Interrupted([3.0], quadratic(1.0)), Between(work), folder=tmp_path)
    assert seen["x"].tolist() == [3.0]
    stored = tmp_path / "run_0" / "sweep" / "toy.trials.json"
    assert list(json.loads(stored.read_text())["trials"]) == ["0.1 0"]
    assert not list(stored.parent.glob("*.part"))

    rates, fresh = between(Interrupted([3.0], quadratic(1.0)), work, tmp_path)
    assert (rates, fresh) == ([0.1, 0.2, 0.3], 2)
    for other in (Toy([3.0], quadratic(1.0)), Interrupted([2.0], quadratic(1.0))):
        assert between(other, work, tmp_path)[1] == 3, "another model's trials are not taken"


def test_trials_of_another_run_folder_and_only_valid_ones_are_found(tmp_path: Path) -> None:
    def sweep(run: str, **given: Any) -> Any:
        def work(trainer: Trainer, toy: LightningModule) -> int:
            with Session(trainer, toy, at(tmp_path / run, **given)) as session:
                session.trial(0.1)
                return session.fresh

        return work

    def fresh(run: str, **given: Any) -> int:
        return between(Toy([3.0], quadratic(1.0)), sweep(run, **given), tmp_path)

    assert fresh("version_0") == 1
    assert fresh("version_1") == 0
    assert fresh("version_2", divergence=9.0) == 1, "another setting"
    (tmp_path / "version_2" / "sweep" / "toy.trials.json").write_text("{ cut off")
    assert fresh("version_2", divergence=9.0) == 1, "a damaged file"
    assert between(Toy([3.0], quadratic(1.0)), sweep("version_3"), tmp_path, gradient_clip_val=0.1) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 3)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10, eta_min=0.01),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=20),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
                torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
            ],
            milestones=[3],
        ),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, min_lr=0.001),
    ],
    ids=["lambda", "cosine with a floor", "one cycle", "sequence", "plateau"],
)
@pytest.mark.filterwarnings("ignore:To get the last learning rate computed")
def test_another_peak_scales_the_whole_schedule(make: Any) -> None:
    def rates(start: float, factor: float) -> list[list[float]]:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (start, start / 10)]
        optimizer = torch.optim.SGD(groups)
        scheduler = make(optimizer)
        config = type("Config", (), {"scheduler": scheduler})
        trainer = type("Trainer", (), {"optimizers": [optimizer], "lr_scheduler_configs": [config]})
        found = []
        for step in range(8):
            if step == 2:
                set_peak_rate(trainer, peak_rate(trainer) * factor)
            optimizer.step()
            scheduler.step(*([1.0] if "Plateau" in type(scheduler).__name__ else []))
            found.append([group["lr"] for group in optimizer.param_groups])
        return found

    plain, scaled = rates(0.1, 1.0), rates(0.1, 3.0)
    assert scaled[:2] == plain[:2]
    for before, after in zip(plain[2:], scaled[2:], strict=True):
        assert after == pytest.approx([3 * lr for lr in before], rel=1e-9)


def test_a_rate_of_zero_and_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning rate is 0"):
        between(Toy([1.0], quadratic(1.0), lr=0.0), lambda t, m: peak_rate(t), tmp_path)
    for given, message in (({"steps": 0}, "0 optimizer steps"), ({"steps": 1, "divergence": 1.0}, "divergence is 1.0")):
        with pytest.raises(UserError, match=message):
            TrialRunner(None, None, **given)  # type: ignore[arg-type]


def test_data_that_trials_cannot_read_again_are_refused(tmp_path: Path) -> None:
    class Given(Toy):
        loaders: Any = None

        def train_dataloader(self) -> Any:
            return self.loaders

    def work(trainer: Trainer, toy: LightningModule) -> Any:
        with TrialRunner(trainer, toy, 2) as runner:
            return runner.run(0.1)

    plain = Toy([1.0], quadratic(1.0)).train_dataloader
    for loaders, words in (
        ({"a": plain(), "b": plain()}, "one training loader"),
        (iter([torch.zeros(1)] * 3), "only once"),
    ):
        module = Given([1.0], quadratic(1.0))
        module.loaders = loaders
        with pytest.raises(UserError, match=words):
            between(module, work, tmp_path)
