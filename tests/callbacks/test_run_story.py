"""A run's story in a log: what it will do, how far it is, where things are; and no words of others."""

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from transformers import AutoModelForCausalLM

from lightning_sft.callbacks import RunProgress, RunSummary
from lightning_sft.callbacks.run_clock import RunClock, validations_left
from lightning_sft.callbacks.run_facts import _data, _plan, _values, name_of
from lightning_sft.cli.entry import main
from lightning_sft.objectives import NLL, PowerFamily, WeightedSum
from lightning_sft.progress import progress, waiting
from lightning_sft.units import count, duration, pace
from tests.running import run_folder, write_rows


def test_a_fit_tells_its_story(
    toy_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    monkeypatch.setattr(RunProgress.__init__, "__defaults__", (0.0,))  # a line a step
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--data.val_split=4", "--batch_size=5"]
    words += ["--trainer.num_sanity_val_steps=-1", "--max_steps=3", "--lr=1e-3", "--model.warmup_steps=1"]
    words += ["--adapter=lora", "--adapter.r=4", "--output=runs", "--objective=PowerFamily", "--objective.alpha=1"]
    main(["fit", "--model", str(toy_folder), "--train", str(rows), *words])
    printed = capfd.readouterr()
    out, everything = printed.out, printed.out + printed.err
    folder = run_folder(Path("runs"))

    facts = out[: out.index("validation at step 0")]
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(toy_folder).parameters())
    assert f" of {count(whole)} parameters" not in facts, "what trains is a share of all, the adapter included"
    for fact in (
        f"Model      {toy_folder} (LlamaForCausalLM)",
        f"(LlamaForCausalLM), {count(whole)} parameters, float32",
        "LoRA r 4, alpha 8",
        "Objective  PowerFamily(alpha=1.0)",
        "train 20 rows",
        "val 4 rows",
        "Steps      3, each of 5 rows, 0.75 epochs",
        "Rate       0.001, linear, 1 step of warm-up; AdamW",
        "Precision  32-true",
        "Batches    shuffled. Rows of a batch lie end to end, without padding.",
        "Device     cpu",
        f"Folder     {folder}",
    ):
        assert fact in facts, fact
    assert "of 14 weights of linear layers" in facts

    lines = re.findall(
        r"^step (\d) of 3 \((\d+)%\) \| loss [\d.]+ .*\| lr [\d.e-]+ \| [\d.,]+ tokens/s, [\d.,]+ of them trained.*$",
        out,
        re.M,
    )
    assert lines == [("1", "33"), ("2", "67"), ("3", "100")]
    assert re.search(r"^step 2 of 3 .* left$", out, re.M)
    assert re.search(r"^step 3 of 3 .*done but for the last validation", out, re.M)

    end = out[out.index("held out") :]
    assert f"Run        {folder}" in end
    assert f"Saved      best.ckpt, last.ckpt in {folder}/checkpoints\n" in end
    for verb in ("report", "validate", "chat", "export"):
        assert re.search(rf" lightning {verb} {folder}$", end, re.M), end

    for noise in ("Tip:", "FLOPs", "v_num", "Epoch 0", "Seed set to", "TPU available", "Modules in"):
        assert noise not in everything, noise
    assert everything.count("of 14 weights of linear layers") == everything.count("lie end to end") == 1


def test_rows_that_are_left_out_or_shortened_are_counted() -> None:
    report = SimpleNamespace(
        rows=9, packs=0, tokens=90, trained=torch.tensor([40]), dropped=1384, truncated=5, rejected=[]
    )
    whole = SimpleNamespace(**{**vars(report), "dropped": 0, "truncated": 0})
    trainer = SimpleNamespace(datamodule=SimpleNamespace(report={"train": report, "val": whole}))
    few = "    1 row: intervals and verdicts on silent failure need at least 8"
    assert [text for _, text in _data(trainer, None)] == [
        "train 9 rows, 90 tokens, 40 of them trained",
        "      1,384 left out as too long, 5 shortened (`lightning inspect` shows which)",
        "val 9 rows, 90 tokens, 40 of them scored",
    ]
    trainer.datamodule.report = {"test": whole, "predict": whole}
    assert [text for _, text in _data(trainer, None)] == ["test 9 rows, 90 tokens, 40 of them scored", "predict 9 rows"]
    trainer.datamodule.report = {"train": report, "val": whole}
    whole.rows, report.rows = 1, 1
    assert [text for _, text in _data(trainer, None)][-1] == few
    assert sum("verdicts" in text for _, text in _data(trainer, None)) == 1


@pytest.mark.parametrize(("most_steps", "said"), [(20, 1), (13, 0), (-1, 0)])
def test_an_end_before_the_steps_that_were_asked_for_is_said(most_steps: int, said: int) -> None:
    trainer = SimpleNamespace(
        estimated_stepping_batches=13,
        max_steps=most_steps,
        max_epochs=1,
        global_step=0,
        distributed_sampler_kwargs=None,
    )
    told = [text for _, text in _plan(trainer) if "max_epochs=1 ends the run before max_steps=20" in text]
    assert len(told) == said


