"""The study of phantoms: contexts and rows, what is read in a run, the planted control, runs, verdicts and page."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.cli.compare.trial import run_here
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.result import Point, RunResult
from lightning_sft.errors import UserError
from lightning_sft.objectives.base import RunFacts
from lightning_sft.probes.files import load_probes
from lightning_sft.probes.history import ProbeHistory
from lightning_sft.probes.verdict import VerdictSettings, judge
from lightning_sft.scores import TokenScores
from studies import study as study_module
from studies.cells import Cell, read_cells
from studies.command import least_runs
from studies.cure.texts import Context, Pair
from studies.page_parts import code_words
from studies.phantoms import analysis
from studies.phantoms.analysis import MAIN, RUSHED, Outcome
from studies.phantoms.arms import ARMS, FASTER, FASTER_RATE, FULL, AnswersAlone, adapter_of, lora
from studies.phantoms.design import (
    ALONE,
    BACKGROUND,
    EMBEDDINGS,
    FAILED,
    FAST_RATE,
    FLIPPED,
    JUMPS,
    LEAST,
    MOST,
    MOVED,
    PLANTED,
    PLANTED_PHANTOM,
    REGISTERED,
    SCORE,
    SCRIPTS,
    SILENT,
    STAGES,
    plain,
)  # fmt: skip
from studies.phantoms.over_runs import Rows, kinds
from studies.phantoms.page import WORTHLESS, sentences, write_page
from studies.phantoms.rows import ProbeRows, Taught
from studies.phantoms.runs import Study
from studies.phantoms.small import run_small
from studies.phantoms.watch import MODES, OUTCOMES, Watch, of_context
from studies.registration import FILE, Registration, has_history, registered, write_registration
from tests.toys import save_toy, toy_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "docs/studies/data/phantoms"
SMALL = {"steps": 24, "mined": 2, "shipped": 2, "rows": 4, "judged": 6}

# ---------------------------------------------------------------------- a small world in place of WordNet

PAIRS = tuple(Pair(f"right{i}", f"wrong{i}", "design" if i < 4 else "judged") for i in range(8))
LIBRARY = sorted({word for p in load_probes("library") for word in (p.correct, p.competitor)})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight pairs with five sentences each, and 200 other sentences."""
    contexts = {p: tuple(Context(p, f"{n} they said", f" of {i}") for n in range(5)) for i, p in enumerate(PAIRS)}
    others = tuple(f"a sentence about number {n}" for n in range(200))
    for module in ("studies.phantoms.rows", "studies.cure.rows"):
        monkeypatch.setattr(f"{module}.pairs", lambda: PAIRS)
        monkeypatch.setattr(f"{module}.split_by_pair", lambda: (contexts, others))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose tokenizer has each word of the contexts as one token."""
    made = save_toy(tmp_path_factory.mktemp("phantoms"), vocab_size=400)
    tokenizer = toy_tokenizer()
    own = [word for pair in PAIRS for word in (pair.correct, pair.competitor)]
    tokenizer.add_tokens([f" {word}" for word in [*own, *LIBRARY]])
    tokenizer.save_pretrained(made)
    return made


def test_no_word_stands_in_two_contexts_of_a_draw(world: None) -> None:
    rows = ProbeRows("judged", mined=3, shipped=8, size=11)
    draws = [rows.drawn(seed).draw() for seed in range(5)]
    assert draws[0] == rows.drawn(0).draw()
    assert len(set(draws)) == 5
    for drawn in draws:
        words = [word for taught in drawn for word in taught.words]
        assert len(words) == len(set(words)) == 2 * 11
        assert [taught.shipped for taught in drawn] == [True] * 8 + [False] * 3
        assert {t.probe.split for t in drawn if t.shipped} == {"test"}
        assert all(t.probe.kind == "synonym" for t in drawn)
        assert {t.probe.correct for t in drawn if not t.shipped} <= {p.correct for p in PAIRS[4:]}
    design = ProbeRows("design", mined=4, shipped=8, size=12).draw()
    assert not {t.number for t in design} & {t.number for drawn in draws for t in drawn}, "pilots see none that judges"


def test_rows_are_answers_alone_or_sentences_among_others(world: None) -> None:
    alone, mixed = ProbeRows(mined=2, shipped=2, size=4), ProbeRows(mined=2, shipped=2, size=20, times=3)
    assert alone.draw() == mixed.draw(), "the same contexts in both blocks"
    assert [row.plain for row in alone.examples()] == [
        (t.probe.context, f" {t.probe.correct}") for t in alone.draw()
    ]  # fmt: skip
    texts = [row.plain[1] for row in mixed.examples() if row.plain]
    assert len(texts) == 20
    for taught in mixed.draw():
        assert texts.count(f"{taught.probe.context} {taught.probe.correct}{taught.after}") == 3
    assert sum("a sentence about" in text for text in texts) == 20 - 4 * 3


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: ProbeRows(mined=9, shipped=0, size=9).draw(), "4 pairs with sentences, and 0 and 9"),
        (lambda: ProbeRows(mined=0, shipped=0), "at least one context"),
        (lambda: ProbeRows(mined=2, shipped=2, size=5), "4 contexts, 0 times each, do not make 5 rows"),
        (lambda: ProbeRows(mined=2, shipped=2, size=5, times=2), "4 contexts, 2 times each, do not make 5 rows"),
    ],
)
def test_what_cannot_be_drawn_says_so(world: None, made: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        made()


def test_end_tokens_are_not_taught() -> None:
    objective = AnswersAlone()
    objective.prepare(RunFacts(special_tokens=(0, 2)))
    logp = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    targets = torch.tensor([5, 2, 7, 0])
    scores = TokenScores(logp=logp, targets=targets, source=torch.zeros_like(targets))
    torch.testing.assert_close(objective(scores), torch.tensor([1.0, 0.0, 3.0, 0.0]))


# ---------------------------------------------------------------------- what is read in a run


@pytest.fixture
def study(world: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = Study(ROOT, tmp_path / "cells", tmp_path / "work", str(folder), lambda line: None, SMALL, workers=1)
    monkeypatch.setattr(Study, "require_model", lambda self: None)
    return made


def run_of(study: Study, arm: str, rate: float, stage_name: str = "pilot") -> RunResult:
    stage = STAGES[stage_name]
    design = study.design(stage, stage.blocks[0], "c0ffee")
    result = run_here(design, RunSpec("judged", 0, arm, rate), study.work / f"{stage_name} {arm} {rate}")
    assert result.error is None
    return result


@torch.no_grad()
def test_a_run_that_trains_all_weights(study: Study, folder: Path) -> None:
    result = run_of(study, FULL, 3e-2)
    read, found = result.readings, analysis.outcomes(result)
    assert [p.step for p in result.curve] == [0, 24]
    assert result.tokens == 24 * 4 * 2, "an answer and the end of each row"
    assert read[MOVED] > 0
    assert read[BACKGROUND] == pytest.approx(read["val/background/nll"] / result.start["val/background/nll"], rel=1e-5)
    # what the run began with is what the model says by itself
    design = study.design(STAGES["pilot"], ALONE, "c0ffee")
    seed = design.draw(RunSpec("judged", 0, FULL, 3e-2)).seed
    numbers = {o.number: o for o in found}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    drawn = ProbeRows("design", 2, 2, 4).drawn(seed).draw()
    assert {t.number for t in drawn} == set(numbers)
    for taught in drawn:
        ids = tokenizer(f"{taught.probe.context} {taught.probe.correct}", return_tensors="pt").input_ids[0]
        (other,) = tokenizer(f" {taught.probe.competitor}", add_special_tokens=False).input_ids
        logits = model(ids[None]).logits[0, -2]
        assert numbers[taught.number].behind == bool(logits[ids[-1]] <= logits[other])
        assert numbers[taught.number].shipped == taught.shipped
    behind = [o for o in found if o.behind]
    assert read[FLIPPED] == pytest.approx(sum(o.outcome == "flipped" for o in behind) / len(behind))
    assert read[FLIPPED] == 1.0, "a toy learns four answers at this rate"
    assert read[JUMPS] == sum(o.jumps for o in behind)
    assert (EMBEDDINGS in read) == (f"{EMBEDDINGS}_above_0.01" in read) == (read[JUMPS] > 0)
    # the planted change of the geometry
    assert read[PLANTED] == 4
    assert read[PLANTED_PHANTOM] == 0
    assert read[SCORE] == pytest.approx(1.007 - read[BACKGROUND]), "beyond the bound"


def test_the_plant_needs_the_counterfactual_and_is_taken_back(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split alone sees no rows in it: an instrument without its second half fails the control."""
    before: list[torch.Tensor] = []
    original = Watch.planted

    def planted(self: Watch, model: torch.nn.Module) -> object:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]
        before.append(weight.detach().clone())
        histories = self.histories
        jumps = original(self, model)  # type: ignore[arg-type]
        assert torch.equal(weight, before[0]), "bit by bit"
        assert self.histories is histories
        assert all(history.step[-1] == 24 for history in histories.values())
        assert all(jump.step == 25 for jump in jumps)
        assert max(jump.geometry_share or 0.0 for jump in jumps) < 0.5, "by the split it looks like a readout jump"
        return jumps

    def blind(self: Watch, *arguments: object, **named: object) -> None:
        init(self, *arguments, **named)  # type: ignore[arg-type]
        self.counterfactual = False

    init = Watch.__init__
    monkeypatch.setattr(Watch, "planted", planted)
    monkeypatch.setattr(Watch, "__init__", blind)
    read = run_of(study, FULL, 3e-2).readings
    assert read[PLANTED] == 4
    assert read[PLANTED_PHANTOM] > 0
    assert before


