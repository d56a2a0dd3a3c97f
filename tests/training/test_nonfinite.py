"""Losses that are not finite: no rank raises alone, rows are named, steps are counted; and losses that are all zero."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sft import SFTModule
from lightning_sft.callbacks import LearningRateSweep
from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, Objective
from lightning_sft.scores import TokenScores
from tests.distributed.extra import Breaks
from tests.distributed.ranks import two_ranks
from tests.fitting import batches, loader, trainer


def module(model: Path, objective: Objective, **settings: Any) -> SFTModule:
    given = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "lr_scheduler": "constant"}
    torch.manual_seed(0)
    return SFTModule(str(model), objective=objective, **{**given, **settings})


def weights(of: SFTModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.parameters()])


def test_stop_names_the_rows_of_the_data(toy_folder: Path) -> None:
    objective = Breaks()
    objective.broken = 1
    with pytest.raises(UserError, match=r"In optimizer step 1 .*losses are not finite.*Rows of the data: 1\. .*skip"):
        trainer(max_steps=1).fit(module(toy_folder, objective), loader(batches(6, 2)))


@pytest.mark.parametrize("head", ["fused", "reference"])
def test_skip_changes_nothing_and_counts(head: Any, toy_folder: Path) -> None:
    rows = batches(6, 2)
    skipped, without = module(toy_folder, NLL(), head=head, on_nonfinite="skip"), module(toy_folder, NLL(), head=head)

    broken = Breaks()
    skipped.objective = broken
    skipped.on_train_batch_start = lambda batch, batch_idx: setattr(broken, "broken", 1 if batch_idx == 1 else -1)
    with pytest.warns(UserWarning, match=r"Rows of the data: 3\. The step is skipped; it is number 1 of those"):
        trainer().fit(skipped, loader(rows))
    trainer().fit(without, loader([rows[0], rows[2]]))
    assert (skipped.skipped_steps, skipped.loss_watch.steps) == (1, 1)
    assert torch.equal(weights(skipped), weights(without))


def test_validation_gives_nan_and_goes_on(toy_folder: Path) -> None:
    objective = Breaks()
    objective.broken = 0
    read = trainer()
    found = read.validate(module(toy_folder, objective), loader(batches(4, 2)))
    assert math.isinf(found[0]["val/loss"])
    assert math.isfinite(found[0]["val/nll"])


def test_a_diverged_trial_is_a_result_in_a_module_of_ours(toy_folder: Path) -> None:
    tuned = module(toy_folder, NLL(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    sweep = LearningRateSweep(low=1e10, high=1e30, steps=6, divergence=1e30)
    trainer(max_steps=1, callbacks=[sweep]).fit(tuned, loader(batches(6, 2)))
    assert sweep.result is not None
    assert tuned.loss_watch.action == "stop", "the trial's way is put back"
    assert tuned.loss_watch.steps == 0


def test_an_extra_loss_that_is_not_finite_counts(toy_folder: Path) -> None:
    class Extra(SFTModule):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {**super().training_step(batch, batch_idx), "extra_loss": torch.tensor(float("nan"))}

    with pytest.raises(UserError, match="extra_loss is not finite"):
        trainer(max_steps=1).fit(Extra(str(toy_folder)), loader(batches(6, 2)))


class Zero(NLL):
    """Losses that are all exactly 0, from some step on or from the first."""

    def forward(self, scores: TokenScores) -> torch.Tensor:
        return 0.0 * super().forward(scores)


def test_a_loss_of_zero_from_the_first_step_on_warns(toy_folder: Path) -> None:
    with pytest.warns(UserWarning, match="exactly 0 in the first 3 optimizer steps"):
        trainer(max_steps=3).fit(module(toy_folder, Zero()), loader(batches(6, 2)))


def test_another_action_is_refused(toy_folder: Path) -> None:
    with pytest.raises(UserError, match="on_nonfinite is 'raise'"):
        SFTModule(str(toy_folder), on_nonfinite="raise")  # type: ignore[arg-type]


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_two_ranks_answer_alike(action: str, toy_folder: Path, tmp_path: Path) -> None:
    first, second = two_ranks("extra:not_finite", tmp_path, model=str(toy_folder), action=action)
    assert torch.equal(first["weights"], second["weights"])
    assert first["nonfinite"] == second["nonfinite"] == 1
    if action == "stop":
        assert first["error"] == second["error"]
        assert "Rank 1: " in first["error"]
        assert "Rows of the data: 7." in first["error"]
    else:
        assert first["error"] == second["error"] == ""
        assert first["skipped"] == second["skipped"] == 1
        assert "Rank 1: " in first["warned"][0]
