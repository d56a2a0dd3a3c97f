"""What a resumed run knows of its best checkpoints: those that are there, whatever the folder is called now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sft.checkpoints.read import is_whole, read_checkpoint


def keep_best(checkpoint: dict[str, Any], callbacks: Sequence[ModelCheckpoint]) -> None:
    """Make the states of ModelCheckpoints say what lies in their folders, so that no best checkpoint gets worse.

    Lightning forgets the best score where the folder was moved or is spelled differently, and trusts the state where
    a killed run had written a better checkpoint after it.

    Args:
        checkpoint: about to be restored; the states in it are replaced.
        callbacks: of the run that goes on, set up.
    """
    states = checkpoint.get("callbacks", {})
    for callback in callbacks:
        state = states.get(callback.state_key)
        if isinstance(state, dict) and state.get("monitor") and callback.dirpath and state.get("best_k_models"):
            found = _in_folder(state, str(callback.dirpath), callback.state_key, callback.mode)
            if found:
                states[callback.state_key] = {**state, **_summary(found, callback)}
            elif str(state.get("dirpath")) == str(callback.dirpath):  # somebody removed them: the next one is the best
                gone: dict[str, Any] = {
                    "best_k_models": {},
                    "best_model_path": "",
                    "best_model_score": None,
                    "kth_best_model_path": "",
                }
                states[callback.state_key] = {**state, **gone}


def _in_folder(state: dict[str, Any], folder: str, key: str, mode: str) -> dict[str, Tensor]:
    """Return path and score of the best checkpoints of a state that lie in a folder."""
    better = torch.lt if mode == "min" else torch.gt
    found: dict[str, Tensor] = {}
    for name, score in state["best_k_models"].items():
        # spelled as ModelCheckpoint does, which takes another spelling for another file and removes it
        path = os.path.join(folder, Path(name).name)
        if not Path(path).exists() or not is_whole(Path(path)):
            continue
        own = read_checkpoint(Path(path)).get("callbacks", {}).get(key, {}).get("current_score")
        found[path] = own if own is not None and better(own.cpu(), score.cpu()) else score
    return found


def _summary(found: dict[str, Tensor], callback: ModelCheckpoint) -> dict[str, Any]:
    """Return the fields of a ModelCheckpoint's state that follow from its best checkpoints."""
    first, last = (min, max) if callback.mode == "min" else (max, min)
    best, worst = first(found, key=lambda path: float(found[path])), last(found, key=lambda path: float(found[path]))
    full = callback.save_top_k == len(found)
    return {
        "dirpath": callback.dirpath,
        "best_k_models": found,
        "best_model_path": best,
        "best_model_score": found[best],
        "kth_best_model_path": worst if full else "",
        "kth_value": found[worst] if full else torch.tensor(torch.inf if callback.mode == "min" else -torch.inf),
    }
