"""What a mistake is answered with: what was given, what is allowed, what was meant; before torch is imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sft.cli.entry import main
from lightning_sft.places import DOCS
from tests.running import write_rows
from tests.test_dependencies import PROJECT

MODEL = ["--model", "no/model", "--train", "rows.jsonl"]

#: mistake -> the arguments, and words that its answer has: what was given, what is allowed, what was meant
MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # settings that are called otherwise
    "learning_rate": (["--learning_rate=1e-4"], ("'learning_rate'", "model.optimizer.lr", "--lr")),
    "model.lr": (["--model.lr=1e-4"], ("'model.lr'", "model.optimizer.lr")),
    "optimizer.lr": (["--optimizer.lr=1e-4"], ("'optimizer.lr'", "model.optimizer.lr")),
    "a name of transformers": (["--gradient_accumulation_steps", "4"], ("trainer.accumulate_grad_batches",)),
    "a name of trl": (["--max_seq_length", "512"], ("'max_seq_length'", "data.max_length")),
    "a name of axolotl": (["--micro_batch_size", "4"], ("'micro_batch_size'", "data.batch_size")),
    "epochs": (["--trainer.epochs=2"], ("'trainer.epochs'", "trainer.max_epochs")),
    "gpus": (["--trainer.gpus=2"], ("'trainer.gpus'", "trainer.devices")),
    "bf16": (["--bf16", "true"], ("'bf16'", "trainer.precision")),
    "output_dir": (["--output_dir", "runs"], ("'output_dir'", "did you mean --output?")),
    "wandb alone": (["--wandb"], ("'wandb'", "trainer.logger")),
    "nll alone": (["--nll"], ("'nll'", "--objective NLL")),
    "cosine alone": (["--cosine"], ("'cosine'", "--model.lr_scheduler cosine")),
    "lora_r": (["--lora_r=8"], ("'lora_r'", "did you mean --adapter.r (in full --model.adapter.r)?")),
    # what other tools call otherwise, and do with several settings or none
    "LLaMA-Factory's lora": (["--finetuning_type=lora"], ("'finetuning_type'", "--adapter lora", "--adapter.r 16")),
    "LLaMA-Factory's targets": (["--lora_target=all"], ("all linear layers", "--adapter.target_modules")),
    "LLaMA-Factory's rows": (["--max_samples=1000"], ("max_rows of a source", "--train.max_rows 1000")),
    "LLaMA-Factory's stage": (["--stage=sft"], ("The verb says what is done", "lightning fit")),
    "LLaMA-Factory's template": (["--template=llama3"], ("--model.chat_template", "the tokenizer's own")),
    "LLaMA-Factory's quantization": (["--quantization_bit=4"], ("--model.quantization nf4", "--adapter lora")),
    "TRL's text field": (["--dataset_text_field=text"], ("recognised by their names", "--train.columns")),
    "TRL's tokenizer": (["--processing_class=x"], ("--model.tokenizer_name_or_path",)),
    "TRL's saves": (["--save_steps=100"], ("The best and the last checkpoint are kept", "ModelCheckpoint")),
    "TRL's best model": (["--load_best_model_at_end"], ("`lightning test RUN`",)),
    "TRL's 8-bit optimizer": (["--model.optimizer=adamw_8bit"], ("bitsandbytes.optim.AdamW8bit", "--adapter lora")),
    "TRL's betas": (["--adam_beta2=0.95"], ("--model.optimizer.betas '[0.9, 0.95]'",)),
    "TRL's evaluation": (["--evaluation_strategy=steps"], ("--trainer.val_check_interval 0.25", "500 every 500")),
    "TRL's name of a run": (["--run_name=x"], ("--output", "--trainer.logger.name")),
    "Axolotl's flag": (["--flash_attention=true"], ("did you mean --model.attn_implementation?",)),
    "Axolotl's prompts": (["--train_on_inputs=false"], ("--data.train_on all", "answers alone")),
    "Axolotl's list of rows": (["--datasets=x"], ("several sources under data.train",)),
    "a liger kernel": (["--use_liger_kernel"], ("computed in chunks by default",)),
    "a push": (["--push_to_hub"], ("lightning export RUN --push_to_hub",)),
    "a stage of ZeRO": (["--trainer.strategy=zero2"], ("'zero2'", "--trainer.strategy deepspeed_stage_2")),
    "early stopping": (
        ["--early_stopping_patience=3"],
        ("lightning fit sft.yaml configs/callbacks/early_stopping.yaml",),
    ),
    "preferences": (["--objective=dpo"], ("supervised fine-tuning alone",)),
    "half of a word for a number": (["--max_length=4k"], ("data.max_length is '4k'", "a whole number or null")),
    # what is not offered, by its names elsewhere
    "context parallelism of a strategy": (
        ["--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.context_parallel_size=2"],
        ("'context_parallel_size'", "not supported", "gradient_checkpointing", "docs/how_to/strategies.md"),
    ),
    "context parallelism of axolotl": (["--context_parallel_size=2"], ("not supported", "configs/strategy/fsdp2.yaml")),
    "context parallelism of accelerate": (["--trainer.cp_size=2"], ("'trainer.cp_size'", "not supported")),
    "a strategy that is not there": (["--trainer.strategy=context_parallel"], ("'context_parallel'", "not supported")),
    # typos of settings
    "a typo in a section": (["--model.objektive=NLL"], ("'model.objektive'", "model.objective")),
    "a typo in a short word": (["--objektive", "NLL"], ("'objektive'", "model.objective")),
    "a typo in the section": (["--modle.objective=NLL"], ("'modle.objective'", "model.objective")),
    "the wrong section": (["--trainer.batch_size=4"], ("'trainer.batch_size'", "data.batch_size")),
    "wrong case of a setting": (["--trainer.Max_Steps=4"], ("'trainer.Max_Steps'", "trainer.max_steps")),
    "nothing like a setting": (["--model.zzz=1"], ("'model.zzz'", "Settings of 'model': ", "objective")),
    "a rate that is no number": (["--lr", "abc"], ("'abc'", "--model.optimizer.lr", "a number")),
    # classes, by type
    "an unknown optimizer": (["--model.optimizer=Adamm"], ("'Adamm'", "'Adam'", "Optimizers: ", "SGD")),
    "an optimizer in lower case": (["--model.optimizer=adamw"], ("'adamw'", "'AdamW'", "Optimizers: ")),
    "a schedule for an optimizer": (["--model.optimizer=cosine"], ("'cosine'", "--model.lr_scheduler cosine")),
    "a schedule in upper case": (["--model.lr_scheduler=Cosine"], ("'Cosine'", "'cosine'", "Schedules: ", "linear")),
    "an objective in lower case": (["--objective", "nll"], ("'nll'", "'NLL'", "Objectives: ", "PowerFamily")),
    "an objective's other name": (["--objective", "cross_entropy"], ("'cross_entropy'", "'NLL'", "Objectives: ")),
    "an objective of our package": (
        ["--objective=lightning_sft.objectives.PowerFamly"],
        ("PowerFamly", "'PowerFamily'", "Objectives: "),
    ),
    "an unknown logger": (["--logger", "wanb"], ("'wanb'", "'wandb'", "Loggers: ", "CSVLogger")),
    "an unknown adapter": (
        ["--adapter", "lorra"],
        ("'lorra'", "did you mean 'lora'", "lora, dora, adalora", "model.adapter.help` lists all"),
    ),
    "an unknown callback": (
        ["--trainer.callbacks+=EarlyStoping"],
        ("'EarlyStoping'", "'EarlyStopping'", "often used: ", "DriftMonitor"),
    ),
    "an unknown data source": (["--data.train.class_path=Sorce"], ("'Sorce'", "'Source'", "Data sources: ")),
    # arguments of classes
    "an adapter's letters changed": (
        ["--adapter", "loar"],
        ("did you mean 'lora'?", "`lightning fit --model.adapter."),
    ),
    "a typo of a short argument": (
        ["--adapter=lora", "--adapter.alpah=8"],
        (
            "'alpah'",
            "--adapter.alpha (",
            "takes: r, lora_alpha, lora_dropout",
            "more: `lightning fit --model.adapter.help",
        ),
    ),
    "rank before its adapter": (
        ["--adapter.rank=8"],
        ("none is chosen", "'r' is an argument of lora", "--adapter lora"),
    ),
    "QLoRA": (["--adapter=qlora"], ("--adapter lora with --model.quantization nf4",)),
    "rank": (
        ["--adapter", "lora", "--model.adapter.rank=8"],
        ("'rank'", "mean --adapter.r (", "LoraConfig takes: ", "lora_alpha"),
    ),
    "a typo in an adapter's argument": (
        ["--adapter=lora", "--adapter.lora_alhpa=8"],
        ("lora_alhpa", "--adapter.alpha ("),
    ),
    "another adapter's argument": (["--adapter=ia3", "--adapter.r=8"], ("no option 'r'", "IA3Config takes: ")),
    "a typo in an objective's argument": (
        ["--objective=PowerFamily", "--objective.alhpa=1"],
        ("'alhpa'", "--objective.alpha (", "PowerFamily takes: alpha, floor"),
    ),
    "an argument without a class": (["--objective.alpha=1"], ("none is chosen", "PowerFamily")),
    "a typo in an argument without a class": (["--objective.alfa=1"], ("none is chosen", "'alpha'", "PowerFamily")),
    "an argument of another objective": (
        ["--objective=NLL", "--objective.alfa=1"],
        ("no option 'alfa'", "NLL takes: nothing", "'alpha' is an argument of", "PowerFamily"),
    ),
    "an optimizer's argument": (
        ["--model.optimizer.learning_rate=1"],
        ("'learning_rate'", "mean --lr (", "AdamW takes: "),
    ),
    "a callback's argument": (
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.montor=val/nll"],
        ("'montor'", "--trainer.callbacks.monitor?", "EarlyStopping takes: "),
    ),
    # values
    "a word for a number": (["--batch_size", "many"], ("data.batch_size is 'many'", "a whole number")),
    "a part of a row": (["--batch_size", "2.5"], ("data.batch_size is '2.5'", "a whole number")),
    "a truth value for a number": (["--trainer.max_steps=true"], ("trainer.max_steps is 'true'", "a whole number")),
    "a number for a seed or none": (["--seed_everything=1.5"], ("'1.5'", "true or false or a whole number")),
    "half a device": (
        ["--trainer.devices=2.5"],
        ("trainer.devices is '2.5'", "a whole number from 1", "auto", "[0, 1]"),
    ),
    "half a device, in short": (["--devices", "2.5"], ("'devices'", "trainer.devices")),
    "no device": (["--trainer.devices=0"], ("trainer.devices is '0'", "a whole number from 1")),
    "half a device in a list": (["--trainer.devices=[0, 0.5]"], ("trainer.devices is '[0, 0.5]'", "[0, 1]")),
    "an unknown choice": (["--data.truncation=lefft"], ("'lefft'", "'left'", "keep_completion")),
    "fp16": (["--trainer.precision=fp16"], ("'fp16'", "'16-mixed'", "bf16-mixed")),
    "a dtype": (["--model.dtype=bf16"], ("'bf16'", "'bfloat16'", "float32")),
    "4bit": (["--model.quantization=4bit"], ("'4bit'", "'nf4'", "int8")),
    "a Python None": (["--data.val_split=None"], ("'None'", "'null'", "a number")),
    "no truth value": (["--model.torch_compile=maybe"], ("'maybe'", "true or false")),
    "no value": (["--lr"], ("--lr has no value", "model.optimizer.lr")),
    "no value of a long key": (["--data.batch_size"], ("--data.batch_size has no value", "a whole number")),
    # words by themselves
    "a word by itself": (["--lr", "1e-4", "train.jsonl"], ("'train.jsonl'", "YAML file", "two dashes")),
    "a file that is not there": (["mine.yaml"], ("'mine.yaml'", "no file")),
    "letters changed in an ending": (["mine.ymal"], ("There is no file 'mine.ymal'", "a YAML file", "two dashes")),
    "rows for settings": (["rows.jsonl"], ("'.jsonl', not .yaml", "--train rows.jsonl")),
    "a folder that is not there": (["gone/mine.yaml"], ("no file 'gone/mine.yaml'", "no folder 'gone', either")),
    # what this machine lacks
    "a data file that is not there": (["--train", "gone.jsonl"], ("--data.train", "no file gone.jsonl", "Check the")),
    "a pattern without files": (["--train=part-*.csv"], ("--data.train", "No file matches part-*.csv")),
    "a model folder that is not there": (["--model", "./gone"], ("model_name_or_path", "no model folder './gone'")),
    "a package without a model": (["--model=pkg://nothing/a.gguf"], ("'nothing'", "not installed", "a hub name")),
    "a value for a flag": (["--report=yes"], ("--report is 'yes'", "no value")),
}


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "list.json").write_text('[{"prompt": "a", "completion": "b"}]')


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[name]
    loose = [] if arguments[0].startswith("-") else arguments
    said = answer(["fit", *loose, *MODEL, *([] if loose else arguments)], capsys)
    for word in words:
        assert word in said


#: content of a file -> words that its answer has
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "an empty file": ("", ("mine.yaml is empty",)),
    "a file of comments": ("# model:\n", ("mine.yaml is empty",)),
    "no YAML": ("model:\n  objective: NLL\n bad: [1\n", ("mine.yaml, line 3", "no YAML")),
    "a tab": ("model:\n\tobjective: NLL\n", ("mine.yaml, line 2", "no YAML")),
    "a list": ("- model\n", ("mine.yaml holds a list", "KEY: VALUE")),
    "a typo": ("model:\n  objective: NLL\n  objektive: NLL\n", ("mine.yaml, line 3", "'model.objektive'")),
    "a setting elsewhere": ("model:\n  lr: 1.0e-4\n", ("mine.yaml, line 2", "model.optimizer.lr")),
    "a setting without its section": ("batch_size: 4\n", ("mine.yaml, line 1", "data.batch_size")),
    "an unknown class": (
        "model:\n  optimizer:\n    class_path: Adamm\n",
        ("mine.yaml, line 3", "'Adamm'", "'Adam'", "Optimizers: "),
    ),
    "a class's argument": (
        "model:\n  adapter:\n    class_path: peft.LoraConfig\n    init_args:\n      rank: 8\n",
        ("mine.yaml, line 5", "'rank'", "'r'"),
    ),
    "a callback's argument": (
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {montor: val/nll}\n",
        ("mine.yaml, line 4", "'montor'", "'monitor'"),
    ),
    "a wrong value": ("data:\n  truncation: lefft\n", ("mine.yaml, line 2", "'lefft'", "'left'")),
    "a data file": (
        "data:\n  val:\n    class_path: Source\n    init_args:\n      path: gone.csv\n",
        ("mine.yaml, line 5: data.val: ", "no file gone.csv"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_is_answered_with_its_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = FILES[name]
    Path("mine.yaml").write_text(content)
    said = answer(["fit", "mine.yaml", *MODEL], capsys)
    for word in words:
        assert word in said


def test_all_mistakes_of_a_file_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "model:",
        "  objektive: NLL",
        "  adapter: {class_path: peft.LoraConfig, init_args: {rnk: 8, lora_alhpa: 16}}",
        "data:",
        "  batch_sise: 4",
        "trainer:",
        "  callbacks: [{class_path: EarlyStopping, init_args: {montor: val/nll}}, EarlyStoping]",
    ]
    Path("mine.yaml").write_text("\n".join(lines))
    said = answer(["fit", "mine.yaml", *MODEL, "--lora_r=8"], capsys)
    first, *told = said.splitlines()
    assert first == "error: 7 mistakes:"
    places = [line.split(":")[0].strip() for line in told]
    assert places[:5] == [f"mine.yaml, line {number}" for number in (2, 3, 3, 5, 7)]
    assert told[5:] == ["  and 2 more."]
    for word, line in zip(
        ("'model.objective'", "'rnk'", "'lora_alpha'", "'data.batch_size'", "'monitor'"), told[:5], strict=True
    ):
        assert word in line


def test_arguments_without_their_class_are_one_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(["fit", *MODEL, "--adapter.r=8", "--adapter.alpha=16"], capsys)
    assert said.count("none is chosen before it") == 1


@pytest.mark.parametrize("given", [["--logger=wandb"], ["--trainer.logger", "WandbLogger"], ["mine.yaml"]])
def test_a_logger_without_its_package_says_how_to_install_it(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sft.cli.front.present.is_installed", lambda module: module != "wandb")
    Path("mine.yaml").write_text("trainer:\n  logger: wandb\n")
    said = answer(["fit", *given, *MODEL], capsys)
    assert "trainer.logger is WandbLogger" in said
    assert "`pip install wandb`" in said
    assert "torch" not in said


def test_ctrl_c_is_no_defect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.cli.env.facts", lambda: os.kill(os.getpid(), signal.SIGINT) or iter(()))
    with pytest.raises(SystemExit) as ended:
        main(["env"])
    assert ended.value.code == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert said.startswith("Stopped by SIGINT")
    assert "Traceback" not in said


def test_a_file_that_is_not_there_has_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("model: {}\n")
    for given in (["--config", "mien.yaml"], ["mine.ymal"], ["mine"], ["mine.txt"]):
        said = answer(["fit", *given], capsys)
        assert f"There is no file {given[-1]!r}" in said
        assert "Did you mean 'mine.yaml'?" in said
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/config.yaml").write_text("model: {}\n")
    assert "is a folder of runs and none itself. Give one of them, such as 'runs/one'" in answer(
        ["fit", "runs"], capsys
    )


@pytest.mark.parametrize(
    ("verb", "option", "words"),
    [
        ("inspect", "--rowss=3", ("'rowss'", "did you mean --rows?")),
        ("advise", "--stepz=3", ("'stepz'", "did you mean --steps?")),
        ("score", "--outptu=x", ("'outptu'", "did you mean --output?")),
        ("audit", "--befor=x", ("'befor'", "did you mean --before?")),
        (
            "audit",
            "--data=list.json",
            ("needs --after MODEL", "For example:  lightning audit --after"),
        ),  # rows are no file of settings
        ("fitt", "--lr=1", ("no verb 'fitt'", "'fit'", "Verbs: ")),
    ],
)
def test_other_verbs_answer_too(
    verb: str, option: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    said = answer([verb, *MODEL, option], capsys)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("typed", "beside"),
    [
        ("predict RUN --data.predict rows.jsonl --output there.txt", "there-2.txt"),
        ("score mine.yaml --output=there.txt --top 3", "there-2.txt"),
        ("audit --after a/b --data rows.jsonl --output there", "there-2"),
        ("export RUN --output there --merge", "there-2"),
        ("init --model a/b --output there.txt", "there-2.txt"),
        ("mine-probes --model a/b --data rows.jsonl --output there.txt", "there-2.txt"),
    ],
)
def test_what_an_earlier_call_wrote_is_answered_with_a_command(
    typed: str, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there").mkdir()
    Path("RUN/checkpoints").mkdir(parents=True)
    for name in ("there.txt", "rows.jsonl", "mine.yaml", "RUN/config.yaml"):
        Path(name).touch()
    said, _, command = answer(typed.split(), capsys).strip().partition("\n  ")
    given = Path(beside).name.replace("-2", "")
    assert said == f"error: {given!r} exists, and nothing is overwritten. Beside it:"
    kept = typed.replace(f" --output {given}", "").replace(f" --output={given}", "")
    assert command == f"lightning {kept} --output {beside}"


def test_pages_are_named_where_anybody_can_read_them() -> None:
    assert PROJECT["urls"]["Homepage"] + "/blob/main/docs" == DOCS


def test_no_model_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model NAME" in answer(["fit", "--train", "rows.jsonl"], capsys)


def test_callbacks_that_a_later_file_replaces_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("trainer:\n  callbacks:\n  - class_path: lightning_sft.callbacks.DriftMonitor\n")
    Path("b.yaml").write_text("trainer:\n  callbacks: [Timer]\nnonsense: 1\n")
    with pytest.raises(SystemExit):
        main(["fit", "a.yaml", "b.yaml", *MODEL])
    capsys.readouterr()
    Path("b.yaml").write_text("trainer:\n  callbacks: [Timer]\n")
    from lightning_sft.cli.front.check import check

    (remark,) = check("fit", ["--config=a.yaml", "--config=b.yaml", *MODEL])
    for word in ("b.yaml replaces", "a.yaml", "DriftMonitor", "callbacks+:"):
        assert word in remark
    Path("b.yaml").write_text("trainer:\n  callbacks+: [Timer]\n")
    assert check("fit", ["--config=a.yaml", "--config=b.yaml", *MODEL]) == []


def test_answers_and_help_come_before_torch() -> None:
    code = """
