"""The probe callbacks read the batch's own loss in nats, from our module and from a stranger's."""

import pytest
import torch

from lightning_sft.callbacks.probe_reading import batch_loss
from lightning_sft.scores import TokenScores


def test_of_our_module_it_is_the_nll_whatever_the_objective() -> None:
    scores = TokenScores(torch.tensor([-1.0, -3.0]), torch.tensor([4, 5]))
    outputs = {"loss": torch.tensor(0.3), "scores": scores}
    assert float(batch_loss(outputs, accumulate=4)) == pytest.approx(2.0)
    assert (
        batch_loss(
            {"loss": torch.tensor(0.3), "scores": TokenScores(torch.zeros(0), torch.zeros(0, dtype=torch.long))},
            accumulate=4,
        )
        is None
    )


def test_of_a_stranger_it_is_the_loss_before_lightning_divided_it() -> None:
    assert float(batch_loss(torch.tensor(0.5), accumulate=4)) == pytest.approx(2.0)
    assert float(batch_loss({"loss": torch.tensor(0.5)}, accumulate=2)) == pytest.approx(1.0)
    assert batch_loss(None, accumulate=2) is None
