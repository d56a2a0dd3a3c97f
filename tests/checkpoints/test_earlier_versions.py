"""A run of version 0.1.0, before the package had rooms: its config.yaml runs, its checkpoints resume and load.

``earlier/`` holds what ``lightning fit`` of that version wrote. For an adapter with dropout on a toy: ``half.ckpt``
after 5 of 8 steps, ``whole.ckpt`` after all, and ``config.yaml``, which names the callback ``Readings``. For the whole
toy under an objective with a state: ``full.ckpt``. Beside them lie the toy and its rows.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_sft import SFTModule
from lightning_sft.objectives import Adaptive, PowerFamily
from tests.running import run, run_folder

#: the held-out readings that the earlier version printed after its last step
PRINTED = {"loss": 1.8752, "nll": 5.5478, "mean_p": 0.0039, "perplexity": 256.6821}


@pytest.fixture(autouse=True)
def _earlier_run(tmp_path: Path) -> None:
    """Its files in the current folder."""
    shutil.copytree(Path(__file__).with_name("earlier"), tmp_path, dirs_exist_ok=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the checkpoint was copied out of its run
def test_a_run_goes_on_to_the_weights_of_the_version_that_began_it() -> None:
    with pytest.warns(DeprecationWarning, match="Readings is now called TrainingMetrics"):
        run("fit", ["--config=config.yaml", "--ckpt_path=half.ckpt"])
    got, expected = weights(run_folder() / "checkpoints" / "last.ckpt"), weights(Path("whole.ckpt"))
    start = weights(Path("half.ckpt"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():  # another processor rounds otherwise
        assert (got[name] - value).norm() <= 1e-4 * (value - start[name]).norm(), name


def test_a_checkpoint_validates_to_what_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(DeprecationWarning, match="Readings is now called TrainingMetrics"):
        run("validate", ["--config=config.yaml", "--ckpt_path=whole.ckpt"])
    shown = {name: float(value) for name, value in re.findall(r"val/(\w+)\W+([\d.]+)", capsys.readouterr().out)}
    assert {name: shown[name] for name in PRINTED} == pytest.approx(PRINTED, rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore:`loftq_config` specified")  # the export rebuilds the module from its settings
def test_a_checkpoint_becomes_a_folder() -> None:
    run("export", ["--ckpt_path=whole.ckpt", "--output=exported"])
    expected = weights(Path("whole.ckpt"))
    stored = load_file("exported/adapter_model.safetensors")
    assert len(stored) == len(expected) > 0
    for name, value in expected.items():
        assert torch.equal(stored[name.removeprefix("scorer.model.").replace(".default.", ".")], value), name


@pytest.mark.filterwarnings("ignore:`loftq_config` specified")
@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict but not")  # the frozen base
def test_a_checkpoint_makes_the_module_again() -> None:
    module = SFTModule.load_from_checkpoint("whole.ckpt")
    assert isinstance(module.objective, PowerFamily)
    assert module.objective.alpha == 0.5
    module.configure_model()
    assert {name for name, p in module.named_parameters() if p.requires_grad} == weights(Path("whole.ckpt")).keys()


def test_the_state_of_an_objective_and_a_whole_model_load() -> None:
    module = SFTModule.load_from_checkpoint("full.ckpt")
    assert isinstance(module.objective, Adaptive)
    expected, got = weights(Path("full.ckpt")), module.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
