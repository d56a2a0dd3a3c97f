"""Optimizers known by what they do: gains, replays, and what is refused by name."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy

from lightning_sft.errors import UserError
from lightning_sft.probes import encode_probes
from lightning_sft.sweep.prediction.checks import check_predictable
from lightning_sft.sweep.prediction.curve import crossing_between
from lightning_sft.sweep.prediction.estimate import Estimate, ShortRun, Target
from lightning_sft.sweep.prediction.gains import step_gains
from lightning_sft.sweep.prediction.model import ModelRunner
from lightning_sft.sweep.prediction.predict import make_target, predict_critical_lr, predict_set
from lightning_sft.sweep.prediction.refine import REPLAYS, Refined, Replays, left_errors, refine, refined
from lightning_sft.sweep.prediction.replay import Field, Replay, combined, replay, spread_nodes
from lightning_sft.sweep.prediction.widths import (
    FACTORS,
    MOST_HALVED,
    MOST_SURPRISE,
    OF_REPLAY,
    Width,
    group_of,
    replay_width,
)
from tests.benchmarks.predict_cells import Lion
from tests.benchmarks.predict_grid import probe_of, swept
from tests.sweep.toys import fit
from tests.toys import toy_model, toy_tokenizer

STEPS = 16
MOMENTUM = {"lr": 1.0, "momentum": 0.9}


def weights():
    return [nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optim.SGD(weights(), lr=0.1), [1, 1, 1]),
        (optim.SGD(weights(), lr=0.1, momentum=0.9, weight_decay=0.5), [1, 1.9, 2.71]),
        (optim.AdamW(weights(), lr=0.1, weight_decay=0.5, fused=True), [1, 1, 1]),
        (optim.RMSprop(weights(), lr=0.1), [1 / math.sqrt(1 - 0.99**k) for k in (1, 2, 3)]),
        (optim.Adagrad(weights(), lr=0.1), [1, 1 / math.sqrt(2), 1 / math.sqrt(3)]),
        (Lion(weights()), [1, 1, 1]),
    ],
)
def test_gains(optimizer, expected):
    before = {k: v for g in optimizer.param_groups for k, v in g.items()}
    assert step_gains(optimizer, 3) == pytest.approx(expected, rel=1e-4)
    assert {k: v for g in optimizer.param_groups for k, v in g.items()} == before
    assert torch.equal(optimizer.param_groups[0]["params"][0], torch.ones(2))


def test_gains_of_later_steps():
    assert step_gains(optim.SGD(weights(), **MOMENTUM), 2, done=100) == pytest.approx([10, 10], rel=1e-4)


def test_an_optimizer_whose_step_a_scheduler_has_wrapped_is_not_stepped():
    own = weights()
    optimizer = optim.AdamW(own, lr=0.1)
    optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert "step" in vars(optimizer)
    own[0].grad = torch.ones(2)
    assert step_gains(optimizer, 3) == pytest.approx([1, 1, 1], rel=1e-4)
    assert torch.equal(own[0], torch.ones(2))
    assert not optimizer.state


class Backwards(optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [(optim.LBFGS(weights()), "LBFGS takes no step of its own"), (Backwards(weights()), "Backwards moves")],
)
def test_optimizers_that_are_refused_by_name(optimizer, says):
    with pytest.raises(UserError, match=f"Cannot predict this.*{says}.*Sweep instead"):
        step_gains(optimizer, 3)


def test_an_optimizer_without_a_rate_is_refused():
    own = optim.SGD(weights(), lr=1.0)
    del own.param_groups[0]["lr"]
    with pytest.raises(UserError, match="SGD has no learning rate"):
        step_gains(own, 3)


def test_a_field_follows_a_parabola_and_goes_on_straight_after_its_end():
    field = Field()
    for x in (0.0, 3.0, 1.0, 2.0):
        field.add(x, [torch.tensor([x**2]), None])
    for x in (0.5, 1.7, 2.9, 3.4):
        found = combined(field.weights(x))
        assert float(found[0]) == pytest.approx(x**2)
        assert found[1] is None
    one = Field([(0.0, [torch.tensor([2.0])])])
    assert float(combined(one.weights(5.0))[0]) == 2.0


def test_crossings_between_uneven_readings():
    def gap(x):
        return -1 + 0.2 * x + 0.05 * x**2

    at, zero = [0.0, 0.5, 2.0, 3.5], (-0.2 + math.sqrt(0.24)) / 0.1
    assert crossing_between(at, [gap(x) for x in at]) == pytest.approx(zero)
    assert crossing_between(at[:3], [gap(x) for x in at[:3]]) == pytest.approx(zero)  # beyond the last
    assert math.isinf(crossing_between([0.0, 1.0], [-4.0, -3.9]))
    assert crossing_between([0.0, 1.0], [-1.0, 1.0]) == 0.5
    assert math.isinf(crossing_between([0.0, 1.0, 2.0], [-1.0, -2.0, -3.0]))


def test_nodes_part_a_way_evenly():
    assert spread_nodes([0, 6, 7, 8, 9, 10, 11, 12], 4) == {1, 4}  # a quarter and a half lie in the first step
    assert spread_nodes([0.0, 1.0], 4) == set()


@pytest.fixture(scope="module")
def toy():
    model, tokenizer = toy_model(initializer_range=0.1).requires_grad_(True), toy_tokenizer()
    return model, tokenizer, probe_of(model, tokenizer, "He saw the")


def flips(model, encoded, make, rates):
    """Whether an ordinary training run on the one answer has it ahead after any step."""
    start = [p.detach().clone() for p in model.parameters()]
    optimizer, ahead = make(model.parameters()), False
    for rate in rates:
        optimizer.zero_grad()
        cross_entropy(model(encoded.input_ids).logits[0, -1][None], encoded.correct).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        z = model(encoded.input_ids).logits[0, -1].detach()
        ahead |= bool(z[encoded.correct[0]] > z[encoded.competitor[0]])
    with torch.no_grad():
        for p, before in zip(model.parameters(), start, strict=True):
            p.copy_(before)
            p.grad = None
    return ahead


@pytest.mark.parametrize(
    "make",
    [lambda p: optim.SGD(p, **MOMENTUM), Lion, optim.RMSprop, lambda p: optim.AdamW(p, weight_decay=0.1)],
    ids=["momentum", "Lion, which torch does not have", "RMSprop", "AdamW with decay"],
)
def test_any_optimizer_under_a_schedule(toy, make):
    model, tokenizer, probe = toy
    shares = [min(1.0, (t + 1) / 3) * (1 - t / STEPS) for t in range(STEPS)]
    made = predict_critical_lr(model, tokenizer, [probe], steps=STEPS, schedule=shares, optimizer=make, start=1e-4)
    said, encoded = made.probes[0].estimate, encode_probes([probe], tokenizer)
    assert said.status == "predicted"
    assert not flips(model, encoded, make, [said.lr / 1.01 * share for share in shares])
    assert flips(model, encoded, make, [said.lr * 1.01 * share for share in shares])
    assert made.steps <= 20


def test_a_replay_with_every_gradient_is_the_run(toy):
    model, tokenizer, probe = toy
    with ModelRunner(model, encode_probes([probe], tokenizer), lambda p: optim.SGD(p, **MOMENTUM)) as runner:
        rates = [2e-4] * 5
        plain = runner(rates)
        known = Field(runner.field.nodes[:1])
        target = Target((1.0,) * 5, 0.9)
        seen = replay(runner, 2e-4, target, dict.fromkeys(range(5)), known, keep=[2, 4])
        assert seen.gaps == plain
        assert (seen.progress, seen.behind) == ([0, 1, 2, 3, 4, 5], (0, 0))
        assert seen.way == sorted(seen.way)
        assert seen.surprise > 0
        assert sorted(seen.kept) == [2, 4]
        spent = runner.steps
        again = replay(runner, 2e-4, target, seen.kept, known)
        assert runner.steps == spent, "gradients that are given are not computed"
        assert again.gaps[-1] != seen.gaps[-1]
        assert again.progress == [0, 2, 4, 5]
        assert again.behind == pytest.approx(((0.2 + 0.2) / 5, (0.04 + 0.04) / 5))


def behind(steps, every):
    """How far gradients lie behind that are computed before every so manieth of equal steps."""
    back = [step % every / steps for step in range(steps)]
    return sum(back) / steps, sum(b**2 for b in back) / steps


def made(off, behind=(0.0, 0.0), total=10.0):
    """A replay whose gap closes where it is off, in log rate, from a critical rate of 1; the last of four points."""
    at = [total * i / 3 for i in range(4)]
    return Replay(1.0, at, [[x / total - math.exp(off)] for x in at], at, surprise=0.002, behind=behind)


@pytest.mark.parametrize("steps", [12, 32])
def test_an_error_that_grows_with_the_way_behind_is_taken_off(steps):
    """In a run of 12 steps two of three steps have an older gradient, and then five of six; not twice as many."""
    every = [behind(steps, steps // 4), behind(steps, steps // 2), behind(steps, steps)]

    def errors(of_way, of_square):
        full, half, none = (of_way * way + of_square * square for way, square in every)
        return (full, *left_errors(half - full, none - full, every))

    full, proportional, curved = errors(0.3, 0.0)
    assert (proportional, curved) == pytest.approx((full, full))
    full, proportional, curved = errors(0.3, 0.2)
    assert curved == pytest.approx(full)
    assert abs(proportional - full) > 0.01 * full
    assert left_errors(0.0, 0.03, [(0.1, 0.02), (0.1, 0.02), (0.4, 0.2)]) == pytest.approx((0.01, 0.01))
    assert left_errors(0.0, 0.0, [(0.0, 0.0)] * 3) == (0.0, 0.0)


def test_an_interval_is_made_of_what_replays_show():
    said = Estimate("predicted", 1.0, lr=1.0)
    width = Width(1e-4, 0.0, 0.1, of_surprise=0.03, of_apart=0.5, of_both=7.0, near=0.004)
    every = [behind(12, 3), behind(12, 6), behind(12, 12)]

    def of(*coarser, off=0.01, width=width):
        runs = [made(error, way) for error, way in zip((off, *coarser), every, strict=False)]
        found = Refined(math.exp(off), 0.0, runs[0], coarser=tuple(runs[1:]) or None)
        return refined(said, found, lambda row: row[0], width)

    plain, better = of(), of(0.02, 0.05)
    assert plain.lr == pytest.approx(math.exp(0.01))
    proportional, curved = left_errors(0.01, 0.04, every)
    assert better.lr == pytest.approx(math.exp(0.01 - curved))
    parts = (1e-4, 0.03 * 0.002, 0.1 * (0.01 - 0.004))
    assert math.log(plain.high / plain.lr) == pytest.approx(math.hypot(*parts))
    parts = (*parts, 0.5 * (proportional - curved), 7.0 * 0.002 * 0.01)
    assert math.log(better.high / better.low) / 2 == pytest.approx(math.hypot(*parts))
    near = of(off=0.003)
    assert math.log(near.high / near.lr) == pytest.approx(math.hypot(1e-4, 0.03 * 0.002)), "as near as cells were"
    twice = of(0.02, 0.05, width=width.times(2.0))
    wide = [2 * max(0.01 - 0.004, 0) * 0.1, *(2 * part for part in (1e-4, 0.03 * 0.002, *parts[3:]))]
    assert math.log(twice.high / twice.lr) == pytest.approx(math.hypot(*wide))
    for apart in (of(0.01 + 1.1 * MOST_HALVED, 0.04), of(5.0, 0.04), of(0.02, 5.0)):  # at 5 nothing crosses
        assert (apart.status, apart.lr, apart.low) == ("unsettled", None, None)
    found = Refined(1.0, 0.0, made(0.01), coarser=(made(0.02), made(0.04)))
    assert refined(said, found, lambda row: -1.0, width) is None
    wrong = replace(made(0.01), surprise=1.1 * MOST_SURPRISE)
    assert refined(said, replace(found, last=wrong), lambda row: row[0], width).status == "unsettled"


@pytest.mark.parametrize(
    ("optimizer", "shares", "group"),
    [
        (optim.SGD(weights(), lr=0.1, momentum=0.9), [1.0, 1.0], "SGD"),
        (optim.SGD(weights(), lr=0.1), [1.0, 0.5], "SGD, scheduled"),
        (optim.Adam(weights()), [0.5, 0.5], "Adam"),
        (optim.AdamW([{"params": weights()}, {"params": weights(), "weight_decay": 0.0}]), [1.0], "Adam"),
        (optim.AdamW(weights(), betas=(0.9, 0.95)), [1.0, 0.5], "Adam, scheduled"),
        (optim.AdamW([{"params": weights()}, {"params": weights(), "eps": 1e-4}]), [1.0], "other"),
        (optim.SGD(weights(), lr=0.1, momentum=0.9, nesterov=True), [1.0], "other"),
        (optim.SGD(weights(), lr=0.1, momentum=0.9, dampening=0.5), [1.0], "other"),
        (optim.Adam(weights(), amsgrad=True), [1.0], "other"),
        (optim.NAdam(weights()), [1.0], "other"),
        (Lion(weights()), [1.0, 0.5], "other"),
    ],
)
def test_widths_go_by_what_was_calibrated(optimizer, shares, group):
    assert group_of(optimizer, shares) == group
    width = replay_width(optimizer, shares)
    for part in ("floor", "of_away", "of_surprise", "of_apart", "of_both"):
        assert getattr(width, part) == pytest.approx(getattr(OF_REPLAY, part) * FACTORS[group])
    assert width.near == OF_REPLAY.near == REPLAYS[0], "the last replay is as near as that"


def test_an_interval_is_as_wide_as_its_group_says(toy):
    """The same steps by a subclass, which nobody has calibrated on: the same rate, in a wider interval."""

    class Own(optim.AdamW):
        pass

    model, tokenizer, probe = toy
    plain, own = (
        predict_critical_lr(model, tokenizer, [probe], steps=STEPS, optimizer=kind).probes[0].estimate
        for kind in (optim.AdamW, Own)
    )
    assert own.lr == plain.lr
    wide = [math.log(said.high / said.low) for said in (own, plain)]
    assert wide[0] == pytest.approx(wide[1] * FACTORS["other"] / FACTORS["Adam"])


def test_replays_that_settle_on_no_rate_are_no_prediction():
    """The gap crosses a quarter further than the last run went, wherever that was: the rate is no lever."""

    class Restless(Replays):
        def __call__(self, rate, way):
            return Replay(rate, [0.0, 0.5, 1.0], [[-1.0], [-0.6], [-0.2]], [0.0, 0.5, 1.0])

        def coarser(self):
            return self(1.0, []), self(1.0, [])

    def run(rates):
        return [[-1 + sum(rates[:k])] for k in range(len(rates) + 1)]

    whole, (single,) = predict_set(run, ["a"], make_target(4, 0.0), whole=Restless(None, make_target(4, 0.0)))
    for said in (whole.estimate, single.estimate):
        assert (said.status, said.lr, said.low, said.high) == ("unsettled", None, None, None)
        assert said.d0 == 1
    assert "unsettled" in str(whole)


def test_whole_runs_that_do_not_cross_where_short_runs_do_are_no_prediction():
    """Short runs point to a rate, and no replay crosses at any: an optimizer that finds its rate by itself."""

    class Elsewhere(Replays):
        def __call__(self, rate, way):
            return Replay(rate, [0.0, 1.0, 2.0], [[-1.0], [-1.0], [-0.99]], [0.0, 1.0, 2.0])

    def run(rates):
        return [[-1 + sum(rates[:k])] for k in range(len(rates) + 1)]

    target = make_target(4, 0.0)
    assert predict_set(run, ["a"], target)[0].estimate.status == "predicted"
    whole, (single,) = predict_set(run, ["a"], target, whole=Elsewhere(None, target))
    for said in (whole.estimate, single.estimate):
        assert (said.status, said.lr, said.low, said.high) == ("unsettled", None, None, None)


def test_a_replay_says_how_far_it_is_off(toy):
    """Under SGD, whose steps follow the gradient's size, the errors of plain replays are the largest."""
    model, tokenizer, probe = toy
    encoded = encode_probes([probe], tokenizer)
    with ModelRunner(model, encoded, lambda p: optim.SGD(p, lr=1.0)) as runner:
        target = make_target(STEPS, 0.0, [1 - t / STEPS for t in range(STEPS)], runner.gains(STEPS))
        replays = Replays(runner, target)

        def plain(rate, way):
            return replays(rate, way)

        said, rough = (
            predict_set(runner, ["probe"], target, start=1e-3, whole=whole, width=OF_REPLAY)[0].estimate
            for whole in (replays, plain)
        )
    critical = swept(model, encoded, lambda p: optim.SGD(p, lr=1.0), target.shares, said.lr)
    off, before = (abs(math.log(e.lr / critical)) for e in (said, rough))
    assert off < before / 3
    assert said.low < critical < said.high, "before the factor of its group, which makes it narrower"


