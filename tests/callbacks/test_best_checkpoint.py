"""BestCheckpoint: which reading is saved, when a fit ends, what is refused; by planted readings and in real fits."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_sft import SFTDataModule
from lightning_sft.callbacks import BestCheckpoint, DriftMonitor, LastCheckpoint
from lightning_sft.callbacks.bounds import Bound
from lightning_sft.cli.entry import main
from lightning_sft.data.named import NamedSet
from lightning_sft.errors import UserError
from tests.callbacks.stranger import Stranger, fit
from tests.running import run, toy_arguments, write_rows
from tests.test_evaluation import WORDS, rows
from tests.test_evaluation import fit as fit_ours

NONE_KEPT = "BestCheckpoint saved no checkpoint"


class Planted(Stranger):
    """A stranger's module whose validations log planned values, one list by key; None logs nothing."""

    def __init__(self, **values: list[float | None]):
        super().__init__()
        self.values = {key.replace("__", "/"): iter(each) for key, each in values.items()}

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 4, dtype=torch.long))

    def validation_step(self, batch, batch_idx):
        for key, each in self.values.items():
            if (value := next(each)) is not None:
                self.log(key, value)


def planted(tmp_path: Path, callback: BestCheckpoint, steps: int, ckpt_path=None, callbacks=(), **values):
    settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    settings |= {"max_steps": steps, "enable_checkpointing": True, "ckpt_path": ckpt_path}
    sanity = {"num_sanity_val_steps": -1} if values.pop("sanity", False) else {}
    return fit(Planted(**values), [callback, *callbacks], tmp_path, **settings | sanity)


