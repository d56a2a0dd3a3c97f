"""Charts as Vega-Lite specifications: plain data, drawn by the page itself.

Colours of text and grid are left to the page's style sheet, which knows its theme; those of data are seen on both, and
by people who confuse red and green.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Points = Sequence[tuple[float, float]]

#: of the data, in order: blue, orange, green, violet, ochre, grey
COLOURS = ("#2f86c1", "#e0702e", "#1d9e78", "#b862b0", "#a98c1c", "#7d8b99")
BAND = "#2f86c1"
#: points of a curve that are drawn at most, and up to which single readings are marked
MOST_POINTS, FEW = 400, 40
#: pixels of a chart, and of each line of its legend beyond the first
_HEIGHT, _LEGEND = 230, 20
#: labels of more signs stand one below the other
_LONG = 22
CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "tickCount": 6},
    "legend": {"labelFontSize": 12, "orient": "top", "title": None, "columns": 2, "labelLimit": 320, "symbolSize": 140},
    "view": {"stroke": None},
    "range": {"category": list(COLOURS)},
}


@dataclass(frozen=True)
class Chart:
    """A chart with its heading.

    Attributes:
        title: what it shows, with the unit.
        note: how to read it; may be empty.
        spec: what draws it.
    """

    title: str
    note: str
    spec: Spec


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: of the legend.
        points: (x, y), by rising x.
        dashed: drawn with dashes, as curves of training rows beside held-out ones.
        colour: index of its colour; None takes the next one.
    """

    label: str
    points: Points
    dashed: bool = False
    colour: int | None = None


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most so many points, spread evenly, the last one among them; those that are no numbers are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= most:
        return finite
    kept = [finite[i * len(finite) // most] for i in range(most)]
    return [*kept[:-1], finite[-1]]


def curves(title: str, y: str, series: Iterable[Series], *, note: str = "", share: bool = False) -> Chart | None:
    """Return curves over the optimizer steps; None without a point."""
    rows: list[dict[str, Any]] = []
    labels: list[str] = []
    drawn: list[Series] = []
    dashes: list[list[int]] = []
    hues: list[str] = []
    for one in series:
        points = thinned(one.points)
        if not points:
            continue
        labels.append(one.label)
        drawn.append(one)
        dashes.append([5, 4] if one.dashed else [1, 0])
        hues.append(COLOURS[(len(hues) if one.colour is None else one.colour) % len(COLOURS)])
        few = len(points) <= FEW and not one.dashed
        rows += [{"x": x, "y": _rounded(v), "s": one.label, "few": few} for x, v in points]
    if not rows:
        return None
    colour: Spec = {"field": "s", "type": "nominal", "sort": None, "scale": {"domain": labels, "range": hues},
                    "legend": None}  # fmt: skip
    # of several runs a dashed curve has the colour of its run, and the note says what dashes mean
    told = [(one.label, one.colour) for one in drawn if not one.dashed or one.colour is None]
    told += [(one.label, one.colour) for one in drawn if one.dashed and one.colour not in {c for _, c in told}]
    named = [label for label, _ in told]
    columns = 1 if max(map(len, named)) > _LONG else 2
    if len(labels) > 1:
        # a stroke, which can be dashed; of a chart with dots, too, whose sign would be a dot
        colour["legend"] = {"columns": columns, "symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2,
                            **({"values": named} if len(named) < len(labels) else {})}  # fmt: skip
    scale = {"domain": [0, 1]} if share else {"zero": False}
    x = {"field": "x", "type": "quantitative", "title": "optimizer step", "axis": {"grid": False, "format": "~s"}}
    encoding = {
        "x": x,
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": scale, **_percent(share)},
        "color": colour,
        "tooltip": [
            {"field": "s", "title": "curve"},
            {"field": "x", "title": "step"},
            {"field": "y", "title": y, "format": ".4~g"},
        ],
    }
    dash = {"field": "s", "type": "nominal", "sort": None, "scale": {"domain": labels, "range": dashes},
            "legend": colour["legend"]}  # fmt: skip
    lines = {"mark": {"type": "line", "strokeWidth": 2, "clip": True}, "encoding": {"strokeDash": dash}}
    dots = {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1, "clip": True},
            "transform": [{"filter": "datum.few"}]}  # fmt: skip
    layers = [lines, dots] if any(row["few"] for row in rows) else [lines]
    # the legend stands within the height: the curves keep theirs
    height = _HEIGHT + _LEGEND * (math.ceil(len(named) / columns) - 1 if len(labels) > 1 else 0)
    return Chart(title, note, _spec(rows, encoding=encoding, layer=layers, height=height))


def continuum(readings: Sequence[tuple[str, Mapping[str, Any]]], cut_offs: Mapping[str, float]) -> Chart:
    """Return where readings of capability stand between weak and strong.

    Args:
        readings: label and the group of all tokens, as capability.json holds it.
        cut_offs: where the continuum is cut.
    """
    bounds = [0.0, cut_offs["weak"], cut_offs["strong"], 1.0]
    zones = [{"from": a, "to": b, "middle": (a + b) / 2, "place": name}
             for a, b, name in zip(bounds, bounds[1:], ("weak", "intermediate", "strong"), strict=False)]  # fmt: skip
    rows = []
    for label, group in readings:
        low, high = group.get("mean_p_interval") or (group["mean_p"], group["mean_p"])
        rows.append({"s": label, "p": group["mean_p"], "low": low, "high": high})
    x: Spec = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"grid": False}}
    y: Spec = {
        "field": "s",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"labelLimit": 140, "ticks": False},
    }
    colour = {"field": "s", "type": "nominal", "sort": None, "legend": None}
    title = "mean probability of the right token"
    zone = {"data": {"values": zones}, "mark": {"type": "rect", "opacity": 0.14},
            "encoding": {"x": {**x, "field": "from", "title": title}, "x2": {"field": "to"},
                         "color": {"field": "place", "legend": None, "scale": {"domain": [z["place"] for z in zones],
                                   "range": [COLOURS[1], COLOURS[5], COLOURS[2]]}}}}  # fmt: skip
    word = {"data": {"values": zones}, "mark": {"type": "text", "baseline": "top", "dy": 3, "fontSize": 11},
            "encoding": {"x": {**x, "field": "middle", "title": title}, "y": {"value": 0},
                         "text": {"field": "place"}}}  # fmt: skip
    span = {"mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.45},
            "encoding": {"x": {**x, "field": "low", "title": title}, "x2": {"field": "high"}, "y": y,
                         "color": colour}}  # fmt: skip
    dot = {"mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
           "encoding": {"x": {**x, "field": "p", "title": title}, "y": y, "color": colour,
                        "tooltip": [{"field": "p", "format": ".3f"}, {"field": "low", "format": ".3f"},
                                    {"field": "high", "format": ".3f"}]}}  # fmt: skip
    spec = _spec(rows, layer=[zone, word, span, dot], height=50 + 34 * len(rows))
    spec["resolve"] = {"scale": {"color": "independent"}}
    cuts = f"cut at {cut_offs['weak']:g} and {cut_offs['strong']:g}, which are ours"
    return Chart("Where the model stands on the task", f"With 95% intervals over rows; {cuts}.", spec)


