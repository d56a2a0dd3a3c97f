"""init, env, completion, and what verbs of our own leave unsaid."""

import contextlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lightning_sft
from lightning_sft.cli.entry import main
from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.ending import with_an_end
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.cli.quiet import as_line
from lightning_sft.data import Source
from tests.running import write_rows


def test_init_writes_what_fit_reads(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given = ["--model", str(toy_folder), "--train", str(rows), "--adapter", "lora", "--adapter.r", "8", "--lr", "1e-4"]
    given += ["--trainer.callbacks+=DriftMonitor", "--logger=csv", "--objective=PowerFamily", "--objective.alpha=0.5"]
    main(["init", *given, "--output", "mine.yaml"])
    assert "lightning fit mine.yaml" in capsys.readouterr().out
    text = Path("mine.yaml").read_text()
    assert "# gradient_clip_val: null" in text
    split = yaml.safe_load(text)["data"]["val_split"]
    assert check("fit", ["--config=mine.yaml"]) == []

    read = []

    def look(self: SFTCLI) -> None:
        read.append(self.config["fit"])
        raise SystemExit(0)

    monkeypatch.setattr(SFTCLI, "instantiate_classes", look)
    for arguments in (["fit", "mine.yaml"], ["fit", *given, f"--data.val_split={split}", "--max_epochs=1"]):
        with pytest.raises(SystemExit):
            main(arguments)
    assert read[0].model == read[1].model
    assert read[0].data == read[1].data
    for key in ("callbacks", "logger", "max_epochs"):
        assert read[0].trainer[key] == read[1].trainer[key]
    with pytest.raises(SystemExit):
        main(["init", *given, "--output", "mine.yaml"])
    assert capsys.readouterr().err.endswith(" --output mine-2.yaml\n")


def test_init_without_options_is_a_start() -> None:
    main(["init"])
    content = yaml.safe_load(Path("sft.yaml").read_text())
    assert content["model"]["objective"] == "NLL"
    assert content["data"]["val_split"] == 0.05


def test_init_maps_columns_that_have_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1?", "answer": "2"}\n' * 3)
    main(["init", "--model", "some/model", "--train", str(rows)])
    assert "question is read as prompt, answer is read as completion" in capsys.readouterr().out
    text = Path("sft.yaml").read_text()
    assert "columns: {prompt: question, completion: answer}" in text
    given = yaml.safe_load(text)["data"]["train"]["init_args"]
    assert len([*Source(**given).examples()]) == 3
    assert check("fit", ["--config=sft.yaml"]) == []


def test_init_reads_rows_without_torch(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "1 + 1?", "response": "2"}\n')
    code = "import sys; from lightning_sft.cli.entry import main; main(['init', '--train', sys.argv[1]]); "
    code += "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code, str(rows)], capture_output=True, text=True, check=True)
    assert "query is read as prompt" in ran.stdout
    assert ran.stdout.endswith("[]\n")


def test_init_asks_for_columns_that_tell_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.jsonl").write_text('{"id": 1, "foo": "1 + 1?", "bar": "2"}\n')
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train", "odd.jsonl"])
    assert not Path("sft.yaml").exists()
    said = capsys.readouterr().err
    assert "the columns id, foo, bar" in said
    (again,) = (line.strip() for line in said.splitlines() if line.startswith("  lightning init "))
    assert again.endswith("--train.columns '{prompt: foo, completion: bar}'")
    main(shlex.split(again)[1:])
    given = yaml.safe_load(Path("sft.yaml").read_text())["data"]["train"]["init_args"]
    assert [example.reference for example in Source(**given).examples()] == ["2"]


def test_init_offers_the_columns_with_the_longest_texts(capsys: pytest.CaptureFixture[str]) -> None:
    row = '{"id": "7", "Customer": "What is 1 + 1?", "date": "2026-01-01T10:00:00Z", "Agent": "It is two."}\n'
    Path("odd.jsonl").write_text(row * 2)
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train", "odd.jsonl", "--output=mine.yaml"])
    said = capsys.readouterr().err
    assert "'{prompt: Customer, completion: Agent}'" in said
    assert "--output=mine.yaml" in said


def test_init_takes_a_message_of_text_for_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.jsonl").write_text('{"message": "Where is my parcel?", "label": "shipping"}\n')
    main(["init", "--model=some/model", "--train", "odd.jsonl"])
    given = yaml.safe_load(Path("sft.yaml").read_text())["data"]["train"]["init_args"]
    assert [example.reference for example in Source(**given).examples()] == ["shipping"]
    Path("odd.jsonl").write_text('{"message": "Where is my parcel?", "kind": 3}\n')
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train", "odd.jsonl", "--output=two.yaml"])
    assert "'{prompt: message, completion: kind}'" in capsys.readouterr().err


def test_init_looks_for_the_columns_that_were_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.jsonl").write_text('{"Customer": "What is 1 + 1?", "Agent": "It is two."}\n')
    init = ["init", "--model=some/model", "--train", "odd.jsonl", "--train.columns"]
    with pytest.raises(SystemExit):
        main([*init, "{prompt: Custmer, completion: Agent}"])
    assert "odd.jsonl has no column 'Custmer', but 'Customer'." in capsys.readouterr().err
    assert not Path("sft.yaml").exists()
    main([*init, "{prompt: Customer, completion: Agent}"])
    assert Path("sft.yaml").exists()


@pytest.mark.parametrize("gone", ["--train=gone.jsonl", "--val=gone.jsonl"])
def test_init_refuses_rows_that_are_not_there(gone: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("rows.jsonl"))
    with pytest.raises(SystemExit):
        main(["init", "--train=rows.jsonl", gone])
    assert "is 'gone.jsonl'. There is no file gone.jsonl" in capsys.readouterr().err
    assert not Path("sft.yaml").exists()


@pytest.mark.parametrize("option", ["--train", "--val"])
@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("no.jsonl", "", "no.jsonl has no rows."),
        ("no.jsonl", "\n\n", "no.jsonl has no row"),
        ("no.csv", "prompt,completion\n", "no.csv has no rows."),
        ("no.jsonl", "no json\n", "no.jsonl has no row that can be read: no.jsonl:1: "),
        ("no.jsonl", '{"prompt": 1, "completion": null}\n' * 2, "no.jsonl has no row that can be read"),
    ],
)
def test_init_refuses_files_without_a_row(
    option: str, name: str, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("rows.jsonl"))
    Path(name).write_text(text)
    for formats in ([], [f"{option}.format=prompt_completion"]) if "null" not in text else ([],):
        with pytest.raises(SystemExit) as stop:
            main(["init", "--model=some/model", "--train=rows.jsonl", option, name, *formats])
        assert stop.value.code == 2
        assert why in capsys.readouterr().err
        assert not Path("sft.yaml").exists()


