import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sft.sweep.prediction.curve import first_crossing, lag, shortfall
from lightning_sft.sweep.prediction.estimate import Target, estimate, plan_runs

T = 12
CONSTANT = Target((1.0,) * T, 0.9)


def only(gaps):
    return gaps[0]


class Closed:
    """A gap that depends on the cumulated rate alone."""

    def __init__(self, gap):
        self.gap, self.steps = gap, 0

    def __call__(self, rates):
        self.steps += len(rates)
        return [[self.gap(sum(rates[:k]))] for k in range(len(rates) + 1)]


class Trained:
    """A gap made of parameters that AdamW moves, in float64."""

    def __init__(self, loss, gap, start, steps=0):
        self.loss, self.gap, self.start, self.steps = loss, gap, start, steps

    def __call__(self, rates):
        w = torch.tensor(self.start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([w], weight_decay=0.0)
        gaps = [[float(self.gap(w.detach()))]]
        for rate in rates:
            optimizer.zero_grad()
            self.loss(w).backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            gaps.append([float(self.gap(w.detach()))])
            self.steps += 1
        return gaps

    def swept(self, low=1e-4, high=10.0):
        """The critical rate, bisected to 1e-5 with no help of the predictor."""
        while high / low > 1 + 1e-5:
            middle = math.sqrt(low * high)
            if max(g[0] for g in self((middle,) * T)) > 0:
                high = middle
            else:
                low = middle
        return high


def predict(run, start=1.0, target=CONSTANT):
    runs = plan_runs(run, only, start)
    return runs, estimate(runs, only, target)


@pytest.mark.parametrize("start", [1e-3, 0.1, 1.0, 7.0, 300.0])
def test_uniform_motion_is_predicted_exactly_from_any_start(start):
    said = predict(Closed(lambda tau: -2.0 + 0.25 * tau), start)[1]
    assert said.status == "predicted"
    assert said.lr == pytest.approx(8 / T, rel=1e-12)
    assert said.uniform_lr == pytest.approx(8 / T, rel=1e-9)
    assert said.slope == pytest.approx(0.25)
    assert said.curvature == pytest.approx(0, abs=1e-7)
    assert said.low < said.lr < said.high


@pytest.mark.parametrize("curve", [0.3, 0.05, -0.03])
def test_a_parabola_is_predicted_exactly_and_its_curvature_told(curve):
    crossing = next(t for t in (0.0001 * i for i in range(10**6)) if -1 + 0.4 * t + curve * t * t > 0)
    said = predict(Closed(lambda tau: -1 + 0.4 * tau + curve * tau**2))[1]
    assert said.lr * T == pytest.approx(crossing, abs=2e-4)
    assert said.curvature == pytest.approx(2 * curve / 0.16, rel=1e-3)


def test_a_flipped_probe_costs_no_step():
    run = Closed(lambda tau: 0.5 + tau)
    said = predict(run)[1]
    assert (said.status, said.d0, said.lr, run.steps) == ("already flipped", -0.5, None, 0)
    assert predict(Closed(lambda tau: tau))[1].status == "already flipped"


def test_a_probe_that_moves_away_is_no_number():
    run = Closed(lambda tau: -1 - tau)
    said = predict(run)[1]
    assert (said.status, said.lr, said.low) == ("moves away", None, None)
    assert said.slope == pytest.approx(-1)
    assert run.steps <= 4


def test_overshooting_is_not_moving_away():
    """A first run far beyond the maximum ends lower than it began; shorter ones tell."""
    said = predict(Closed(lambda tau: -1 + tau - 0.2 * tau**2), start=30.0)[1]
    assert said.status == "predicted"
    assert said.lr * T == pytest.approx((1 - math.sqrt(0.2)) / 0.4, rel=1e-6)


def test_a_gap_that_never_arrives_is_beyond_range():
    said = predict(Closed(lambda tau: -1 + 0.5 * (1 - math.exp(-tau))))[1]
    assert (said.status, said.lr) == ("beyond range", None)


def test_no_number_is_told():
    assert predict(Closed(lambda tau: math.nan))[1].status == "diverged"
    assert predict(Closed(lambda tau: -1.0 if tau == 0 else math.nan))[1].status == "diverged"
    early = predict(Closed(lambda tau: -1 + tau if tau < 1.5 else math.nan), start=100.0)[1]
    assert early.lr == pytest.approx(1 / T)


@pytest.mark.parametrize("reach", [1.1, 1.2, 1.5])
@pytest.mark.parametrize("start", [0.3, 1.0, 4.0])
def test_a_gap_that_slows_down_is_closed_in_upon(reach, start):
    """Parabolas point too far beyond a feeler, and too short within a longer one."""
    run = Closed(lambda tau: -1 + reach * (1 - math.exp(-tau)))
    runs, said = predict(run, start)
    assert runs[-1].steps == 4
    assert said.lr * T == pytest.approx(-math.log(1 - 1 / reach), rel=0.02)
    assert run.steps <= 14


def test_the_first_of_several_crossings_counts():
    """Non-monotonic within a run: it overtakes at tau = 1 and falls back at 3."""
    said = predict(Closed(lambda tau: -(tau - 1) * (tau - 3) / 3))[1]
    assert said.lr == pytest.approx(1 / T, rel=1e-9)


def test_two_logits_under_adam():
    """Cross-entropy over two logits: Adam moves both at nearly the rate, so lr_c is nearly D0 / (2 T)."""

    def loss(w):
        return -torch.log_softmax(w, 0)[0]

    run = Trained(loss, lambda w: w[0] - w[1], [0.0, 1.5])
    swept = run.swept()
    run.steps = 0
    said = predict(run, start=0.3)[1]
    assert abs(math.log(said.lr / swept)) < 0.01
    assert said.low < swept < said.high
    assert run.steps <= 12


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_turns_on_the_way(seed):
    """Many parameters whose gradients turn, so that step size matters."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(40, 16), (40, 40), (9, 40)]
    start = [torch.randn(n, m, generator=generator, dtype=torch.float64) / m**0.5 for n, m in sizes]
    x = torch.randn(16, generator=generator, dtype=torch.float64)

    def logits(w):
        hidden = x
        for (n, m), part in zip(sizes, w.split([n * m for n, m in sizes]), strict=True):
            out = part.view(n, m) @ hidden
            hidden = torch.tanh(out)
        return 4 * out

    z = logits(torch.cat([w.flatten() for w in start]))
    c, s = int(z.argmin()), int(z.argmax())
    run = Trained(
        lambda w: -torch.log_softmax(logits(w), 0)[c],
        lambda w: logits(w)[c] - logits(w)[s],
        torch.cat([w.flatten() for w in start]).tolist(),
    )
    swept = run.swept(1e-4, 1e-2)
    run.steps = 0
    said = predict(run, start=0.02)[1]
    assert said.low < swept < said.high
    assert abs(math.log(said.lr / swept)) < 0.01
    assert run.steps <= 12


def test_the_interval_widens_where_less_is_known():
    """The probe of a set that crosses far from the runs is told with less confidence."""
    run = Closed(lambda tau: -1 + tau)
    near = predict(run)[1]
    runs = plan_runs(run, only, 1.0)
    far = estimate(runs, lambda gaps: gaps[0] - 1.0, CONSTANT)
    assert far.lr == pytest.approx(2 / T)
    assert math.log(far.high / far.low) > 5 * math.log(near.high / near.low)
    uneven = predict(Closed(lambda tau: -1 + tau + 0.8 * tau**2))[1]
    assert math.log(uneven.high / uneven.low) > 2 * math.log(near.high / near.low)


def test_lag_without_memory_and_with_all_of_it():
    assert lag([0.25] * 4, 0.0) == pytest.approx((0 + 1 + 4 + 9) / 16 / 4)
    means = [0, 1 / 2, 5 / 3, 14 / 4]
    assert lag([0.25] * 4, 1.0) == pytest.approx(sum(means) / 16 / 4)
    assert lag([1 / 4000] * 4000, 0.0) == pytest.approx(1 / 3, rel=1e-3)
    assert shortfall(T, CONSTANT.weights, 0.9) == pytest.approx(0)
    assert shortfall(2, CONSTANT.weights, 0.9) > shortfall(4, CONSTANT.weights, 0.9) > 0


def test_crossings():
    assert first_crossing([-1.0]) == math.inf
    assert first_crossing([-1.0, -0.5]) == 2.0
    assert first_crossing([-1.0, -0.9]) == math.inf  # ten steps: too far from one
    assert first_crossing([-1.0, -1.0, -1.0]) == math.inf
    assert first_crossing([-1.0, 1.0, -1.0]) == pytest.approx(1 - math.sqrt(0.5))
    assert first_crossing([-3.0, -2.0, -0.5, 0.0, 1.0]) == pytest.approx(3.0)


@given(st.floats(0.05, 20), st.floats(-0.9, 3), st.integers(2, 12))
@settings(deadline=None, max_examples=60)
def test_crossings_of_parabolas(length, bend, steps):
    """gap = (x - 1)(1 + bend x), with its first zero at `length` steps."""
    gaps = [(x - 1) * (1 + bend * x) for x in (k / length for k in range(steps + 1))]
    if bend < 0 and -1 / bend < steps / length:
        return
    found = first_crossing(gaps)
    if length < 0.9 * 4 * steps:
        expected = length
        after = next((i for i, g in enumerate(gaps) if g > 0), None)
        assert after is None or found <= after
        assert found == pytest.approx(expected, rel=1e-6)
