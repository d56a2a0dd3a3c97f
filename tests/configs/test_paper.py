"""Configurations of published runs: two steps on a toy, on rows of the columns that their sets have."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.configs.test_configs import CONFIGS
from tests.running import QUIET, run, run_folder

PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))
#: what the authors' settings are, by file: rate, weight decay, longest row
PUBLISHED = {
    "math": (5e-5, 0.01, 3072),
    "medical": (5e-5, 0.01, 800),
    "figlet": (5e-5, 1e-5, 800),
    "low_resource": (5e-5, 1e-4, 1024),
    "code": (5e-5, 0.01, 3096),
    "instructions": (5e-6, 1e-4, 2048),
}


def rows_like(source: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Rows with the columns that a source reads, and one that it does not."""
    form = source.get("format")
    rows = []
    for i in range(count):
        asked, said = f"how many is {i}", f"it is {i}"
        if form == "sharegpt":
            row: dict[str, Any] = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
        elif form == "alpaca":
            row = {"instruction": asked, "output": said}
        else:
            row = {source["columns"]["prompt"]: asked, source["columns"]["completion"]: said}
        rows.append({**row, "another": "x"})
    return rows


def on_toys(config: Path, folder: Path, model: Path) -> Path:
    """Return the configuration with a toy model, and with files of a few rows in the place of its sets."""
    content = yaml.safe_load(config.read_text())
    found = 0

    def replace(node: Any) -> None:
        nonlocal found
        for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            if isinstance(item, dict) and str(item.get("class_path", "")).startswith("lightning_sft.data."):
                settings, found = item["init_args"], found + 1
                if item["class_path"].endswith("ReasoningGymTask"):
                    settings |= {"size": 24, "max_prompt_chars": 300}
                    continue
                path = folder / f"{config.stem}_{found}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows_like(settings, 24)))
                for name in ("split", "subset", "max_rows"):
                    settings.pop(name, None)
                settings["path"] = str(path)
            else:
                replace(item)

    replace(content["data"])
    assert found
    content["model"] |= {"model_name_or_path": str(model), "dtype": "float32"}
    content["data"] |= {"batch_size": 2, **({"val_split": 4} if "val_split" in content["data"] else {})}
    content["trainer"] |= {"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 4}
    path = folder / config.name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_there_is_one_for_each_domain() -> None:
    assert {path.stem for path in PAPER} == set(PUBLISHED)


@pytest.mark.parametrize("config", PAPER, ids=lambda path: path.stem)
def test_it_says_that_it_was_not_run_and_has_the_published_settings(config: Path) -> None:
    text = config.read_text()
    assert text.startswith("# NOT RUN HERE")
    content = yaml.safe_load(text)
    optimizer = content["model"]["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"], content["data"]["max_length"]) == PUBLISHED[config.stem]
    assert optimizer["betas"] == [0.9, 0.95]
    assert content["data"]["batch_size"] * content["trainer"]["accumulate_grad_batches"] == 256
    assert (content["model"]["lr_scheduler"], content["model"]["warmup_ratio"]) == ("cosine", 0.1)
    assert (content["trainer"]["max_epochs"], content["trainer"]["gradient_clip_val"]) == (1, 1.0)


@pytest.mark.parametrize("config", PAPER, ids=lambda path: path.stem)
def test_it_runs_two_steps_on_a_toy(config: Path, toy_folder: Path, tmp_path: Path) -> None:
    run("fit", [f"--config={on_toys(config, tmp_path, toy_folder)}", *QUIET])
    folder = run_folder(Path(f"runs/paper_{config.stem}"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("name", ["math", pytest.param("figlet", marks=pytest.mark.slow)])
def test_its_evaluation_scores_answers(
    name: str, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(on_toys(CONFIGS / f"paper/{name}.yaml", tmp_path, toy_folder).read_text())
    (monitor,) = config["trainer"]["callbacks"]
    monitor["init_args"] |= {"max_new_tokens": 4, "test_limit": 4 * len(config["data"]["test"])}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run("test", [f"--config={tmp_path / 'small.yaml'}", *QUIET])
    printed = capsys.readouterr().out
    for named in config["data"]["test"]:
        assert f"test/{named}/task_accuracy" in printed
    if "num_return_sequences" in monitor["init_args"]:
        assert "test/sampled_pass_at_1" in printed
