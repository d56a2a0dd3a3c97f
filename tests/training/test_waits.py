"""How often a training step would wait for a GPU: reads of values, and of shapes made from them, counted on the CPU."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.head import passes, tiles
from lightning_sft.models import attention
from lightning_sft.objectives import DFT, NLL, Objective, PowerFamily
from tests.fitting import trainer

#: operators whose result, or its shape, needs a value of the tensor
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal"}
READS |= {"is_nonzero", "bincount", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.here: set[int] = set()  # storages that were brought to the CPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for arg in args if isinstance(arg, list) for i in arg
        )
        if (name in READS or mask) and args[0].untyped_storage().data_ptr() not in self.here:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Counts during the micro-batches of the second optimizer step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
        self.waits, self.patch = Waits(), monkeypatch
        self.here = range(accumulate, 2 * accumulate)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.here.start:
            for name in ("tolist", "cpu", "numpy"):  # these reach no operator on a CPU
                self.patch.setattr(torch.Tensor, name, self._counted(name, getattr(torch.Tensor, name)))
            self.waits.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.here.stop - 1:
            self.waits.__exit__(None, None, None)
            self.patch.undo()

    def _counted(self, name: str, method: Any) -> Any:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # attention per document walks over them on a CPU alone
            self.waits.counts[name] += sys._getframe(1).f_code.co_filename != attention.__file__
            result = method(tensor, *args, **kwargs)
            if name == "cpu":
                self.waits.here.add(result.untyped_storage().data_ptr())
            return result

        return call


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{i} plus", "completion": f" is {i * 3}"}) + "\n" for i in range(24))
    )
    return path


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("objective", [NLL(), PowerFamily(alpha=1), DFT()], ids=lambda o: type(o).__name__)
def test_a_step_reads_its_sums_once_and_nothing_else(
    objective: Objective, accumulate: int, rows: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert objective.mask() == "all"
    for room in (passes, tiles):
        monkeypatch.setattr(room, "reading_is_free", lambda device: False)
    watch = Watch(pytest.MonkeyPatch(), accumulate)
    module = SFTModule(str(toy_folder), objective=objective, lr_scheduler="constant")
    data = SFTDataModule(str(rows), tokenizer=module.tokenizer, batch_size=12 // accumulate)
    trainer(callbacks=[watch], log_every_n_steps=50, accumulate_grad_batches=accumulate).fit(module, data)
    assert +watch.waits.counts == {"cpu": 1}  # + leaves out zeros
