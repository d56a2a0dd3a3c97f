"""The command line: verbs, messages, run folders, evaluation of checkpoints."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.cli import LightningCLI

from lightning_sft import SFTModule
from lightning_sft.cli.entry import main
from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.toys import save_toy

BASE = ["--model.model_name_or_path=x", "--data.train=y"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run bad input; return what it printed to stderr after checking exit status and form."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :]


BAD_INPUT = {
    "unknown verb": (["fitt"], ["'fitt'", "did you mean 'fit'", "validate, test, predict"]),
    "verb of another tool": (["train", "sft.yaml"], ["'train'", "did you mean 'fit'?", "`lightning --help` says"]),
    "one dash": (["fit", *BASE, "-lr", "1e-4"], ["'-lr' begins with one dash", "; did you mean --lr?"]),
    "one dash before the rest": (
        ["advise", "-objectve=NLL", *BASE],
        ["'-objectve=NLL'", "; did you mean --objective?"],
    ),
    "one dash before a verb's own": (["compare", *BASE, "-objectivs=NLL,EAFT"], ["; did you mean --objectives?"]),
    "one dash without settings": (["chat", "-prompt", "hi"], ["'-prompt' begins with one dash", "mean --prompt?"]),
    "typo of another tool's name": (["fit", *BASE, "--lerning_rate=1"], ["did you mean --lr (in full"]),
    "output of another tool": (["fit", *BASE, "--output_dir=o"], ["'output_dir'", "did you mean --output?"]),
    "rank of another tool": (["fit", *BASE, "--lora_r=8"], ["did you mean --adapter.r (in full --model.adapter.r)?"]),
    "unknown objective": (["fit", *BASE, "--model.objective=Powr"], ["'Powr'", "PowerFamily", "NLL", "my_module"]),
    "unknown callback": (
        ["fit", *BASE, "--trainer.callbacks+=TrainingMetric"],
        ["'TrainingMetric'", "did you mean 'TrainingMetrics'"],
    ),
    "objective option": (
        ["fit", *BASE, "--model.objective=PowerFamily", "--model.objective.alhpa=2"],
        ["'alhpa'", "did you mean --objective.alpha (in full --model.objective.alpha)?"],
    ),
    "objective value": (
        ["fit", *BASE, "--model.objective=PowerFamily", "--model.objective.alpha=-1"],
        ["alpha=-1", "Allowed"],
    ),
    "typo": (["fit", *BASE, "--model.objektive=NLL"], ["'model.objektive'", "did you mean --objective (in full"]),
    "typo of a trainer setting": (["fit", *BASE, "--trainer.max_stepz=3"], ["did you mean --max_steps (in full"]),
    "wrong type": (["fit", *BASE, "--trainer.max_steps=many"], ["trainer.max_steps", "a whole number", "many"]),
    "missing configuration": (["fit", "--config=nowhere.yaml"], ["nowhere.yaml"]),
    "missing setting": (["fit", "--data.train=y"], ["needs a model: --model NAME"]),
    "missing data file": (["fit", "--model.model_name_or_path={model}", "--data.train=no.jsonl"], ["no.jsonl"]),
    "missing model folder": (["fit", "--model.model_name_or_path=./no", "--data.train={rows}"], ["'./no'", "Allowed"]),
    "no run to resume": (["fit", *BASE, "--ckpt_path=last"], ["no run with a checkpoint", "lightning_logs"]),
    "missing checkpoint": (["fit", *BASE, "--ckpt_path=a.ckpt"], ["a.ckpt", "does not exist"]),
    "no checkpoint": (["fit", *BASE, "--ckpt_path={rows}"], ["cannot be read as a checkpoint", "'last'"]),
    "no accumulation": (["fit", *BASE, "--trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches is 0"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = BAD_INPUT[case]
    message = message_of([a.format(model=toy_folder, rows=rows) for a in arguments], capsys)
    for part in expected:
        assert part in message
    assert not list(Path().rglob("version_*")), "a run that never started left a folder"


def test_typo_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("model:\n  model_name_or_path: x\n  objektive: NLL\n")
    assert "did you mean 'model.objective'" in message_of(["fit", "--config=c.yaml"], capsys)


def test_debug_brings_the_traceback_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_DEBUG", "1")
    with pytest.raises(ValueError, match="no verb"):
        main(["fitt"])


def test_unknown_verb_names_the_command_of_lightning_sdk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = metadata.EntryPoints(
        metadata.EntryPoint(name, "lightning_sdk.cli.entrypoint:main_cli", "console_scripts")
        for name in ("lightning", "lightning-sdk")
    )

    class Installed:
        entry_points = scripts

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert "run: lightning-sdk login" in message_of(["login"], capsys)


def test_scripts_and_module_are_one_program() -> None:
    scripts = metadata.distribution("lightning-sft").entry_points.select(group="console_scripts")
    assert {s.name: s.value for s in scripts} == dict.fromkeys(
        ("lightning", "lightning-sft"), "lightning_sft.__main__:main"
    )
    done = subprocess.run([sys.executable, "-m", "lightning_sft", "--help"], capture_output=True, text=True, check=True)
    for verb in ("fit", "validate", "test", "predict", "inspect"):
        assert f"\n  {verb} " in done.stdout


def test_fit_then_resume_validate_test_and_predict(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy_arguments(toy_folder, rows, data__test=rows, data__predict=rows, model__max_new_tokens=3)
    run("fit", arguments)
    folder = run_folder()
    assert (folder / "config.yaml").is_file()
    run("fit", [*arguments, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert run_folder() == folder
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5

    capsys.readouterr()
    run("validate", [*arguments, "--ckpt_path=best"])
    table = capsys.readouterr().out.partition("\nheld out ")[2].splitlines()
    assert table[0].split() == ["value"]
    assert table[1].startswith("val/")
    run("test", [*arguments, "--ckpt_path=last"])
    said = capsys.readouterr().out
    assert re.search(r"^test/nll +\d+\.\d{4}$", said, re.M)
    assert "Test metric" not in said, "Lightning's table, which is as wide as its longest key"
    run("predict", [*arguments, "--ckpt_path=last", "--trainer.callbacks+=PredictionWriter"])
    predictions = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert [p["index"] for p in predictions] == list(range(24))
    assert set(predictions[0]) == {"index", "source", "prompt", "completion", "reference", "score"}
    assert predictions[3]["reference"] == "word 3"
    assert run_folder() == folder, "reading a checkpoint opens no further run"
    assert {"val/nll", "train/loss"} <= scalars(folder).keys()
    assert not (folder / "predict").exists(), "predict logs nothing, so it leaves no empty file of curves"
    assert "test/nll" in scalars(folder / "test"), "what reads a checkpoint writes beside the curves of the run"
    again = ["predict", *arguments, "--ckpt_path=last"]
    for more in ([], ["--trainer.callbacks+=PredictionWriter"]):
        said = message_of([*again, *more], capsys)
        assert "'predictions.jsonl' exists, and nothing is overwritten" in said
        assert said.endswith(f"\n  {shlex.join(['lightning', *again, *more, '--output', 'predictions-2.jsonl'])}\n")
    run("predict", [*again[1:], "--output=answers/of_last.jsonl"])
    assert Path("answers/of_last.jsonl").read_text() == Path("predictions.jsonl").read_text()
    assert [path.name for path in Path("answers").iterdir()] == ["of_last.jsonl"], "the file, and no folder of a run"


def test_printed_configuration_runs_unchanged(toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *toy_arguments(toy_folder, rows), "--print_config"])
    assert stop.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    run("fit", ["--config=printed.yaml"])
    assert torch.load(run_folder() / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_of_a_plain_lora_only_what_differs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def adapter(*more: str) -> dict[str, Any]:
        given = ["--model.model_name_or_path=a/b", "--data.train=a/b", "--model.adapter=peft.LoraConfig", *more]
        with pytest.raises(SystemExit):
            main(["fit", *given, "--print_config=skip_default"])
        found = yaml.safe_load(capsys.readouterr().out)["model"]["adapter"]
        assert isinstance(found, dict)
        return found

    lora = {"class_path": "peft.LoraConfig"}
    assert adapter() == lora
    assert adapter("--model.adapter.r=4") == {**lora, "init_args": {"r": 4}}
    asked = adapter("--model.adapter.init_lora_weights=loftq", "--model.adapter.loftq_config.loftq_bits=8")
    assert asked["init_args"]["loftq_config"]["loftq_bits"] == 8


RESUME = {
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "accumulate_grad_batches 1 (now 2)"),
    "batch size": (["--data.batch_size=2"], "batch_size 4 (now 2): its optimizer steps have 4 rows, and this run's"),
    "adapter": (["--model.adapter=peft.LoraConfig"], "LoraConfig; their weights differ"),
    "other sizes": (["--model.init=random", '--model.config_overrides={"intermediate_size": 48}'], "of another shape"),
}


@pytest.mark.parametrize("case", RESUME)
def test_resume_under_other_settings_is_refused_by_name(
    case: str, toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", toy_arguments(toy_folder, rows))
    settings, expected = RESUME[case]
    arguments = toy_arguments(toy_folder, rows, trainer__max_steps=5)
    assert expected in message_of(["fit", *arguments, *settings, "--ckpt_path=last"], capsys)


def test_resume_under_another_objective_goes_on_and_says_so(toy_folder: Path, rows: Path) -> None:
    run("fit", toy_arguments(toy_folder, rows))
    more = [*toy_arguments(toy_folder, rows, trainer__max_steps=5), "--ckpt_path=last", "--model.objective=PowerFamily"]
    with pytest.warns(UserWarning, match=r"trained under NLL\(\); this run uses PowerFamily\(alpha=1.0\)"):
        run("fit", more)
    assert torch.load(run_folder() / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_load_from_checkpoint_rebuilds_the_module(toy_folder: Path, rows: Path) -> None:
    settings = ["--model.objective=PowerFamily", "--model.objective.alpha=2.5", "--model.adapter=peft.LoraConfig"]
    run("fit", [*toy_arguments(toy_folder, rows), *settings, "--model.adapter.target_modules=all-linear"])
    path = run_folder() / "checkpoints/last.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`loftq_config` specified", UserWarning)
        warnings.filterwarnings("ignore", "Found keys that are in the model state dict but not", UserWarning)
        module = SFTModule.load_from_checkpoint(path)
    assert module.objective.alpha == 2.5
    assert module.settings.adapter.target_modules
    for name, value in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(module.state_dict()[name], value), name


def test_inspect_shows_trained_tokens_without_loading_weights(
    toy_folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "weightless")
    (folder / "model.safetensors").unlink()
    arguments = [f"--model.model_name_or_path={folder}", f"--data.train={rows}", "--data.val_split=4"]
    main(["inspect", *arguments, "--rows=2", "--color=false"])
    printed = capsys.readouterr().out
    assert printed.count("train row ") == 2
    assert "<|im_start|>assistant\n\u27e6word" in printed
    assert "<|im_end|>\u27e7" in printed, "the end of a turn is trained"
    assert "rows is -1" in message_of(["inspect", *arguments, "--rows=-1"], capsys)


@pytest.mark.parametrize(
    "optimizer",
    [["torch.optim.AdamW", "--model.optimizer.fused=true"], ["torch.optim.Adafactor", "--model.optimizer.lr=0.01"]],
    ids=["fused", "adafactor"],
)
def test_any_optimizer_by_class_path(optimizer: list[str], toy_folder: Path, rows: Path) -> None:
    name, setting = optimizer
    run("fit", [*toy_arguments(toy_folder, rows), f"--model.optimizer={name}", setting])
    checkpoint = torch.load(run_folder() / "checkpoints/last.ckpt", weights_only=True)
    state = checkpoint["optimizer_states"][0]
    trainable = sum(
        p.requires_grad for p in SFTModule.load_from_checkpoint(run_folder() / "checkpoints/last.ckpt").parameters()
    )
    assert len(state["state"]) == trainable
    assert checkpoint["global_step"] == 3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_named_schedules_survive_config_and_checkpoint(schedule: str, toy_folder: Path, rows: Path) -> None:
    run("fit", [*toy_arguments(toy_folder, rows), f"--model.lr_scheduler={schedule}"])
    config = (run_folder() / "config.yaml").read_text()
    assert f"lr_scheduler: {schedule}\n" in config
    module = SFTModule.load_from_checkpoint(run_folder() / "checkpoints/last.ckpt")
    assert module.optimization.lr_scheduler == schedule


def test_a_config_of_the_users_own_is_not_touched_without_a_logger(toy_folder: Path, rows: Path) -> None:
    Path("config.yaml").write_text("# mine\ntrainer:\n  logger: false\n")
    run("fit", ["--config=config.yaml", *toy_arguments(toy_folder, rows)])
    assert Path("config.yaml").read_text().startswith("# mine")
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()
    run("fit", ["--config=config.yaml", *toy_arguments(toy_folder, rows, trainer__max_steps=5), "--ckpt_path=last"])
    assert torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_a_resumed_run_keeps_the_first_configuration(toy_folder: Path, rows: Path) -> None:
    run("fit", toy_arguments(toy_folder, rows))
    first = (run_folder() / "config.yaml").read_text()
    run("fit", [*toy_arguments(toy_folder, rows, trainer__max_steps=5), "--ckpt_path=last"])
    assert (run_folder() / "config.yaml").read_text() == first
    again = (run_folder() / "config_resumed_at_step_3.yaml").read_text()
    assert "max_steps: 5" in again
    assert "ckpt_path: null" in again
    assert "version: null" in again


def test_a_random_base_under_an_adapter_stays_in_the_checkpoint(toy_folder: Path, rows: Path) -> None:
    settings = ["--model.init=random", "--model.adapter=peft.LoraConfig", "--model.adapter.target_modules=all-linear"]
    run("fit", [*toy_arguments(toy_folder, rows), *settings])
    path = run_folder() / "checkpoints/last.ckpt"
    norms = set()
    for seed in (7, 8):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`loftq_config` specified", UserWarning)
            module = SFTModule.load_from_checkpoint(path)
        norms.add(sum(p.double().abs().sum().item() for p in module.scorer.parameters()))
    assert len(norms) == 1


def test_a_run_that_is_stopped_keeps_a_checkpoint(toy_folder: Path, rows: Path) -> None:
    arguments = toy_arguments(toy_folder, rows, trainer__max_steps=-1, trainer__max_epochs=50000)
    run("fit", [*arguments, "--trainer.max_time=00:00:00:02", "--trainer.check_val_every_n_epoch=100000"])
    assert torch.load(run_folder() / "checkpoints/last.ckpt", weights_only=True)["global_step"] > 0


def test_another_learning_rate_on_resume_is_refused_and_not_ignored(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model.optimizer=torch.optim.AdamW"]
    run("fit", [*toy_arguments(toy_folder, rows), *base, "--model.optimizer.lr=0.001"])
    more = [*toy_arguments(toy_folder, rows, trainer__max_steps=5), "--ckpt_path=last"]
    message = message_of(["fit", *more, *base, "--model.optimizer.lr=0.5"], capsys)
    assert "lr of the optimizer AdamW (checkpoint: 0.001, this run: 0.5)" in message
    assert "SGD(" in message_of(["fit", *more, "--model.optimizer=torch.optim.SGD"], capsys)


def test_weights_that_are_no_checkpoint_of_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(2)}, "weights.ckpt")
    assert "Lightning did not write" in message_of(["fit", *BASE, "--ckpt_path=weights.ckpt"], capsys)


REFUSED = {
    "an optimizer that evaluates twice": (
        ["--model.adapter=peft.LoraConfig", "--model.adapter.target_modules=all-linear", "--model.optimizer=LBFGS"],
        "LBFGS evaluates the loss several",
    ),
    "a negative rate": (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"], "Allowed: 0 or more"),
    "an interval beyond the data": (["--trainer.val_check_interval=1000"], "val_check_interval"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message(case: str, toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, expected = REFUSED[case]
    assert expected in message_of(["fit", *toy_arguments(toy_folder, rows), *settings], capsys)


def test_rows_beyond_the_positions(
    toy_folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy_arguments(toy_folder, rows, data__val_split=None, model__init="random")
    with pytest.warns(UserWarning, match=r"longest row has \d+ tokens, but LlamaForCausalLM has 8 positions"):
        run("fit", [*arguments, '--model.config_overrides={"max_position_embeddings": 8}'])  # rotary: it may go on
    learned = save_toy(tmp_path / "gpt2", "gpt2", n_positions=16)
    message = message_of(["fit", *toy_arguments(learned, rows)], capsys)
    assert "has 16 positions" in message
    assert "data.max_length" in message


def test_a_class_in_the_current_folder_works_with_the_installed_script(toy_folder: Path, rows: Path) -> None:
    Path("my_file.py").write_text(
        "from lightning_sft.objectives import NLL\n\n\nclass Mine(NLL):\n    def forward(self, scores):\n"
        "        return 2 * super().forward(scores)\n"
    )
    script = Path(sys.executable).with_name("lightning-sft")
    command = [str(script), "fit", *toy_arguments(toy_folder, rows), "--model.objective=my_file.Mine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first = {key: values[0][1] for key, values in scalars(run_folder()).items()}
    assert first["train/loss"] == pytest.approx(2 * first["train/nll"], rel=1e-6)


def test_predict_writes_its_answers_without_being_told(toy_folder: Path, rows: Path) -> None:
    arguments = toy_arguments(toy_folder, rows, data__predict=rows, model__max_new_tokens=2)
    run("predict", arguments)
    assert len(Path("predictions.jsonl").read_text().splitlines()) == 24


def test_reading_a_checkpoint_keeps_the_metrics_of_a_csv_logger(toy_folder: Path, rows: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--trainer.logger.name=runs"]
    run("fit", [*toy_arguments(toy_folder, rows), *logger])
    before = Path("runs/version_0/metrics.csv").read_text()
    run("validate", [*toy_arguments(toy_folder, rows), *logger, "--ckpt_path=last"])
    assert Path("runs/version_0/metrics.csv").read_text() == before
    run("fit", [*toy_arguments(toy_folder, rows, trainer__max_steps=5), *logger, "--ckpt_path=last"])
    assert Path("runs/version_0/metrics_before_resume_0.csv").read_text() == before


def test_a_failing_run_leaves_the_curves_of_earlier_ones(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=.", "--trainer.logger.name=r"]
    pinned = [*toy_arguments(toy_folder, rows), *logger, "--trainer.logger.version=eval"]
    run("validate", pinned)
    events = sorted(p.name for p in Path("r/eval").iterdir())
    message_of(["validate", *pinned, "--data.val_split=1000"], capsys)
    assert set(events) <= {p.name for p in Path("r/eval").iterdir()}


def test_only_the_verb_at_hand_gets_a_parser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    prepare = LightningCLI._prepare_subcommand_parser

    def counting(self: LightningCLI, klass: type, subcommand: str, **kwargs: Any) -> Any:
        made.append(subcommand)
        return prepare(self, klass, subcommand, **kwargs)

    monkeypatch.setattr(LightningCLI, "_prepare_subcommand_parser", counting)
    with pytest.raises(SystemExit) as stop:
        main(["validate", "--model=some/model", "--print_config"])
    assert stop.value.code == 0
    assert made == ["validate"]
    assert "model_name_or_path: some/model" in capsys.readouterr().out


def test_libraries_draw_no_bars_on_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for terminal in (True, False):
        for name in bars:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with pytest.raises(SystemExit):
            main(["fit", "--model=some/model", "--print_config"])
        assert [os.environ.get(name) for name in bars] == [None if terminal else "1"] * 2
