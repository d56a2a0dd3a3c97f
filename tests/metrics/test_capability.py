"""The capability reading equals its definitions, and its file is what percentile thresholds read."""

import json
import math

import numpy as np
import pytest
import torch

from lightning_sft.errors import UserError
from lightning_sft.metrics import CutOffs, TokenTable, first_choice_calibration, load_reading, read_capability
from lightning_sft.metrics.capability import END, EXACT, SPECIAL, WRONG
from lightning_sft.metrics.capability_reading import CapabilityReading, save_reading
from lightning_sft.objectives import Thresholded, load_histogram


def table(tokens: int = 600, rows: int = 40, seed: int = 0) -> TokenTable:
    """Tokens of rows whose level differs, so that tokens of a row depend on each other."""
    random = torch.Generator().manual_seed(seed)
    row = torch.arange(tokens) % rows
    level = 3 * torch.rand(rows, generator=random, dtype=torch.float64)
    logp = -level[row] * torch.rand(tokens, generator=random, dtype=torch.float64)
    top_p = torch.maximum(logp.exp(), torch.rand(tokens, generator=random, dtype=torch.float64))
    zeros = torch.zeros(tokens, dtype=torch.float64)
    kind, answer = zeros.clone(), zeros.clone()
    kind[-rows:], kind[:rows] = END, SPECIAL
    answer[:30], answer[30:rows] = WRONG, EXACT
    return TokenTable(
        logp, (logp.exp() >= top_p).double(), top_p, 2 * top_p, row.double(), (row % 2).double(), kind, answer
    )


def test_the_numbers_are_their_definitions():
    tokens = table()
    reading = read_capability(tokens, ("even", "odd", "absent"), rows_of_set=100)
    p = np.exp(tokens.logp.numpy())
    found = reading.all
    assert (found.rows, found.tokens, reading.rows_of_set) == (40, 600, 100)
    assert found.mean_p == pytest.approx(p.mean(), rel=1e-12)
    assert found.nll == pytest.approx(-tokens.logp.mean().item(), rel=1e-12)
    assert found.top1_share == pytest.approx(tokens.is_top1.mean().item())
    assert found.share_unlikely == (p < 0.1).mean()
    assert found.share_known == (p > 0.55).mean()
    assert found.p_quantiles["30%"] == np.quantile(p, 0.3)
    assert found.entropy_quantiles["95%"] == np.quantile(tokens.entropy.numpy(), 0.95)
    assert (found.answers, found.exact_match) == (40, 0.25)
    for histogram in (found.p_histogram, found.log10_p_histogram, found.fine_p_histogram):
        assert sum(histogram.counts) == 600
    assert found.p_histogram.counts[0] == (p < 0.05).sum()
    assert list(reading.sources) == ["even", "odd"]
    assert reading.sources["odd"].mean_p == pytest.approx(p[tokens.source.numpy() == 1].mean(), rel=1e-12)
    assert (reading.special.tokens, reading.end.tokens) == (80, 40)
    assert reading.end.mean_p == pytest.approx(p[-40:].mean(), rel=1e-12)


def test_the_order_of_tokens_changes_nothing():
    tokens, order = table(), torch.randperm(600)
    shuffled = read_capability(TokenTable(*(column[order] for column in tokens)), ("even", "odd"))
    plain = read_capability(tokens, ("even", "odd"))
    assert shuffled.all.mean_p == pytest.approx(plain.all.mean_p, rel=1e-12)
    assert shuffled.all.mean_p_interval == pytest.approx(plain.all.mean_p_interval, rel=1e-12)


def test_the_interval_is_that_of_rows_and_not_of_tokens():
    tokens = table(tokens=4000, rows=40)
    low, high = read_capability(tokens).all.mean_p_interval
    p = tokens.logp.exp()
    of_rows = torch.stack([p[tokens.row == r].mean() for r in range(40)])
    width = 2 * 1.96 * of_rows.std().item() / math.sqrt(40)
    assert high - low == pytest.approx(width, rel=0.15)
    assert high - low > 3 * 2 * 1.96 * p.std().item() / math.sqrt(4000), "tokens are not independent"


def test_scores_that_are_no_numbers_are_no_reading():
    tokens = table()
    tokens.logp[3] = math.nan
    with pytest.raises(UserError, match="for 1 of 600 supervised tokens the model gives no number"):
        read_capability(tokens)