@pytest.mark.parametrize(("rows", "steps", "said"), [(57, 8, "1 epoch"), (57, 24, "3 epochs"), (64, 4, "0.5 epochs")])
def test_the_last_batch_of_an_epoch_may_be_small(rows: int, steps: int, said: str) -> None:
    trainer = SimpleNamespace(
        estimated_stepping_batches=steps,
        max_steps=-1,
        global_step=0,
        accumulate_grad_batches=1,
        distributed_sampler_kwargs=None,
        datamodule=SimpleNamespace(batch_size=8, report={"train": SimpleNamespace(rows=rows, packs=0)}),
    )
    assert [text for _, text in _plan(trainer)] == [f"{steps}, each of 8 rows, {said}"]


def test_the_numbers_of_a_line(toy_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tokens of a line are those of its steps, over the time of its steps."""
    from lightning.pytorch import Callback

    from lightning_sft import SFTDataModule, SFTModule

    class Look(Callback):
        def __init__(self) -> None:
            self.supervised = self.read = 0.0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.supervised += float((batch["labels"] != -100).sum())
            self.read += float(batch["attention_mask"].sum())

    rows = write_rows(tmp_path / "rows.jsonl")
    look, bar = Look(), RunProgress(every=1e9)
    seconds = iter(range(1000))
    bar._clock = RunClock(lambda: float(next(seconds)))
    data = SFTDataModule(str(rows), batch_size=4, layout="padded", cache_dir=False)
    trainer = Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[look, bar])
    spent: list[tuple[dict[str, float], float]] = []
    say = bar._say

    def listen(trainer: Trainer) -> None:
        spent.append((dict(bar._sums), bar._told_at))
        say(trainer)

    bar._say = listen  # type: ignore[method-assign]
    trainer.fit(SFTModule(str(toy_folder)), data)
    assert len(spent) == 2, "after the first step and the last"
    assert sum(sums["trained"] for sums, _ in spent) == look.supervised
    assert sum(sums["tokens"] for sums, _ in spent) == look.read
    assert "step 3 of 3 (100%)" in capfd.readouterr().out


def test_training_and_validations_are_timed_apart() -> None:
    now = [0.0]
    clock = RunClock(lambda: now[0])
    clock.train()
    began = clock.training
    now[0] = 10.0
    clock.validate()
    now[0] = 14.0
    clock.train()
    now[0] = 20.0
    assert clock.training == 16.0
    assert clock.validation == 4.0
    assert clock.left(began, 8, 5, 2) == 5 * 2.0 + 2 * 4.0


@pytest.mark.parametrize(
    ("every", "accumulated", "epochs", "step", "total", "left"),
    [
        (10, 1, None, 0, 30, 3),
        (10, 2, None, 5, 30, 5),
        (10, 1, None, 25, 30, 1),
        (5, 1, 1, 0, 20, 4),
        (10, 1, 2, 0, 40, 2),
    ],
)
def test_validations_that_are_left(
    every: int, accumulated: int, epochs: int | None, step: int, total: int, left: int
) -> None:
    trainer = SimpleNamespace(
        enable_validation=True,
        num_val_batches=[3],
        val_check_batch=every,
        accumulate_grad_batches=accumulated,
        check_val_every_n_epoch=epochs,
        num_training_batches=10,
    )
    assert validations_left(trainer, step, total) == left  # type: ignore[arg-type]


def test_losses_of_two_objectives_do_not_share_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    def summary(after: torch.nn.Module) -> str:
        told = RunSummary()
        state = SimpleNamespace(fn="fit")
        trainer = SimpleNamespace(
            sanity_checking=False, state=state, loggers=[], log_dir=None, barebones=False, is_global_zero=True
        )
        for step, objective in ((0, NLL()), (6, after)):
            trainer.global_step = step
            trainer.callback_metrics = {"val/loss": torch.tensor(2.0 - step / 10), "val/nll": torch.tensor(2.0)}
            told.on_validation_end(trainer, SimpleNamespace(objective=objective))  # type: ignore[arg-type]
            again = RunSummary()
            again.load_state_dict(json.loads(json.dumps(told.state_dict())))
            again.after_objective = told.after_objective
            told = again
        told.took_steps = True
        told.on_fit_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
        return capsys.readouterr().out

    same, other = summary(NLL()), summary(PowerFamily(1.0))
    assert re.search(r"val/loss +2\.0000 +1\.4000", same)
    assert re.search(r"val/loss +- +1\.4000", other)
    assert re.search(r"val/nll +2\.0000 +2\.0000", other)
    assert "NLL" in other.splitlines()[-1]
    assert "PowerFamily(alpha=1.0)" in other.splitlines()[-1]


def test_a_loss_that_is_the_nll_stands_once_and_p_against_the_nll_is_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = RunSummary()
    readings = {"val/loss": torch.tensor(4.0), "val/nll": torch.tensor(4.0), "val/mean_p": torch.tensor(0.3)}
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), loggers=[], log_dir=None, barebones=False,
        is_global_zero=True, callbacks=[],
    )  # fmt: skip
    for step, factor in ((0, 1.0), (6, 0.5)):
        trainer.global_step = step
        trainer.callback_metrics = {key: value * factor for key, value in readings.items()}
        told.on_validation_end(trainer, SimpleNamespace(objective=NLL()))  # type: ignore[arg-type]
    told.took_steps = True
    told.on_fit_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert re.search(r"val/nll +4\.0000 +2\.0000", out)
    assert not re.search(r"^val/loss +\d", out, re.M)
    assert "val/loss has the figures of val/nll, so it stands here once." in out
    assert "val/mean_p fell although val/nll fell: fewer tokens are nearly impossible now" in out


@pytest.mark.parametrize(("end", "further"), [("max_steps=2", "--max_steps 4"), ("max_epochs=1", "--max_epochs 2")])
def test_a_run_that_had_ended_says_that_it_took_no_step(
    end: str, further: str, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    words = ["--trainer.accelerator=cpu", "--data.val_split=4", "--batch_size=5", "--output=runs"]
    fit = ["fit", "--model", str(toy_folder), "--train", str(rows), *words]
    main([*fit, f"--{end}"])
    assert "No step was taken" not in capsys.readouterr().out
    main(["fit", str(run_folder(Path("runs")))])
    out = capsys.readouterr().out
    assert f"No step was taken: the run had reached {end} before. Give more to train on, such as {further}." in out
    assert "not comparable" not in out


def test_words_for_numbers() -> None:
    assert [count(n) for n in (0, 999, 31_100, 134_515_008, 7e9)] == ["0", "999", "31.1 k", "135 M", "7 B"]
    assert [duration(s) for s in (0, 59.4, 180, 200, 3600, 7500)] == [
        *("0 s", "59 s", "3 min", "3 min 20 s", "1 h", "2 h 5 min")
    ]
    assert [pace(n) for n in (1234.5, 12.3, 3.14, 0.42)] == ["1,234", "12", "3.1", "0.42"]
    assert name_of(PowerFamily(1.0)) == "PowerFamily(alpha=1.0)"
    assert "\n" not in name_of(WeightedSum({"a": NLL(), "b": PowerFamily(1.0)}, {"a": 0.5, "b": 0.5}))


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 4.0, 5.0, 30.0])
    monkeypatch.setattr("lightning_sft.progress.time.monotonic", lambda: next(now))
    with progress("Tokenising train", 1000) as advance:
        for _ in range(4):
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "Tokenising train: 200 of 1,000 rows (20%), 16 s left",
        "Tokenising train: 400 of 1,000 rows (40%), 45 s left",
    ]


def test_a_wait_is_told_once_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("Loading ...", after=60):
        pass
    assert capsys.readouterr().err == ""
    with waiting("Loading ...", after=0):
        while threading.active_count() > 1 and any(isinstance(t, threading.Timer) for t in threading.enumerate()):
            time.sleep(0.01)
    assert capsys.readouterr().err == "Loading ...\n"
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_a_table_of_an_evaluation_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"silent/val/share": torch.tensor(0.5), "val/nll": torch.tensor(1.25)}
    values |= {f"capability/{key}": torch.tensor(0.0) for key in ("end/nll", "nll_low", "nll", "entropy")}
    trainer: Any = SimpleNamespace(
        barebones=False,
        is_global_zero=True,
        state=SimpleNamespace(fn="validate"),
        sanity_checking=False,
        callback_metrics=values,
        log_dir="logs/run/validate",
        datamodule=SimpleNamespace(report={"val": SimpleNamespace(rows=2)}),
        loggers=[None],
    )
    table = RunSummary()
    table.on_validation_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert capsys.readouterr().out == "", "Trainer.validate prints Lightning's own"
    table.evaluations = True
    table.on_validation_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    lines = capsys.readouterr().out.split("\n")[1:7]
    assert [line.split() for line in lines] == [
        ["held", "out", "value"],
        ["val/nll", "1.2500"],
        ["capability/entropy", "0.0000"],
        ["silent/val/share", "0.5000"],
        "2 rows: few enough that others like them may give quite other values.".split(),
        "3 more readings, by source, set or bound: in logs/run/validate".split(),
    ]
    places = {
        "tensorboard --logdir logs/run/validate": TensorBoardLogger("logs", "run", "validate"),
        "logs/run/validate/metrics.csv": CSVLogger("logs", "run", "validate"),
    }
    for said, logger in places.items():
        trainer.loggers = [logger]
        table.on_validation_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
        assert capsys.readouterr().out.endswith(f"by source, set or bound: {said}\n")
    assert not table.after


def test_values_of_four_bits_are_counted_one_by_one() -> None:
    """As bitsandbytes keeps them: two in a byte, and the shape of the weight beside them."""
    packed = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([4, 8]))  # type: ignore[attr-defined]
    assert _values(iter([packed, nn.Parameter(torch.zeros(3))])) == {True: 3, False: 32}
