"""`lightning estimate`: from a configuration alone, for devices that are not here."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.cli.entry import main
from tests.running import write_rows
from tests.toys import save_toy, toy_config, toy_tokenizer


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    folder = tmp_path_factory.mktemp("bare")
    toy_config("llama", vocab_size=4000).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], model: Path | str, *more: str) -> str:
    main(["estimate", f"--model.model_name_or_path={model}", *more])
    return capsys.readouterr().out


def numbers(capsys: pytest.CaptureFixture[str], model: Path | str, *more: str) -> dict[str, Any]:
    return json.loads(said(capsys, model, "--length=64", *more, "--json=true"))


def refused(capsys: pytest.CaptureFixture[str], model: Path | str, *more: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["estimate", f"--model.model_name_or_path={model}", *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


CPU = "--trainer.accelerator=cpu"
FSDP2 = [
    "--trainer.strategy=ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
]


def test_no_weights_are_read(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = said(capsys, bare, "--length=512", CPU)
    assert "single on 1 CPU rank" in page
    assert "What saves most: " in page
    for lever in ("smaller micro-batches", "gradient checkpointing", "LoRA"):
        assert lever in page
    for lever in ("8-bit", "needs a GPU", "quantization", "nf4"):
        assert lever not in page, "no change that this device cannot run"


def test_options_are_printed_whole(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = ["--length=64", "--trainer.accelerator=gpu", "--model.optimizer=AdamW", "--model.optimizer.lr=3e-5"]
    page = said(capsys, bare, *gpu)
    assert "--model.optimizer bitsandbytes.optim.AdamW8bit --model.optimizer.lr 3e-05)" in page
    assert "..." not in page


def test_it_says_whether_it_fits_and_what_to_change_first(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = said(capsys, bare, "--length=64", "--device-memory=80", CPU)
    assert "fits into 80 GiB." in page
    assert "First:" not in page
    assert "What saves most" not in page
    most = numbers(capsys, bare, CPU, "--length=512")["peak"] / 2**30
    page = said(capsys, bare, "--length=512", f"--device-memory={0.9 * most}", CPU)
    assert "\nFirst: smaller micro-batches: --data.batch_size 1" in page
    page = said(capsys, bare, "--length=512", "--device-memory", "0.001", "--devices", "8", CPU)
    assert "does NOT fit into 0.001 GiB" in page
    assert "ddp on 8 CPU ranks" in page
    assert "sharding" in page
    assert "\nWhat saves most, not enough by itself: " in page


def test_strategies_share_out_what_they_share(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = numbers(capsys, bare, CPU)
    ddp = numbers(capsys, bare, CPU, "--trainer.strategy=ddp", "--devices=2")
    sharded = numbers(capsys, bare, CPU, *FSDP2)
    assert (ddp["weights"], ddp["states"]) == (one["weights"], one["states"])
    assert ddp["peak"] == one["peak"] + one["gradients"]
    for part in ("weights", "gradients", "states"):
        assert sharded[part] == one[part] // 2
    four = numbers(capsys, bare, CPU, *FSDP2, "--devices=4")
    assert four["states"] == one["states"] // 4


def test_a_reference_of_its_own_is_counted(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers(capsys, bare, CPU, "--model.objective=ASFT")["reference"] == pytest.approx(
        numbers(capsys, bare, CPU)["weights"], rel=0.01
    )
    lora = ["--model.adapter=peft.LoraConfig", "--model.adapter.target_modules=all-linear"]
    assert numbers(capsys, bare, CPU, "--model.objective=ASFT", *lora)["reference"] == 0


def test_lengths_come_from_the_rows_where_nothing_says_them(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    page = said(capsys, bare, CPU, f"--data.train={rows}", "--data.cache_dir=false", "--tokens-per-second=10")
    assert "An epoch of " in page
    assert " x 1 tokens" not in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--devices=0"], "--devices is 0"),
        (["--length=0"], "--length is 0"),
        (["--trainer.strategy=to_the_moon"], "to_the_moon"),
        ([*FSDP2[:2], "--trainer.strategy.tensor_parallel_size=3", "--devices=6"], "num_attention_heads is 4"),
        ([*FSDP2[:2], "--trainer.strategy.tensor_parallel_size=2", "--devices=3"], "cannot be shared out"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_bad_settings_are_named(more: list[str], message: str, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    length = [] if "--length=0" in more else ["--length=64"]
    assert message in refused(capsys, bare, CPU, *length, *more)


def test_bad_models_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no config.json" in refused(capsys, tmp_path, "--length=8")
    (tmp_path / "config.json").write_text('{"model_type": "new_thing"}')
    assert "new_thing" in refused(capsys, tmp_path, "--length=8")
    (tmp_path / "config.json").write_text("{}")
    assert "No configuration could be read" in refused(capsys, tmp_path, "--length=8")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 3, "hidden_size": 64}')
    assert "is not a multiple of the number of attention heads (3)" in refused(capsys, tmp_path, "--length=8")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "no causal language model" in refused(capsys, tmp_path, "--length=8")
    assert "no GGUF file" in refused(capsys, tmp_path / "no.gguf", "--length=8")


def test_a_configuration_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("trainer:\n  max_steps: 3\n")
    for given in ([f"--config={config}"], []):
        with pytest.raises(SystemExit):
            main(["estimate", *given, "--length=8"])
        assert "`lightning estimate` needs a model: --model NAME" in capsys.readouterr().err


def test_a_folder_with_weights_gives_the_same(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = save_toy(tmp_path / "toy", vocab_size=4000)
    assert numbers(capsys, whole, CPU) == numbers(capsys, bare, CPU)