def histogram(readings: Sequence[tuple[str, Mapping[str, Any]]]) -> Chart:
    """Return the share of tokens over the probability of the right one, a colour a reading."""
    rows = []
    for label, group in readings:
        edges, counts = group["p_histogram"]["edges"], group["p_histogram"]["counts"]
        total = max(sum(counts), 1)
        rows += [{"a": a, "b": b, "zero": 0, "share": c / total, "s": label}
                 for a, b, c in zip(edges, edges[1:], counts, strict=False)]  # fmt: skip
    labels = [label for label, _ in readings]
    encoding = {
        "x": {"field": "a", "type": "quantitative", "title": "probability of the right token",
              "scale": {"domain": [0, 1]}, "axis": {"grid": False}},
        "x2": {"field": "b"},
        "y": {"field": "share", "type": "quantitative", "title": "share of tokens", **_percent(True)},
        "y2": {"field": "zero"},
        "color": {"field": "s", "type": "nominal", "sort": None, "scale": {"domain": labels}},
        "tooltip": [{"field": "s"}, {"field": "a"}, {"field": "b"}, {"field": "share", "format": ".1%"}],
    }  # fmt: skip
    spec = _spec(rows, mark={"type": "rect", "opacity": 0.5}, encoding=encoding)
    return Chart("How likely the right tokens are", "Tokens to the right are known, those to the left are not.", spec)


def rate_curve(title: str, y: str, raw: Points, smooth: Points, marks: Mapping[str, float],
               band: tuple[float, float] | None) -> Chart:  # fmt: skip
    """Return a loss over the learning rate, with rates that the curve suggests and the band between them."""
    finite = [v for _, v in smooth if math.isfinite(v)]
    low, start = min(finite, default=0.0), finite[0] if finite else 1.0
    room = abs(start - low) or 1.0
    domain = [low - 0.1 * room, start + 0.4 * room]
    rows = [{"x": x, "y": _rounded(v), "s": s} for s, points in (("each step", raw), ("smoothed", smooth))
            for x, v in thinned(points)]  # fmt: skip
    layers: list[Spec] = [_band(*band)] if band else []
    colour = {"field": "s", "type": "nominal", "scale": {"domain": ["smoothed", "each step"],
                                                         "range": [COLOURS[0], COLOURS[5]]}}  # fmt: skip
    layers.append({
        "mark": {"type": "line", "clip": True},
        "encoding": {"x": _rate("x"),
                     "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"domain": domain}},
                     "color": colour, "strokeWidth": {"condition": {"test": "datum.s=='smoothed'", "value": 2.5},
                                                      "value": 1}},
    })  # fmt: skip
    return Chart(title, "Shaded: rates worth a run. Dashed: what each rule suggests.",
                 _spec(rows, layer=[*layers, *_rules(marks)]))  # fmt: skip


def trials(title: str, results: Sequence[Mapping[str, Any]], bracket: tuple[float, float] | None,
           predicted: Mapping[str, Any]) -> Chart:  # fmt: skip
    """Return the share of probes that crossed over the learning rate, the bracket, and what was predicted before."""
    rows = [{"x": t["lr"], "y": t["share"], "s": "crossed" if t["crossed"] else "not crossed"} for t in results]
    dots = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {
            "x": _rate("x"),
            "y": {"field": "y", "type": "quantitative", "title": "share of probes", "scale": {"domain": [0, 1]},
                  **_percent(True)},
            "color": {"field": "s", "type": "nominal", "scale": {"domain": ["crossed", "not crossed"],
                                                                 "range": [COLOURS[2], COLOURS[1]]}},
            "shape": {"field": "s", "type": "nominal", "scale": {"domain": ["crossed", "not crossed"],
                                                                 "range": ["circle", "cross"]}},
            "tooltip": [{"field": "x", "format": ".3~g"}, {"field": "y", "format": ".0%"}, {"field": "s"}],
        },
    }  # fmt: skip
    layers: list[Spec] = [_band(*bracket, COLOURS[2])] if bracket else []
    note = "Green band: the critical rate lies within it." if bracket else "The trials found no bracket."
    if predicted.get("lr"):
        layers.append(_band(predicted["low"], predicted["high"], COLOURS[3]))
        layers += _rules({"predicted": predicted["lr"]})
        note += " Violet band: predicted before the trials, with its 80% interval."
    return Chart(title, note, _spec(rows, layer=[*layers, dots]))


def _band(low: float, high: float, colour: str = BAND) -> Spec:
    return {"data": {"values": [{"a": low, "b": high}]}, "mark": {"type": "rect", "opacity": 0.2, "color": colour},
            "encoding": {"x": _rate("a"), "x2": {"field": "b"}}}  # fmt: skip


def _rules(marks: Mapping[str, float]) -> list[Spec]:
    rows: list[Spec] = [{"x": x, "n": f"{name} {x:.2g}", "i": i} for i, (name, x) in enumerate(marks.items())]
    if not rows:
        return []
    data = {"values": rows}
    # one below the other, since rates that mean the same lie close
    return [
        {"data": data, "mark": {"type": "rule", "strokeDash": [3, 3], "opacity": 0.8, "color": COLOURS[5]},
         "encoding": {"x": _rate("x")}},
        *({"data": {"values": [row]}, "mark": {"type": "text", "align": "right", "baseline": "top", "dx": -4,
                                               "fontSize": 11},
           "encoding": {"x": _rate("x"), "y": {"value": 2 + 14 * row["i"]}, "text": {"field": "n"}}} for row in rows),
    ]  # fmt: skip


def _rate(field: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": "learning rate", "scale": {"type": "log"},
            "axis": {"grid": False, "format": ".0e", "tickCount": 5}}  # fmt: skip


def _percent(share: bool) -> Spec:
    return {"axis": {"format": ".0%"}} if share else {}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _spec(rows: Sequence[Mapping[str, Any]], *, height: int = _HEIGHT, **rest: Any) -> Spec:
    return {"width": "container", "height": height, "autosize": {"type": "fit", "contains": "padding"},
            "data": {"values": list(rows)}, **rest}  # fmt: skip
