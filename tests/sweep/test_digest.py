"""Stored trials are taken only where nothing that decides them has changed: each one thing is changed here."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BatchEncoding, LlamaConfig

from lightning_sft.sweep import digest
from lightning_sft.sweep.fingerprint import fingerprint
from lightning_sft.sweep.session import Session, SweepSettings
from tests.distributed.fits import fit_arguments
from tests.running import run, write_rows
from tests.sweep.toys import Margin, Toy, between, quadratic


class Noise:
    """A plain object that a module acts by."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Kept(Callback):
    """A callback that takes part in trials."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Rho(torch.optim.SGD):
    """An optimizer with a setting outside of its groups."""

    def __init__(self, params: Any, lr: float, rho: float) -> None:
        super().__init__(params, lr)
        self.rho = rho


@dataclass
class Rows:
    """A batch as a dataclass."""

    ids: Tensor
    more: dict[str, Any] = field(default_factory=dict)


class Everything(Toy):
    """A module whose trials depend on all sorts of things."""

    def __init__(self, alpha: float = 1.0, factor: float = 2.0) -> None:
        super().__init__([3.0], quadratic(1.0))
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        self.frozen = nn.Parameter(torch.zeros(100_003), requires_grad=False)
        self.register_buffer("table", torch.zeros(3))
        self.config = LlamaConfig(num_hidden_layers=1)
        self.peft_config = {"default": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
        self.noise = Noise(0.1)
        self.reference = [nn.Linear(2, 2)]  # a list keeps it out of the module's children
        self.function: Callable[[float], float] = lambda x: factor * x
        self.batch: Callable[[Tensor], Any] = lambda rows: BatchEncoding({"input_ids": rows})
        self.rows = torch.zeros(8, 2000)
        self.no_decay = ("net.0.bias",)
        self.rho = 0.05
        self.schedule: Callable[[int], float] = lambda step: 1.0
        self.frequency = 1
        with torch.no_grad():
            for module in (self.net, *self.reference):
                for parameter in module.parameters():
                    parameter.zero_()

    def configure_optimizers(self) -> Any:
        names = dict(self.named_parameters())
        groups = [
            {"params": [p for n, p in names.items() if p.requires_grad and (n in self.no_decay) == flag]}
            for flag in (True, False)
        ]
        optimizer = Rho(groups, 1.0, self.rho)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": self.frequency}]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=1, collate_fn=lambda rows: self.batch(torch.stack(rows)))


STEPS = 40


def fresh(
    folder: Path,
    change: Callable[[Everything], object] = lambda module: None,
    make: Callable[[], Everything] = Everything,
    settings: dict[str, Any] | None = None,
    margin: Callable[[Tensor], Tensor] = lambda x: x[0],
    trial: dict[str, Any] | None = None,
    streams: tuple[int, int] = (0, 0),
    **options: Any,
) -> int:
    """Return how many of one trial had to be run, and were not found in a neighbouring run's folder."""
    module = make()
    change(module)
    random.seed(streams[0])
    np.random.seed(streams[1])
    run_folder = folder / f"version_{len(list(folder.iterdir())) if folder.exists() else 0}"

    def work(trainer: Trainer, toy: LightningModule) -> int:
        given = SweepSettings(
            "toy", run_folder and STEPS, run_folder, **{"callbacks": (Kept(0.5),), **(settings or {})}
        )
        with Session(trainer, toy, given, [Margin(margin)]) as session:
            session.trial(**{"lr": 1e-3, "rates": [1e-3, 1e-3], **(trial or {})})
            return session.fresh

    found: int = between(module, work, folder, **options)
    return found


def _set(**values: Any) -> Callable[[Everything], object]:
    return lambda module: [setattr(module, name, value) for name, value in values.items()]


@torch.no_grad()
def _one_element(tensor: Tensor, place: int) -> None:
    tensor.view(-1)[place] += 1.0


def _row(module: Everything, place: tuple[int, int]) -> None:
    module.rows[place] += 1.0


