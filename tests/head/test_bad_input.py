"""Bad input is named instead of turning into a NaN, a crash or a silent nothing."""

import pytest
import torch

from lightning_sft.errors import UserError
from lightning_sft.head import HeadInput, Unembedding, fused_head, reference_from_logits, reference_head
from lightning_sft.objectives import (
    ASFT,
    DEFT,
    EAFT,
    GEM,
    NLL,
    LabelSmoothing,
    Objective,
    RunnerUpMargin,
    ZLoss,
)
from lightning_sft.scores import StatisticUnavailable, TokenScores
from tests.head.cases import Centred, LogRatio, Smoothed, make

HEADS = pytest.mark.parametrize("head", [fused_head, reference_head])


class Trainable(Objective):
    def __init__(self):
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def forward(self, scores: TokenScores):
        return -scores.logp * self.temperature


class Undeclared(Objective):
    def forward(self, scores: TokenScores):
        return -scores.logp * scores.entropy()


class Reduced(Objective):
    def forward(self, scores: TokenScores):
        return -scores.logp.mean()


class Broken(Objective):
    def forward(self, scores: TokenScores):
        return scores.logp * torch.where(scores.targets == 7, float("nan"), 1.0)


@HEADS
@pytest.mark.parametrize("bad", [-100, 33])
def test_targets_outside_the_vocabulary(head, bad: int):
    case = make()
    case.targets[3] = bad
    with pytest.raises(UserError, match=rf"Targets {bad} .*33 ids \(0 to 32\)"):
        case.run(head, NLL())


@HEADS
@pytest.mark.parametrize("objective", [NLL(), Smoothed(), Centred()])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hidden_states_that_are_not_finite(head, objective: Objective, value: float):
    case = make(tokens=19)
    with torch.no_grad():
        case.hidden[7, 1] = case.hidden[18, 0] = value
    with pytest.raises(
        UserError, match=r"hidden states are not finite.* in rows 2, 6 of the micro-batch \(tokens 7, 18\)"
    ):
        case.run(head, objective)


def test_without_row_ids_the_tokens_are_named():
    case = make()
    with torch.no_grad():
        case.hidden[:, 0] = float("nan")
    with pytest.raises(UserError, match=r"in tokens 0, 1, 2, 3, 4, 5, 6, 7 and 11 more\. "):
        fused_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL())


@HEADS
def test_an_unembedding_that_is_not_finite(head):
    case = make()
    with torch.no_grad():
        case.weight[:] = float("nan")
    with pytest.raises(
        UserError, match=r"states are finite, but the log-probabilities are not finite.* The unembedding is broken"
    ):
        case.run(head, NLL())


@HEADS
def test_an_objective_that_makes_nan(head):
    case = make()
    case.targets[:] = 1
    case.targets[4] = 7
    with pytest.raises(
        UserError, match=r"finite, but the losses are not finite.* rows 1 .*\(tokens 4\)\. Look at Broken"
    ):
        case.run(head, Broken())


@HEADS
def test_trainable_objective(head):
    with pytest.raises(UserError, match="Trainable has trainable parameters: temperature"):
        make().run(head, Trainable())


@HEADS
def test_a_statistic_that_the_scores_do_not_hold(head):
    with pytest.raises(StatisticUnavailable, match=r"Undeclared .*reads='logp'.* no 'logits'"):
        make().run(head, Undeclared())
    with pytest.raises(StatisticUnavailable, match=r"LogRatio .*no 'reference_logp'"):
        make().run(head, LogRatio())


@HEADS
def test_losses_of_another_shape(head):
    with pytest.raises(UserError, match=r"Reduced returned losses of shape \(\) for"):
        make().run(head, Reduced())


@HEADS
def test_shapes(head):
    case = make()
    with pytest.raises(UserError, match=r"hidden \(19, 8\), targets \(18,\) and unembedding \(33, 8\)"):
        head(HeadInput(case.hidden, case.targets[1:]), case.unembedding(), NLL())
    with pytest.raises(UserError, match=r"unembedding \(8, 33\)"):
        head(HeadInput(case.hidden, case.targets), Unembedding(case.weight.T), NLL())


def test_hidden_states_of_whole_rows_are_sent_to_their_supervised_positions():
    case = make()
    hidden, labels = torch.randn(2, 5, 8, dtype=case.hidden.dtype), torch.tensor([[-100, 1, 2, 3, -100]] * 2)
    for head in (fused_head, reference_head):
        with pytest.raises(UserError, match=r"hidden \(2, 5, 8\).*hidden\[:, :-1\]\[at\]"):
            head(HeadInput(hidden, labels), case.unembedding(), NLL())
    at = labels[:, 1:] != -100
    output = fused_head(HeadInput(hidden[:, :-1][at], labels[:, 1:][at]), case.unembedding(), NLL())
    assert output.losses.shape == (6,)


def test_logits_at_hand_are_checked_too():
    case = make()
    logits = case.hidden @ case.weight.T
    inputs = HeadInput(case.hidden, case.targets)
    with pytest.raises(UserError, match="Trainable"):
        reference_from_logits(logits, inputs, Trainable())
    with pytest.raises(UserError, match="outside the vocabulary of 10 ids"):
        reference_from_logits(logits[:, :10], inputs, NLL())


@pytest.mark.parametrize("objective", [NLL(), Smoothed(), Centred()])
def test_second_derivatives_are_refused_where_they_would_be_zero(objective: Objective):
    def gradient(head, create_graph: bool) -> torch.Tensor:
        case = make()
        output = head(HeadInput(case.hidden, case.targets), case.unembedding(), objective)
        return torch.autograd.grad(output.loss_sum, case.hidden, create_graph=create_graph)[0]

    with pytest.raises(UserError, match=r"create_graph=True.*Use head: reference"):
        gradient(fused_head, create_graph=True)
    plain = gradient(reference_head, create_graph=True)
    assert plain.requires_grad
    torch.testing.assert_close(gradient(fused_head, create_graph=False), plain.detach())


@pytest.mark.parametrize("objective", [GEM(), EAFT(), DEFT(), LabelSmoothing(), ZLoss(), ASFT(), RunnerUpMargin()])
def test_objectives_called_by_hand_say_that_logits_are_missing(objective: Objective):
    scores = TokenScores(logp=torch.tensor([-1.0]), targets=torch.tensor([2]))
    with pytest.raises(StatisticUnavailable, match=r"no 'logits': .*pass TokenScores\(logits=\.\.\.\)"):
        objective(scores)


@HEADS
def test_weights_that_are_not_finite(head):
    case = make()
    weight = torch.ones(len(case.targets))
    weight[4] = float("inf")
    with pytest.raises(UserError, match=r"weights of the tokens are not finite .* in tokens 4\. Look at the weights"):
        head(HeadInput(case.hidden, case.targets, weight=weight), case.unembedding(), NLL())
