"""What objectives remember: thresholds from a histogram, medians, averages, schedules, and on two ranks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_sft.head.fused import fused_head
from lightning_sft.head.reference import reference_head
from lightning_sft.objectives import (
    NLL,
    TALR,
    Adaptive,
    PerSource,
    PowerFamily,
    ProFiT,
    RunFacts,
    Scheduled,
    Thresholded,
    WeightedSum,
    load_histogram,
    save_histogram,
)
from lightning_sft.scores import TokenScores
from tests.distributed.ranks import two_ranks
from tests.objectives.batch import FACTS, make_batch, scores_of, started
from tests.objectives.rows import ROWS


def scores_from(p: torch.Tensor, **fields: torch.Tensor) -> TokenScores:
    return TokenScores(p.log(), torch.zeros(len(p), dtype=torch.long), **fields)


@pytest.mark.parametrize("percentile", [0, 10, 37.5, 50, 99, 100])
def test_percentile_is_that_of_the_tokens_within_one_bin(tmp_path, percentile):
    p = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    edges = torch.linspace(0, 1, 101, dtype=torch.float64)
    counts = torch.histogram(p, edges).hist
    save_histogram(tmp_path / "p.json", edges.tolist(), counts.tolist())
    assert load_histogram(tmp_path / "p.json") == (edges.tolist(), counts.tolist())
    objective = Thresholded(percentile=percentile, histogram=str(tmp_path / "p.json"))
    assert abs(objective.threshold - np.percentile(p.numpy(), percentile)) <= 0.01
    assert objective.logged() == {"threshold": objective.threshold}


def test_both_bounds_are_inclusive():
    scores = scores_from(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    kept = {keep: Thresholded(keep=keep, threshold=0.5).kept(scores).tolist() for keep in ("top", "bottom")}
    assert kept == {"top": [False, True, True], "bottom": [True, True, False]}


def test_profit_keeps_the_token_at_its_threshold():
    scores = scores_from(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert ProFiT(0.5)(scores).tolist() == [0, *(-scores.logp[1:]).tolist()]
    assert ProFiT(0.5).kept(scores).all()


def test_masks_add_up_and_are_named():
    inner = Thresholded(keep="bottom", threshold=0.6)
    outer = Thresholded(inner, threshold=0.5)
    scores = scores_from(torch.tensor([0.25, 0.55, 0.75]))
    assert outer.mask() == "p >= 0.5 and p <= 0.6"
    assert outer.kept(scores).tolist() == [False, True, False]
    mixed = WeightedSum({"a": outer, "b": Thresholded(NLL(), "top", 0.7)})
    assert mixed.kept(scores).tolist() == [False, True, True]
    same = WeightedSum({"a": outer, "b": outer})
    same.prepare(RunFacts(denominator="kept"))
    assert same.mask() == outer.mask()


def test_kept_tokens_of_a_source_are_its_objectives():
    objective = PerSource({"web": Thresholded(threshold=0.5)}, default=NLL())
    objective.prepare(FACTS)
    scores = scores_from(torch.tensor([0.25, 0.75, 0.25, 0.75]), source=torch.tensor([0, 0, 1, 1]))
    assert objective.kept(scores).tolist() == [False, True, True, True]


@pytest.mark.parametrize("sequences", [1, 2, 1001, 1000])
def test_median_of_talr_is_within_its_documented_error(sequences):
    draw = torch.Generator().manual_seed(sequences)
    nll = torch.exp(torch.randn(sequences, generator=draw, dtype=torch.float64))
    scores = scores_from(torch.exp(-nll.repeat(3)), row=torch.arange(sequences).repeat(3))
    objective = TALR()
    assert objective.needs_seed()
    objective.seed(objective.statistics(scores))
    expected = np.median(nll.numpy())
    # neighbouring edges are a factor 10 ** (6 / 1200) apart; one sequence a bin is exact up to fp32
    bound = 1e-6 if sequences <= 2 else 10 ** (6 / 1200) - 1
    assert abs(objective.median.item() / expected - 1) <= bound
    assert objective.logged()["median_nll"] == objective.median


def test_talr_is_nll_until_it_is_seeded():
    batch = make_batch()
    unseeded, nll = (reference_head(*batch.inputs(), objective) for objective in (TALR(), NLL()))
    assert torch.equal(unseeded.losses, nll.losses)


def test_talr_trains_on_the_median_of_the_step_before():
    first = scores_from(torch.tensor([0.5]), row=torch.tensor([0]))
    second = scores_from(torch.tensor([0.25]), row=torch.tensor([0]))
    objective = TALR()
    objective.seed(objective.statistics(first))
    before = objective(second)
    objective.update(objective.statistics(second))
    torch.testing.assert_close(before, torch.tensor([0.25 ** (1 / math.log(2)) * math.log(4)]))
    torch.testing.assert_close(objective(second), torch.tensor([math.exp(-1) * math.log(4)]))


def test_talr_survives_memorised_and_hopeless_data():
    for logp in (0.0, -1e4):
        scores = replace(scores_from(torch.ones(3), row=torch.zeros(3, dtype=torch.long)), logp=torch.full((3,), logp))
        objective = TALR()
        objective.seed(objective.statistics(scores))
        assert not objective.needs_seed()
        assert objective(scores).isfinite().all()


def test_adaptive_follows_the_mean_probability():
    objective = Adaptive(weak=0.2, strong=0.6, alpha_max=2.0, decay=0.75)
    assert objective.alpha().item() == 0
    objective.seed(objective.statistics(scores_from(torch.tensor([0.2, 0.4]))))
    assert objective.alpha().item() == pytest.approx(2 * (0.3 - 0.2) / 0.4)
    objective.update(objective.statistics(scores_from(torch.tensor([0.7]))))
    mean = 0.75 * 0.3 + 0.25 * 0.7
    logged = {key: value.item() for key, value in objective.logged().items()}
    assert logged == pytest.approx({"alpha": 2 * (mean - 0.2) / 0.4, "mean_p": mean})
    for p, alpha in ((0.99, 2.0), (0.001, 0.0)):
        for _ in range(50):
            objective.update(objective.statistics(scores_from(torch.tensor([p]))))
        assert objective.alpha().item() == alpha


def test_adaptive_keeps_a_source_apart_and_leaves_an_absent_one_alone():
    objective = Adaptive(per_source=True)
    objective.prepare(FACTS)
    source = torch.tensor([1, 1])
    objective.seed(objective.statistics(scores_from(torch.tensor([0.3, 0.5]), source=source)))
    assert objective.mean_p.isnan().tolist() == [True, False]
    assert set(objective.logged()) == {"alpha/web", "mean_p/web", "alpha/math.jsonl", "mean_p/math.jsonl"}
    assert objective.logged()["alpha/math.jsonl"].item() == pytest.approx(0.5)
    losses = objective(scores_from(torch.tensor([0.25, 0.25]), source=torch.tensor([0, 1])))
    torch.testing.assert_close(losses, torch.tensor([math.log(4), (1 - 0.5) / 0.5]))


def test_schedule_counts_optimizer_steps():
    objective = Scheduled(NLL(), PowerFamily(1), begin_step=1)
    objective.prepare(RunFacts(total_steps=5))
    shares = []
    for _ in range(7):
        shares.append(objective.logged()["weight"].item())
        objective.update({})
    assert shares == [0, 0, 0.25, 0.5, 0.75, 1, 1]


def test_schedule_of_equal_steps_is_a_switch():
    objective = Scheduled(NLL(), PowerFamily(1), 2, 2)
    objective.prepare(RunFacts())
    shares = []
    for _ in range(4):
        shares.append(objective.weight().item())
        objective.update({})
    assert shares == [0, 0, 1, 1]


def test_schedule_of_a_validation_is_the_one_of_its_training():
    trained = Scheduled(NLL(), PowerFamily(1))
    trained.prepare(RunFacts(total_steps=4))
    trained.update({})
    validated = Scheduled(NLL(), PowerFamily(1))
    validated.prepare(RunFacts(training=False))
    assert validated.weight() == 0
    validated.load_state_dict(trained.state_dict())
    assert validated.weight() == 0.25


def test_resumed_schedule_follows_the_new_length():
    trained = Scheduled(NLL(), PowerFamily(1))
    trained.prepare(RunFacts(total_steps=4))
    trained.update({})
    resumed = Scheduled(NLL(), PowerFamily(1))
    resumed.prepare(RunFacts(total_steps=10))
    resumed.load_state_dict(trained.state_dict())
    assert resumed.weight() == pytest.approx(0.1)


def test_update_reaches_nested_parts_and_logs_them_by_name():
    nested = WeightedSum({"inner": Scheduled(Adaptive(), NLL(), 0, 4), "b": TALR()})
    objective = started(nested, make_batch())
    objective.update(objective.statistics(scores_of(make_batch())))
    logged = objective.logged()
    assert set(logged) == {"inner/start/alpha", "inner/start/mean_p", "inner/weight", "b/median_nll"}
    assert logged["inner/weight"] == 0.25
    assert logged["b/median_nll"].isfinite()


def step_of(row, batch, reduce):
    """Return the weight's gradient of a first step, the losses and the state after it."""
    objective = row.make()
    objective.prepare(FACTS)
    statistics = {key: reduce(value) for key, value in objective.statistics(scores_of(batch)).items()}
    if objective.needs_seed():
        objective.seed(statistics)
    out = fused_head(*batch.inputs(), objective)
    out.loss_sum.backward()
    objective.update(statistics)
    return reduce(batch.weight.grad), reduce(out.losses.sum()), objective.state_dict()


def steps_of_a_rank(rank: int) -> dict:
    dist.init_process_group("gloo", rank=rank, world_size=2)

    def reduce(value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    mine = make_batch().row % 2 == rank
    return {name: step_of(row, make_batch().part(mine), reduce) for name, row in ROWS.items()}


@pytest.mark.ranks
def test_two_ranks_make_the_step_of_one(tmp_path):
    ranks = two_ranks(f"{__name__}:steps_of_a_rank", tmp_path)
    for name, row in ROWS.items():
        expected = step_of(row, make_batch(), lambda value: value)
        for rank in ranks:
            torch.testing.assert_close(
                rank[name], expected, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )
