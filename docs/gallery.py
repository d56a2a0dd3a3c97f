"""Writes the gallery of objectives.md and its figures from the code: run it after adding or changing an objective.

Text comes from the docstrings (sections Formula, When, Source, Args), signatures from the classes, figures from the
objectives that configs/objective/*.yaml build.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_sft import objectives
from lightning_sft.objectives import Composite, Objective, PerSource, Scheduled, SpecialTokens
from lightning_sft.scores import TokenScores

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "objectives.md"
FIGURES = ROOT / "docs" / "assets" / "objectives"
CONFIGS = ROOT / "configs" / "objective"
BEGIN, END = "<!-- gallery: begin, written by docs/gallery.py -->", "<!-- gallery: end -->"

PROBABILITY, PREDICTION, SEQUENCES, COMPOSITES, OURS = GROUPS = (
    "Of the target's probability alone",
    "Of the whole prediction",
    "Of whole sequences",
    "Made of other objectives",
    "Ours",
)
COST = {
    "logp": "reads `logp`: what NLL costs.",
    "row": "reads its row: autograd on a few rows of logits at a time, inside the fused head.",
    "batch": "reads the batch: tokens are scored first and the logits recomputed for the gradient, one more product.",
}
REFERENCE = " Plus a forward pass of the reference model, without gradient"
REFERENCE_COST = {"none": "", "logp": f"{REFERENCE}.", "logits": f"{REFERENCE}, and its rows of logits."}


def classes() -> dict[str, type[Objective]]:
    """Return the concrete objectives that the package exports, by name."""
    exported = {name: getattr(objectives, name) for name in objectives.__all__}
    return {
        name: item
        for name, item in exported.items()
        if inspect.isclass(item) and issubclass(item, Objective) and not inspect.isabstract(item)
    }


def config_of(name: str) -> Path:
    """Return the fragment of an objective: its name in lower case, with underscores where they help."""
    found = [path for path in CONFIGS.glob("*.yaml") if path.stem.replace("_", "") == name.lower()]
    if len(found) != 1:
        raise SystemExit(f"{name} needs one fragment in configs/objective, and has {len(found)}.")
    return found[0]


def build(path: Path) -> Objective:
    """Return the objective of a fragment."""
    parser = ArgumentParser()
    parser.add_argument("--objective", type=Objective)
    model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    parsed = parser.parse_object({"objective": model["objective"]})
    return parser.instantiate(parsed).objective


def sections(cls: type[Objective]) -> dict[str, str]:
    """Return the sections of a docstring by title, each as one paragraph; "" is the summary."""
    parts = re.split(r"^(\w+):\n", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)
    titled = zip(["", *parts[1::2]], parts[::2], strict=True)
    return {title: inspect.cleandoc(text) for title, text in titled}


def one_line(text: str) -> str:
    return " ".join(text.split())


def arguments(text: str) -> str:
    """Return an Args section as a list."""
    items = re.split(r"^(\w+): ", text, flags=re.MULTILINE)
    return "".join(f"    - `{n}`: {one_line(t)}\n" for n, t in zip(items[1::2], items[2::2], strict=True))


def entry(name: str, objective: Objective) -> str:
    """Return the text of one objective."""
    cls, told = type(objective), sections(type(objective))
    missing = {"Formula", "When", "Source"} - set(told)
    if missing:
        raise SystemExit(f"The docstring of {name} lacks the sections {sorted(missing)}.")
    cost = COST[cls.reads] + REFERENCE_COST[cls.reference]
    if isinstance(objective, Composite):
        cost = "what its parts cost." if cls.reads == "logp" else f"{cost} Plus what its parts cost."
    lines = [
        f"#### {name}\n",
        f"{one_line(told[''])}\n",
        f"- **Formula**: {one_line(told['Formula'])}",
        f"- **When**: {one_line(told['When'])}",
        f"- **Source**: {one_line(told['Source'])}",
        f"- **Cost**: {cost}",
    ]
    if "Args" in told and inspect.signature(cls).parameters:
        lines.append(f"- **Arguments**:\n{arguments(told['Args'])}".rstrip())
    lines.append(
        f"\n`configs/objective/{config_of(name).name}`:\n\n```yaml\n{config_of(name).read_text().strip()}\n```\n"
    )
    if is_drawn(objective):
        lines.append(f"![s(p) and W(p) of {name}](assets/objectives/{config_of(name).stem}.svg)\n")
    return "\n".join(lines)


def gallery() -> str:
    """Return the text between the markers."""
    built = {name: build(config_of(name)) for name in classes()}
    text = ""
    for title in GROUPS:
        names = [name for name in sorted(built, key=str.lower) if group_of(built[name]) == title]
        text += f"\n### {title}\n\n" + "\n".join(entry(name, built[name]) for name in names)
    return text


def group_of(objective: Objective) -> str:
    if sections(type(objective))["Source"].startswith("Ours"):
        return OURS
    if isinstance(objective, Composite):
        return COMPOSITES
    return {"logp": PROBABILITY, "row": PREDICTION, "batch": SEQUENCES}[objective.reads]


def page() -> str:
    """Return the page with its gallery renewed."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{gallery()}\n{END}{rest.split(END)[1]}"


def is_drawn(objective: Objective) -> bool:
    """Return whether one curve over p says it all."""
    pointwise = objective.reads == "logp" and objective.reference == "none"
    return pointwise and not isinstance(objective, PerSource | Scheduled | SpecialTokens)


def strength(objective: Objective) -> tuple[Tensor, Tensor]:
    """Return p and s(p) = -dL/dlogp, (201,) each; what is measured in a run is measured on p uniform in [0, 1]."""
    p = torch.linspace(0.0025, 0.9975, 201, dtype=torch.float64)
    logp = p.log().requires_grad_()
    scores = TokenScores(logp, torch.zeros_like(p, dtype=torch.long), row=torch.arange(len(p)))
    if objective.needs_seed():
        objective.seed(objective.statistics(scores.detached()))
    (slope,) = torch.autograd.grad(objective(scores).sum(), logp)
    return p, -slope


def draw(curves: dict[str, Objective], path: Path) -> None:
    """Draw s(p) and W(p) = s(p) (1 - p) side by side."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # text as text and fixed ids: small files that change only when a curve does
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gallery", "font.size": 8}):
        figure = Figure(figsize=(5.2, 1.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for label, objective in curves.items():
            p, s = strength(objective)
            left.plot(p, s, label=label)
            right.plot(p, s * (1 - p))
        left.set(xlabel="p", ylabel="s(p)", ylim=(min(0, left.get_ylim()[0]), None))
        right.set(xlabel="p", ylabel="W(p) = s(p) (1 - p)")
        if len(curves) > 1:
            figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    for name in classes():
        objective = build(config_of(name))
        if is_drawn(objective):
            draw({name: objective}, FIGURES / f"{config_of(name).stem}.svg")
    alphas = {f"alpha = {a:g}": objectives.PowerFamily(a) for a in (0, 0.1, 0.5, 1, 3, 10)}
    draw(alphas, FIGURES / "family.svg")


if __name__ == "__main__":
    main()
