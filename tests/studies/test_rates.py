"""The study of rates: rows, rules, what a rule loses, verdicts and page from simulated cells, and a unit on a toy."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import get_linear_schedule_with_warmup

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe, GenerationMonitor, SilentFailureMonitor
from lightning_sft.compare.result import Point, RunResult
from lightning_sft.errors import UserError
from lightning_sft.models.access import find_tokenizer
from lightning_sft.sweep.observers import HeldOutObserver
from studies.cells import Cell, read_cells, write_cell
from studies.rates import analysis, texts
from studies.rates.analysis import Unit, hypotheses, losses, spearman, units
from studies.rates.design import ARM, MAIN, OTHERS, PILOT, REGISTERED, SCRIPTS, STAGES, Block, plain, sizes_of
from studies.rates.page import write_page
from studies.rates.remarks import decision
from studies.rates.rules import BAND, FORMULA, TUNED, band, line_minimum, rules, schedule_sum
from studies.rates.runs import Study, seed_of
from studies.rates.texts import Definitions, Entry, TaskRows, part_of
from studies.rates.unit import (
    CHOSEN,
    GRID,
    JUDGED,
    LINE,
    LINE_GRID,
    QUARTER,
    START_JUDGED,
    START_VAL,
    STATICS,
    TRAIN_TEST,
    VAL_TEST,
    Rows,
    Task,
    at_rates,
    key_of,
    refined,
    run_unit,
)
from studies.registration import FILE, has_history, registered
from tests.toys import save_toy

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "docs/studies/data/rates"
FULL, LORA = Block("1M", "kinds", lora=False), Block("1M", "kinds", lora=True)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty words in place of WordNet, each part its own."""

    def entries(part: str) -> tuple[Entry, ...]:
        return tuple(Entry(f"{part[:3]}{'abcdef'[i % 6]}", f"{part} {i}", "act", f"see {part} {i}") for i in range(15))

    for module in ("studies.rates.texts", "studies.rates.models"):
        monkeypatch.setattr(f"{module}.entries", entries, raising=False)


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize("task", texts.TASKS)
def test_rows_are_drawn_by_seed_and_apart_from_those_that_judge(world: None, task: str) -> None:
    rows = TaskRows(task, 20, "train", seed=3)
    assert rows.pairs() == TaskRows(task, 20, "train", seed=3).pairs()
    assert rows.pairs() != TaskRows(task, 20, "train", seed=4).pairs()
    assert len(list(rows.examples())) == 20
    assert not set(rows.pairs()) & set(TaskRows(task, 20, "judged", seed=3).pairs())
    assert all(answer for _, answer in rows.pairs())


def test_sums_are_right_and_of_their_part() -> None:
    for prompt, answer in TaskRows("sums", 50, "judged", seed=1).pairs():
        a, b = (int(word) for word in prompt.removesuffix(" =").split(" + "))
        assert int(answer) == a + b
        assert part_of(f"{a} + {b}") == "judged"


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(UserError, match="Allowed: spelling, sentences"):
        TaskRows("poems", 1)


def test_definitions_are_plain_text(world: None) -> None:
    prompt, text = next(iter(Definitions(3).examples())).plain or ("?", "")
    assert prompt == ""
    assert text.startswith("pre")


# ---------------------------------------------------------------------- rules


def readings(best: float, width: float = 128.0, start: float = 5.0, floor: float = 3.0) -> dict[str, float]:
    """What a unit has read whose NLL is a parabola in the logarithm of the rate, and whose range tests turn at four
    times the best rate."""

    def nll(rate: float, turn: float, scale: float) -> float:
        return floor + scale * math.log10(rate / turn) ** 2

    found = {START_JUDGED: start, START_VAL: start, **dict.fromkeys(STATICS, 1.0), "width": width}
    for rate in GRID:
        for what, turn in ((JUDGED, best), (CHOSEN, best), (QUARTER, 5 * best)):
            found[key_of(what, rate)] = nll(rate, turn, 0.5) if rate < 300 * best else math.nan
    for i in range(24):
        rate = 2e-5 * 1.4**i
        found[key_of(TRAIN_TEST, rate)] = found[key_of(VAL_TEST, rate)] = nll(rate, 4 * best, 0.2)
    return found | {key_of(LINE, rate): nll(rate, 2 * best, 0.2) for rate in LINE_GRID}


