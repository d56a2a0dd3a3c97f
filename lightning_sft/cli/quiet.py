"""Lines of Lightning that say nothing to a user of this program."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning.fabric.utilities.warnings  # noqa: F401  sets how warnings are shown, which holds for all but ours
from typing_extensions import override

#: an advertisement, and what `RunStory` says itself
HELD_BACK = (
    "\N{ELECTRIC LIGHT BULB} Tip: ",
    "GPU available: ",
    "TPU available: ",
    "Seed set to ",
    "Loading `train_dataloader` to estimate number of stepping batches",
    "Restoring states from the checkpoint path at ",
    "Restored all states from the checkpoint at ",
    "Loaded model weights from the checkpoint at ",
)
#: this package; its warnings are shown as a line, without the place in the code that gives them
_OURS = Path(__file__).parents[1]
_OTHERS = warnings.formatwarning
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


class _HoldBack(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in HELD_BACK)


_FILTER = _HoldBack()


def as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as the terminal shows it: those of this package as a line, all others as Lightning does."""
    if issubclass(category, UserWarning) and _OURS in Path(filename).parents:
        return f"warning: {message}\n"
    return _OTHERS(message, category, filename, lineno, line)


def hold_back() -> None:
    """Keep those lines out of the log of this process, and warnings that ask for nothing a user could change."""
    warnings.formatwarning = as_line
    # the averages are those of all ranks before they are logged
    warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(.*sync_dist=True\)`")
    warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_gather is deprecated")  # Lightning 2.6
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)  # the same
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)  # once, however often it is called
