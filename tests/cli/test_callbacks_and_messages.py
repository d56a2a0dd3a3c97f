"""Lightning's callbacks and wrong settings on the command line: exit status 0 or 2, never a traceback."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_sft.callbacks import PredictionWriter
from lightning_sft.cli.entry import main
from lightning_sft.cli.lightning_cli import writers
from lightning_sft.errors import OutputExistsError, UserError
from tests.running import run_folder, scalars, toy_arguments, write_rows

#: what works
FINE = {
    "a timer by flag": ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:01:00"],
    "a batch size finder, doubling": ["--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.max_trials=2"],
    "a batch size finder, halving": [
        "--trainer.callbacks+=BatchSizeFinder",
        "--trainer.callbacks.max_trials=2",
        "--trainer.callbacks.mode=binsearch",
    ],
    "pruning": [
        "--trainer.callbacks+=ModelPruning",
        "--trainer.callbacks.pruning_fn=l1_unstructured",
        "--trainer.callbacks.amount=0.3",
    ],
    "a plateau": [
        "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
        "--model.lr_scheduler.monitor=val/nll",
    ],
}
#: what is wrong -> words of the message
WRONG = {
    "a learning rate finder": (["--trainer.callbacks+=LearningRateFinder"], "LearningRateSweep"),
    "backbone finetuning": (["--trainer.callbacks+=BackboneFinetuning"], "backbone"),
    "early stopping without monitor": (["--trainer.callbacks+=EarlyStopping"], "monitor"),
    "a cycle that is too short": (
        [
            "--model.lr_scheduler=OneCycleLR",
            "--model.lr_scheduler.max_lr=1",
            "--model.lr_scheduler.total_steps=2",
            "--trainer.max_steps=4",
        ],
        "total steps is 2",
    ),
    "transformer engine": (["--trainer.precision=transformer-engine"], "transformer"),
    "a function that is none": (
        ["--trainer.callbacks+=ThroughputMonitor", "--trainer.callbacks.batch_size_fn=no.such.fn"],
        "batch_size_fn",
    ),
    "a histogram that is not there": (
        ["--model.objective=Thresholded", "--model.objective.percentile=1", "--model.objective.histogram=no.json"],
        "The histogram 'no.json' cannot be read",
    ),
    "an unknown action": (["--model.on_nonfinite=raise"], "on_nonfinite"),
    "an option that only another class has": (["--data.loss_weights.special_tokens=1"], "no option 'special_tokens'"),
    "a rule that matches nothing": (["--model.parameter_rules=[{match: nothing, lr: 1}]"], "in the name of none"),
    "a schedule that lacks an argument": (["--model.lr_scheduler=cosine_with_min_lr"], "lr_scheduler_kwargs"),
}


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("name", FINE)
def test_it_works(name: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    main(["fit", *toy_arguments(toy_folder, rows, trainer__max_steps=2, data__batch_size=2), *FINE[name]])
    assert scalars(run_folder())["train/loss"]


@pytest.mark.parametrize("name", WRONG)
def test_it_ends_with_a_message(
    name: str, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = WRONG[name]
    rows = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["fit", *toy_arguments(toy_folder, rows, trainer__max_steps=2), *arguments])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert words in shown
    assert "Literal['auto']" not in shown, "the other type of a setting explains nothing"


def test_predict_writes_where_it_is_told() -> None:
    class Theirs(BasePredictionWriter):
        """Writes elsewhere."""

    (made,) = writers([], "there.jsonl")
    assert isinstance(made, PredictionWriter)
    assert made.path == Path("there.jsonl")
    ours, theirs = PredictionWriter("here.jsonl"), Theirs("epoch")
    assert writers([ours], None) == writers([theirs], None) == []
    assert ours.path == Path("here.jsonl"), "its own, where nothing is typed"
    with pytest.raises(UserError, match="written by Theirs, which has a place of its own"):
        writers([theirs], "there.jsonl")
    Path("there.jsonl").touch()
    with pytest.raises(OutputExistsError):
        writers([ours], "there.jsonl")
    ours.overwrite = True
    assert writers([ours], "there.jsonl") == []