def test_one_row_has_no_interval_and_no_token_no_reading():
    tokens = table()
    one = read_capability(tokens.where(tokens.row == 0))
    assert one.all.mean_p_interval is None
    with pytest.raises(UserError, match="no supervised token"):
        read_capability(tokens.where(tokens.row < 0))


@pytest.mark.parametrize(
    ("mean_p", "place"), [(0.05, "weak"), (0.1, "weak"), (0.4, "intermediate"), (0.7, "strong"), (0.9, "strong")]
)
def test_places_and_their_cut_offs(mean_p, place):
    tokens = table()._replace(logp=torch.full((600,), math.log(mean_p), dtype=torch.float64))
    moved = tokens._replace(logp=tokens.logp + (1e-9 if place == "strong" else -1e-9))
    assert read_capability(moved).all.place == place
    assert read_capability(tokens, cut_offs=CutOffs(weak=0.0, strong=1.0)).all.place == "intermediate"


def test_the_place_is_that_of_the_answers_own_tokens():
    tokens = table()
    p = torch.where(tokens.kind == 0, 0.06, 0.9)  # 80 of 600 are special
    reading = read_capability(tokens._replace(logp=p.double().log()), ("even", "odd"))
    assert (reading.all.place, reading.place, reading.content.tokens) == ("intermediate", "weak", 520)
    assert reading.content.mean_p == pytest.approx(0.06, rel=1e-6)
    assert [reading.judged_of(name).place for name in reading.sources] == ["weak", "weak"]
    assert CapabilityReading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading
    only = read_capability(tokens.where(tokens.kind != 0))
    assert only.content is None
    assert only.judged == only.all


def test_a_reading_of_an_earlier_release_is_judged_by_all_tokens():
    content = read_capability(table(), ("even", "odd")).to_dict()
    for name in ("content", "content_of_sources", "place"):
        del content[name]
    reading = CapabilityReading.from_dict(content)
    assert reading.judged == reading.all
    assert reading.judged_of("odd") == reading.sources["odd"]


def test_the_interval_of_exact_match_is_exact():
    tokens = table()
    reading = read_capability(tokens)
    assert (reading.all.exact_answers, reading.all.answers) == (10, 40)
    none = read_capability(tokens._replace(answer=torch.where(tokens.answer == EXACT, WRONG, tokens.answer))).all
    assert none.exact_match_interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))  # of none right: (1 - p)^n
    assert read_capability(tokens._replace(answer=torch.zeros(600))).all.exact_match_interval is None


@pytest.mark.parametrize("given", [(0.7, 0.1), (-0.1, 0.5), (0.5, 1.5), (0.5, 0.5)])
def test_cut_offs_out_of_order_are_refused(given):
    with pytest.raises(UserError, match="0 <= weak < strong <= 1"):
        CutOffs(*given)


def test_calibration_is_the_gap_between_confidence_and_hits():
    confidence = torch.tensor([0.95, 0.95, 0.35, 0.35, 0.35, 0.35])
    right = torch.tensor([True, False, True, False, False, False])
    expected = (2 * abs(0.95 - 0.5) + 4 * abs(0.35 - 0.25)) / 6
    assert first_choice_calibration(confidence, right) == pytest.approx(expected, rel=1e-6)
    certain = torch.tensor([1.0 + 1e-7, 1.0])  # not taken for logits
    assert first_choice_calibration(certain, torch.tensor([True, True])) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(first_choice_calibration(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))


def test_the_file_comes_back_and_gives_percentiles(tmp_path):
    tokens = table(5000, 50)
    strong = tokens._replace(logp=tokens.logp * 1e-3)  # p between .997 and 1
    for name, part in (("wide", tokens), ("strong", strong)):
        reading = read_capability(part, ("even", "odd"), CutOffs(0.2, 0.6))
        save_reading(tmp_path / "capability.json", reading, None, note="kept")
        assert load_reading(tmp_path / "capability.json") == reading
        assert json.loads((tmp_path / "capability.json").read_text())["note"] == "kept"
        assert CapabilityReading.from_dict(reading.to_dict()) == reading
        found = Thresholded(percentile=10, histogram=tmp_path / "capability.json").threshold
        below = (part.logp.exp() < found).double().mean().item()
        assert below == pytest.approx(0.1, abs=0.005), name


@pytest.mark.parametrize("content", ["", "{}", '{"format": "lightning_sft.capability.v1", "start": null}'])
def test_a_file_without_a_reading_is_named(tmp_path, content):
    path = tmp_path / "capability.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"capability\.json"):
        load_histogram(path)
    with pytest.raises(UserError, match="holds no capability reading"):
        load_reading(path)
