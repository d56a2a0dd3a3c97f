"""`lightning configs`: what is shipped can be listed, shown and copied; test_every_step.py does so from a wheel."""

from pathlib import Path

import pytest
import yaml

from lightning_sft.cli.configs import names, title
from lightning_sft.cli.entry import main
from lightning_sft.places import shipped_folder

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["configs", *words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["configs", *words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_file_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(
        path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")
    )
    assert all(len(line.split()) > 2 for line in lines), [line for line in lines if len(line.split()) < 3]
    assert not any("lightning fit" in line or "NOT RUN" in line for line in lines)


def test_an_objective_says_when_one_would_take_it() -> None:
    for path in (CONFIGS / "objective").glob("*.yaml"):
        assert title(path).startswith(("When ", "The default", "To ")), path.name


def test_a_folder_is_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "strategy").splitlines()
    assert {line.split("/")[0] for line in lines} == {"strategy"}
    assert len(lines) == len(list((CONFIGS / "strategy").glob("*.yaml")))


@pytest.mark.parametrize("name", ["demo", "configs/demo.yaml", "strategy/ddp", "ddp", "configs/strategy/ddp.yaml"])
def test_one_is_shown_by_any_of_its_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = "demo.yaml" if "demo" in name else "strategy/ddp.yaml"
    assert printed(capsys, "show", name) == (CONFIGS / file).read_text()


def test_copies_stand_where_commands_and_files_look_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "copy", "critical_lr", "--to", str(tmp_path)).splitlines()
    assert len(out) == 3
    copied = yaml.safe_load((tmp_path / "configs/experiment/critical_lr.yaml").read_text())
    assert (tmp_path / copied["data"]["train"]).is_file()
    printed(capsys, "copy", "critical_lr", "--to", str(tmp_path))  # once more changes nothing
    (tmp_path / "configs/experiment/critical_lr.yaml").write_text("mine")
    assert "is there already" in refused(capsys, "copy", "critical_lr", "--to", str(tmp_path))
    assert (tmp_path / "configs/experiment/critical_lr.yaml").read_text() == "mine"


def test_all_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "copy", "--to", str(tmp_path))
    for path in CONFIGS.rglob("*.yaml"):
        assert (tmp_path / "configs" / path.relative_to(CONFIGS)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "strategy/dpd"], "Did you mean strategy/ddp"),
        (["show"], "Give one name"),
        (["copy", "nothing_like_it"], "`lightning configs` lists all"),
        (["strategies"], "no folder 'strategies'. Allowed: "),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *words)


def test_titles_are_sentences() -> None:
    assert title(CONFIGS / "demo.yaml").startswith("Teaches SmolLM2-135M-Instruct")
    assert title(CONFIGS / "objective/dft.yaml").startswith("When the model knows the task well: the gradient")
    assert title(CONFIGS / "paper/math.yaml").startswith("Mathematics (the strong end)")
    assert all(title(path) for path in names().values())
    assert shipped_folder() == CONFIGS
