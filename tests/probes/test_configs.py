"""The probes of the shipped configurations are probes, and the experiment trains exactly its train contexts."""

import json
from pathlib import Path

import yaml

from lightning_sft.probes import load_probes

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_experiment_trains_its_train_probes_and_not_its_test_probes():
    config = yaml.safe_load((CONFIGS / "experiment" / "silent_failure.yaml").read_text(encoding="utf-8"))
    monitor, order = (c["init_args"] for c in config["trainer"]["callbacks"])
    assert monitor == order
    probes = load_probes(monitor["probes"])
    rows = [json.loads(line) for line in (CONFIGS.parent / config["data"]["train"]).read_text().splitlines()]
    trained = {(row["prompt"], row["completion"].strip(" .")) for row in rows}
    assert trained == {(p.context, p.correct) for p in probes if p.split == "train"}
    assert {(p.correct, p.competitor) for p in probes if p.split == "test"} == {
        (p.correct, p.competitor) for p in probes if p.split == "train"
    }


def test_the_fragment_names_what_there_is():
    config = yaml.safe_load((CONFIGS / "callbacks" / "synonyms.yaml").read_text(encoding="utf-8"))
    for callback in config["trainer"]["callbacks+"]:
        assert load_probes(callback["init_args"]["probes"])


def test_the_structural_experiment_gives_each_context_its_word_and_another():
    config = yaml.safe_load((CONFIGS / "experiment" / "structural_failure.yaml").read_text(encoding="utf-8"))
    (order,) = (c["init_args"] for c in config["trainer"]["callbacks"])
    probes = load_probes(order["probes"])
    rows = [json.loads(line) for line in (CONFIGS.parent / config["data"]["train"]).read_text().splitlines()]
    trained = {(row["prompt"], row["completion"].strip(" .")) for row in rows}
    assert trained == {(p.context, word) for p in probes for word in (p.correct, "intelligent")}
    # a reading falls on the beginning of the last quarter, by whose slope a run has settled
    assert config["trainer"]["max_steps"] * 3 // 4 % order["every_n_steps"] == 0
