"""The notebook and the example project run, on a toy under the name of the model that they use."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from tests.docs.pages import ROOT
from tests.running import write_rows

EXAMPLES = ROOT / "docs" / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def toy(toy_folder: Path) -> Path:
    """A toy model in a folder of the hub's name, which is loaded from there."""
    Path(MODEL).parent.mkdir()
    return Path(shutil.copytree(toy_folder, MODEL))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)
    said = capsys.readouterr().out
    assert "val/nll" in said
    assert {"train:", "val:"} <= set(said.split())  # a verdict on each set


# the project's own loaders have no workers, and it logs nothing to choose a batch size by
@pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")
@pytest.mark.parametrize("alpha", ["0", "1"], ids=["NLL", "-p"])
def test_plain_project_is_watched(alpha: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "plain_lightning")
    for name in ("plain", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import train

    write_rows(Path("train.jsonl"), count=24)
    write_rows(Path("val.jsonl"), count=8)
    trainer: Trainer = train.main(["--max_steps", "6", "--lr", "1e-3", "--alpha", alpha])
    read = trainer.callback_metrics
    assert {"train/loss", "val/nll", "drift/general/kl", "silent/train/outranked", "silent/val/outranked"} <= set(read)
    assert read["drift/general/kl"] > 0
    by_name = {type(callback).__name__: callback for callback in trainer.callbacks}
    assert by_name["LearningRateSweep"].result is not None
    assert by_name["SilentFailureMonitor"].verdicts
    assert Path(by_name["BestCheckpoint"].best_model_path).is_file()
    assert trainer.global_step == 6
