"""What runs are called, that readings leave their curves alone, and what TensorBoard shows first."""

import os
from pathlib import Path

import pytest
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_sft.cli import run_names
from lightning_sft.cli.run_names import run_name
from lightning_sft.figures.board import Parts
from lightning_sft.figures.board import layout as layout_of
from lightning_sft.training.signals import WATCH
from tests.running import run, scalars, toy_arguments, write_rows


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_SFT_RUN_NAMES")


def config(objective: object = None, lr: float | None = 1e-3) -> Namespace:
    optimizer = Namespace(class_path="torch.optim.AdamW", init_args=Namespace(lr=lr))
    return Namespace(model=Namespace(objective=objective, optimizer=optimizer))


def test_names_say_objective_rate_and_time(tmp_path: Path) -> None:
    power = Namespace(
        class_path="lightning_sft.objectives.PowerFamily", init_args=Namespace(alpha=0.5, floor=0.0, x=None)
    )
    assert run_name(config(power), [tmp_path]).startswith("PowerFamily_alpha0.5_lr0.001_20")
    power.init_args.alpha = 1.0
    assert run_name(config(power), [tmp_path]).startswith("PowerFamily_alpha1_lr0.001_20"), "though it is the default"
    assert run_name(config("auto", 2e-5), [tmp_path]).startswith("auto_lr2e-05_20")
    assert run_name(config(lr=None), [tmp_path]).startswith("NLL_20")
    assert run_name(Namespace(model=Namespace()), [tmp_path]).startswith("NLL_20")


def test_no_two_runs_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def now() -> str:
            return "today"

    Clock.__format__ = lambda self, spec: "today"
    monkeypatch.setattr(run_names, "datetime", type("Still", (), {"now": staticmethod(Clock)}))
    names = []
    for _ in range(3):
        names.append(run_name(config(), [tmp_path / "nowhere", tmp_path]))
        (tmp_path / names[-1]).mkdir()
    assert names == ["NLL_lr0.001_today", "NLL_lr0.001_today_2", "NLL_lr0.001_today_3"]


def test_ranks_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_name(config(), [tmp_path])
    (tmp_path / first).mkdir()
    monkeypatch.setattr(WATCH, "is_started_rank", True)
    assert run_name(config(), [tmp_path]) == first, "started by Lightning: the first process's name is handed on"
    monkeypatch.setattr(WATCH, "is_started_rank", False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # by torchrun: no clock is asked
    assert run_name(config(), [tmp_path]) == "NLL_lr0.001_run1"
    (tmp_path / "NLL_lr0.001_run1").mkdir()
    assert run_name(config(), [tmp_path]) == "NLL_lr0.001_run2"


def test_a_run_is_found_resumed_and_read_without_a_mark_on_its_curves(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    arguments = toy_arguments(toy_folder, rows, trainer__max_steps=4, trainer__val_check_interval=2)
    run("fit", arguments)
    (folder,) = Path("lightning_logs").iterdir()
    assert folder.name.startswith("NLL_lr2e-05_20")
    before = scalars(folder)
    assert [step for step, _ in before["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in before["val/nll"]] == [2, 4], "beside the training step that it follows"
    events = sorted(folder.glob("events*"))
    run("validate", [*arguments, "--ckpt_path=best"])
    run("test", [*arguments, f"--data.test={rows}", "--ckpt_path=last"])
    assert sorted(folder.glob("events*")) == events
    assert scalars(folder) == before
    assert scalars(folder / "validate")["val/nll"] == [before["val/nll"][-1]], "at the step of the weights it read"
    assert [step for step, _ in scalars(folder / "test")["test/nll"]] == [4]
    run("fit", [*arguments, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2, 3, 4, 5]
    assert list(Path("lightning_logs").iterdir()) == [folder]
    assert "LIGHTNING_SFT_RUN_NAMES" not in os.environ

    tensors = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    (proto,) = tensors.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
    layout = layout_pb2.Layout.FromString(proto)
    assert [c.title for c in layout.category] == ["Overview", "Objective", "Capability", "Silent failure", "Speed"]
    named = {tag.removesuffix("$") for c in layout.category for chart in c.chart for tag in chart.multiline.tag}
    assert {"val/nll", "val/exact_match", "silent/train/share", "train/lr"} <= named
    assert "train/objective/.*" not in named, "NLL has no state"
    runs = [layout_of(Parts(validates=True, generates=generates)) for generates in (False, True)]
    assert runs[0] == runs[1], "charts of one title with other curves would stand twice"
    assert layout_of(Parts(state=True))["Objective"]["State of the objective"][1] == ["train/objective/.*"]
    unknown = named - scalars(folder).keys()
    unknown -= {"silent/train/lost", "silent/val/lost"}  # no word was the first choice at the start
    unknown -= {"val/task_accuracy"}  # nothing says which answers are right; the chart is the same in all runs
    assert not unknown, "every curve of the layout is one that the run logs"
    hparams = tensors.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(hparams["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["objective"].string_value == "NLL"
    assert start["learning_rate"].number_value == 2e-5
    assert start["rows_per_step"].number_value == 4
    judged, whole = (scalars(folder)[f"capability/{key}mean_p"][0][1] for key in ("content/", ""))
    told = start["capability"].number_value
    assert told == float(f"{judged:.3g}") != float(f"{whole:.3g}"), "as the terminal and the report say it"
    shown = {curve.value for c in layout.category for chart in c.chart for curve in chart.margin.series}
    assert shown == {"capability/content/mean_p"}
    experiment = HParamsPluginData.FromString(hparams["_hparams_/experiment"]).experiment
    assert {m.name.tag for m in experiment.metric_infos} <= scalars(folder).keys()
    texts = [e.tensor_proto.string_val[0].decode() for e in tensors.Tensors("about/run/text_summary")]
    assert "| objective | NLL |" in texts[0]
    assert "| val/nll |" in texts[-1]