def saved_step(callback: BestCheckpoint) -> int:
    return torch.load(callback.best_model_path, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("given", "start", "good", "bad"),
    [
        (2.5, None, [2.5, -1], [2.51, float("nan")]),
        ("<= 2.5", None, [2.5], [2.6]),
        (">= 0.3", None, [0.3, 1], [0.29, float("inf")]),
        ("+2%", 2.0, [2.04, 1.0], [2.05]),
        ("+2%", -2.0, [-1.96], [-1.95]),
        ("-5%", 0.8, [0.76, 0.9], [0.75]),
        ("+2%", None, [], [1.0]),
    ],
)
def test_bounds(given, start, good, bad):
    bound = Bound.parse("key", given)
    assert [bound.keeps(value, start) for value in good] == [True] * len(good)
    assert [bound.keeps(value, start) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize("given", ["2%", "+2", "two", "< 3", "", True, float("nan"), "+x%"])
def test_bounds_that_cannot_be_read(given):
    if given == "+2":  # a number with its sign
        assert Bound.parse("key", given) == Bound("key", True, 2.0)
        return
    with pytest.raises(UserError, match=r"subject_to: key is .*Allowed: a number"):
        BestCheckpoint(subject_to={"key": given})


def test_the_best_among_those_that_keep_their_bounds(tmp_path):
    callback = BestCheckpoint("val/nll", {"forget": "+10%", "val/hits": ">= 0.5"}, dirpath=str(tmp_path))
    planted(
        tmp_path,
        callback,
        5,
        sanity=True,
        val__nll=[9.0, 3.0, 1.0, 0.5, 2.0, 0.4],
        forget=[1.0, 1.05, 1.2, 1.1, 1.0, 1.1],
        val__hits=[0.9, 0.6, 0.9, 0.4, 0.5, 0.5],
    )
    assert float(callback.best_model_score) == pytest.approx(0.4)
    assert saved_step(callback) == 5
    assert (callback.readings, callback.kept, callback.start["forget"]) == (5, 3, 1.0)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["best.ckpt"]


def test_the_highest_and_several(tmp_path):
    callback = BestCheckpoint("val/hits", {"kl": 0.1}, mode="max", save_top_k=2, dirpath=str(tmp_path))
    planted(tmp_path, callback, 4, val__hits=[0.1, 0.9, 0.3, 0.2], kl=[0.0, 0.2, 0.1, 0.1])
    assert sorted(float(score) for score in callback.best_k_models.values()) == pytest.approx([0.2, 0.3])
    assert saved_step(callback) == 3


def test_none_keeps_its_bounds(tmp_path):
    callback = BestCheckpoint("val/nll", {"kl": 0.1}, dirpath=str(tmp_path))
    said = rf"{NONE_KEPT}: none of 3 readings kept kl <= 0.1. The closest was step 2 with 0.15 for kl <= 0.1"
    with pytest.warns(UserWarning, match=said):
        planted(tmp_path, callback, 3, val__nll=[3.0, 2.0, 1.0], kl=[0.3, 0.15, 0.4])
    assert callback.best_model_path == ""
    assert not list(tmp_path.glob("*.ckpt"))


def test_values_that_are_not_finite_are_never_best(tmp_path):
    callback = BestCheckpoint("val/nll", dirpath=str(tmp_path))
    nan = float("nan")
    planted(tmp_path, callback, 3, val__nll=[nan, 2.0, float("-inf")])
    assert saved_step(callback) == 2
    with pytest.warns(UserWarning, match="none of 1 readings kept val/nll finite"):
        planted(tmp_path / "nan", BestCheckpoint("val/nll", dirpath=str(tmp_path / "nan")), 1, val__nll=[nan])


def test_early_stopping_counts_readings_that_break_a_bound(tmp_path):
    callback = BestCheckpoint("val/nll", {"kl": 0.1}, patience=2, dirpath=str(tmp_path))
    # 1 is best, 2 breaks the bound, 3 is best again, 4 is no better, 5 breaks the bound
    nll, kl = [3.0, 1.0, 2.0, 2.5, 0.1, 0.0], [0.0, 0.2, 0.1, 0.0, 0.2, 0.0]
    trainer = planted(tmp_path, callback, 6, val__nll=nll, kl=kl)
    assert trainer.global_step == 5
    assert saved_step(callback) == 3


def test_readings_without_a_key_are_passed_over(tmp_path):
    """As named sets that are read at every second validation: the last value that was logged is no news."""
    callback = BestCheckpoint("val/nll", {"slow": 0.1}, patience=2, dirpath=str(tmp_path))
    trainer = planted(
        tmp_path, callback, 6, val__nll=[3.0, 1.0, 2.5, 0.9, 2.0, 0.8], slow=[0.0, None, 0.1, None, 0.1, None]
    )
    assert trainer.global_step == 6
    assert (callback.readings, saved_step(callback)) == (3, 5)


def test_values_that_training_logs(tmp_path):
    """As readings of probes: the last one before the validation counts."""

    class Probed(Planted):
        def training_step(self, batch, batch_idx):
            self.log("flip", [0.0, 0.9, 0.9, 0.1][self.trainer.global_step])
            return super().training_step(batch, batch_idx)

    callback = BestCheckpoint("val/nll", {"flip": ">= 0.5"}, dirpath=str(tmp_path))
    settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "max_steps": 4}
    fit(Probed(val__nll=[1.0, 3.0, 2.0, 0.5]), [callback], tmp_path, enable_checkpointing=True, **settings)
    assert (callback.readings, callback.kept, saved_step(callback)) == (4, 2, 3)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_resumed_run_judges_as_one_that_went_on(tmp_path, first):
    nll, kl = [9.0, 3.0, 1.0, 2.0, 2.5, 0.1], [1.0, 1.0, 2.0, 1.0, 1.0, 2.0]

    def callbacks(folder):
        return BestCheckpoint("val/nll", {"kl": "+5%"}, patience=2, dirpath=str(folder)), LastCheckpoint(
            dirpath=str(folder)
        )

    whole, last = callbacks(tmp_path / "whole")
    planted(tmp_path, whole, 6, callbacks=[last], sanity=True, val__nll=nll, kl=kl)
    assert (whole.readings, saved_step(whole)) == (5, 3)
    best, last = callbacks(tmp_path / "parts")
    planted(tmp_path, best, first, callbacks=[last], sanity=True, val__nll=nll, kl=kl)
    again, last = callbacks(tmp_path / "parts")
    rest = {"val__nll": nll[first + 1 :], "kl": kl[first + 1 :]}
    planted(tmp_path, again, 6, tmp_path / "parts" / "last.ckpt", callbacks=[last], **rest)
    for name in ("readings", "kept", "waited", "start"):
        assert getattr(again, name) == getattr(whole, name), name
    assert saved_step(again) == 3
    assert again.start["kl"] == 1.0


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_other_bounds_in_a_resumed_run_forget_its_best(tmp_path):
    """The start stays what it was."""
    last = LastCheckpoint(dirpath=str(tmp_path))
    best = BestCheckpoint("val/nll", {"kl": "+5%"}, dirpath=str(tmp_path))
    planted(tmp_path, best, 2, callbacks=[last], sanity=True, val__nll=[9.0, 1.0, 2.0], kl=[1.0, 1.04, 1.0])
    again = BestCheckpoint("val/nll", {"kl": "+2%"}, dirpath=str(tmp_path))
    rest = {"val__nll": [3.0, 2.5], "kl": [1.02, 1.04]}
    last = LastCheckpoint(dirpath=str(tmp_path))
    with pytest.warns(UserWarning, match="goes on under other bounds, so its best so far is forgotten"):
        planted(tmp_path, again, 4, tmp_path / "last.ckpt", callbacks=[last], **rest)
    assert (again.readings, again.kept, again.start["kl"], saved_step(again)) == (2, 1, 1.0, 3)


