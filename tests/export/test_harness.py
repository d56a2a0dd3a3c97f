"""lm-evaluation-harness on an exported folder finds what GenerationMonitor finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import GenerationMonitor
from lightning_sft.cli.entry import main
from lightning_sft.data import Source
from tests.devices import needs
from tests.fitting import trainer
from tests.running import run, toy_arguments

WORDS = ["a", "bb", "ccc", "dddd", "ef", "g", "hi", "jk"]


@pytest.mark.slow
@needs("lm_eval")
def test_the_harness_judges_an_exported_folder_as_we_do(toy_folder: Path, tmp_path: Path) -> None:
    asked = [{"question": f"say {word}", "answer": word} for word in WORDS]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    columns = {"prompt": "question", "completion": "answer"}
    source = {"class_path": "Source", "init_args": {"path": str(rows), "columns": columns}}
    fitted = {
        "data__val_split": None,
        "data__batch_size": 8,
        "trainer__max_steps": 25,
        "model__lr_scheduler": "constant",
    }
    fitted |= {"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-2}
    run("fit", toy_arguments(toy_folder, Path(json.dumps(source)), **fitted))
    main(["export", "--ckpt_path", "last", "--output", "exported"])
    task = (Path(__file__).parent / "own_rows.yaml").read_text().replace("ROWS", str(rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own_rows.yaml").write_text(task)
    command = ["--model=hf", "--model_args=pretrained=exported,dtype=float32", f"--include_path={tmp_path / 'tasks'}"]
    command += ["--tasks=own_rows", "--device=cpu", "--batch_size=4", "--apply_chat_template", "--output_path=results"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    offline["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command],
        env={**os.environ, **offline},
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = Path("results").rglob("results*.json")
    score = json.loads(found.read_text())["results"]["own_rows"]["exact_match,none"]

    ours = SFTDataModule(val=Source(str(rows), columns=columns, score="exact_match"), cache_dir=False)
    monitor = GenerationMonitor(max_new_tokens=8, stop_strings=["\n"])
    (own,) = trainer(callbacks=[monitor]).validate(SFTModule("exported"), ours, verbose=False)
    assert score == own["val/task_accuracy"]
    assert 0.1 < score < 1, "some are right and some are wrong"
