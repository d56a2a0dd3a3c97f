"""Figures: one look in two themes, scales that are shared, and in words what the marks mean."""

import re

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_sft.compare.keys import score_of
from lightning_sft.errors import UserError
from lightning_sft.figures.capability import capability_figure
from lightning_sft.figures.comparison import _in_unit
from lightning_sft.figures.probes import order_curves, rank_heat_map
from lightning_sft.figures.style import DARK, LIGHT
from lightning_sft.figures.sweeps import sweep_figure
from lightning_sft.metrics.capability import END, PLAIN, TokenTable, read_capability
from lightning_sft.probes.history import ProbeHistory
from lightning_sft.probes.verdict import judge
from lightning_sft.sweep.prediction.estimate import Estimate
from lightning_sft.sweep.prediction.record import CriticalLRPrediction, ProbePrediction, predicted_rate
from lightning_sft.sweep.results import CriticalRate, CriticalTrial, ProbeBracket, RangeTest
from lightning_sft.sweep.suggest import Suggestions


def history(phi: list[float], p_correct: list[float]) -> ProbeHistory:
    n = len(phi)
    return ProbeHistory(
        step=list(range(n)), p_correct=p_correct, p_competitor=[0.5] * n, loss=[3.0 - i / n for i in range(n)], phi=phi,
        signal=[v / 2 for v in phi], drag=[v / 2 for v in phi], geometry_share=[None] + [0.0] * (n - 1),
        counterfactual_share=[None] + [0.0] * (n - 1),
    )  # fmt: skip


HISTORIES = {
    "wins": history([0, 0, 0, 0.9, 0.9, 0.9], [0.1, 0.2, 0.4, 0.6, 0.7, 0.8]),
    "stays": history([0, -0.1, -0.1, -0.2, -0.2, -0.2], [0.1] * 6),
}
RANGE = RangeTest(
    "rate", 0, "x", "training loss", [1e-4, 1e-3, 1e-2], [3.0, 2.0, float("nan")], [3.0, 2.0, 4.0],
    Suggestions(steepest=5e-4, minimum_tenth=1e-3, valley=7e-4, edge=8e-3), "valley",
)  # fmt: skip
CRITICAL = CriticalRate(
    "critical", 0, "x", "found", "rank flip", 0.5, 12, 1e-3, 2e-3, 1.0, [],
    [CriticalTrial(1e-3, False, 0.0, None, "finished", 12, 1.0), CriticalTrial(2e-3, True, 1.0, 4, "stopped", 4, 1.0)],
    [ProbeBracket("wins", -1.0, 1e-3, 2e-3, True)],
)  # fmt: skip


def words(figure: Figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title(loc="left") + axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    return "\n".join([*legends, *inside, *titles])


def test_panels_that_are_compared_share_their_scale_and_say_what_happened() -> None:
    verdicts = {name: judge(one) for name, one in HISTORIES.items()}
    figure = order_curves(HISTORIES, verdicts)
    first, second = figure.axes[:2]
    assert first.get_ylim() == second.get_ylim()
    said = words(figure)
    assert "flips at 3" in said
    assert "1 jump +0.90 at 3\nphantom: embeddings stood still" in said
    assert verdicts["stays"].title in said
    for plain in ("S commitment", "D drag of other words", "Phi = S + D: above 0 it wins"):
        assert plain in said


def test_a_sweep_shows_its_bracket_and_what_was_predicted() -> None:
    without, figure = sweep_figure(CRITICAL), sweep_figure(CRITICAL, predicted=(1.9e-3, 1.5e-3, 2.2e-3))
    assert "predicted 0.0019" in words(figure)
    assert "predicted" not in words(without)
    spans = [tuple(round(v, 5) for v in patch.get_bbox().intervalx) for patch in figure.axes[0].patches]
    assert spans == [(1e-3, 2e-3), (1.5e-3, 2.2e-3)], "the bracket, and the interval of the prediction"
    assert "Critical rate 0.002" in words(figure)


def test_a_range_test_shades_the_rates_worth_a_run() -> None:
    figure = sweep_figure(RANGE)
    (band,) = figure.axes[0].patches
    assert tuple(band.get_bbox().intervalx) == (5e-4, 1e-3)
    for written in ("valley 0.0007", "minimum / 10 0.001", "too high from 0.008"):
        assert written in words(figure)


def test_the_last_prediction_of_a_sweep_is_found(tmp_path) -> None:
    assert predicted_rate(None, "critical") is None
    assert predicted_rate(tmp_path, "critical") is None
    estimate = Estimate("predicted", 1.0, lr=2e-3, low=1e-3, high=3e-3)
    made = CriticalLRPrediction([], ProbePrediction("all", estimate, 1e-3, 1e-3), {"a": 1})
    made.write(tmp_path / "sweep" / "critical.prediction.12ab.json")
    assert predicted_rate(tmp_path, "critical") == (2e-3, 1e-3, 3e-3)
    assert predicted_rate(tmp_path, "other") is None


@pytest.mark.parametrize(("name", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_both_themes(name: str, theme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_FIGURES", name)
    ranks = rank_heat_map([0, 1], [[40.0, 2.0], [1.0, 3.0]], ["a", "b"])
    for figure in (ranks, sweep_figure(RANGE), sweep_figure(CRITICAL)):
        assert to_hex(figure.get_facecolor()) == theme.page
        assert to_hex(figure.axes[0].xaxis.label.get_color()) == theme.ink
        width, height = figure.get_size_inches()
        assert width <= 8, "text of a wider figure is too small in TensorBoard's thumbnails"
        assert height > 2
        sizes = [text.get_fontsize() for axes in figure.axes for text in [axes.xaxis.label, *axes.texts]]
        assert min(sizes) >= 9
    assert "1 of 2 end on top" in words(ranks)
    assert re.search("40 . 1", "\n".join(t.get_text() for a in ranks.axes[0].child_axes for t in a.get_yticklabels()))


def test_an_unknown_theme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_FIGURES", "Dark")
    with pytest.raises(UserError, match=r"'Dark' in the environment\. Allowed: light, dark"):
        sweep_figure(RANGE)


def test_the_capability_figure_leaves_special_tokens_out_as_the_terminal_does() -> None:
    """Of these tokens the words are weak, and with the ends of the answers they would be intermediate."""
    tokens = torch.zeros(40, 8, dtype=torch.float64)
    is_end = torch.arange(40) % 4 == 3
    p = torch.where(is_end, 0.9, 0.05).double()
    tokens[:, 0], tokens[:, 2], tokens[:, 4] = p.log(), p, torch.arange(40) // 4
    tokens[:, 6] = torch.where(is_end, END, PLAIN)
    reading = read_capability(TokenTable.from_matrix(tokens))
    assert (reading.place, reading.all.place) == ("weak", "intermediate")
    assert reading.scalars()["capability/content/mean_p"] == pytest.approx(0.05)
    said = words(capability_figure(reading, reading))
    assert "before 0.05" in said
    assert "after 0.05" in said
    assert "0.26" not in said
    assert "mean p of the right token, special tokens left out, 95% interval over rows" in said
    plain = read_capability(TokenTable.from_matrix(tokens[~is_end]))
    assert plain.scalars()["capability/content/mean_p"] == plain.scalars()["capability/mean_p"]
    assert "special" not in words(capability_figure(plain))


def test_the_axis_of_a_comparison_says_its_unit() -> None:
    assert _in_unit(score_of("val/nll")) == " in nats per token"
    assert _in_unit(score_of("val/exact_match")) == " in points"
    assert _in_unit(score_of("val/mean_p")) in ("", " in points")
