"""Exported folders, read by plain transformers and peft in a process that knows nothing of this package."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.export.folder import load_module, write_folder
from tests.export.runs import (
    RUNS,
    Stranger,
    expected_of,
    export_and_read,
    file_name,
    jobs_of,
    marks_of,
    run_of,
    train_all_it_needs,
)
from tests.lazy import Lazy
from tests.running import write_rows
from tests.toys import save_toy, toy_model

# each fit is a run of its own; peft 0.21 warns of an adapter on tied embeddings, which is what some tests are about
pytestmark = [
    pytest.mark.filterwarnings("ignore:`loftq_config` specified"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
each_run = pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in RUNS])
each_job = pytest.mark.parametrize(
    "job", [pytest.param(job, marks=marks_of(name)) for name in RUNS for job in jobs_of(name)]
)
#: run -> checkpoint; job -> exported folder, what our module says, what a process without this package says
Trained = Lazy[Path]
Exported = Lazy[tuple[Path, dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made: Trained = Lazy(lambda name: train_all_it_needs(name, tmp_path_factory.mktemp(file_name(name)), made))
    return made


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    place = tmp_path_factory.mktemp("exported")
    stranger = Stranger(place / "errors.txt")
    expected = Lazy(lambda name: expected_of(trained[name], place / f"{file_name(name)}.pt"))
    yield Lazy(lambda job: export_and_read(job, place, trained[run_of(job)], expected[run_of(job)], stranger))
    stranger.close()


@each_job
def test_a_stranger_reads_the_same_model(job: str, exported: Exported) -> None:
    _, expected, told = exported[job]
    assert abs(told["nll"] - expected["nll"]) < 1e-5
    assert told["answers"] == expected["answers"]
    assert any(told["answers"])
    assert told["cache"] is True


@each_run
def test_training_changed_the_model(name: str, trained: Trained, exported: Exported) -> None:
    before = torch.load(trained[name], weights_only=True)["callbacks"]["RunSummary"]["before"]
    assert abs(before["val/nll"] - exported[jobs_of(name)[0]][1]["nll"]) > 1e-3


def test_a_continued_adapter_starts_where_the_stored_one_ended(trained: Trained) -> None:
    before = torch.load(trained["continued"], weights_only=True)["callbacks"]["RunSummary"]["before"]
    rows = str(trained["tied"].parents[3] / "rows.jsonl")
    data = SFTDataModule(train=rows, val_split=4, batch_size=4, system="Count ``` words.")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    (readings,) = Trainer(accelerator="cpu", **quiet).validate(load_module(trained["tied"]), data, verbose=False)
    assert before["val/nll"] == pytest.approx(readings["val/nll"], abs=1e-6)


def test_answers_end_where_predict_ends_them(exported: Exported) -> None:
    folder, _, told = exported["full"]
    assert told["ends"] == [0, 2], "the model's own end and the tokenizer's, which is the end of a turn"
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True


@each_job
def test_folders_hold_the_card_and_no_path_of_this_machine(job: str, exported: Exported) -> None:
    folder = exported[job][0]
    card = (folder / "README.md").read_text()
    assert (folder / "chat_template.jinja").is_file()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == ("peft" if job.endswith("adapter") else "transformers")
    assert "base_model" not in front, "the hub refuses a folder's name there"
    blocks = [yaml.safe_load(text) for text in re.findall(r"````yaml\n(.*?)````\n", card, re.S)]
    training, data = blocks
    assert training["objective"]["class_path"].endswith("NLL")
    assert training["steps"] == 4
    assert training["optimizer"]["init_args"]["lr"] == 0.01
    assert data["system"] == "Count ``` words."
    assert re.search(r"^\| val/nll \| [\d.]+ \| [\d.]+ \|$", card, re.M), "before and after"
    if job.startswith("continued"):
        assert training["adapter_path"].endswith("stored")
        assert training["adapter"]["init_args"]["r"] == 4
        assert "adapter (LoraConfig)" in card
    if job.startswith("tied"):
        assert training["adapter"] == {
            "class_path": "peft.LoraConfig",
            "init_args": {"r": 4, "target_modules": "all-linear"},
        }
    for text in folder.iterdir():
        if text.name not in ("README.md", "adapter_config.json") and text.suffix != ".safetensors":
            assert str(folder.parent.parent) not in text.read_text(), text.name


def test_no_partial_folder_stays(exported: Exported) -> None:
    place = exported["full"][0].parent
    assert not [p.name for p in place.iterdir() if p.name.startswith(".")]


def test_best_and_last_of_the_runs_below(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained["full"].parents[3])
    for which in ("best", "last"):
        main(["export", f"--ckpt_path={which}", f"--output=out/{which}"])
        assert (Path("out") / which / "model.safetensors").is_file()
    card = Path("out/best/README.md").read_text()
    assert "Best `val/nll` of the run so far: " in card


def test_a_runs_folder_gets_its_model(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained["full"].parents[1]
    monkeypatch.chdir(run.parent)
    main(["export", run.name])
    assert f"{run.name}/checkpoints/best.ckpt -> {run.name}/model (full model)" in capsys.readouterr().out
    assert (run / "model" / "model.safetensors").is_file()
    said = message_of([run.name], capsys)
    assert f"'{run.name}/model' exists, and nothing is overwritten" in said
    assert said.endswith(f"\n  lightning export {run.name} --output {run.name}/model-2\n"), "a command to paste"
    alone = shutil.copy(trained["full"], run.parent)
    assert "--output FOLDER" in message_of([f"--ckpt_path={alone}"], capsys)


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_existing_folder_is_refused(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    message = message_of([f"--ckpt_path={trained['full']}", "--output=there"], capsys)
    assert "'there' exists, and nothing is overwritten" in message
    assert message.endswith(" --output there-2\n")
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("cause", [OSError("disk full"), RuntimeError("defect"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(
    cause: BaseException, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_module(trained["full"])

    def fail(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file(), "the weights were there already"
        raise cause

    monkeypatch.setattr(module.tokenizer, "save_pretrained", fail)
    with pytest.raises(UserError if isinstance(cause, OSError) else type(cause)):
        write_folder(module, tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_checkpoint_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, tmp_path / "other.ckpt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    (tmp_path / "empty.ckpt").mkdir()
    expected = {
        "noise.ckpt": "cannot be read as a checkpoint",
        "other.ckpt": "holds no SFTModule",
        "weights.ckpt": "Lightning did not write",
        "empty.ckpt": "which is no sharded checkpoint of FSDP2: it holds []",
        "nowhere.ckpt": "does not exist",
        "last": "no run with a checkpoint",
    }
    for name, part in expected.items():
        assert part in message_of([f"--ckpt_path={name}", "--output=out"], capsys), name
    assert not (tmp_path / "out").exists()


def changed(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a checkpoint with other stored settings."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= settings
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_a_base_of_another_architecture_names_both(trained: Trained, tmp_path: Path) -> None:
    other = str(save_toy(tmp_path / "other", "gpt_neox"))
    with pytest.raises(UserError, match=r"holds '.*model'.*but this run built '.*other'"):
        load_module(changed(trained["tied"], tmp_path, model_name_or_path=other))


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": {"class_path": "gone.Objective"}},
        {"setting_of_another_version": 1, "dtype": "float12"},
        {"objective": {"class_path": "PowerFamily", "init_args": {"alhpa": 1}}},
    ],
)
def test_settings_that_build_nothing(settings: dict[str, Any], trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings in the checkpoint .* do not build a module here"):
        load_module(changed(trained["full"], tmp_path, **settings))


def test_a_module_built_from_objects_says_what_to_do(tmp_path: Path) -> None:
    model, rows = save_toy(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    adapter = peft.LoraConfig(target_modules="all-linear", r=4)
    module = SFTModule(str(model), adapter=adapter)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, SFTDataModule(train=str(rows)))
    trainer.save_checkpoint("mine.ckpt")
    with pytest.raises(UserError, match=r"built from Python objects \(adapter=...\)(.|\n)*write_folder\(module"):
        load_module(Path("mine.ckpt"))
    assert write_folder(module, "out") == "adapter"
    card = Path("out/README.md").read_text()
    assert "lightning_sft.objectives.nll.NLL" in card
    assert "r: 4" in card
    assert write_folder(module, "merged", merge=True, checkpoint="mine.ckpt") == "merged"
    assert "steps: 2" in Path("merged/README.md").read_text()


def test_a_hub_name_stands_in_the_front_matter(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("owner").mkdir()
    save_toy(Path("owner/name"))
    module = SFTModule("owner/name", adapter=peft.LoraConfig(target_modules="all-linear"), revision="v1")
    module.configure_model()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    write_folder(module, "out")
    front = yaml.safe_load(Path("out/README.md").read_text().split("---")[1])
    assert front["base_model"] == "owner/name"
    assert front["base_model_relation"] == "adapter"
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "v1")


def test_the_adapter_of_a_gguf_file_says_what_it_needs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_sft.models import gguf

    def convert(source: Path, folder: Path) -> None:
        save_toy(folder)

    monkeypatch.setattr(gguf, "_convert", convert)
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"toy")
    checkpoint = changed(trained["tied"], tmp_path, model_name_or_path="model.gguf")
    main(["export", f"--ckpt_path={checkpoint}", "--output=out"])
    base = json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "model.safetensors").is_file()
    card = Path("out/README.md").read_text()
    assert "`model.gguf`" in card
    assert str(tmp_path) not in card
    assert "--merge" in card
    assert "With --merge the export needs no base" in capsys.readouterr().out


def test_merging_into_a_quantised_base_is_refused(trained: Trained, tmp_path: Path) -> None:
    module = load_module(trained["tied"])
    module.scorer.causal_lm.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UserError, match=r"base is quantised.*without --merge"):
        write_folder(module, "out", merge=True)
    assert not list(tmp_path.iterdir())


def test_frozen_weights_that_nobody_has_are_refused(trained: Trained, tmp_path: Path) -> None:
    adapter = peft.LoraConfig(target_modules="all-linear")
    module = SFTModule(load_module(trained["tied"]).settings.name, adapter=adapter, init="random")
    module.configure_model()
    with pytest.raises(UserError, match=r"trained on random weights.*--merge"):
        write_folder(module, "out")
    assert write_folder(module, "merged", merge=True) == "merged"
    tokens = [f"<|{i}|>" for i in range(8)]
    grown = changed(trained["tied"], tmp_path, add_special_tokens=tokens)
    with pytest.raises(UserError, match=r"grew from 263 to 267 rows"):
        load_module(grown)


@pytest.mark.parametrize(
    ("job", "tied"),
    [
        ("embeddings, merged", False),
        pytest.param("embeddings saved whole, merged", False, marks=pytest.mark.slow),
        ("tied, merged", True),
    ],
)
def test_an_adapter_on_tied_embeddings_unties_them(job: str, tied: bool, exported: Exported) -> None:
    assert json.loads((exported[job][0] / "config.json").read_text())["tie_word_embeddings"] is tied
    assert toy_model("llama").config.tie_word_embeddings


def test_a_card_compares_no_losses_of_two_objectives() -> None:
    from lightning_sft.export.model_card import _readings

    def card(last: str) -> str:
        summary = {"before": {"val/loss": 0.968, "val/nll": 9.15}, "before_step": 0, "before_objective": "DFT()"}
        summary |= {"after": {"val/loss": 2.324, "val/nll": 2.324}, "after_step": 98, "after_objective": last}
        return _readings({"callbacks": {"RunSummary": summary}})

    swapped = card("NLL")
    assert "The run began under DFT() and went on under NLL: `val/loss` is the latter's." in swapped
    assert "| val/loss |  | 2.324 |" in swapped
    assert "| val/nll | 9.15 | 2.324 |" in swapped
    assert "| val/loss | 0.968 | 2.324 |" in card("DFT()")


def test_the_card_has_the_settings_by_which_a_run_came_to_the_step(tmp_path: Path) -> None:
    from lightning_sft.export.model_card import run_config

    (tmp_path / "checkpoints").mkdir()
    assert run_config(tmp_path / "checkpoints/last.ckpt") is None
    for name, rows in (("config", "a"), ("config_resumed_at_step_3", "b"), ("config_resumed_at_step_9", "c")):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{train: {rows}.jsonl}}")
    found = {step: run_config(tmp_path / "checkpoints/x.ckpt", step) for step in (2, 3, 4, 9, 12, None)}
    trained_on = {step: str((config or {})["data"]["train"])[0] for step, config in found.items()}
    assert trained_on == {2: "a", 3: "a", 4: "b", 9: "b", 12: "c", None: "c"}