def unit(best: float, block: Block = FULL, **more: float) -> Unit:
    found = readings(best, **more)
    return Unit(block, 0, found, 24, at_rates(found, JUDGED))


def test_the_schedule_is_that_of_the_run() -> None:
    for steps in (24, 40):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
        seen = 0.0
        for _ in range(steps):
            seen += optimizer.param_groups[0]["lr"]
            optimizer.step()
            schedule.step()
        assert schedule_sum(steps) == pytest.approx(seen)


def test_the_band_goes_from_equal_progress_to_where_the_test_turns() -> None:
    found = unit(1e-3).readings
    test = at_rates(found, VAL_TEST)
    one = band(found, 24)
    assert one is not None
    assert one.high == min(test, key=lambda rate: test[rate])
    enough = max(test.values()) - 0.9 * (next(iter(test.values())) - test[one.high])
    assert test[one.rate] <= enough < max(loss for rate, loss in test.items() if rate < one.rate)
    assert one.low * schedule_sum(24) == pytest.approx(sum(rate for rate in test if rate <= one.rate))
    assert one.low < one.rate < one.high
    rising = {**found, **{key_of(VAL_TEST, rate): i for i, rate in enumerate(test)}}
    assert band(rising, 24) is None


def test_free_rules_know_nothing_but_the_adapter_and_the_width() -> None:
    named = {rule.name: rule for rule in rules((2e-3, 1e-2))}
    for rule in named.values():
        if rule.kind != "finder":
            assert rule.rate({}, FULL, 2000.0, 24) == unit(1e-3).rate(rule) or rule.name == FORMULA
    assert named[FORMULA].rate({}, FULL, 2000.0, 24) == pytest.approx(5e-5)
    assert named[FORMULA].rate({}, LORA, 128.0, 24) == pytest.approx(5e-4 * (2000 / 128) ** 0.781)
    assert named["1e-4, LoRA 1e-3"].rate({}, LORA, 128.0, 24) == 1e-3
    assert named[TUNED].rate({}, LORA, 128.0, 24) == 1e-2
    assert named["pilot's, LoRA x 10"].rate({}, LORA, 128.0, 24) == pytest.approx(10 * math.sqrt(2e-6))
    assert TUNED not in {rule.name for rule in rules(None)}


def test_finders_follow_the_run() -> None:
    low, high = unit(1e-4), unit(4e-3)
    for rule in rules(None):
        if rule.kind == "finder":
            a, b = low.rate(rule), high.rate(rule)
            assert a is not None, rule.name
            assert b is not None, rule.name
            assert a < b, rule.name
    assert line_minimum(high.readings) == pytest.approx(8e-3, rel=0.5)


# ---------------------------------------------------------------------- what a rule loses


def test_what_a_rate_loses() -> None:
    one = unit(GRID[3])
    assert one.best == GRID[3]
    assert one.lost(GRID[3]) == 0
    assert one.lost(GRID[2]) == pytest.approx(0.5 * math.log10(4) ** 2 / 2)
    between = math.sqrt(GRID[3] * GRID[4])
    assert one.nll(between) == pytest.approx((one.nll(GRID[3]) + one.nll(GRID[4])) / 2)
    assert one.lost(None) == 1
    assert one.lost(GRID[0] / 100) == one.lost(GRID[0])
    dead = replace(one, curve={**one.curve, GRID[5]: math.nan, GRID[6]: math.nan})
    for rate in (GRID[5], 1.01 * GRID[4], 10.0):
        assert dead.lost(rate) == 1, "diverged, or between a rate that does and one that does not"
    assert dead.lost(GRID[4]) < 1
    assert unit(GRID[3], start=2.0).lost(GRID[3]) == 1, "a run that gains nothing"


def test_a_grid_is_refined_around_its_best() -> None:
    assert refined({1.0: 1.0, 4.0: 2.0}) == [2.0]
    assert refined({1.0: math.nan, 4.0: 2.0, 16.0: 1.0}) == [8.0]


def test_correlations() -> None:
    assert spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    rates = [1e-4 * 2**i for i in range(8)]
    some = [unit(rate, block) for rate, block in zip(rates, MAIN.blocks, strict=True) for _ in range(3)]
    rho, p = analysis.line_law(some)
    assert rho > 0.9
    assert p < 0.01
    mixed = [replace(one, curve=unit(rates[(5 * i) % 8]).curve) for i, one in enumerate(some[::3]) for _ in range(3)]
    assert analysis.line_law(mixed)[1] > 0.05


