"""Wrong input ends with exit status 2 and one message, never with a traceback; what looks odd and is right, with 0."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_sft.cli.entry import main
from tests.running import QUIET, toy_arguments, write_rows

CHECKPOINTS = Path("lightning_logs/version_0/checkpoints")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and the run of a fit of six steps."""
    return tmp_path_factory.mktemp("tracebacks")


@pytest.fixture
def fit(toy_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Callable[..., tuple[int, str]]:
    """Run a verb in a copy of that folder; return its exit status and all that it printed."""
    rows, here = place / "rows.jsonl", Path.cwd()
    if not rows.exists():
        write_rows(rows)
        monkeypatch.chdir(place)
        main(["fit", *toy_arguments(toy_folder, rows, trainer__max_steps=6)])
        capfd.readouterr()

    def run(*more: str, verb: str = "fit", data: bool = True, steps: int | None = 3) -> tuple[int, str]:
        arguments = toy_arguments(toy_folder, rows, trainer__max_steps=steps)
        if not data:
            arguments = [f"--model.model_name_or_path={toy_folder}", *QUIET]
        try:
            main([verb, *arguments, *more])
        except SystemExit as end:
            status = int(end.code or 0)
        else:
            status = 0
        said = capfd.readouterr()
        return status, said.out + said.err

    shutil.copytree(place / "lightning_logs", here / "lightning_logs", dirs_exist_ok=True)
    monkeypatch.chdir(here)
    return run


def callback(name: str, *options: str) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{option}" for option in options)]


#: name -> the arguments, and what the message must speak of
WRONG: dict[str, tuple[list[str], str]] = {
    "a folder of checkpoints": ([f"--ckpt_path={CHECKPOINTS}"], f"{CHECKPOINTS / 'best.ckpt'}"),
    "a function that does not exist": (callback("ThroughputMonitor", "batch_size_fn=no.such.fn"), "batch_size_fn"),
    "early stopping without a monitor": (callback("EarlyStopping"), "monitor"),
    "an adapter that mixes others": (["--model.adapter=peft.XLoraConfig"], "XLora"),
    "an adapter of several tasks": (
        ["--model.adapter=peft.PolyConfig", "--model.adapter.target_modules=[q_proj]"],
        "Poly",
    ),
    "a library that is not installed": (["--trainer.precision=transformer-engine"], "transformer"),
    "negative clipping": (["--trainer.gradient_clip_val=-1"], "gradient_clip_val is -1"),
    "no batch to train on": (["--trainer.limit_train_batches=0"], "limit_train_batches is 0"),
    "another warm-up on resume": (["--ckpt_path=last", "--model.warmup_steps=2"], "warmup_steps (checkpoint: None"),
    "a checkpoint that is not there": (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:No value was provided for")  # of XLoraConfig
def test_wrong_input_gets_one_message(name: str, fit) -> None:
    arguments, says = WRONG[name]
    status, said = fit(*arguments, steps=9)
    assert status == 2, said
    assert "Traceback" not in said
    assert "error: " in said
    assert says in said.rpartition("error: ")[2]


def test_a_schedule_that_is_too_short(fit) -> None:
    short = ["lr_scheduler=OneCycleLR", "lr_scheduler.max_lr=1", "lr_scheduler.total_steps=4"]
    status, said = fit(*(f"--model.{option}" for option in short), steps=6)
    assert (status, "Traceback" in said) == (2, False), said


def test_validation_without_data(fit) -> None:
    status, said = fit(verb="validate", data=False)
    assert (status, "Traceback" in said) == (2, False), said
    assert "data.val" in said


@pytest.mark.parametrize("which", ["last", str(CHECKPOINTS / "last.ckpt")])
def test_a_checkpoint_that_is_cut_off(which: str, fit) -> None:
    last = CHECKPOINTS / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    status, said = fit(f"--ckpt_path={which}", steps=9)
    assert (status, "Traceback" in said) == (2, False), said
    assert "cut off" in said


def test_a_disk_that_is_full(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_sft.checkpoints import io

    def full(path: Path) -> Path:
        name = path.with_name(f".{path.name}.1.2.partial")
        name.symlink_to("/dev/full")
        return name

    before = (CHECKPOINTS / "last.ckpt").read_bytes()
    monkeypatch.setattr(io, "beside", full)
    status, said = fit("--ckpt_path=last", steps=9)
    assert (status, "Traceback" in said) == (2, False), said
    assert "No space left on device" in said
    assert str(CHECKPOINTS) in said
    assert (CHECKPOINTS / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("name", ["timer"])
def test_what_is_right_ends_well(name: str, fit) -> None:
    status, said = fit(*callback("Timer", "duration=00:00:01:00"))
    assert (status, "Traceback" in said) == (0, False), said
