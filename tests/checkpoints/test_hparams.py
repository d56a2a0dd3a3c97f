"""Plain data alone stands among the hyperparameters of a checkpoint."""

import pytest
import torch

from lightning_sft.checkpoints.hparams import drop_objects, is_plain, objects_in


@pytest.mark.parametrize("value", [None, "a", 1, 0.5, True, [1, ("b", None)], {"a": {"b": [1.0]}}])
def test_plain_data(value: object) -> None:
    assert is_plain(value)


@pytest.mark.parametrize("value", [torch.tensor(1), torch.optim.SGD, [1, object()], {"a": {"b": {1}}}, lambda: None])
def test_objects(value: object) -> None:
    assert not is_plain(value)


def test_objects_are_dropped_in_place() -> None:
    settings = {"dtype": "float32", "optimizer": torch.optim.SGD, "nested": {"a": [object()]}}
    assert objects_in(settings) == ["optimizer", "nested"]
    drop_objects([settings, other := {"lr": 1}])
    assert (settings, other) == ({"dtype": "float32"}, {"lr": 1})
