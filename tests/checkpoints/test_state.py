import random

import numpy as np
import torch

from lightning_sft.checkpoints.state import gather_rng_states, rng_state, set_rng_state
from lightning_sft.models.frozen import without_frozen
from tests.toys import toy_model


def draw() -> tuple[float, float, float]:
    return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))


def test_random_streams_go_on_where_they_were(tmp_path) -> None:
    draw()  # leaves a second normal number cached in Python's and NumPy's streams
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)]
    draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_streams_of_several_ranks_are_told_apart() -> None:
    draw()
    own = rng_state()
    draw()
    other = rng_state()
    calls = iter([*zip(*(_tensors(s) for s in (own, other)), strict=True)])
    gathered = gather_rng_states(2, lambda tensor: torch.stack(next(calls)))
    for expected, state in zip((own, other), gathered, strict=True):
        set_rng_state(expected)
        numbers = draw()
        set_rng_state(state)
        assert draw() == numbers


def _tensors(state):
    gauss = float("nan") if state["python"][2] is None else state["python"][2]
    numbers = torch.tensor([gauss, *state["numpy"][2:]], dtype=torch.float64)
    return [state["python"][1], state["numpy"][1], state["torch"], numbers]


def test_frozen_parameters_leave_the_checkpoint_under_all_their_names() -> None:
    model = toy_model("llama")  # its output embeddings are tied to the input embeddings
    model.get_input_embeddings().weight.requires_grad_(False)
    kept = without_frozen(model.state_dict(), model)
    assert set(model.state_dict()) - set(kept) == {"model.embed_tokens.weight", "lm_head.weight"}