#: what is changed -> how the run differs
CHANGES: dict[str, dict[str, Any]] = {
    "a hyper-parameter": {"make": lambda: Everything(alpha=1.5)},
    "a number that a function closes over": {"make": lambda: Everything(factor=3.0)},
    "a function's code": {"change": _set(function=lambda x: 2.5 * x)},
    "an attribute": {"change": _set(lr=2.0)},
    "an attribute of an object": {"change": lambda m: setattr(m.noise, "scale", 0.2)},
    "dropout of a submodule": {"change": lambda m: setattr(m.net[1], "p", 0.2)},
    "the mode of a submodule": {"change": lambda m: m.net[1].eval()},
    "the model's configuration": {"change": lambda m: setattr(m.config, "attention_dropout", 0.1)},
    "the adapter's configuration": {"change": lambda m: setattr(m.peft_config["default"], "lora_alpha", 9)},
    "the adapter's targets": {"change": lambda m: m.peft_config["default"].target_modules.add("o_proj")},
    "a trained weight": {"change": lambda m: _one_element(m.net[0].weight, 2)},
    "one frozen weight among many": {"change": lambda m: _one_element(m.frozen, 54_321)},
    "a weight of a reference model in a list": {"change": lambda m: _one_element(m.reference[0].weight, 1)},
    "a buffer": {"change": lambda m: _one_element(m.table, 1)},
    "what is trained": {"change": lambda m: m.net[0].bias.requires_grad_(False)},
    "the dtype": {"change": lambda m: m.net.half()},
    "which parameters a group holds": {"change": _set(no_decay=("net.0.weight",))},
    "a setting of the optimizer outside of its groups": {"change": _set(rho=0.1)},
    "the schedule, late": {"change": _set(schedule=lambda step: 1.0 if step < STEPS - 1 else 0.5)},
    "how often the schedule steps": {"change": _set(frequency=2)},
    "one number of a batch": {"change": lambda m: _row(m, (1, 1000))},
    "the type of a batch": {"change": _set(batch=lambda rows: {"input_ids": rows})},
    "clipping": {"gradient_clip_val": 0.5},
    "accumulation": {"accumulate_grad_batches": 2},
    "precision": {"precision": "bf16-mixed"},
    "the length of the run": {"max_steps": 2},
    "a setting of the search": {"settings": {"facts": {"target": 0.5}}},
    "the divergence": {"settings": {"divergence": 9.0}},
    "a setting of a kept callback": {"settings": {"callbacks": (Kept(0.7),)}},
    "what is observed": {"margin": lambda x: 2.0 * x[0]},
    "the rate": {"trial": {"lr": 2e-3}},
    "the rates of its steps": {"trial": {"rates": [1e-3, 2e-3]}},
    "the order of rows": {"trial": {"order": 1}},
    "its variant": {"trial": {"variant": "other"}},
    "an object that it depends on": {"trial": {"depends": Noise(0.3)}},
    "Python's random stream": {"streams": (7, 0)},
    "NumPy's random stream": {"streams": (0, 7)},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs, the first of which holds a trial."""
    folder = tmp_path_factory.mktemp("runs")
    assert fresh(folder) == 1
    return folder


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
def test_an_unchanged_run_takes_the_stored_trial(stored: Path) -> None:
    assert fresh(stored) == 0


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_makes_a_fresh_trial(change: str, stored: Path) -> None:
    assert fresh(stored, **CHANGES[change]) == 1


@pytest.fixture
def surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change one thing around the run."""
    before = torch.get_float32_matmul_precision()
    if request.param == "a library's version":
        monkeypatch.setattr(digest, "_version", lambda library: "9.9")
    elif request.param == "this package":
        monkeypatch.setattr(digest, "_package_digest", lambda: "another")
    elif request.param == "the project's own code":
        monkeypatch.setattr(digest, "_own_code", lambda: {"train": "another"})
    elif request.param == "the processor":
        monkeypatch.setattr(digest.platform, "machine", lambda: "abacus")
    else:
        torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


AROUND = ["a library's version", "this package", "the project's own code", "the processor", "matrix products"]


@pytest.mark.parametrize("surroundings", AROUND, indirect=True)
def test_a_change_around_the_run_makes_a_fresh_trial(surroundings: None, stored: Path) -> None:
    assert fresh(stored) == 1


def test_values_of_any_kind_count_by_content() -> None:
    def batch(middle: float, size: int = 5000) -> Tensor:
        values = torch.zeros(size)
        values[size // 2] = middle
        return values

    assert repr(batch(0.0)) == repr(batch(1.0)), "what a repr hides"
    for wrap in (
        lambda t: t,
        lambda t: BatchEncoding({"input_ids": t}),
        lambda t: Rows(t),
        lambda t: Rows(torch.zeros(1), {"deep": [{"er": (t,)}]}),
        lambda t: t.numpy(),
        lambda t: {"a": {"b": t.numpy()}},
        lambda t: [Noise(t)],  # type: ignore[arg-type]
    ):
        assert fingerprint(wrap(batch(0.0))) == fingerprint(wrap(batch(0.0)))
        assert fingerprint(wrap(batch(0.0))) != fingerprint(wrap(batch(1.0)))
    assert fingerprint({"x", "y", "z"}) == fingerprint({"z", "y", "x"})
    assert fingerprint([1, 2]) != fingerprint([[1], 2])
    assert fingerprint(1) != fingerprint(1.0) != fingerprint("1.0")
    assert fingerprint(torch.zeros(2)) != fingerprint(torch.zeros(2, dtype=torch.float64))
    ring: list[object] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8])
def test_a_checksum_sees_each_element_and_its_place(dtype: torch.dtype) -> None:
    def of(values: Tensor) -> str:
        return fingerprint(nn.Parameter(values.to(dtype), requires_grad=False))

    values = torch.arange(1000.0) % 100
    changed = values.clone()
    changed[501] += 1
    mixed = values.clone()
    mixed[10], mixed[11] = values[11], values[10]
    assert len({of(values), of(changed), of(mixed)}) == 3
    assert of(values) == of(values.clone())


def test_the_same_command_takes_its_trials_again(toy_folder: Path, tmp_path: Path) -> None:
    """A module of ours with everything that hangs on it is told by what it is, not by where it lies in memory."""
    sweep = {"class_path": "LearningRateSweep", "init_args": {"steps": 4, "low": 1e-5, "high": 1.0}}
    given = {"trainer__max_steps": 1, "trainer__default_root_dir": "runs", "trainer__callbacks": json.dumps([sweep])}
    arguments = fit_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), adapter=True, **given)[1:]
    for _ in range(2):
        run("fit", arguments)
    first, second = (sorted(p.name for p in folder.iterdir()) for folder in sorted(Path("runs").rglob("sweep")))
    assert "learning_rate.trials.json" in first
    assert second == [name for name in first if "trials" not in name], "a result, and no trial of its own"
