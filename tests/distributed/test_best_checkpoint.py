"""Named sets, exact match, drift and BestCheckpoint on two ranks, replicated and sharded: what one device reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.fits import fit_arguments, fsdp2_strategy, last_checkpoint
from tests.distributed.ranks import two_ranks
from tests.lazy import Lazy
from tests.running import run, run_folder, scalars, write_rows

pytestmark = pytest.mark.ranks
#: no dropout: two ranks draw other masks than one device
EXACT: dict[str, Any] = {"dropout": 0.0, "model__dtype": "float64", "data__val_split": None}
KEYS = ("nll", "token_accuracy", "mean_p", "exact_match", "pass_at_1")
RANKS = {"ddp": "ddp", "fsdp2": json.dumps(fsdp2_strategy(True)), "fsdp2, one file": json.dumps(fsdp2_strategy(False))}


def config(folder: Path) -> str:
    """Two named sets, one of them read at every second validation, a guard set and the bounds of BestCheckpoint."""
    easy, hard = (str(write_rows(folder / f"{name}.jsonl", count)) for name, count in (("easy", 5), ("hard", 7)))
    drift = {"sets": {"own": ["Copper conducts electricity.", "Two doors.", "The river was low."]}}
    best = {"monitor": "val/easy/nll", "subject_to": {"drift/own/nll": "+0.05%", "drift/own/kl": 0.02}}
    classes = {"DriftMonitor": drift, "BestCheckpoint": best}
    callbacks = [{"class_path": name, "init_args": given} for name, given in classes.items()]
    trainer = {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "callbacks": callbacks}
    data = {"val": {"easy": easy, "hard": {"sources": hard, "every": 2}}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": trainer, "data": data}))
    return str(folder / "config.yaml")


@pytest.fixture(scope="module")
def fits(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lazy[Path]:
    folder = tmp_path_factory.mktemp("best")
    rows, given = write_rows(folder / "rows.jsonl"), config(folder)

    def fit(name: str) -> Path:
        each = {**EXACT, "trainer__default_root_dir": str(folder / name)}
        if name == "one":
            alone = {"trainer__accumulate_grad_batches": 4, "trainer__val_check_interval": 4, "trainer__devices": 1}
            verb, *words = fit_arguments(toy_folder, rows, **each, **alone)
            run(verb, [f"--config={given}", *words])
            return folder / name
        each |= {"trainer__devices": 2, "trainer__val_check_interval": 2, "trainer__strategy": RANKS[name]}
        verb, *words = fit_arguments(toy_folder, rows, **each)
        verb, *half = fit_arguments(toy_folder, rows, **{**each, "trainer__max_steps": 3})
        parts = [word.replace(str(folder / name), str(folder / f"{name} in parts")) for word in [*half, *words]]
        lines = [words, parts[: len(half)], [*parts[len(half) :], "--ckpt_path=last"]]
        two_ranks("work:command_lines", folder, lines=[[verb, f"--config={given}", *line] for line in lines])
        return folder / name

    return Lazy(fit)


def judged(root: Path) -> dict[str, Any]:
    """What BestCheckpoint knew at the end of a run."""
    states = last_checkpoint(root)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("BestCheckpoint"))
    wanted = ("readings", "kept", "waited", "start", "best_model_score", "best_model_path")
    return {key: Path(v).name if key == "best_model_path" else v for key, v in state.items() if key in wanted}


@pytest.mark.parametrize("name", ["ddp", "fsdp2", pytest.param("fsdp2, one file", marks=pytest.mark.slow)])
def test_two_ranks_read_and_keep_what_one_device_does(fits: Lazy[Path], name: str) -> None:
    one, two = (scalars(run_folder(fits[each] / "lightning_logs")) for each in ("one", name))
    for key in [f"val/{part}{k}" for part in ("", "easy/", "hard/") for k in KEYS]:
        assert [v for _, v in two[key]] == pytest.approx([v for _, v in one[key]], rel=1e-5, abs=1e-7), key
    assert (len(one["val/easy/nll"]), len(one["val/hard/nll"])) == (6, 3)
    for key in ("drift/own/nll", "drift/own/kl", "drift/own/changed"):
        assert [v for _, v in two[key]] == pytest.approx([v for _, v in one[key]], rel=1e-5, abs=1e-7), key
    alone, shared, resumed = (judged(path) for path in (fits["one"], fits[name], Path(f"{fits[name]} in parts")))
    assert 0 < alone["kept"] < alone["readings"] == 6
    for state in (shared, resumed):
        assert float(state.pop("best_model_score")) == pytest.approx(float(alone["best_model_score"]), rel=1e-5)
        assert state.pop("start") == pytest.approx(alone["start"], rel=1e-6)
        assert state == {key: alone[key] for key in state}