# ---------------------------------------------------------------------- cells, verdicts, page


def cell(stage: str, block: Block, replicate: int, best: float) -> Cell:
    result = RunResult("", "", "finished", curve=(Point(0, 0, 0.0, readings(best)),), steps=300, wall_seconds=20.0)
    facts = {"package version": "1.0", "package code": "abc", "model": "m"}
    return Cell(
        "rates", stage, block.name, "judged", replicate, ARM, 0.0, 7, "c0ffee", "c0ffee", {"sizes": sizes_of()},
        facts, "a processor", result.plain(),
    )  # fmt: skip


def simulated(best_of=lambda block, i: 1e-3 * (4 if block.lora else 1)) -> list[Cell]:
    return [
        cell(stage.name, block, n, best_of(block, i))
        for stage in STAGES.values()
        for i, block in enumerate(stage.blocks)
        for n in range(stage.replicates)
    ]


def test_nothing_is_decided_before_all_units_are_there() -> None:
    cells = simulated()
    assert {v.verdict for v in hypotheses([c for c in cells if c.stage == "pilot"])} == {"not complete"}
    assert {v.verdict for v in hypotheses([c for c in cells if c.replicate == 0])} == {"not complete"}
    h1, h2, h3 = hypotheses(cells)
    mean = {one.rule.name: one.mean for one in losses(cells)}
    assert h1.effect.mean == pytest.approx(mean[BAND] - mean[TUNED])  # type: ignore[union-attr]
    assert {v.verdict for v in hypotheses([c for c in cells if c.stage != "pilot"])} == {"not complete"}
    assert all(v.p_holm is not None for v in (h2, h3))


def test_the_rule_decides_against_a_band_that_does_not_win(tmp_path: Path) -> None:
    # best where the formula is: the band cannot lose less
    formula = next(rule for rule in rules(None) if rule.name == FORMULA)
    cells = simulated(lambda block, i: formula.rate({}, block, 128.0, 24))
    assert hypotheses(cells)[1].verdict == "contradicted"
    assert "the band does not win" in decision(cells)
    mean = {one.rule.name: one.mean for one in losses(cells) if one.rule.kind == "finder" or one.rule.name == FORMULA}
    assert f"'{min(mean, key=lambda name: mean[name])}' loses least" in decision(cells)
    page = tmp_path / "docs/studies/rates.md"
    write_page(page, tmp_path / "docs/assets/studies/rates", cells, None, ROOT)
    text = page.read_text()
    assert "contradicted" in text
    assert "light.svg" in text
    assert "- H2: contradicted." in text
    write_page(page, tmp_path / "docs/assets/studies/rates", [], None, ROOT)
    assert "nothing is said here yet" in page.read_text()


def test_the_pilot_gives_the_constant() -> None:
    assert analysis.tuned([]) is None
    exact = [cell("pilot", block, 0, GRID[3] * (16 if block.lora else 1)) for block in PILOT.blocks]
    assert analysis.tuned(exact) == pytest.approx((GRID[3], GRID[5]), rel=0.05)
    assert len(units(exact, PILOT)) == 4


def test_seeds_are_shared_by_adapters_alone() -> None:
    assert seed_of("t", FULL.name, 0) == seed_of("t", LORA.name, 0)
    assert len({seed_of("t", b.name, n) for b in (*MAIN.blocks, *OTHERS.blocks) for n in range(3)}) == 3 * 8
    assert seed_of("t", FULL.name, 0) != seed_of("u", FULL.name, 0)


# ---------------------------------------------------------------------- a unit

SMALL = {"steps": 8, "rows": 2, "judged": 6, "val": 4, "range": 8}


