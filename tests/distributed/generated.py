"""What GenerationMonitor reads on one rank or on several."""

from typing import Any

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import GenerationMonitor
from lightning_sft.data import Source
from tests.distributed.work import fsdp2
from tests.fitting import trainer


def readings(rank: int, model: str, rows: dict[str, str], strategy: str) -> dict[str, float]:
    """Validate, and return what was logged."""
    module = SFTModule(model, pass_at_k=[3])
    val = {name: Source(path, score="exact_match") for name, path in rows.items()}
    data = SFTDataModule(val=val, batch_size=2, cache_dir=False)
    monitor = GenerationMonitor(num_return_sequences=5, pass_at_k=[1, 3], max_new_tokens=6, batch_size=4)
    how: dict[str, Any] = {} if strategy == "one" else {"devices": 2}
    how |= {"strategy": fsdp2() if strategy == "fsdp2" else "ddp"} if how else {}
    (found,) = trainer(callbacks=[monitor], **how).validate(module, data, verbose=False)
    return dict(found)


def all_readings(rank: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Do it for several cases."""
    return {name: readings(rank, **case) for name, case in cases.items()}
