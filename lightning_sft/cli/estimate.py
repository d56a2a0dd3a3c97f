"""`lightning estimate`: what a run will hold in memory, whether it fits, and what to change first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.settings import SettingsCLI
from lightning_sft.errors import UserError
from lightning_sft.estimate.bare import read_config
from lightning_sft.estimate.levers import levers
from lightning_sft.estimate.page import describe, to_dict
from lightning_sft.estimate.run import PlannedRun
from lightning_sft.estimate.spread import GIB, Strategy
from lightning_sft.estimate.step import StepPlan, dtype_of
from lightning_sft.files import to_json
from lightning_sft.head.sizes import Sizes, sizes_for_memory
from lightning_sft.progress import waiting

#: of options that have no other meaning with underscores
_OWN = ("--devices", "--device-memory", "--length", "--tokens-per-second", "--json")


class _EstimateCLI(SettingsCLI):
    """The settings of ``fit`` and those of the verb."""

    verb = "estimate"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--devices", type=int | None, default=None, help="devices on all nodes together. Default: those "
            "of the trainer's settings")  # fmt: skip
        add("--device_memory", type=float | None, default=None, help="memory of a device in GiB, such as 80: says "
            "whether the run fits, and what to change first. Default: only says what it needs")  # fmt: skip
        add("--length", type=int | None, default=None, help="tokens of the longest row. Default: data.max_length, "
            "otherwise the longest training row")  # fmt: skip
        add("--tokens_per_second", type=float | None, default=None, help="also say how long an epoch takes at this "
            "many trained tokens a second, which a run logs as perf/tokens_per_second. Default: not told")  # fmt: skip
        add("--json", type=bool, default=False, help="print bytes as JSON in place of the tables")


def estimate(arguments: list[str]) -> None:
    """Print what a run will hold: reads the model's configuration, and no weights."""
    cli = _EstimateCLI(args=[_with_underscores(argument) for argument in arguments], run=False)
    config = cli.config
    require_options("estimate", config)
    length, lengths = config.length or config.data.get("max_length"), None
    if length is None or config.tokens_per_second is not None:
        cli.datamodule.tokenizer = cli.model.tokenizer
        cli.datamodule.setup("fit")
        report = cli.datamodule.report["train"]
        length, lengths = length or int(report.lengths.max()), report
    with waiting("Trying a step on tensors without data, and what would change it ..."):
        run = planned(cli.model, config, int(length), config.devices, config.device_memory)
        rows = None if lengths is None else (int(lengths.lengths.max()), float(lengths.lengths.mean()))
        found = [] if config.json else levers(run, *(rows or (None, None)))
        told = to_dict(run, config.device_memory) if config.json else describe(run, found, config.device_memory)
    if isinstance(told, dict):
        print(to_json(told, indent=1))
        return
    print(told)
    if config.tokens_per_second is not None and lengths is not None:
        seconds = float(lengths.trained.sum()) / config.tokens_per_second
        print(f"An epoch of {int(lengths.trained.sum()):,} supervised tokens: {seconds / 3600:.2f} hours.")


def planned(model: Any, config: Any, length: int, devices: int | None = None, gib: float | None = None) -> PlannedRun:
    """Return the run that settings describe.

    Args:
        model: the module, built by the settings; it has not been given its model.
        config: all settings.
        length: tokens of the longest row.
        devices: in place of the trainer's.
        gib: memory of a device.

    Raises:
        UserError: a strategy that is not known here, or devices that cannot be shared out.
    """
    trainer, settings, objective = config.trainer, model.settings, model.objective
    gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and gib is not None)
    gpu = gpu or (trainer.accelerator == "auto" and torch.cuda.is_available())
    strategy, splits, configured = _strategy(trainer)
    count = configured if devices is None else devices
    if strategy == "single" and count > 1:
        strategy = "ddp"  # what Lightning picks
    source = read_config(settings)
    precision = str(trainer.precision or "32-true")
    half = {"bf": torch.bfloat16, "16": torch.float16}.get(precision[:2])
    dtype: Any = dtype_of(settings.dtype, source)
    if dtype == "fastest":
        dtype = "bfloat16" if settings.has_adapter else "float32"
    if half is not None and precision.endswith("-true"):
        dtype = str(half).removeprefix("torch.")
    compares = objective.reference != "none"
    reference = "none"
    if compares and objective.snapshot_every:
        reference = "snapshot"
    elif compares and (settings.reference is not None or not settings.has_adapter):
        reference = "frozen"
    vocabulary = (
        getattr(source.get_text_config(decoder=True), "vocab_size", None) or 1
    )  # no language model: refused later
    memory = int((gib or 80) * GIB)
    sizes = sizes_for_memory(memory, vocabulary, 2 if half or dtype != "float32" else 4) if gpu else Sizes()
    rows = config.data.get("batch_size", 8)
    accumulate = int(trainer.accumulate_grad_batches)
    plan = StepPlan(
        model=replace(settings, dtype=dtype),
        rows=rows,
        length=length,
        optimizer=model.make_optimizer,
        accumulates=accumulate > 1,
        reads=objective.reads,
        autocast=half if precision.endswith("-mixed") else None,
        sizes=sizes,
        splits=splits,
        compares=compares,
        padded=config.data.get("layout") == "padded",
    )
    return PlannedRun(plan, strategy, count, gpu, source, reference, accumulate)


def _strategy(trainer: Any) -> tuple[Strategy, int, int]:
    """Return the strategy that settings name, the ranks that share out each layer, and the devices."""
    given = trainer.strategy
    name = given if isinstance(given, str) else given.class_path.rpartition(".")[2]
    own = {} if isinstance(given, str) else given.get("init_args", {})
    devices, nodes = trainer.devices, int(trainer.num_nodes)
    count = (devices if isinstance(devices, int) and devices > 0 else 1) * nodes
    if isinstance(devices, list):
        count = len(devices) * nodes
    plain = name.lower()
    if "modelparallel" in plain:
        sizes = [own.get(key) for key in ("data_parallel_size", "tensor_parallel_size")]
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < 2:
            raise UserError(
                "ModelParallelStrategy needs data_parallel_size and tensor_parallel_size; 'auto' is refused."
            )
        return "fsdp2", numbers[1], numbers[0] * numbers[1]
    if "deepspeed" in plain:
        stage = own.get("stage", 3 if "3" in plain else 2)
        return ("deepspeed_3" if stage == 3 else "deepspeed_2"), 1, count
    if "fsdp" in plain:
        return "fsdp", 1, count
    if "ddp" in plain:
        return "ddp", 1, count
    if plain in ("auto", "singledevicestrategy", "single_device"):
        return "single", 1, count
    raise UserError(f"trainer.strategy {name!r} is not known to estimate. Allowed: the fragments of configs/strategy/.")


def _with_underscores(argument: str) -> str:
    """Let the verb's own options be written with hyphens, too."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name in _OWN else argument
