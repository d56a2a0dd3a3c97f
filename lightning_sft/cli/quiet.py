"""Lines of Lightning that say nothing to a user of this program."""

from __future__ import annotations

import logging
import warnings

from typing_extensions import override

#: an advertisement, and what `RunStory` says itself
HELD_BACK = ("\N{ELECTRIC LIGHT BULB} Tip: ", "GPU available: ", "TPU available: ", "Seed set to ")
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


class _HoldBack(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in HELD_BACK)


_FILTER = _HoldBack()


def hold_back() -> None:
    """Keep those lines out of the log of this process, and warnings that ask for nothing a user could change."""
    # the averages are those of all ranks before they are logged
    warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(.*sync_dist=True\)`")
    warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_gather is deprecated")  # Lightning 2.6
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)  # the same
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)  # once, however often it is called