def test_init_looks_at_the_first_file_with_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows").mkdir()
    Path("rows/a.jsonl").write_text("")
    Path("rows/b.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    main(["init", "--model=some/model", "--train=rows"])
    assert "rows/b.jsonl: question is read as prompt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "split", "why"),
    [(1000, 0.05, "verdicts need at least 8"), (160, 0.05, "at least 8\n"), (159, 8, "5% of 159 would be fewer"),
     (40, 8, "5% of 40"), (39, 7, "39 rows are too few"), (4, 1, "4 rows are too few")],
)  # fmt: skip
def test_init_holds_out_rows_enough_for_a_verdict(rows: int, split: float, why: str) -> None:
    Path("rows.jsonl").write_text("".join(f'{{"question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(rows)))
    main(["init", "--model=some/model", "--train=rows.jsonl"])
    text = Path("sft.yaml").read_text()
    given = yaml.safe_load(text)["data"]["val_split"]
    assert (given, type(given)) == (split, type(split))
    (line,) = (line for line in text.splitlines(keepends=True) if "val_split" in line)
    assert why in line


def test_init_says_what_it_took_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("mine.jsonl"))
    main(["init"])
    said = capsys.readouterr().out
    for word in ("No model was named, so it is HuggingFaceTB/SmolLM2", "--model NAME", "a .gguf file or pkg://"):
        assert word in said
    for word in ("No rows were named", "train.jsonl", "Here are mine.jsonl: --train FILE", ".parquet", "of the hub"):
        assert word in said
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train=mine.jsnl.jsonl", "--output=two.yaml"])
    said = capsys.readouterr().err
    assert "No model" not in said
    assert "Did you mean 'mine.jsonl'?" in said


def test_init_says_what_is_wrong_with_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text('"prompt;completion"\n"a;b"\n')
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train=rows.csv"])
    said = capsys.readouterr().err
    assert "has the columns prompt;completion. The header stands in quotes as a whole" in said
    assert not Path("sft.yaml").exists()


def test_init_says_what_is_in_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_rows(Path("rows") / name)
    Path("rows/c.csv").write_text("question,answer\n1 + 1?,2\n")
    main(["init", "--model=some/model", "--train=rows"])
    said = capsys.readouterr().out
    for word in ("stands for 3 files (2 .jsonl and 1 .csv)", "a.jsonl, b.jsonl, c.csv", "--train 'rows/*.jsonl'"):
        assert word in said
    assert "rows/c.csv has other columns (question, answer) than rows/a.jsonl" in said
    Path("empty").mkdir()
    Path("empty/notes.md").write_text("")
    with pytest.raises(SystemExit):
        main(["init", "--model=some/model", "--train=empty", "--output=two.yaml"])
    said = capsys.readouterr().err
    assert "has no data files. It holds notes.md. Allowed: a file (.jsonl, " in said


def test_a_run_without_an_end_makes_one_pass() -> None:
    model = ["--model=some/model", "--train=rows.jsonl"]
    assert with_an_end("fit", model)[0] == [*model, "--trainer.max_epochs=1"]
    assert "--max_steps" in with_an_end("advise", model)[1]
    Path("ends.yaml").write_text("trainer: {max_epochs: null, max_steps: 9}\n")
    Path("open.yaml").write_text("trainer: {max_epochs: null, max_steps: -1}\n")
    ends = ["--max_epochs=-1", "--max_steps=3", "--trainer.max_time=00:01:00:00", "--config=ends.yaml",
            "--trainer.callbacks+=EarlyStopping", "--config=s3://bucket/a.yaml", "--print_config"]  # fmt: skip
    several = [*model, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks+=DriftMonitor"]
    assert with_an_end("fit", several) == (several, "")
    for given in ends:
        assert with_an_end("fit", [*model, given]) == ([*model, given], ""), given
    assert with_an_end("fit", [*model, "--config=open.yaml"])[1]
    assert with_an_end("validate", model) == (model, "")


def test_the_end_that_is_typed_beats_that_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n')
    main(["init", "--model=some/model", "--train=rows.jsonl", "--output=mine.yaml"])
    assert "max_epochs: 1" in Path("mine.yaml").read_text()
    steps = ["--config=mine.yaml", "--max_steps", "500"]  # as the help's example goes on with a run
    made, remark = with_an_end("fit", steps)
    assert made == [*steps, "--trainer.max_epochs=-1"]
    assert remark == "--max_steps was typed, so trainer.max_epochs of mine.yaml does not end the run."
    Path("steps.yaml").write_text("trainer: {max_epochs: -1, max_steps: 9}\n")
    made, _ = with_an_end("fit", ["--config=steps.yaml", "--max_epochs=3"])
    assert made[-1] == "--trainer.max_steps=-1"
    for given in (["--max_steps=5", "--max_epochs=3"], ["--max_epochs=3"], ["--max_steps=-1"], []):
        assert with_an_end("fit", ["--config=mine.yaml", *given])[1] == "", given
    assert with_an_end("validate", steps) == (steps, "")


def test_env_says_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_DEBUG", "0")
    monkeypatch.setattr("lightning_sft.cli.env._capability", lambda: 1 / 0)
    main(["env"])
    told = capsys.readouterr().out
    for words in ("torch ", "peft ", "devices ", "LIGHTNING_SFT_DEBUG", "unknown: division by zero"):
        assert words in told


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_verbs_options_and_choices(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    main(["completion", shell])
    script = capsys.readouterr().out
    for word in ("mine-probes", "--model.optimizer", "--lr", "keep_completion", "PowerFamily", "--min_fall"):
        assert word in script, word


def test_completion_without_shtab_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    assert "lightning-sft[completion]" in capsys.readouterr().err


def test_own_verbs_do_not_speak_of_seeds(
    toy_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    main(["inspect", "--model", str(toy_folder), "--train", str(rows), "--rows", "1"])
    printed = capfd.readouterr()
    assert "Seed set" not in printed.out + printed.err + caplog.text


def test_a_model_behind_model_and_a_class() -> None:
    from lightning_sft.cli.classes import choose_classes
    from lightning_sft.errors import UserError

    assert choose_classes(["fit", "--model", "Llama.v2"])[1] == ["fit", "--model.model_name_or_path=Llama.v2"]
    assert choose_classes(["fit", "--model", "SFTModule"])[1] == ["fit"]
    with pytest.raises(UserError, match="cannot be imported"):
        choose_classes(["fit", "--model", "tests.toys.NoSuchModule"])
    with pytest.raises(UserError, match="no subclass of SFTModule"):
        choose_classes(["fit", "--model", "tests.toys.Path"])


def test_a_warning_of_ours_is_a_line() -> None:
    ours = str(Path(lightning_sft.__file__).parent / "training" / "start.py")
    assert as_line("The longest row ...", UserWarning, ours, 215) == "warning: The longest row ...\n"
    assert "somewhere.py:7" in as_line("x", UserWarning, "/elsewhere/somewhere.py", 7)
    assert "start.py:215" in as_line("x", DeprecationWarning, ours, 215)


def test_help_on_a_word_names_the_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["fit", "--help", "lr"])
    said = capsys.readouterr().out
    assert said.startswith("  --lr\n      Short for --model.optimizer.lr.\n")
    assert "--model.lr_scheduler\n" in said


def test_help_beside_a_run_is_the_help_of_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    for given in (["run", "--help"], ["--help", "run"], ["nowhere.yaml", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(["validate", *given])
        assert not stop.value.code
        assert capsys.readouterr().out.startswith("usage: lightning validate"), given
