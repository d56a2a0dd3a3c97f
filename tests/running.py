"""Run the command line in this process, on toys."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sft.cli.entry import main

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]


def write_rows(path: Path, count: int = 24, longest: int = 9) -> Path:
    """Prompt/completion rows of very different lengths."""
    rows = ({"prompt": f"say {i}", "completion": "word " * (1 + i * i % longest) + str(i)} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def toy_arguments(model: Path, rows: Path, **settings: Any) -> list[str]:
    """Arguments of a small fit; keywords name settings with ``__`` for dots."""
    defaults: dict[str, Any] = {"data__val_split": 4, "data__batch_size": 4, "trainer__max_steps": 3}
    given = {k: v for k, v in {**defaults, **settings}.items() if v is not None}
    named = [f"--{k.replace('__', '.')}={v}" for k, v in given.items()]
    return [f"--model.model_name_or_path={model}", f"--data.train={rows}", *QUIET, *named]


def run(verb: str, arguments: Iterable[str]) -> None:
    """Run one verb as the command line does."""
    main([verb, *arguments])


def scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of an event file, as (step, value)."""
    events = EventAccumulator(str(run_folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run_folder(root: Path = Path("lightning_logs")) -> Path:
    """The newest run."""
    return max(root.glob("version_*"), key=lambda p: int(p.name.removeprefix("version_")))
