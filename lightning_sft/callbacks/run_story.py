"""RunStory: what a run is about to do, before its first step, and where everything is, after its last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_sft.callbacks.next_step import next_steps_of
from lightning_sft.callbacks.run_facts import facts_of_run
from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.places import CHECKPOINTS, near

_WIDTH = 11


class RunStory(Callback):
    """Say before the first step what a run will do, and at its end where things are and what to type next.

    The beginning names the model and its size, the objective, what is trained, rows and tokens, the steps, the learning
    rate and its schedule, the precision and why, how batches are ordered and laid out, the device, and the run's
    folder. The first of several ranks speaks. The command line brings this callback along; facts that a module of
    another kind does not have are left out.

    Attributes:
        next_commands: gives what to do next, and the commands for it, from the run's folder and its best checkpoint;
            the command line sets it.
        after_reading: gives the commands that follow a validation or a test of a checkpoint, as text; as before.
    """

    #: others leave out what this callback says
    tells_the_run = True

    def __init__(self) -> None:
        self.next_commands: Callable[[Path, Path], Mapping[str, Sequence[str]]] | None = None
        self.after_reading: Callable[[str, Path], str] | None = None
        self._told = self._ended = False

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._tell(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, pl_module)

    def _tell(self, trainer: Trainer, module: LightningModule) -> None:
        if self._told or trainer.barebones or not trainer.is_global_zero:
            return
        self._told = True
        lines = [f"{name:<{_WIDTH}}{text}" for name, text in facts_of_run(trainer, module)]
        print("\n" + "\n".join(lines) + "\n", flush=True)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = trainer.global_step > 0

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the story: after the table, the verdicts and the advice, which other callbacks print at the end."""
        if stage in ("validate", "test") and self._told and self.after_reading is not None and trainer.ckpt_path:
            if trainer.is_global_zero and (text := self.after_reading(stage, near(Path(trainer.ckpt_path)))):
                print(text, flush=True)
        if stage != "fit" or not self._ended or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._ended = False
        lines = list(self._closing(trainer))
        if lines:
            print("\n" + "\n".join(lines), flush=True)

    def _closing(self, trainer: Trainer) -> Iterator[str]:
        folder = run_folder(trainer)
        kept = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        saved = [Path(place) for place in kept if place]
        places = saved or ([] if folder is None else [folder / CHECKPOINTS])
        found = [path for place in places for path in sorted(place.glob("*.ckpt"))]
        best = _best(trainer) or next((path for path in found if path.stem == "last"), None)
        if folder is not None and folder.is_dir():
            yield f"{'Run':<{_WIDTH}}{near(folder)}"
        for i, place in enumerate(dict.fromkeys(path.parent for path in found)):
            names = ", ".join(dict.fromkeys(path.name for path in found if path.parent == place))
            yield f"{'' if i else 'Saved':<{_WIDTH}}{names} in {near(place)}"
        if self.next_commands is None:
            return
        again = next_steps_of(trainer)
        listed: dict[str, Sequence[str]] = {step.heading: [step.command] for step in again if step.only_longer}
        if best is not None:
            place = best.parent.parent if best.parent.name == CHECKPOINTS else best.parent
            listed |= self.next_commands(near(place), near(best))
        others = sorted((step for step in again if not step.only_longer), key=lambda step: not step.reads)
        listed |= {step.heading: list(filter(None, [step.command])) for step in others}
        for i, (what, commands) in enumerate(listed.items()):
            yield f"{'' if i else 'Next':<{_WIDTH}}{what}"
            yield from (f"{'':<{_WIDTH + 2}}{command}" for command in commands)


def _best(trainer: Trainer) -> Path | None:
    """Return the best checkpoint of the run, if one was saved."""
    named = [str(getattr(c, "best_model_path", "") or "") for c in trainer.checkpoint_callbacks]
    return next((Path(name) for name in named if name and Path(name).exists()), None)