def test_keys_that_are_never_logged_and_starts_that_are_not_known(tmp_path):
    at_start = {
        "which no DriftMonitor of this run logs. Add the callback": {"drift/general/nll": 3.0},
        "its value there is not known. Set trainer.num_sanity_val_steps: -1": {"kl": "+2%"},
    }
    for message, bounds in at_start.items():
        with pytest.raises(UserError, match=message):
            planted(tmp_path, BestCheckpoint(subject_to=bounds), 2, val__nll=[1.0, 2.0], kl=[1.0, 2.0])
    drift = DriftMonitor({"own": ["a text of some tokens"]})
    with pytest.raises(UserError, match="Logged are: drift/own/nll, drift/own/kl, drift/own/changed"):
        planted(tmp_path, BestCheckpoint(subject_to={"drift/own/nlll": 1.0}), 2, callbacks=[drift], val__nll=[1.0])
    with pytest.raises(UserError, match=r"drift/own/kl is bounded relative to the start, and its value there is -?\d"):
        planted(tmp_path, BestCheckpoint(subject_to={"drift/own/kl": "+5%"}), 2, callbacks=[drift], val__nll=[1.0])
    never = {"is subject to 'kll'": BestCheckpoint(subject_to={"kll": 1.0}), "monitors 'x'": BestCheckpoint("x")}
    for what, callback in never.items():
        with pytest.raises(UserError, match=f"{what}, which this validation did not log. Logged are: kl, val/nll"):
            planted(tmp_path, callback, 2, val__nll=[1.0, 2.0], kl=[1.0, 2.0])
    with pytest.raises(UserError, match="this fit has none"):
        fit(Stranger(), [BestCheckpoint()], tmp_path, enable_checkpointing=True)
    for wrong in ({"mode": "low"}, {"patience": 0}):
        with pytest.raises(UserError, match="BestCheckpoint got"):
            BestCheckpoint(**wrong)


class Seen(Callback):
    """NLL of validation and guard set at each validation."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self.values.append((float(metrics["val/nll"]), float(metrics["drift/own/nll"])))


def test_a_guard_set_bounds_a_fit_of_ours(toy_folder, tmp_path):
    """The one saved is, by the values logged, the best of those within 0.05% of the guard set's start."""
    data = SFTDataModule(train=rows(tmp_path / "t.jsonl", WORDS), val=rows(tmp_path / "v.jsonl", WORDS), batch_size=4)
    drift, seen = DriftMonitor({"own": ["Copper conducts electricity.", "Two doors."]}), Seen()
    best = BestCheckpoint("val/nll", {"drift/own/nll": "+0.05%"}, dirpath=str(tmp_path / "best"))
    fit_ours(toy_folder, data, [drift, best, seen], max_steps=8, enable_checkpointing=True)
    limit = drift.at_start["drift/own/nll"] * 1.0005
    inside = [nll for nll, guard in seen.values if guard <= limit]
    assert 0 < len(inside) < 8  # the bound decides something here
    assert float(best.best_model_score) == pytest.approx(min(inside))
    assert min(nll for nll, _ in seen.values) < min(inside)
    assert (best.readings, best.kept) == (8, len(inside))


def test_a_named_set_of_every_fourth_validation(toy_folder, tmp_path):
    slow = NamedSet(rows(tmp_path / "s.jsonl", WORDS[4:]), every=4)
    val = {"fast": rows(tmp_path / "f.jsonl", WORDS[:4]), "slow": slow}
    for keys in (("val/nll", "val/slow/nll"), ("val/slow/nll", "val/fast/nll")):
        data = SFTDataModule(train=rows(tmp_path / "t.jsonl", WORDS), val=val, batch_size=4, cache_dir=False)
        best = BestCheckpoint(keys[0], {keys[1]: 1e3}, patience=3, dirpath=str(tmp_path / keys[0]))
        trainer, _ = fit_ours(toy_folder, data, [best], max_steps=9, enable_checkpointing=True)
        assert trainer.global_step == 9
        assert (best.readings, best.kept, saved_step(best)) == (2, 2, 8)
    data = SFTDataModule(train=rows(tmp_path / "t.jsonl", WORDS), val=val, batch_size=4, cache_dir=False)
    never = BestCheckpoint(subject_to={"val/slow/nl": 3})
    with pytest.raises(UserError, match="is subject to 'val/slow/nl'"):
        fit_ours(toy_folder, data, [never], max_steps=9, enable_checkpointing=True)
    with pytest.raises(UserError, match=r"'val/fats/nll', and data\.val has no set 'fats'\. Its sets: 'fast', 'slow'"):
        fit_ours(toy_folder, data, [BestCheckpoint(subject_to={"val/fats/nll": 3})], enable_checkpointing=True)


def test_best_on_the_command_line(toy_folder, tmp_path, capsys):
    """It takes the place of the default best.ckpt, and --ckpt_path best means it."""
    callback = "--trainer.callbacks+=BestCheckpoint"
    given = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), trainer__val_check_interval=1)
    given += ["--trainer.check_val_every_n_epoch=null", "--trainer.num_sanity_val_steps=-1", callback]
    run("fit", [*given, '--trainer.callbacks.subject_to={val/nll: "+2%"}'])
    run("validate", [*given, "--ckpt_path=best"])
    folder = Path("lightning_logs/version_0/checkpoints")
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    with pytest.warns(UserWarning, match=NONE_KEPT):
        run("fit", [*given, "--trainer.callbacks.subject_to={val/nll: 0.1}"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["validate", *given, "--ckpt_path=best"])
    assert "none of the 3 readings of the run of" in capsys.readouterr().err
