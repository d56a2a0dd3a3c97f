"""Names that log keys cannot hold are refused by the same rule wherever a set gets a name."""

import pytest

from lightning_sft import SFTDataModule
from lightning_sft.callbacks import DriftMonitor
from lightning_sft.errors import UserError, require_log_name


@pytest.mark.parametrize("name", ["a/b", "", " ", " a", "a\nb", "a\x07", 3, True, None])
def test_names_that_log_keys_cannot_hold(name):
    with pytest.raises(UserError, match=r"DriftMonitor has a set named .* Allowed: text without"):
        DriftMonitor({name: "general"})
    for what in ("val", "test"):
        with pytest.raises(UserError, match=rf"data\.{what} has a set named"):
            SFTDataModule(**{what: {name: "rows.jsonl"}})


@pytest.mark.parametrize("name", ["nll", "two words", "a.b-c:d", "\u00e4"])
def test_names_that_they_can(name):
    require_log_name(name, "it")
