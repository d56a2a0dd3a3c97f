"""The pages run: blocks of Python, shell commands, configurations; links lead somewhere."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_sft.cli.entry import main
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from tests.docs.pages import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    links,
    name_of,
    program_commands,
    prose,
    shell_lines,
)
from tests.running import run, toy_arguments, write_rows
from tests.test_dependencies import PROJECT

#: pages whose blocks another test runs
ELSEWHERE = {
    "docs/data.md": "tests/data/test_docs.py",
    "docs/near_synonyms.md": "tests/callbacks/test_near_synonyms_page.py",
    "docs/objectives.md": "tests/objectives/test_docs_and_configs.py",
}
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OWN_PAGES = [page for page in PAGES if name_of(page) not in ELSEWHERE]
PYTHON = blocks("python", pages=OWN_PAGES)
RUNNABLE = [block for block in PYTHON if not (block.marker or "").startswith("skip")]


def prepare(setup: str, toy_folder: Path) -> None:
    """Put into the current folder what a block's marker names.

    ``toy``: a toy model in a folder of the same name as the hub's, which is then loaded from there, and its rows;
    ``cli_run``: also a run of the command line in lightning_logs/version_0.
    """
    if setup == "run":
        return
    assert setup in ("setup=toy", "setup=cli_run")
    Path(MODEL).parent.mkdir()
    shutil.copytree(toy_folder, MODEL)
    rows = write_rows(Path("train.jsonl"))
    if setup == "setup=cli_run":
        run("fit", toy_arguments(Path(MODEL), rows, trainer__val_check_interval=3))


def test_every_python_block_says_how_it_is_tested() -> None:
    for block in PYTHON:
        assert block.marker, f"{block.id}: no <!-- test: ... --> above it"
        assert re.fullmatch(r"run|setup=\w+|skip, .{10,}", block.marker), f"{block.id}: {block.marker}"


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_left_out_here_have_a_test_of_their_own(page: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")


# Lightning lists the frozen weights that an adapter's checkpoint leaves out
@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict but not")
@pytest.mark.filterwarnings("ignore:`loftq_config` specified")
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.id)
def test_python_block_runs(block: Block, toy_folder: Path) -> None:
    assert block.marker
    prepare(block.marker, toy_folder)
    exec(compile(block.text, block.id, "exec"), {"__name__": "page"})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The current folder: the repository's configurations, those that pages tell to save, the runs that they name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for named in {word for command in COMMANDS for word in command.split() if word.startswith("runs/")}:
        (tmp_path / named / "checkpoints").mkdir(parents=True)
        (tmp_path / named / "config.yaml").symlink_to(ROOT / "configs/demo.yaml")
        (tmp_path / named / "checkpoints/last.ckpt").touch()
    for block in blocks("yaml"):
        name = re.fullmatch(r"file=([\w.-]+)", block.marker or "")
        if name:
            (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
    return tmp_path


def parses(arguments: list[str]) -> None:
    """Check that the parser takes the arguments; nothing is built."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0


#: verbs that take the settings of a run, and so print them
CONFIGURED = {*LIGHTNING_VERBS, "advise", "demo", "inspect", "score"}
COMMANDS = {command: page for page, command in program_commands() if command.split()[0] in CONFIGURED}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not {"'", '"'} & set(command), "the test splits at white space"
    parses(command.split())
    assert "model_name_or_path" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_commands_name_verbs_that_exist(page: Path) -> None:
    fenced = [command for where, command in program_commands() if where == page]
    inline = re.findall(r"(?:`|^    )lightning(?:-sft)? ([^`\n]+)", prose(page), re.M)
    for command in [*fenced, *inline]:
        assert command.split()[0] in {*LIGHTNING_VERBS, *OWN_VERBS, "VERB", "--help", "--version"}, command


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_own_verbs_explain_themselves(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    given = {option for _, c in program_commands() if c.split()[0] == verb for option in re.findall(r"--[a-z]\w*", c)}
    printed = capsys.readouterr().out
    assert given or verb in ("env", "completion")  # which take none
    for option in given:
        assert option in printed


def test_readme_shows_the_main_commands_literally() -> None:
    commands = [line for page, line in shell_lines() if page.name == "README.md" and line.startswith("lightning ")]
    assert commands[:2] == [
        "lightning demo",
        "lightning demo --objective PowerFamily --objective.alpha 1",
    ]


@pytest.mark.parametrize("block", blocks("yaml", pages=OWN_PAGES), ids=lambda block: block.id)
def test_yaml_block_stacks_on_the_demo(block: Block, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("block.yaml").write_text(block.text, encoding="utf-8")
    parses(["fit", "--config=configs/demo.yaml", "--config=block.yaml"])
    assert set(yaml.safe_load(block.text)) <= set(yaml.safe_load(capsys.readouterr().out))


def test_other_shell_commands_name_what_exists() -> None:
    extras = PROJECT["optional-dependencies"]  # an editable install keeps those of the day it was made
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    logger = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())["trainer"]["logger"]["init_args"]
    for page, line in shell_lines():
        where = f"{name_of(page)}: {line}"
        for target in re.findall(r"^make ([\w-]+)", line):
            assert target in targets, where
        for names in re.findall(r"^pip install -e \"\.\[([\w,-]+)\]\"", line):
            assert set(names.split(",")) <= set(extras), where
        for folder in re.findall(r"^tensorboard --logdir (\S+)", line):
            assert folder in (logger["save_dir"], f"{logger['save_dir']}/{logger['name']}"), where
        for module in re.findall(r"^python -m ([\w.]+)", line):
            assert importlib.util.find_spec(module), where


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configurations_and_links_exist(page: Path) -> None:
    for path in re.findall(r"\bconfigs/[\w./-]*\w", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
    for target in links(page):
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), target
        themed = anchor in ("only-light", "only-dark") and aim.suffix == ".svg"  # the theme shows one of two figures
        assert not anchor or themed or anchor in anchors(aim), target


def test_navigation_holds_every_page_once() -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [file for child in children for file in files(child)]

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["strict"]
    there = sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md")
    assert sorted(files(settings["nav"])) == there


def test_near_synonym_formulas_name_their_source() -> None:
    for name in ("README.md", "docs/near_synonyms.md"):
        assert re.search(r"reconstructed\s+from\s+the\s+abstract\s+of\s+arXiv\s+2606\.07559", prose(ROOT / name))
