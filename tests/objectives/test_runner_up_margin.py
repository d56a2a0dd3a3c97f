"""The margin over the strongest competitor: its force, whom it spares, what it refuses, and what it is for."""

import json

import pytest
import torch

from lightning_sft.errors import UserError
from lightning_sft.head.reference import reference_head
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives import IWSFT, NLL, Objective, RunFacts, RunnerUpMargin


def pull(objective: Objective, logits: list[float], target: int) -> torch.Tensor:
    """Return what a gradient step adds to the logits of one token."""
    z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    inputs = HeadInput(z, torch.tensor([target]))
    reference_head(inputs, Unembedding(torch.eye(len(logits), dtype=torch.float64)), objective).loss_sum.backward()
    return -z.grad[0]


@pytest.mark.parametrize(
    ("pairs", "logits", "expected"),
    [
        (None, [0.0, 2.0, 1.0, -1.0], [0.5, -0.5, 0.0, 0.0]),
        (None, [2.0, 2.5, 1.0, -1.0], [0.5, -0.5, 0.0, 0.0]),
        (None, [4.0, 2.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]),
        ([(0, 2)], [0.0, 2.0, 1.0, -1.0], [0.5, 0.0, -0.5, 0.0]),
        ([(2, 0), (3, 0)], [0.0, 2.0, -1.5, -0.5], [0.5, 0.0, 0.0, -0.5]),
        ([(1, 2)], [0.0, 2.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]),
        ([(2, 3)], [0.0, 2.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_force_beside_nll(pairs, logits, expected):
    extra = pull(RunnerUpMargin(pairs=pairs), logits, 0) - pull(NLL(), logits, 0)
    torch.testing.assert_close(extra, torch.tensor(expected, dtype=torch.float64))


def test_overtakes_the_competitor_that_nll_leaves_ahead():
    """A hidden state that can hardly tell two words apart: NLL lifts both, the margin tells them apart."""

    def gap_and_loss(objective: Objective, steps: int = 40) -> tuple[float, float]:
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(50, 16, generator=draw)
        weight[1] = weight[0] + 0.15 * torch.randn(16, generator=draw)
        weight[1] += 0.1 * weight[0]
        hidden = (0.3 * weight[1] / weight[1].norm())[None].requires_grad_()
        for _ in range(steps):
            out = reference_head(HeadInput(hidden, torch.tensor([0])), Unembedding(weight), objective)
            (grad,) = torch.autograd.grad(out.loss_sum, hidden)
            hidden = (hidden - 0.02 * grad).detach().requires_grad_()
        z = hidden.detach() @ weight.T
        return (z[0, 0] - z[0, 1]).item(), -z.log_softmax(-1)[0, 0].item()

    start, first_loss = gap_and_loss(NLL(), 0)
    behind, loss = gap_and_loss(NLL())
    ahead, _ = gap_and_loss(RunnerUpMargin(weight=4.0))
    assert start < 0
    assert loss < 0.7 * first_loss
    assert behind < 0 < ahead


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunnerUpMargin(margin=-1), "margin=-1"),
        (lambda: RunnerUpMargin(weight=float("nan")), "weight=nan"),
        (lambda: RunnerUpMargin(pairs=[]), "got no pair"),
        (lambda: RunnerUpMargin(pairs=[(3, 3)]), r"pair \[3, 3\]. Allowed: two different token ids >= 0"),
        (lambda: RunnerUpMargin(pairs=[(3, -1)]), r"pair \[3, -1\]"),
        (lambda: RunnerUpMargin(IWSFT()), "one objective cannot do both"),
        (
            lambda: RunnerUpMargin(pairs=[(3, 100)]).prepare(RunFacts(vocabulary=100)),
            "token id 100, but the ids of this model's vocabulary end at 99",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def words(text: str) -> list[int]:
    """A tokenizer of three words, two of which have a form with a space in front."""
    return {" shame": [1], " guilt": [2], "shame": [3], "guilt": [4], "sorrow": [5]}.get(text, [7, 8])


def prepared(pairs) -> RunnerUpMargin:
    objective = RunnerUpMargin(pairs=pairs)
    objective.prepare(RunFacts(vocabulary=10, token_ids=words))
    return objective


def test_pairs_of_words_compete_with_and_without_a_space():
    objective = prepared([["shame", "guilt"], [0, 9]])
    assert objective.known.tolist() == [0, 1, 2, 3, 4, 9]
    assert objective.rivals[:, 0].tolist() == [9, 2, 1, 4, 3, 0]
    logits = [0.0, 2.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    extra = pull(objective, logits, 2) - pull(NLL(), logits, 2)
    torch.testing.assert_close(extra[:3], torch.tensor([0.0, -0.5, 0.5], dtype=torch.float64))


def test_pairs_come_from_a_file_of_probes(tmp_path):
    lines = [
        {"context_ids": [1], "correct_id": 3, "competitor_id": 5, "p_correct": 0.1},
        {"context": "so", "correct": "shame", "competitor": "guilt"},
        {"context_ids": [1], "correct_id": 3, "competitor_id": 50},  # a padding row of the model's vocabulary
    ]
    path = tmp_path / "silent.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    objective = prepared(str(path))
    assert objective.known.tolist() == [1, 2, 3, 4, 5]
    assert objective.rivals[2].tolist() == [4, 5]


def test_a_word_that_was_behind_another_at_the_start_competes_with_both(tmp_path):
    moved = {"context_ids": [1], "correct_id": 3, "competitor_id": 5, "competitor_start_id": 7}
    same = {"context_ids": [2], "correct_id": 8, "competitor_id": 9, "competitor_start_id": 9}
    path = tmp_path / "silent.jsonl"
    path.write_text(json.dumps(moved) + "\n" + json.dumps(same) + "\n")
    objective = prepared(str(path))
    assert objective.known.tolist() == [3, 5, 7, 8, 9]
    assert objective.rivals[0].tolist() == [5, 7]
    assert objective.rivals[3].tolist()[0] == 9


def test_words_and_files_that_cannot_be_pairs_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not have both as one token"):
        prepared([["shame", "remorse"]])
    with pytest.raises(UserError, match=r"no \.jsonl file"):
        prepared("nowhere.jsonl")
    path = tmp_path / "silent.jsonl"
    for text, message in (("[]", "line 1 names no pair"), ('{"correct": "x", "competitor": "auto"}', "names no pair")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            prepared(str(path))
    path.write_text("")
    with pytest.raises(UserError, match=r"is empty where no right word stayed behind .* leave `pairs` out"):
        prepared(str(path))
    with pytest.raises(UserError, match="become token ids in prepare"):
        pull(RunnerUpMargin(pairs=[["shame", "guilt"]]), [0.0, 1.0, 2.0], 1)
    with pytest.raises(UserError, match="no tokenizer"):
        RunnerUpMargin(pairs=[["shame", "guilt"]]).prepare(RunFacts(vocabulary=10))
