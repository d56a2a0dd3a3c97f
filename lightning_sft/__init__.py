"""Fine-tune language models with PyTorch Lightning and see why it works or silently fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sft.data import SFTDataModule
    from lightning_sft.errors import UserError
    from lightning_sft.module import SFTModule
    from lightning_sft.scores import TokenScores

__version__ = "0.1.0"
__all__ = ["SFTDataModule", "SFTModule", "TokenScores", "UserError"]

_HOMES = {"SFTDataModule": "data", "SFTModule": "module", "TokenScores": "scores", "UserError": "errors"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: importing the package alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