import sys
from lightning_sft.cli.entry import main
open("there", "w").close()
for arguments in (["fit", "--help"], ["fit", "--lrr=1"], ["audit", "--help"], ["fit", "--help", "objective"],
                  ["fit", "--model=a/b", "--train=gone.jsonl"], ["score", "--model=a/b", "--output=there"]):
    try:
        main(arguments)
    except SystemExit:
        pass
print([m for m in ("torch", "lightning", "transformers", "numpy") if m in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("[]"), ran.stdout + ran.stderr
    assert "--model.optimizer.lr" in ran.stdout
    assert "no file gone.jsonl" in ran.stderr
    assert "--output there-2" in ran.stderr


def test_a_reader_that_left_is_no_defect() -> None:
    command = f"{sys.executable} -m lightning_sft fit --help | head -n 1"
    ran = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert ran.stdout.startswith("usage: lightning fit")
    assert ran.stderr == ""
    assert ran.returncode in (0, 141)


def test_a_class_of_the_users_own_is_left_to_the_parser() -> None:
    from lightning_sft.cli.front.check import check

    for own in (["--objective", "mine.Objective"], ["--model", "mine.Module"]):
        assert check("fit", [*own, "--model.model_name_or_path=x", "--model.my_setting=1", "--logger=Mine"]) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.devices=64"], ("trainer.devices is 64", "no GPU", "64 processes", "--trainer.accelerator cpu")),
        (["--trainer.accelerator=gpu"], ("'gpu'", "no GPU", "lightning env")),
        (["--trainer.devices=0,1"], ("trainer.devices is '0,1'", "on the processor", "a whole number from 1, or auto")),
        (["--trainer.accelerator=cpu", "--trainer.devices=-1"], ("is '-1'", "a number of processes")),
        (
            ["--model.adapter=LoraConfig", "--model.adapter.r=2.5"],
            ("model.adapter: r", "2.5 was given", "Allowed: a whole number."),
        ),
        (
            ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=2.5"],
            ("every_n_train_steps: 2.5 was given. Allowed: a whole number or null.",),
        ),
    ],
)
def test_devices_that_are_not_there(
    options: list[str],
    words: tuple[str, ...],
    toy_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--model", str(toy_folder), "--train", "rows.jsonl", *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said


def test_too_few_gpus(toy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SystemExit):
        main(["fit", "--model", str(toy_folder), "--train", "rows.jsonl", "--trainer.devices=8"])
    assert "trainer.devices is 8, and this machine has 2 GPUs" in capsys.readouterr().err


def test_an_empty_file_is_called_empty(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("none.jsonl").write_text("")
    with pytest.raises(SystemExit):
        main(["inspect", "--model", str(toy_folder), "--train", "none.jsonl"])
    assert "The file 'none.jsonl' is empty" in capsys.readouterr().err
