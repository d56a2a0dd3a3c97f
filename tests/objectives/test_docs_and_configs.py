"""Every objective has a fragment and a section; the gallery is that of the code; a class of a user's own just works."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_sft import objectives
from lightning_sft.head.fused import fused_head
from lightning_sft.head.reference import reference_head
from lightning_sft.objectives import Objective, PowerFamily, Thresholded, ZLoss, save_histogram
from lightning_sft.objectives.base import Denominator
from tests.objectives.batch import make_batch, started
from tests.objectives.rows import objective_names

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "objective").glob("*.yaml"))
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")


class Model:
    """Stands for the module: something with an objective, as the command line sees it."""

    def __init__(self, objective: Objective | None = None, denominator: Denominator = "all") -> None:
        self.objective = objective


def parse(*arguments: str) -> Objective:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Model, "model")
    return parser.instantiate(parser.parse_args(arguments)).model.objective


@pytest.fixture
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_objective_has_one_fragment_and_one_section():
    names = {yaml.safe_load(path.read_text())["model"]["objective"]["class_path"].rsplit(".")[-1] for path in CONFIGS}
    assert names == objective_names()
    assert len(CONFIGS) == len(names)
    assert set(re.findall(r"^#### (\w+)$", PAGE, re.MULTILINE)) == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_fragment_builds_an_objective_that_trains(path):
    objective = parse("--config", str(path))
    assert type(objective).__name__.lower() == path.stem.replace("_", "")
    batch = make_batch()
    fused_head(*batch.inputs(), started(objective, batch)).loss_sum.backward()
    assert batch.weight.grad.isfinite().all()
    assert batch.weight.grad.any()


def test_gallery_is_that_of_the_code(gallery):
    assert gallery.page() == PAGE, "run `python docs/gallery.py`"


def test_gallery_has_its_figures(gallery):
    shown = set(re.findall(r"\(assets/objectives/(\w+\.svg)\)", PAGE))
    assert shown == {path.name for path in (ROOT / "docs" / "assets" / "objectives").iterdir()}
    drawn = {
        gallery.config_of(n).stem + ".svg"
        for n in gallery.classes()
        if gallery.is_drawn(gallery.build(gallery.config_of(n)))
    }
    assert shown == drawn | {"family.svg"}


def test_figures_show_the_strength(gallery, tmp_path):
    p, s = gallery.strength(PowerFamily(2))
    torch.testing.assert_close(s, p**2)
    gallery.draw({"NLL": objectives.NLL()}, tmp_path / "nll.svg")
    assert "W(p)" in (tmp_path / "nll.svg").read_text()


@pytest.mark.parametrize("name", ["PowerFamily", "lightning_sft.objectives.PowerFamily"])
def test_chosen_on_the_command_line(name):
    objective = parse("--model.objective", name, "--model.objective.alpha", "3")
    assert isinstance(objective, PowerFamily)
    assert objective.alpha == 3


def test_every_name_is_known_to_the_command_line():
    required = {"Thresholded", "WeightedSum", "PerSource", "Scheduled", "RunnerUpMargin", "PSFT", "SpecialTokens"}
    for name in objective_names() - required:
        assert type(parse("--model.objective", name)).__name__ == name


def test_command_line_changes_a_base_inside_a_fragment(tmp_path):
    fragment = str(ROOT / "configs" / "objective" / "z_loss.yaml")
    objective = parse(
        "--config", fragment, "--model.objective.base", "PowerFamily", "--model.objective.base.alpha", "2"
    )
    assert isinstance(objective, ZLoss)
    assert objective.parts[0].alpha == 2
    save_histogram(tmp_path / "p.json", [0, 1], [1])
    by_percentile = ["--model.objective.percentile", "25", "--model.objective.histogram", str(tmp_path / "p.json")]
    objective = parse("--model.objective", "Thresholded", *by_percentile)
    assert isinstance(objective, Thresholded)
    assert objective.threshold == 0.25


def test_pairs_and_named_parts_from_yaml(tmp_path):
    part = {"class_path": "RunnerUpMargin", "init_args": {"pairs": [[3, 7], [3, 9]]}}
    init_args = {"objectives": {"a.jsonl": part, "b": {"class_path": "NLL"}}, "weights": {"a.jsonl": 2}}
    config = {"model": {"objective": {"class_path": "WeightedSum", "init_args": init_args}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    objective = parse("--config", str(tmp_path / "own.yaml"))
    assert objective.names == ("a.jsonl", "b")
    assert objective.parts[0].known.tolist() == [3, 7, 9]
    assert objective.weights == {"a.jsonl": 2.0, "b": 1.0}


def test_histogram_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "histogram block", "exec"), {})


def test_own_objective_of_the_page_works_from_yaml(tmp_path, monkeypatch):
    (tmp_path / "my_objectives.py").write_text(blocks("python")[-1])
    (tmp_path / "own.yaml").write_text(blocks("yaml")[-1])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        objective = parse("--config", str(tmp_path / "own.yaml"))
        assert type(objective).__module__ == "my_objectives"
        fused, plain = make_batch(), make_batch()
        out = fused_head(*fused.inputs(), objective)
        out.loss_sum.backward()
        truth = reference_head(*plain.inputs(), objective)
        truth.loss_sum.backward()
        assert (out.losses == 0).any()
        torch.testing.assert_close(out.losses, truth.losses)
        torch.testing.assert_close(fused.weight.grad, plain.weight.grad)
        torch.testing.assert_close(out.losses, (torch.log(torch.tensor(0.8)) - out.scores.logp).clamp(min=0))
    finally:
        sys.modules.pop("my_objectives", None)