@pytest.mark.parametrize("first", [None, 40.0, 90.0, 300.0])
def test_a_crossing_that_short_runs_did_not_see_is_looked_for(first):
    """The gap is a cube of the distance, which grows with the rate; beyond a rate of 200 the run diverges."""
    made = []

    def whole(rate, way):
        made.append(rate)
        distances = [rate * i / 8 for i in range(9)]
        gaps = [[math.nan if rate > 200 else -1 + (x / 80) ** 3] for x in distances]
        return Replay(rate, distances, gaps, distances)

    said = Estimate("beyond range" if first is None else "predicted", 1.0, lr=first)
    target = Target((1.0,) * 8, 0.0)
    found = refine(whole, lambda row: row[0], target, [ShortRun(2.0, [[-1.0], [-1.0], [-0.99]])], said, *REPLAYS)
    assert found.rate == pytest.approx(80, rel=1e-3)
    assert len(made) <= 12


def trainer(*optimizers, schedulers=()):
    return SimpleNamespace(optimizers=list(optimizers), lr_scheduler_configs=list(schedulers))


def test_runs_that_are_refused_before_the_first_trial():
    sgd, own = optim.SGD(weights(), lr=1.0), weights()
    check_predictable(trainer(sgd))
    with pytest.raises(UserError, match=r"2 optimizers \(SGD, AdamW\).*Allowed: one optimizer"):
        check_predictable(trainer(sgd, optim.AdamW(weights())))
    with pytest.raises(UserError, match="0 optimizers"):
        check_predictable(trainer())
    with pytest.raises(UserError, match=r"object is no torch\.optim\.Optimizer"):
        check_predictable(trainer(object()))
    plateau = optim.lr_scheduler.ReduceLROnPlateau(sgd)
    config = SimpleNamespace(reduce_on_plateau=True, scheduler=plateau, monitor="val/nll")
    with pytest.raises(UserError, match="ReduceLROnPlateau lowers the rate when 'val/nll'"):
        check_predictable(trainer(sgd, schedulers=[config]))
    offloaded = optim.SGD(own, **MOMENTUM)
    offloaded.state[own[0]]["momentum_buffer"] = torch.zeros(2, device="meta")
    with pytest.raises(UserError, match=r"keeps its states on meta.*Offloaded"):
        check_predictable(trainer(offloaded))


def test_a_trainer_with_a_plain_optimizer_is_taken(tmp_path):
    from tests.sweep.toys import Toy, quadratic

    check_predictable(fit(Toy([1.0], quadratic(1.0)), folder=tmp_path))