def test_a_unit_reads_all_that_rules_need(world: None, toy: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("studies.rates.unit.GRID", GRID[2:5])
    monkeypatch.setattr("studies.rates.unit.LINE_GRID", LINE_GRID[4:6])
    task = Task("a", toy, "kinds", True, 5, sizes_of(SMALL), str(tmp_path))
    found = run_unit(task)
    values = found.readings
    assert {key for key in STATICS if not values[key] > 0} == set()
    assert len(at_rates(values, JUDGED)) == len(at_rates(values, QUARTER)) == 5
    assert set(at_rates(values, JUDGED)) == set(at_rates(values, CHOSEN))
    assert len(at_rates(values, VAL_TEST)) <= 8
    assert all(math.isfinite(value) for value in at_rates(values, LINE).values())
    one = Unit(LORA, 0, values, 8, at_rates(values, JUDGED))
    assert one.curve[one.best] < one.start
    assert one.nll(GRID[2]) != values[key_of(QUARTER, GRID[2])]
    assert run_unit(task).readings == values


class _Both(Callback):
    """Reads validation rows by the package's observer and by the study's."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> int:
        trainer.should_stop = True
        self.package = HeldOutObserver(trainer).read(trainer, pl_module)["val_nll"]
        rows = TaskRows("words", 7, "val", 1).pairs()
        self.study = Rows("a", rows, find_tokenizer(pl_module), size=3).read(trainer, pl_module)["a"]
        return -1


def test_the_studys_reading_is_the_packages(world: None, toy: str, tmp_path: Path) -> None:
    both, off = _Both(), (CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False))
    data = SFTDataModule(
        TaskRows("words", 4), TaskRows("words", 7, "val", 1), apply_chat_template="never", cache_dir=False
    )
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(
        accelerator="cpu", max_steps=1, max_epochs=1, num_sanity_val_steps=0, default_root_dir=tmp_path,
        callbacks=[both, *off, GenerationMonitor(samples=0, limit=0)], **quiet,
    ).fit(SFTModule(toy, dtype="float32"), data)  # fmt: skip
    assert both.study == pytest.approx(both.package, rel=1e-5)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy(tmp_path_factory.mktemp("rates")))


def test_a_stage_keeps_its_cells_and_goes_on(world: None, toy: str, tmp_path: Path, monkeypatch) -> None:
    def here(self, function, task):
        class Done:
            result = staticmethod(lambda: RunResult("", task.key, "finished", (Point(0, 0, 0.0, readings(1e-3)),)))

        ran.append(task)
        return Done

    ran: list[Task] = []
    monkeypatch.setattr("studies.rates.runs.ProcessPoolExecutor.submit", here)
    monkeypatch.setattr(Study, "require_model", lambda self: None)
    monkeypatch.setattr(Study, "make_start", lambda self, block: None)
    monkeypatch.setattr(Study, "checkpoint", lambda self, size: Path(toy))
    study = Study(ROOT, tmp_path / "cells", tmp_path / "work", say=lambda line: None, workers=1)
    study.run_stage(PILOT)
    assert len(ran) == len(read_cells(study.cells)) == 4
    assert ran[0].seed == ran[1].seed, "both adapters see the same rows"
    study.run_stage(PILOT)
    assert len(ran) == 4
    (study.cells / read_cells(study.cells)[0].file).unlink()
    study.run_stage(PILOT)
    assert len(ran) == 5
    with pytest.raises(UserError, match="takes its seeds from the commit that registers it"):
        study.run_stage(MAIN)


# ---------------------------------------------------------------------- what is committed


def test_committed_cells_are_those_of_the_registered_design() -> None:
    cells = read_cells(CELLS) if CELLS.is_dir() else []
    names = {stage.name: {block.name for block in stage.blocks} for stage in STAGES.values()}
    assert all(c.block in names[c.stage] for c in cells if c.kind == "judged")
    if not has_history(ROOT):
        pytest.skip("the history is not here")
    known = registered(CELLS / FILE, ROOT)
    assert known is not None or all(c.registered is None for c in cells)
    if known is not None:
        assert known.content["hypotheses"] == REGISTERED["hypotheses"]
        assert known.content["design"]["stages"].keys() == plain()["stages"].keys()
        assert set(known.content["scripts"]) == set(SCRIPTS)
        for c in cells:
            if c.registered is not None:
                assert c.registered == known.commit
                assert c.seed == seed_of(f"rates {known.commit}", c.block, c.replicate)


def test_cells_are_written_once(tmp_path: Path) -> None:
    one = cell("pilot", PILOT.blocks[0], 0, 1e-3)
    write_cell(tmp_path, one)
    assert units(read_cells(tmp_path), PILOT)[0].best == pytest.approx(GRID[3], rel=0.5)
    with pytest.raises(UserError, match="never replaced"):
        write_cell(tmp_path, one)