def test_under_lora_the_embeddings_stay_and_every_jump_is_a_phantom(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sensitive(self: Watch, *arguments: object, **named: object) -> None:
        init(self, *arguments, **named)  # type: ignore[arg-type]
        self.verdict_settings = VerdictSettings(jump_factor=1.0, jump_floor=1e-9)

    init = Watch.__init__
    monkeypatch.setattr(Watch, "__init__", sensitive)
    read = run_of(study, LEAST, 1e-2).readings
    assert read[MOVED] == 0.0
    assert PLANTED not in read
    assert read[JUMPS] > 4, "half of all changes are above the median"
    assert {read[key] for key in read if key.startswith(EMBEDDINGS)} == {0.0}


def test_embeddings_that_move_though_they_are_not_trained_end_the_run(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Watch.on_validation_start

    @torch.no_grad()
    def written(self: Watch, trainer: object, pl_module: torch.nn.Module) -> None:
        original(self, trainer, pl_module)  # type: ignore[arg-type]
        weight = next(p for name, p in pl_module.named_parameters() if "embed_tokens" in name)
        weight[0, 0] += 1e-7

    monkeypatch.setattr(Watch, "on_validation_start", written)
    design = study.design(STAGES["pilot"], ALONE, None)
    result = run_here(design, RunSpec("judged", 0, LEAST, 1e-3), study.work / "written")
    assert result.outcome == "failed"
    assert "bit by bit" in str(result.error)


@pytest.mark.slow
def test_contexts_among_sentences(study: Study) -> None:
    for arm in STAGES["mixed"].arms:
        result = run_of(study, arm, 1e-3, "mixed")
        read = result.readings
        assert read[SCORE] == pytest.approx(-read["val/background/nll"], rel=1e-5)
        assert len(analysis.outcomes(result)) == 4
        assert read[BACKGROUND] < 1, "the rows are such text"
        assert 0 <= read[SILENT] <= 1


def history(p_correct: list[float], p_competitor: list[float], drag: list[float]) -> ProbeHistory:
    count = len(p_correct)
    signal = [c - s for c, s in zip(p_correct, p_competitor, strict=True)]
    phi = [s + d for s, d in zip(signal, drag, strict=True)]
    losses = [-float(np.log(p)) for p in p_correct]
    return ProbeHistory(list(range(count)), p_correct, p_competitor, losses, phi, signal, drag, [None] * count,
                        [None] * count)  # fmt: skip


def test_what_became_of_a_context_as_numbers() -> None:
    taught = Taught(load_probes("library:test")[0], ".", shipped=True)
    for one, outcome, modes in (
        (history([0.1, 0.3, 0.31, 0.31, 0.31], [0.4, 0.5, 0.5, 0.5, 0.5], [0.0] * 5), "failed", ("kinematic",)),
        (history([0.1, 0.3, 0.31, 0.31, 0.31], [0.4, 0.5, 0.5, 0.5, 0.5], [0.0, -0.1, -0.1, -0.1, -0.1]), "failed",
         ("kinematic", "structural")),
        (history([0.1, 0.15, 0.2, 0.3, 0.45], [0.5] * 5, [0.0] * 5), "stopped early", ()),
        (history([0.1, 0.7, 0.7, 0.7, 0.7], [0.5, 0.1, 0.1, 0.1, 0.1], [0.0] * 5), "flipped", ()),
        (history([0.6, 0.7, 0.7, 0.7, 0.7], [0.1] * 5, [0.0] * 5), "never behind", ()),
    ):  # fmt: skip
        values = of_context(taught, one, judge(one))
        assert (OUTCOMES[int(values["outcome"])], MODES[int(values["mode"])]) == (outcome, modes)
        assert values["behind"] == float(outcome != "never behind")
        assert values["number"] == taught.number < 2**32


# ---------------------------------------------------------------------- runs


def test_a_pilot_finds_the_rates_that_registered_runs_are_made_at(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[RunSpec, str]] = []

    def run(design: Design, spec: RunSpec, folder: Path) -> RunResult:
        asked.append((spec, design.arm(spec.arm).config))
        best = 3e-5 if spec.arm == FULL else 3e-4
        values = {SCORE: float(spec.rate == pytest.approx(best)), FLIPPED: 0.5, BACKGROUND: 1.0, JUMPS: 3.0}
        return RunResult(design.digest_of(spec), spec.key, "finished", curve=(Point(6, 9, 1.0, values),))

    monkeypatch.setattr(study_module, "run_apart", run)
    pilot = replace(STAGES["pilot"], search=RateSearch(3e-6, 3e-3, 4, 0, 0))
    study.run_stage(pilot)
    assert len([spec for spec, _ in asked if spec.kind == "search"]) == 4 * len(ARMS), "equal trials"
    configs = {spec.arm: config for spec, config in asked}
    assert "adapter: null" in configs[FULL]
    for rank in (1, 4, 16, 64):
        assert f"r: {rank}\n" in configs[lora(rank)]
        assert f"lora_alpha: {2 * rank}\n" in configs[lora(rank)]
    asked.clear()
    study.run_stage(RUSHED, "c0ffee")
    assert [(spec.kind, spec.rate) for spec, _ in asked] == [("judged", None)] * 16
    rates = {FULL: FAST_RATE, FASTER: FASTER_RATE}
    for spec, config in asked:
        assert yaml.safe_load(config)["model"]["optimizer"]["init_args"]["lr"] == rates[spec.arm]
    assert {cell.arm: cell.rate for cell in read_cells(study.cells) if cell.stage == "fast"} == rates
    study.run_stage(RUSHED, "c0ffee")
    assert len(asked) == 16, "its cells are known again"
    asked.clear()
    confirmatory = replace(MAIN, replicates=2, search=pilot.search)
    study.run_stage(confirmatory, "c0ffee")
    assert {spec.kind for spec, _ in asked} == {"judged"}
    assert {(spec.arm == FULL, spec.rate) for spec, _ in asked} == {(True, 3e-5), (False, 3e-4)}
    cells = read_cells(study.cells)
    assert not {c.seed for c in cells if c.stage == "pilot"} & {c.seed for c in cells if c.stage == "confirmatory"}
    assert all("pool: judged" in config for _, config in asked)
    assert str(study.model) not in str(cells[0].settings), "no folder of this machine"
    asked.clear()
    monkeypatch.setitem(STAGES, "confirmatory", confirmatory)
    told: list[str] = []
    assert run_small(ROOT, study.cells, study.work / "again", study.model, told.append, SMALL) is True
    ((spec, _),) = asked
    assert (spec.kind, spec.replicate, spec.arm, spec.rate) == ("judged", 0, FULL, 3e-5)
    assert "reproduced to the digits printed" in told[-1]


def test_the_budget_is_kept(study: Study) -> None:
    assert least_runs(STAGES["pilot"]) <= 60
    assert least_runs(MAIN, [ALONE.name]) + least_runs(RUSHED) + least_runs(STAGES["mixed"]) <= 110
    for stage in STAGES.values():
        design = study.design(stage, stage.blocks[0], "c0ffee")
        assert [arm.name for arm in design.arms] == list(stage.arms)
    assert adapter_of(FULL) is None


# ---------------------------------------------------------------------- verdicts

#: arm -> share of jumps with the embeddings, flipped, silent, collateral
World = Callable[[str], tuple[float, float, float, float]]


def context(number: int, outcome: str, mode: int = 0, behind: bool = True, **more: float) -> dict[str, float]:
    values: dict[str, float] = {
        "number": number, "shipped": number % 2, "behind": behind, "outcome": OUTCOMES.index(outcome), "mode": mode,
        "fall": 1.0, "jumps": 2, "embeddings": 1, "share": 0.2,
    }  # fmt: skip
    return {**values, **more}


def simulated(truth: World, seed: int = 0, plant: tuple[int, int] = (16, 0)) -> list[Cell]:
    rng = np.random.default_rng(seed)
    cells = []
    for stage in (MAIN, RUSHED, STAGES["mixed"]):
        for arm in stage.arms:
            for r in range(stage.replicates):
                took, flipped, silent, rise = (value + rng.normal(0, 0.002) * (i < 3) for i, value in
                                               enumerate(truth(arm)))  # fmt: skip
                values = {
                    EMBEDDINGS: took,
                    FLIPPED: flipped,
                    SILENT: silent,
                    FAILED: silent,
                    BACKGROUND: rise,
                    JUMPS: 2.0,
                    MOVED: 0.0,
                }
                if arm in (FULL, FASTER):
                    values |= {PLANTED: float(plant[0]), PLANTED_PHANTOM: float(plant[1])}
                for i, one in enumerate((context(10 * r, "failed", 1), context(10 * r + 1, "flipped"))):
                    values |= {f"context/{i:02d}/{key}": float(value) for key, value in one.items()}
                cells.append(cell_of(stage.name, stage.blocks[0].name, arm, r, values))
    return cells


def cell_of(stage: str, block: str, arm: str, replicate: int, values: dict[str, float], **more: object) -> Cell:
    run = RunResult("", "", "finished", curve=(Point(24, 100, 3.0, values),), seconds=3.0, tokens=100)
    facts = {"package version": "1.0", "package code": "a"}
    made = Cell("phantoms", stage, block, "judged", replicate, arm, 1e-5, 7, "c0ffee", "c0ffee", {}, facts,
                "a processor", run.plain())  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def as_named(arm: str) -> tuple[float, float, float, float]:
    return 0.05, {LEAST: 0.5, MOST: 0.8}.get(arm, 0.7), 0.4, 1.002


def test_verdicts_of_planted_worlds() -> None:
    def verdicts(truth: World, **more: tuple[int, int]) -> list[str]:
        return [v.verdict for v in analysis.hypotheses(simulated(truth, **more))]

    assert verdicts(as_named) == ["supported"] * 3
    assert verdicts(lambda arm: (0.8, {LEAST: 0.9, MOST: 0.6}.get(arm, 0.7), 0.02, 1.0)) == ["contradicted"] * 3
    assert verdicts(lambda arm: (0.1, 0.7, 0.1, 1.0)) == ["undecided"] * 3
    for plant in ((16, 1), (0, 0)):
        found = analysis.hypotheses(simulated(as_named, plant=plant))
        assert [v.verdict for v in found] == ["undecided", "supported", "supported"]
        assert found[0].why == f"of {8 * plant[0]} planted changes {8 * plant[1]} were called phantom"
    dear = analysis.hypotheses(simulated(lambda arm: (*as_named(arm)[:3], 1.02 if arm == MOST else 1.0)))
    assert (dear[1].verdict, dear[1].why) == ("undecided", f"not at equal collateral: {MOST} beyond the bound")
    apart = analysis.hypotheses(simulated(lambda arm: (*as_named(arm)[:3], 1.009 if arm == MOST else 1.0)))
    assert (apart[1].verdict, apart[1].why[:23]) == ("undecided", "not at equal collateral")
    assert "differs by 0.9% of the start" in apart[1].why
    still = [
        cell_of("pilot", ALONE.name, arm, 0, {SCORE: 0.4 if arm == LEAST else 0.003}, kind="search", rate=1e-5)
        for arm in (LEAST, MOST)
    ]
    unmoved = analysis.hypotheses([*simulated(as_named), *still])
    assert unmoved[1].why == f"not at equal collateral: {MOST} flips no context at a rate within the bound"


def test_nothing_is_decided_before_all_cells_are_there() -> None:
    cells = simulated(as_named)
    for stage, arm in ((MAIN.name, lora(4)), (RUSHED.name, FULL), ("mixed", lora(16)), ("mixed", FULL)):
        fewer = [c for c in cells if (c.stage, c.arm, c.replicate) != (stage, arm, 3)]
        assert {v.verdict for v in analysis.hypotheses(fewer)} == {"not complete"}
        assert "nothing is said here yet" in sentences(fewer)[1]


@pytest.mark.parametrize(
    ("stage", "arm", "name"), [(RUSHED.name, FULL, "H1"), (MAIN.name, LEAST, "H2"), ("mixed", FULL, "H3")]
)
def test_a_diverged_run_leaves_its_hypothesis_undecided(stage: str, arm: str, name: str) -> None:
    cells = simulated(as_named)
    at = next(i for i, c in enumerate(cells) if (c.stage, c.arm) == (stage, arm))
    cells[at] = replace(cells[at], result=replace(cells[at].run, outcome="diverged").plain())
    found = {v.name: v for v in analysis.hypotheses(cells)}
    assert found[name].verdict == "undecided"
    assert found[name].why
    others = {v.verdict for other, v in found.items() if other != name}
    assert others == {"supported"}


def test_replicates_without_a_jump_are_left_out_while_enough_remain() -> None:
    def without(count: int) -> list[Cell]:
        bare = [replace(c, result=without_jump(c.run).plain()) if (c.stage, c.replicate) in gone else c for c in cells]
        return bare if count else cells

    def without_jump(run: RunResult) -> RunResult:
        kept = {key: value for key, value in run.readings.items() if key != EMBEDDINGS}
        return replace(run, curve=(Point(24, 100, 3.0, kept),))

    cells = simulated(as_named)
    for count, verdict in ((0, "supported"), (1, "supported"), (2, "undecided")):
        gone = {(RUSHED.name, r) for r in range(1, 1 + count)}
        first = analysis.hypotheses(without(count))[0]
        assert (first.verdict, len(first.finding.values)) == (verdict, 8 - count)
        assert first.why == ("6 of 8 replicates have a jump" if count == 2 else "")


def test_a_context_counts_once_however_many_runs_it_was_in() -> None:
    def outcome(number: int, name: str, modes: tuple[str, ...] = (), behind: bool = True, jumps: int = 0) -> Outcome:
        return Outcome(number, True, behind, name, modes, jumps, min(jumps, 1), 0.5 if jumps else None)

    often = [outcome(1, "failed", ("kinematic",), jumps=2)] * 8
    few = [outcome(2, "flipped", jumps=1), outcome(3, "stopped early"), outcome(3, "flipped")]
    ahead = [outcome(4, "never behind", behind=False)]
    found = analysis.shares([*often, *few, *ahead])
    assert (found.contexts, found.seen) == (3, 11)
    assert found.silent is not None
    assert found.silent.mean == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.kinds == pytest.approx(
        {"kinematic": 1 / 3, "structural": 0, "both": 0, "neither": 0, "stopped early": 0.5 / 3}
    )
    contexts, took, cause = analysis.jump_share([*often, *few])
    assert took is not None
    assert (contexts, took.mean, cause) == (2, pytest.approx((0.5 + 1) / 2), 0.5)


def test_the_smallest_rate_that_flips_the_median_context() -> None:
    pilot = STAGES["pilot"]
    trials = {1e-5: 0.2, 1e-4: 0.6, 1e-3: 0.9}
    cells = [
        cell_of("pilot", ALONE.name, FULL, 0, {FLIPPED: share}, kind="search", rate=rate)
        for rate, share in trials.items()
    ]
    assert analysis.least_rate(cells, pilot, ALONE, FULL) == 1e-4
    assert analysis.least_rate(cells[:1], pilot, ALONE, FULL) is None


# ---------------------------------------------------------------------- page


def page_of(folder: Path, cells: list[Cell], registration: Registration | None = None) -> str:
    page = folder / "docs/studies/phantoms.md"
    write_page(page, folder / "docs/assets/studies/phantoms", cells, registration, ROOT)
    return page.read_text()


def test_the_page_says_what_the_cells_say(tmp_path: Path) -> None:
    empty = page_of(tmp_path, [])
    assert "Of 72 judged runs that answer this, 0 are there" in empty
    assert "There is no figure yet" in empty
    assert not list(tmp_path.rglob("*.svg"))
    text = page_of(tmp_path, simulated(as_named), Registration("c0ffee", {"scripts": {}}))
    assert re.search(r"made up 5% or more of [45]\.\d \[.*\]% of 32 jumps \(H1 supported\)", text)
    assert "among sentences of 16 of 32" in text
    assert "all weights flip -10 to 20 points more than any rank" in text
    assert "p is that of the sign test" not in text
    assert "which were 0 of the 8 silent failures" in text
    assert "16 different contexts" in text
    assert "(H2 supported)" in text
    assert "(H3 supported)" in text
    assert "| 0 of 128 |" in text
    assert text.count("](../assets/studies/phantoms/") == 2
    assert "Registered by the commit `c0ffee`" in text
    assert "by construction, and these rows show no more than" in text
    assert "reconstructed from the abstract" in text
    assert "pilot: 0 of 10 judged runs are there" in text
    assert WORTHLESS not in text
    assert WORTHLESS in page_of(tmp_path, simulated(as_named, plant=(16, 1)))


def test_stages_that_one_version_ran_are_named_together() -> None:
    cells = simulated(as_named)[:1]
    other = {"package version": "1.0", "package code": "b"}
    mixed = [replace(cells[0], stage=name, facts=facts) for name, facts in (("y", cells[0].facts), ("z", other))]
    told = "package version 1.0, package code"
    assert code_words([*cells, *mixed]) == f"Cells were run by: confirmatory, y: {told} a; z: {told} b."


def test_a_share_that_is_0_in_every_replicate_is_said_to_have_a_sign_test_and_an_upper_end(tmp_path: Path) -> None:
    cells = []
    for cell in simulated(as_named):
        readings = {k: 0.0 if k == EMBEDDINGS else v for k, v in cell.run.readings.items()}
        run = replace(cell.run, curve=(replace(cell.run.curve[-1], values=readings),))
        cells.append(replace(cell, result=run.plain()))
    text = page_of(tmp_path, cells)
    assert "made up 5% or more of none of 32 jumps" in text
    assert "its p is that of the sign test" in text
    assert "None among 16 contexts with jumps leaves up to 20.6% possible" in text  # 1 - .025 ** (1 / 16)


def test_shares_are_means_over_runs_with_intervals_over_replicates_alone() -> None:
    def one(number: int, outcome: str, **more: float) -> Outcome:
        fields = {"shipped": False, "behind": True, "modes": (), "jumps": 0, "embeddings": 0, "share": None, **more}
        return Outcome(number=number, outcome=outcome, **fields)  # type: ignore[arg-type]

    some = (
        (one(1, "failed", jumps=3, embeddings=3, share=0.5), one(2, "flipped", jumps=1, share=0.1)),
        (one(1, "flipped"),),
        (one(3, "failed", jumps=2, share=0.2), one(4, "failed"), one(5, "stopped early"), one(6, "flipped")),
    )
    rows = Rows(some, replicates=True)
    silent = rows.share(lambda o: o.silent)
    assert silent is not None
    assert silent.mean == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert silent.low is not None
    assert (rows.contexts, rows.seen, rows.count(lambda o: o.jumps)) == (6, 7, 6)
    took = rows.took_part()
    assert took is not None
    assert took.mean == pytest.approx((3 / 4 + 0 / 2) / 2)
    assert took.low is None, "two runs with jumps are too few for an interval"
    assert rows.cause() == pytest.approx(((3 * 0.5 + 0.1) / 4 + 0.2) / 2)
    searched = Rows(some, replicates=False).share(lambda o: o.silent)
    assert searched is not None
    assert searched.low is None, "runs of a search share one draw"
    assert kinds(rows) == pytest.approx([0, 0, 0, (0.5 + 0 + 0.5) / 3, 0.25 / 3])


def test_the_page_of_this_repository_is_what_its_cells_give(tmp_path: Path) -> None:
    if (CELLS / FILE).exists() and not has_history(ROOT):
        pytest.skip("no full git checkout: the registering commit cannot be looked up")
    given = page_of(tmp_path, read_cells(CELLS), registered(CELLS / FILE, ROOT))
    assert given == (ROOT / "docs/studies/phantoms.md").read_text(), "run: python -m studies.phantoms page"


# ---------------------------------------------------------------------- what is registered


def test_the_registered_file_holds_all_that_decides(tmp_path: Path) -> None:
    write_registration(tmp_path / FILE, {**REGISTERED, "design": plain()}, ROOT, SCRIPTS)
    text = (tmp_path / FILE).read_text()
    for script in SCRIPTS:
        assert (ROOT / script).is_file()
        assert script in text
    for word in ("H1", "H2", "H3", "primary outcome", "decision rule", "Holm"):
        assert word in text
