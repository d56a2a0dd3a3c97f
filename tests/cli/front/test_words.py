"""Short words stand for long keys; the command line beats files."""

from pathlib import Path

import pytest

from lightning_sft.cli.front.sources import spell_out_sources
from lightning_sft.cli.front.words import expand, spell_out, split, tidy
from lightning_sft.errors import UserError
from lightning_sft.places import near, shipped_folder

LORA = [
    "--model.adapter=peft.LoraConfig",
    "--model.adapter.r=16",
    "--model.adapter.lora_alpha=32",
    "--model.adapter.target_modules=all-linear",
]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--lr", "1e-4"], ["--model.optimizer.lr", "1e-4"]),
        (["--lr=1", "--model.optimizer=SGD"], ["--model.optimizer=SGD", "--model.optimizer.lr=1"]),
        (["--objective", "Focal", "--objective.gamma=2"], ["--model.objective", "Focal", "--model.objective.gamma=2"]),
        (["--train", "a.jsonl", "--val=b.jsonl"], ["--data.train", "a.jsonl", "--data.val=b.jsonl"]),
        (
            ["--train", "a.jsonl", "--train.columns={prompt: q, completion: a}"],
            ["--data.train=Source", "--data.train.path", "a.jsonl", "--data.train.columns={prompt: q, completion: a}"],
        ),
        (["--val=mine.Rows", "--val.size=3"], ["--data.val=mine.Rows", "--data.val.size=3"]),
        (["--train=Source", "--train.path=a.csv"], ["--data.train=Source", "--data.train.path=a.csv"]),
        (["--model", "org/name"], ["--model.model_name_or_path", "org/name"]),
        (["--model", "gpt2"], ["--model.model_name_or_path", "gpt2"]),
        (["--model=pkg://package/a.gguf"], ["--model.model_name_or_path=pkg://package/a.gguf"]),
        (["--model", "mine.MyModule"], ["--model", "mine.MyModule"]),
        (["--model={class_path: mine.MyModule}"], ["--model={class_path: mine.MyModule}"]),
        (["--adapter", "lora"], LORA),
        (["--adapter=null"], ["--model.adapter=null"]),
        (["--adapter=peft.VeraConfig"], ["--model.adapter=peft.VeraConfig"]),
        (
            ["--adapter=lora", "--adapter.r=8"],
            [*LORA, "--model.adapter.r=8", "--model.adapter.lora_alpha=16"],
        ),
        (
            ["--adapter=lora", "--adapter.r=8", "--adapter.alpha=8"],
            [*LORA, "--model.adapter.r=8", "--model.adapter.lora_alpha=8"],
        ),
        (["--logger=csv"], ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=."]),
        (["--trainer.logger", "wandb"], ["--trainer.logger=lightning.pytorch.loggers.WandbLogger"]),
        (["--trainer.logger=false"], ["--trainer.logger=false"]),
        (["--max_steps=3", "--config=a.yaml"], ["--config=a.yaml", "--trainer.max_steps=3"]),
        (["fit", "--seed", "1"], ["fit", "--seed_everything", "1"]),
    ],
)
def test_words(given: list[str], meant: list[str]) -> None:
    assert expand(given) == meant
    assert expand(meant) == meant, "long keys stay"


def test_a_file_of_settings_behind_model_stays_one() -> None:
    Path("model.yaml").write_text("model_name_or_path: x\n")
    assert expand(["--model", "model.yaml"]) == ["--model", "model.yaml"]
    assert expand(["--model", "other.yaml"]) == ["--model", "other.yaml"] or "other.yaml" in expand(
        ["--model", "other.yaml"]
    )


def test_an_adapter_that_is_a_folder() -> None:
    Path("tuned").mkdir()
    Path("tuned/adapter_config.json").write_text("{}")
    assert expand(["--adapter", "tuned"]) == ["--model.adapter_path", "tuned"]


def test_dashes_are_underscores_except_in_names_of_the_users() -> None:
    given = ["--data.batch-size", "4", "--ckpt-path=a-b.ckpt", "--data.template_kwargs.my-key=1"]
    meant = ["--data.batch_size", "4", "--ckpt_path=a-b.ckpt", "--data.template_kwargs.my-key=1"]
    assert tidy(given, takes_files=True) == meant


def test_files_by_themselves() -> None:
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text("model: {}\n")
    assert tidy(["a.yaml", "--lr=1", "b.yaml"], takes_files=True) == ["--config=a.yaml", "--lr=1", "--config=b.yaml"]
    assert tidy(["--print_config", "a.yaml"], takes_files=True) == ["--print_config", "--config=a.yaml"]
    assert tidy(["--arm", "x", "a=1", "--isolate", "a.yaml"], takes_files=True)[-1] == "--config=a.yaml"
    assert tidy(["worker", "--storage", "x"], takes_files=False) == ["worker", "--storage", "x"]
    with pytest.raises(UserError, match=r"There is no file 'c\.yaml'"):
        tidy(["c.yaml"], takes_files=True)


def test_options_of_a_source_whose_path_stands_in_a_file() -> None:
    Path("sft.yaml").write_text("data: {train: rows.jsonl, val: null, test: [a.jsonl, b.jsonl]}\n")
    file, options = "--config=sft.yaml", "--train.columns={prompt: q, completion: a}"
    made = ["--data.train=Source", "--data.train.path=rows.jsonl"]
    assert spell_out_sources("fit", [file, options]) == [*made, file, options]
    for others in ([file], [file, "--val.name=x"], [file, "--data.test.name=x"], [file, "--train=Source", options]):
        assert spell_out_sources("fit", others) == others
    Path("rows.json").write_text("[]")
    assert spell_out_sources("audit", ["--data=rows.json"]) == ["--data=rows.json"], "rows, and no settings"


def test_shipped_configurations_work_by_name_where_they_are_not() -> None:
    place = str(near(shipped_folder() / "strategy/ddp.yaml"))
    for typed in (["configs/strategy/ddp.yaml"], ["--config", "./configs/strategy/ddp.yaml"]):
        (found,) = (value for _, values, _ in split(tidy(typed, takes_files=True)) for value in values)
        assert found == place
    Path("configs/strategy").mkdir(parents=True)
    Path("configs/strategy/ddp.yaml").write_text("trainer: {devices: 3}\n")
    assert tidy(["configs/strategy/ddp.yaml"], takes_files=True) == ["--config=configs/strategy/ddp.yaml"]
    with pytest.raises(UserError, match=r"no file 'configs/strategy/dpp\.yaml'"):
        tidy(["configs/strategy/dpp.yaml"], takes_files=True)
    assert tidy(["--output", "configs/demo.yaml"], takes_files=True) == ["--output", "configs/demo.yaml"]


def test_short_words_in_a_file() -> None:
    content = {"model": {"adapter": "lora"}, "trainer": {"logger": "csv"}}
    assert spell_out(content)
    assert content["model"]["adapter"] == {
        "class_path": "peft.LoraConfig",
        "init_args": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    }
    assert content["trainer"]["logger"]["class_path"].endswith("CSVLogger")
    assert not spell_out({"model": {"adapter": None}, "trainer": {"logger": True}})
