"""Wrong settings end at construction or at the start of a run, with what is allowed and what to change."""

import json

import pytest

from lightning_sft.errors import UserError
from lightning_sft.objectives import (
    ASFT,
    DFT,
    EAFT,
    GEM,
    IWSFT,
    NLL,
    PSFT,
    TALR,
    Adaptive,
    Distill,
    Focal,
    Huber,
    KLAnchor,
    LabelSmoothing,
    LogOneMinusP,
    PerSource,
    PowerFamily,
    ProFiT,
    Rho1,
    RunFacts,
    Scheduled,
    SpecialTokens,
    TailSFT,
    Thresholded,
    TrustRegion,
    WeightedSum,
    ZLoss,
)

nan = float("nan")
top, bottom = Thresholded(threshold=0.1), Thresholded(threshold=0.1, keep="bottom")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerFamily(-0.5), r"PowerFamily got alpha=-0.5. Allowed: a finite number >= 0"),
        (lambda: PowerFamily(float("inf")), "alpha=inf"),
        (lambda: LogOneMinusP(0), r"eps=0. Allowed: a finite number > 0 and <= 1"),
        (lambda: PowerFamily(floor=1.1), "floor=1.1"),
        (lambda: DFT(-0.1), r"DFT got floor=-0.1. Allowed: a finite number >= 0 and <= 1"),
        (lambda: EAFT(alpha=-1), "alpha=-1"),
        (lambda: TrustRegion(0), r"alpha=0. Allowed: a finite number > 0 and <= 1"),
        (lambda: KLAnchor(estimate="k2"), r"estimate='k2'. Allowed: \"whole\", \"target\""),
        (lambda: KLAnchor(direction="up"), r"KLAnchor got direction='up'"),
        (lambda: KLAnchor(IWSFT()), "KLAnchor looks at every token's row of logits and IWSFT"),
        (lambda: Distill(divergence="l2"), r"divergence='l2'. Allowed: \"forward\", \"reverse\", \"jsd\""),
        (lambda: Distill(beta=1), r"beta=1. Allowed: a finite number > 0 and < 1"),
        (lambda: Distill(temperature=0), "temperature=0"),
        (lambda: PSFT(), r"PSFT got every_n_steps=None. Allowed: an integer >= 1"),
        (lambda: PSFT(0), "every_n_steps=0"),
        (lambda: PSFT(4, clip=0), "clip=0"),
        (lambda: Rho1(0), r"fraction=0. Allowed: a finite number > 0 and < 1"),
        (lambda: TailSFT(1), r"fraction=1. Allowed: a finite number > 0 and < 1"),
        (lambda: KLAnchor(PSFT(4)), "KLAnchor a frozen one, PSFT a snapshot every 4 steps is wanted"),
        (lambda: WeightedSum({"a": PSFT(4), "b": IWSFT()}), "PSFT a snapshot every 4 steps, IWSFT a frozen one"),
        (lambda: SpecialTokens(NLL(), -1), "weight=-1"),
        (lambda: Focal(0.5), r"gamma=0.5. Allowed: 0, or a finite number >= 1"),
        (lambda: Focal(-1), "gamma=-1"),
        (lambda: Huber(0), r"delta=0. Allowed: a finite number > 0"),
        (lambda: ProFiT(1.2), r"threshold=1.2. Allowed: a finite number >= 0 and <= 1"),
        (lambda: TALR(-0.1), "floor=-0.1"),
        (lambda: EAFT(1), r"k=1. Allowed: an integer >= 2"),
        (lambda: GEM(0), "beta=0"),
        (lambda: GEM(h="cubic"), r"h='cubic'. Allowed: \"linear\", \"log_sigmoid\""),
        (lambda: LabelSmoothing(smoothing=1.5), "smoothing=1.5"),
        (lambda: ZLoss(weight=-1), "weight=-1"),
        (lambda: ASFT(weight=nan), "weight=nan"),
        (lambda: ASFT(direction="sideways"), r"direction='sideways'. Allowed: \"forward\", \"reverse\""),
        (lambda: IWSFT(0), "max_weight=0"),
        (lambda: Thresholded(threshold=-0.1), r"threshold=-0.1. Allowed: a finite number >= 0 and <= 1"),
        (lambda: Thresholded(threshold=1.1), "threshold=1.1"),
        (lambda: Thresholded(threshold=nan), "threshold=nan"),
        (lambda: Thresholded(keep="middle", threshold=0.5), r"keep='middle'. Allowed: \"top\", \"bottom\""),
        (lambda: Thresholded(), "exactly one of `threshold` and `percentile`, and got neither"),
        (lambda: Thresholded(threshold=0.1, percentile=10), "got both"),
        (lambda: Thresholded(threshold=0.1, histogram="p.json"), "Give `percentile` instead"),
        (lambda: Thresholded(percentile=10), "percentile=10.0 without a histogram"),
        (lambda: Thresholded(percentile=101, histogram="p.json"), r"percentile=101. Allowed: .* <= 100"),
        (
            lambda: Thresholded(percentile=10, histogram="nowhere.json"),
            r"'nowhere.json' cannot be read .*save_histogram",
        ),
        (lambda: WeightedSum({}), "got no objective"),
        (lambda: WeightedSum({"a": NLL()}, {"b": 1.0}), r"weights for \['b'\]. Its objectives are \['a'\]"),
        (lambda: WeightedSum({"a": NLL()}, {"a": -1.0}), r"weights\['a'\]=-1.0"),
        (lambda: Scheduled(NLL(), NLL(), 5, 4), "begin_step=5 and end_step=4. Allowed: 0 <= begin_step <= end_step"),
        (lambda: PerSource({}), "got no objective"),
        (lambda: Adaptive(0.7, 0.7), r"strong=0.7. Allowed: a finite number > 0.7 and <= 1"),
        (lambda: Adaptive(decay=1.0), r"decay=1.0. Allowed: a finite number >= 0 and < 1"),
        (lambda: ZLoss(IWSFT()), "ZLoss looks at every token's row of logits and IWSFT at the other tokens"),
        (lambda: WeightedSum({"a": EAFT(), "b": IWSFT()}), "EAFT looks at .* and IWSFT at"),
    ],
)
def test_refused_at_construction(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "facts", "message"),
    [
        (
            ASFT(),
            RunFacts(),
            r"ASFT compares .* reference model \(its logits\), and this run has none. Train an adapter",
        ),
        (
            PSFT(4),
            RunFacts(has_reference=True),
            "PSFT compares .* snapshots of itself, and this run takes none",
        ),
        (SpecialTokens(NLL()), RunFacts(), "SpecialTokens found no special tokens"),
        (Rho1(), RunFacts(), r"Rho1 compares .* \(its logp\), and this run has none"),
        (Distill(), RunFacts(), r"Distill compares .* \(its logits\)"),
        (IWSFT(), RunFacts(), r"IWSFT compares .* \(its logp\)"),
        (WeightedSum({"a": NLL(), "b": IWSFT()}), RunFacts(), "IWSFT compares"),
        (ProFiT(), RunFacts(denominator="kept"), r'denominator: "kept". Set denominator: "all"'),
        (WeightedSum({"a": NLL(), "b": top}), RunFacts(denominator="kept"), "'a' keeps all, 'b' keeps p >= 0.1"),
        (Scheduled(top, bottom, 0, 5), RunFacts(denominator="kept"), "no common denominator"),
        (
            PerSource({"web": top}, default=NLL()),
            RunFacts(sources=("web", "code"), denominator="kept"),
            "PerSource mixes objectives that keep different tokens",
        ),
        (PerSource({"wep": NLL()}, NLL()), RunFacts(sources=("web", "code")), r"\['wep'\]. Known .*: 'web', 'code'"),
        (PerSource({"web": NLL()}), RunFacts(sources=("web", "code")), r"no objective for .* \['code'\]"),
        (PerSource({"web": NLL()}), RunFacts(), "Known in this run: none"),
        (Adaptive(per_source=True), RunFacts(), "names no data sources"),
        (Scheduled(NLL(), NLL()), RunFacts(), "Give end_step, or max_steps"),
        (Scheduled(NLL(), NLL(), 20), RunFacts(total_steps=10), "begin_step=20, but this run ends after 10"),
        (ZLoss(PerSource({"wep": NLL()})), RunFacts(sources=("web",)), "unknown data sources"),
    ],
)
def test_refused_at_start(objective, facts, message):
    with pytest.raises(UserError, match=message):
        objective.prepare(facts)


def test_state_of_other_sources_is_refused():
    objective = Adaptive(per_source=True)
    objective.prepare(RunFacts(sources=("a", "b")))
    other = Adaptive(per_source=True)
    other.load_state_dict(objective.state_dict())
    with pytest.raises(UserError, match="holds the state of 2 data sources, and this run has 3"):
        other.prepare(RunFacts(sources=("a", "b", "c")))


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"edges": [0, 1], "counts": [1]}',
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [0, 1], "counts": [1, 2]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [0, 0.5, 0.5], "counts": [1, 2]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [0, 2], "counts": [1]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [0, 1], "counts": [0]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [0, 0.5, 1], "counts": [-1, 2]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": ["0", "1"], "counts": [1]}),
        json.dumps({"format": "lightning_sft.histogram.v1", "edges": [], "counts": []}),
        json.dumps({"format": "lightning_sft.histogram.v1"}),
    ],
)
def test_a_file_that_is_no_histogram(tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(UserError, match=r"p\.json' .*Needed: "):
        Thresholded(percentile=10, histogram=tmp_path / "p.json")
