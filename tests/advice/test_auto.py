"""`model.objective: auto` picks by the reading, once, and then is the run that names the objective."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.advice import choice as choices
from lightning_sft.advice.choice import Choice
from lightning_sft.callbacks import CapabilityProbe
from lightning_sft.callbacks.final_validation import FinalValidation
from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, Adaptive, PowerFamily
from tests.callbacks.test_capability_probe import Stream
from tests.distributed.ranks import two_ranks
from tests.running import run, run_folder, toy_arguments, write_rows

WEAK = {"most_share": None}
#: the cut-offs under which an untrained toy counts as strong
STRONG = {"most_share": None, "weak": 1e-6, "strong": 1e-3}
FLOOR = PowerFamily(alpha=1.0, floor=0.1)


def fitted(toy_folder: Path, objective, cut_offs=WEAK, ckpt_path=None, callbacks=(), **settings):
    """The module and the trainer after a fit of three steps over thirty rows."""
    torch.manual_seed(3)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
    }
    given = {"max_steps": 3, "num_sanity_val_steps": -1, "enable_checkpointing": False, **settings}
    chosen = [CapabilityProbe(**cut_offs), FinalValidation(enabled=False), *callbacks]
    trainer = Trainer(**quiet, **given, callbacks=chosen)
    module = SFTModule(
        str(toy_folder), objective=objective, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01), lr_scheduler="constant"
    )
    rows = SFTDataModule(train=str(write_rows(Path("rows.jsonl"), 30)), val_split=4, batch_size=4)
    trainer.fit(module, rows, ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize(("cut_offs", "named"), [(WEAK, NLL()), (STRONG, FLOOR)], ids=["weak", "strong"])
def test_it_is_bitwise_the_run_that_names_the_objective(toy_folder, cut_offs, named):
    auto, run_auto = fitted(toy_folder, "auto", cut_offs)
    plain, run_plain = fitted(toy_folder, named, cut_offs)
    assert repr(auto.objective) == repr(named)
    assert all(torch.equal(a, b) for a, b in zip(auto.parameters(), plain.parameters(), strict=True))
    losses = [float(trainer.callback_metrics["train/loss"]) for trainer in (run_auto, run_plain)]
    assert losses[0] == losses[1]


def test_a_resumed_run_keeps_its_pick(toy_folder):
    first, trainer = fitted(toy_folder, "auto", STRONG)
    trainer.save_checkpoint("three.ckpt")
    saved = torch.load("three.ckpt", weights_only=True)["lightning_sft"]["auto"]
    assert Choice.from_dict(saved["choice"]) == choices.WITH_FLOOR
    assert saved["reading"]["all"]["rows"] == 26
    # the weak end's cut-offs would pick NLL now
    auto, _ = fitted(toy_folder, "auto", WEAK, "three.ckpt", max_steps=6)
    named, _ = fitted(toy_folder, FLOOR, WEAK, "three.ckpt", max_steps=6)
    assert repr(auto.objective) == repr(FLOOR)
    assert auto.auto.reading == first.auto.reading
    assert all(torch.equal(a, b) for a, b in zip(auto.parameters(), named.parameters(), strict=True))


def test_a_checkpoint_of_a_named_objective_contradicts(toy_folder):
    _, trainer = fitted(toy_folder, Adaptive())
    trainer.save_checkpoint("adaptive.ckpt")
    with pytest.raises(UserError, match=r"picks once.*Adaptive\(weak=0.1"):
        fitted(toy_folder, "auto", ckpt_path="adaptive.ckpt", max_steps=6)


def test_without_rows_to_read_it_says_so(toy_folder):
    class Streamed(SFTModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(Stream())

    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="over a dataset with a length"):
        trainer.fit(Streamed(str(toy_folder), objective="auto"))


def test_lightnings_batch_size_finder_comes_before_the_pick(toy_folder):
    finder = BatchSizeFinder(mode="power", steps_per_trial=1, max_trials=1, init_val=2)
    module, _ = fitted(toy_folder, "auto", callbacks=[finder])
    assert repr(module.objective) == repr(NLL())


def test_every_pick_can_be_put_in_place_when_the_model_is_built():
    for choice in vars(choices).values():
        if isinstance(choice, Choice):
            assert choice.build().reference == "none"


def test_the_command_line_takes_it_and_its_checkpoint_is_read_by_other_verbs(toy_folder, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl")
    probe = json.dumps([{"class_path": "CapabilityProbe", "init_args": {**STRONG, "rows": 100}}])
    given = {"model__objective": "auto", "trainer__callbacks": probe}
    run("fit", toy_arguments(toy_folder, rows, **given))
    folder = run_folder()
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["lightning_sft"]
    assert saved["objective"] == repr(FLOOR)
    assert "objective: auto" in (folder / "config.yaml").read_text()
    arguments = toy_arguments(toy_folder, rows, model__objective="auto", trainer__max_steps=None)
    capsys.readouterr()
    run("validate", [*arguments, f"--ckpt_path={folder / 'checkpoints/last.ckpt'}"])
    assert "val/loss" in capsys.readouterr().out
    module = SFTModule.load_from_checkpoint(folder / "checkpoints/last.ckpt")
    assert repr(module.objective) == repr(FLOOR)


@pytest.mark.ranks
def test_two_ranks_pick_the_same_and_resume_sharded(toy_folder, tmp_path):
    write_rows(tmp_path / "rows.jsonl", 30)
    first, second = two_ranks("tests.callbacks.capability_ranks:auto", tmp_path, model=str(toy_folder))
    assert first == second
    assert set(first.values()) == {repr(FLOOR)}, first
