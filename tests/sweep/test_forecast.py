"""Forecasts of the step at which a gap crosses: the arithmetic, the callback, its grade, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import optim

from lightning_sft.callbacks import CriticalLearningRateFinder, ExposureForecast
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.figures.sweeps import sweep_figure
from lightning_sft.probes import Probe
from lightning_sft.sweep.forecast.law import ProbeForecast, Stretch, forecast, rate_for_share, step_at
from lightning_sft.sweep.forecast.result import Forecast
from lightning_sft.sweep.trial import TrialRunner
from tests.callbacks.stranger import PROBES, TEXT, Stranger
from tests.callbacks.stranger import fit as fit_stranger
from tests.running import toy_arguments, write_rows
from tests.sweep.strangers import Offloading, Plateau, Scheduled, Silent, TwoOptimizers
from tests.toys import toy_tokenizer

WAY = [0.0, 1.0, 3.0, 6.0, 9.0, 11.0, 12.0]  # warm-up and decay


def stretches(gap, far=12.0, noise=0.0, losses=(2.0, 1.9)):
    """Own steps and two stretches of a gap that depends on progress alone; noise bends the coarse one."""

    def made(progress, bend=0.0):
        return Stretch(list(progress), [[gap(p * (1 + bend))] for p in progress], list(losses))

    return made(WAY[:3]), made([far * i / 4 for i in range(5)], noise), made([far * i / 8 for i in range(9)])


@pytest.mark.parametrize("crossing", [2.0, 5.0, 10.5])
def test_a_gap_that_depends_on_progress_alone_is_forecast_exactly(crossing):
    said = forecast("a", 0, *stretches(lambda p: p - crossing), WAY, at=10)
    assert said.outcome == "flips"
    assert said.step == pytest.approx(10 + step_at(WAY, crossing))
    assert said.low < said.step < said.high
    assert said.progress == pytest.approx(crossing / 12)


def test_what_will_not_be():
    late = forecast("a", 0, *stretches(lambda p: p - 24), WAY)
    assert (late.outcome, late.step) == ("not by the end", pytest.approx(12))
    assert forecast("a", 0, *stretches(lambda p: -1 - p), WAY) == ProbeForecast("a", -1, "not by the end")
    ahead = forecast("a", 0, *stretches(lambda p: 1 + p), WAY, at=3)
    assert (ahead.outcome, ahead.step, ahead.progress) == ("already ahead", 3.0, 0.0)


def test_what_cannot_be_said_is_refused_by_name():
    own, coarse, fine = stretches(lambda p: p - 8, noise=-0.7)
    assert "disagree" in forecast("a", 0, own, coarse, fine, WAY).why
    own, coarse, fine = stretches(lambda p: p - 5)
    broken = Stretch(fine.progress[:3], fine.gaps[:3], fine.losses, complete=False)
    assert "loss rose" in forecast("a", 0, own, coarse, broken, WAY).why
    assert "loss rose" in forecast("a", 0, own, broken, fine, WAY).why
    near = stretches(lambda p: p - 50, far=4.0)
    assert "beyond the reach" in forecast("a", 0, *near, WAY).why
    for crossing in (12.5, 18):  # the second one lies far beyond, and what is late may be earlier by a factor of 1.8
        said = forecast("a", 0, *stretches(lambda p, c=crossing: p - c), WAY)
        assert "near the end or beyond it (from step" in said.why
    lost = Stretch(own.progress, [[math.nan]] * 3, own.losses)
    assert "no number" in forecast("a", 0, lost, coarse, fine, WAY).why


def test_a_late_flip_is_given_as_an_upper_bound():
    way = [float(i) for i in range(41)]

    def said(crossing):
        own, rest = Stretch(way[:5], [[p - crossing] for p in way[:5]], [2.0, 1.9]), [8.0 * i for i in range(6)]
        coarse = Stretch([*rest[::2], 40.0], [[p - crossing] for p in [*rest[::2], 40.0]], [2.0, 1.9])
        return forecast("a", 0, own, coarse, Stretch(rest, [[p - crossing] for p in rest], [2.0, 1.9]), way, at=100)

    soon, late = said(9.0), said(18.0)
    assert (soon.outcome, late.outcome) == ("flips", "flips by")  # the own steps are 4, so late is beyond 10
    assert late.step == pytest.approx(118)
    assert late.low == pytest.approx(110)
    assert soon.low == pytest.approx(100 + 9 * math.exp(-0.12))
    assert late.high == pytest.approx(100 + 18 * math.exp(0.12))
    result = Forecast("f", 100, "", 40, 16, 4, 1.0, 1e-3, None, [soon, late], 1).graded([109, 111])
    assert "118 or earlier" in result.text()
    assert "1 do so late" in result.text()
    assert result.coverage() == (2, 2)
    assert result.median_error() == pytest.approx(0), "an upper bound has no error"
    assert result.scalars()["share"] == 1.0


def test_stretches_that_disagree_widen_the_interval():
    def half(noise):
        said = forecast("a", 0, *stretches(lambda p: p - 8, noise=noise), WAY)
        return math.log(said.high / said.low)

    assert half(-0.3) > half(-0.1) > half(0.0)


def test_the_rate_for_a_share():
    told = [forecast(str(c), 0, *stretches(lambda p, c=c: p - c), WAY) for c in (3.0, 6.0, 24.0)]
    rate, low, high = rate_for_share(told, 2 / 3, 1e-3)
    assert rate == pytest.approx(0.5e-3)
    assert low < rate < high
    assert rate_for_share(told, 1.0, 1e-3)[0] == pytest.approx(2e-3)
    unknown = ProbeForecast("d", -1, "cannot predict this", why="x")
    assert rate_for_share([*told, unknown], 1.0, 1e-3) is None
    later = [forecast(str(c), 0, *stretches(lambda p, c=c: p - c), WAY, at=100) for c in (3.0, 6.0, 24.0)]
    assert rate_for_share(later, 2 / 3, 1e-3, 100) == pytest.approx((rate, low, high)), "steps behind it change nothing"


def graded(seen):
    told = [forecast(str(c), 0, *stretches(lambda p, c=c: p - c), WAY) for c in (3.0, 9.0, 24.0)]
    return Forecast("f", 0, "", 6, 16, 4, 0.5, 1e-3, rate_for_share(told, 0.5, 1e-3), told, 1).graded(seen)


def test_a_flip_is_said_to_be_over_one_word_with_the_ranks_of_the_right_ones():
    result = graded([2, 4, None])
    assert "rank now" not in result.text(), "an older forecast has no ranks"
    ranked = replace(result, ranks=[7.0, 9.0, 40.0]).graded([2, 4, None], [1.0, 3.0, 12.0])
    assert "A flip is over that one competitor: a third word may still be first." in ranked.text()
    first = next(line for line in ranked.text().splitlines() if line.startswith("| 9.0 |"))
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert (cells[2], cells[-1]) == ("9", "3")
    assert "Seen: 2 of 3 ahead of their competitor at some step." in ranked.text()
    assert "the right word is the model's first choice of all words in 1." in ranked.text()
    assert [(row["rank"], row["rank_seen"]) for row in ranked.rows()] == [(7.0, 1.0), (9.0, 3.0), (40.0, 12.0)]


def test_a_rate_for_a_share_is_no_advice_to_lower_the_rate():
    result = graded([])
    for rates, says in (
        ((1e-4, 0.5e-4, 2e-4), "is above that, so they flip before the end; that is no reason to lower it"),
        ((1e-2, 0.5e-2, 2e-2), "is below that, so fewer flip by the end: a higher rate or a longer run"),
        ((1e-3, 0.5e-3, 2e-3), "lies within that interval"),
    ):
        text = replace(result, rate_for_share=rates).text()
        assert says in text
        assert "should be" not in text


def test_the_grade():
    result = graded([2, 4, None])
    assert result.coverage() == (3, 3)
    assert result.median_error() == pytest.approx(0, abs=1e-9)
    assert graded([4, 4, 5]).coverage() == (1, 3)
    assert result.scalars()["covered"] == 1
    page = (Path(__file__).parents[2] / "docs" / "reference" / "log_keys.md").read_text()
    assert all(f"`sweep/<name>/{key}`" in page for key in result.scalars())
    assert "3 of 3 intervals of 80% held (95% for the share: 0.29 to 1.00)" in result.text()
    assert [row["rows"] for row in result.rows()] == [8, 16, 48]
    assert json.loads(result.to_json())["seen"] == [2, 4, None]
    assert len(sweep_figure(result).axes[0].lines) > 5


def test_of_many_probes_the_ten_that_say_most_are_printed():
    """Flips first, the earliest ahead, then those that do not by the end, then what cannot be told."""

    def flip(i, step, outcome="flips"):
        return ProbeForecast(f"p{i}", -0.1 * i, outcome, step, step, step, 0.0)

    probes = [ProbeForecast(f"ahead{i}", 0.1, "already ahead", 0.0, 0.0, 0.0, 0.0) for i in range(20)]
    probes += [ProbeForecast(f"unknown{i}", -0.2, "cannot predict this", why="x") for i in range(5)]
    probes += [flip(i, 30.4 - i) for i in range(7)]
    result = Forecast("f", 0, "", 60, 16, 8, 0.5, 1e-3, None, probes, 1)
    text = result.text()
    printed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    printed = [name for name in printed if name != "---"]
    assert printed == [*(f"p{i}" for i in range(6, -1, -1)), "unknown0", "unknown1", "unknown2"]
    assert "22 more stand in the JSON file." in text
    assert len(result.rows()) == 32
    assert "| 24 | 24 to 24 | 192 |" in text, "rows are those of the printed step"


def test_intervals_that_hold_too_often_or_too_seldom_are_said_to():
    probes = [ProbeForecast(str(i), -1.0, "flips", 5.0, 4.0, 6.0, 0.0) for i in range(56)]
    result = Forecast("f", 0, "", 60, 16, 8, 0.5, 1e-3, None, probes, 1)
    assert "the intervals are wider than they need be here" in result.graded([5] * 56).text()
    assert "the intervals are too narrow here" in result.graded([5] * 20 + [20] * 36).text()
    assert "the intervals are" not in result.graded([5] * 45 + [20] * 11).text()


def learned(count=8):
    """Probes of letters that the text of the toy holds, against letters that it does not."""
    ids = TEXT[:40]
    places = [i for i in range(8, 40) if ids[i].isalpha()][:count]
    others = "qvxjkwyu"
    return [
        Probe(ids[:i].rstrip(" "), ids[i], others[n % 8], name=f"p{n}", leading_space=False)
        for n, i in enumerate(places)
        if not ids[:i].endswith(" ")
    ]


def test_a_run_is_forecast_and_grades_itself(tmp_path: Path) -> None:
    """Warm-up from a rate of 0, decay, dropout, clipping and accumulation."""
    torch.manual_seed(0)
    told = ExposureForecast(learned(20), stretch=24, every=1)
    fit_stranger(
        Scheduled(40, attention_dropout=0.1), [told], tmp_path, max_steps=40, gradient_clip_val=1.0,
        accumulate_grad_batches=2, max_epochs=-1, logger=TensorBoardLogger(tmp_path),
    )  # fmt: skip
    result = told.result
    assert isinstance(result, Forecast)
    assert (result.end, result.rows_per_step) == (40, 8)
    assert len(result.seen) == len(result.probes)
    flipped = [(p, s) for p, s in zip(result.probes, result.seen, strict=True) if p.step and s]
    assert len(flipped) >= 3
    assert result.median_error() < math.log(1.3)
    assert "intervals of 80% held" in result.text()
    assert len(result.ranks) == len(result.ranks_seen) == len(result.probes)
    assert result.ranks != result.ranks_seen
    assert all(rank >= 1 for rank in [*result.ranks, *result.ranks_seen])
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*"))))
    events.Reload()
    assert len(events.Images("sweep/forecast/figure")) == 2  # before the run, and after it
    again = ExposureForecast(learned(20), stretch=20, every=1)
    again.load_state_dict(told.state_dict())
    assert again.result == result


@pytest.mark.parametrize("make", [None, lambda p: optim.SGD(p, lr=0.02, momentum=0.9)], ids=["AdamW", "momentum"])
def test_a_forecast_leaves_no_trace(tmp_path: Path, make) -> None:
    def weights(*callbacks: ExposureForecast) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = Scheduled(18, make, attention_dropout=0.1)
        trainer = fit_stranger(module, list(callbacks), tmp_path, max_steps=18)
        state = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i}.{k}": v for i, own in state.items() for k, v in own.items() if isinstance(v, torch.Tensor)}
        return {**module.state_dict(), **moments, "rng": torch.get_rng_state()}

    told = ExposureForecast(PROBES[:2], stretch=8, at_step=1, every=3)
    plain, forecast_too = weights(), weights(told)
    assert told.result is not None
    assert told.result.spent >= 16
    assert plain.keys() == forecast_too.keys()
    assert all(torch.equal(forecast_too[k], v) for k, v in plain.items())


def test_probes_that_are_ahead_already_cost_nothing(tmp_path: Path) -> None:
    module = Stranger()
    with torch.no_grad():
        z = module.net.eval()(torch.tensor([toy_tokenizer()("one, ").input_ids])).logits[0, -1]
    first, second = sorted("abc", key=lambda c: -float(z[toy_tokenizer()(c).input_ids[0]]))[:2]
    told = ExposureForecast([Probe("one, ", first, second, leading_space=False)], stretch=8)
    fit_stranger(module.train(), [told], tmp_path, max_steps=16)
    assert told.result.spent == 0
    assert told.result.probes[0].outcome == "already ahead"


REFUSED = [
    (TwoOptimizers, {}, "has 2 optimizers"),
    (Silent, {}, "returns no loss"),
    (Plateau, {}, "lowers the rate when 'train_loss'"),
    (Offloading, {"at_step": 1}, "Offloaded keeps its states on cuda"),
    (lambda: Scheduled(60, lambda p: optim.SGD(p, lr=0.0)), {}, "learning rate is 0.0"),
    (lambda: Scheduled(60, optim.LBFGS), {}, "LBFGS takes no step of its own"),
]


@pytest.mark.parametrize("instrument", ["forecast", "prediction"])
@pytest.mark.parametrize(("module", "given", "says"), REFUSED)
def test_runs_that_are_refused_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instrument: str, module, given, says: str
) -> None:
    def trial(*_: object, **__: object) -> None:
        raise AssertionError("a trial was made")

    monkeypatch.setattr(TrialRunner, "run", trial)
    made = {
        "forecast": lambda: ExposureForecast(PROBES[:1], stretch=8, **given),
        "prediction": lambda: CriticalLearningRateFinder(PROBES[:1], steps=4, predict=True, **given),
    }
    with pytest.raises(UserError, match=says):
        fit_stranger(module(), [made[instrument]()], tmp_path, max_steps=60)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_steps": -1, "max_epochs": -1}, "how many steps the run has"),
        ({"max_steps": 12}, "12 optimizer steps are left"),
    ],
)
def test_forecasts_that_a_run_is_too_short_or_too_long_for(tmp_path: Path, given, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit_stranger(Stranger(), [ExposureForecast(PROBES[:1], stretch=8)], tmp_path, **given)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="stretch is 2"):
        ExposureForecast(PROBES, stretch=2)
    with pytest.raises(UserError, match="share is 0"):
        ExposureForecast(PROBES, share=0)
    with pytest.raises(UserError, match="every is 0"):
        ExposureForecast(PROBES, every=0)
    with pytest.raises(UserError, match="no probe"):
        ExposureForecast([])


def test_the_verb(toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, probes = write_rows(tmp_path / "rows.jsonl"), tmp_path / "probes.jsonl"
    own = [{"context": "say 1", "correct": c, "competitor": s, "leading_space": False} for c, s in ("wq", "qw")]
    probes.write_text("".join(json.dumps(p) + "\n" for p in own))
    given = toy_arguments(toy_folder, rows, trainer__max_steps=20, data__val_split=None)
    main(["forecast", *given, f"--probes={probes}", "--stretch=8", f"--output={tmp_path}/deep/forecast.json"])
    printed = capsys.readouterr().out
    assert "| w-q |" in printed
    assert "leave no trace" in printed
    assert "beside the 20 of the run itself" in printed
    ending = printed.rstrip().splitlines()[-1]
    assert ending.startswith("Next       lightning fit ")
    assert ending.endswith(f"--trainer.callbacks+=ExposureForecast --trainer.callbacks.probes {probes} "
                           "--trainer.callbacks.stretch 8")  # fmt: skip
    assert "--output" not in ending
    made = json.loads((tmp_path / "deep" / "forecast.json").read_text())
    assert made["ahead"] == 20
    assert {p["outcome"] for p in made["probes"]} >= {"already ahead"}
    assert not Path("lightning_logs").exists()
    own_callback = ["--trainer.callbacks+=ExposureForecast", f"--trainer.callbacks.probes={probes}"]
    main(["forecast", *given, *own_callback, "--stretch=9", f"--output={tmp_path}/two.json"])
    printed = capsys.readouterr().out
    assert (
        "Only this forecast has them; the run below forecasts by the ExposureForecast of its settings: --stretch 9."
        in printed
    )
