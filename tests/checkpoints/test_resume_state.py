"""ResumeState without a Trainer: what a run writes about itself, and what it makes of another's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sft.checkpoints.resume import ResumeState
from lightning_sft.checkpoints.state import KEY, rng_state
from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, Adaptive, Objective, PowerFamily

#: what later versions have added
ADDED = ("validations", "tuner")
FACTS = {"world_size": 1, "data_parallel_size": 1, "accumulate_grad_batches": 2, "batch_size": 4}


class Trained(nn.Module):
    """A module with weights and an objective, as a LightningModule has."""

    def __init__(self, objective: Objective, width: int = 3) -> None:
        super().__init__()
        self.scorer = nn.Linear(2, width)
        self.objective = objective


class Run:
    """What a trainer tells of a run."""

    def __init__(self, rank: int = 0) -> None:
        self.world_size, self.global_rank, self.accumulate_grad_batches = 1, rank, 2
        self.datamodule = SimpleNamespace(batch_size=4)
        self.callbacks: list[Any] = []
        self.strategy = SimpleNamespace()
        self.lightning_module = Trained(NLL())


@pytest.fixture(autouse=True)
def facts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.checkpoints.resume.position_facts", lambda trainer: dict(FACTS))


def a_run(objective: Objective, model: str = "'toy' (pretrained)") -> tuple[ResumeState, Trained]:
    run = ResumeState(model)
    run.optimizer = {"optimizer": "SGD(lr=1.0)", "lr_scheduler": "linear"}
    return run, Trained(objective)


def checkpoint(objective: Objective, **changed: Any) -> dict[str, Any]:
    run, module = a_run(objective)
    given = {"open_micro_batches": 0, "skipped_steps": 3, "validations": 2, "tuner": {}, **changed}
    content = run.content(Run(), objective, [rng_state(), rng_state()], **given)  # type: ignore[arg-type]
    return {"state_dict": module.state_dict(), "callbacks": {}, KEY: content}


def test_the_content_of_a_checkpoint_keeps_its_names() -> None:
    content = checkpoint(PowerFamily(2.0))[KEY]
    assert content.keys() == {"facts", "open_micro_batches", "model", "objective", "rng", "skipped_steps", *ADDED}
    assert content["facts"] == {**FACTS, "optimizer": "SGD(lr=1.0)", "lr_scheduler": "linear"}
    assert (content["model"], content["objective"]) == ("'toy' (pretrained)", "PowerFamily(alpha=2.0)")
    assert content["rng"][1].keys() >= {"python", "numpy", "torch"}


def test_a_run_with_the_same_facts_goes_on() -> None:
    saved = checkpoint(NLL())
    run, module = a_run(NLL())
    run.accept_weights(saved, module, module.objective)
    assert run.remember(saved, Run(rank=1)) == 3
    run.check(FACTS)


@pytest.mark.parametrize(
    ("facts", "optimizer", "message"),
    [
        ({"batch_size": 8}, {}, r"batch_size \(checkpoint: 4, this run: 8\)"),
        ({}, {"optimizer": "SGD(lr=2.0)"}, r"lr of the optimizer SGD \(checkpoint: 1.0, this run: 2.0\)"),
        ({}, {"optimizer": "Adam(lr=1.0)"}, r"optimizer \(checkpoint: SGD\(lr=1.0\), this run: Adam\(lr=1.0\)\)"),
    ],
)
def test_another_fact_is_refused_once(facts: dict[str, Any], optimizer: dict[str, str], message: str) -> None:
    run, _ = a_run(NLL())
    run.optimizer |= optimizer
    run.remember(checkpoint(NLL()), Run())
    with pytest.raises(UserError, match=message):
        run.check({**FACTS, **facts})
    run.check({**FACTS, **facts})  # asked again after the checkpoint was compared: nothing is left of it


def test_a_fact_that_only_one_side_knows_is_not_compared() -> None:
    run, _ = a_run(NLL())
    run.remember(checkpoint(NLL()), Run())
    run.check({k: v for k, v in FACTS.items() if k != "batch_size"} | {"later": 1})


def test_random_streams_go_on_where_they_were_left() -> None:
    saved = checkpoint(NLL())
    expected = torch.rand(3)
    run, _ = a_run(NLL())
    assert not run.restore_rng()
    run.remember(saved, Run())
    assert run.restore_rng()
    assert torch.equal(torch.rand(3), expected)
    assert not run.restore_rng(), "once"


def test_an_open_step_is_told() -> None:
    run, _ = a_run(NLL())
    with pytest.warns(UserWarning, match="in the middle of an optimizer step: the gradient of its first 3 micro"):
        run.remember(checkpoint(NLL(), open_micro_batches=3), Run())


def test_another_objective_keeps_its_own_state() -> None:
    saved = checkpoint(Adaptive())
    assert any(k.startswith("objective.") for k in saved["state_dict"])
    run, module = a_run(NLL())
    with pytest.warns(UserWarning, match=r"trained under Adaptive\(.*this run uses NLL\(\)"):
        run.accept_weights(saved, module, module.objective)
    module.load_state_dict(saved["state_dict"])


def test_weights_of_another_model_are_refused() -> None:
    run, _ = a_run(NLL(), model="'wide' (pretrained)")
    with pytest.raises(UserError, match=r"holds 'toy' \(pretrained\), but this run built 'wide' \(pretrained\)"):
        run.accept_weights(checkpoint(NLL()), Trained(NLL(), width=5), NLL())
