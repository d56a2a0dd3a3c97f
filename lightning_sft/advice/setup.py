"""The run that a survey is about: which model, how much of it trains, and what one of its steps is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.models.access import find_causal_lm
from lightning_sft.units import adapter_kind


@dataclass(frozen=True)
class Setup:
    """What a configuration amounts to, once model, data and optimizer are built.

    Attributes:
        model: as it was named.
        kind: class of the transformers model.
        parameters: of the model, adapters included.
        trained: those of them that train.
        dtypes: of the weights, the most frequent first.
        adapter: class of the adapter's configuration; None where all weights train.
        objective: of the configuration, in words.
        optimizer: class of the optimizer.
        rate: its learning rate at the peak.
        unit: what batches are counted in: ``"rows"``, or ``"packs"`` of rows.
        batch_size: of a micro-batch on one rank; None where batches have no fixed size.
        accumulate: micro-batches of an optimizer step.
        ranks: that share the rows.
        steps: optimizer steps of the fit; None if unknown.
        rows: of the training set, or its packs; None if unknown.
    """

    model: str
    kind: str
    parameters: int
    trained: int
    dtypes: tuple[str, ...]
    adapter: str | None
    objective: str
    optimizer: str
    rate: float
    unit: str
    batch_size: int | None
    accumulate: int
    ranks: int
    steps: int | None
    rows: int | None

    @property
    def rows_of_step(self) -> int | None:
        """Rows or packs of an optimizer step on all ranks."""
        return None if self.batch_size is None else self.batch_size * self.accumulate * self.ranks

    @property
    def epochs(self) -> float | None:
        """How often the fit sees the training set."""
        if self.steps is None or self.rows_of_step is None or not self.rows:
            return None
        return self.steps * self.rows_of_step / self.rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "dtypes": list(self.dtypes), "rows_of_step": self.rows_of_step, "epochs": self.epochs}


def read_setup(trainer: Trainer, module: LightningModule, rate: float) -> Setup:
    """Return the setup of a fit that is about to begin.

    Args:
        trainer: in a fit.
        module: our training module, or one like it.
        rate: of the optimizer, at its peak.
    """
    model, settings = find_causal_lm(module), getattr(module, "settings", None)
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + parameter.numel()
    adapter = getattr(settings, "adapter_config", None)
    objective, auto = getattr(module, "objective", None), getattr(getattr(module, "auto", None), "asked", False)
    named = str(objective).removesuffix("()")
    steps = trainer.estimated_stepping_batches
    datamodule: Any = getattr(trainer, "datamodule", None)
    batch_size = getattr(datamodule, "batch_size", None)
    report = getattr(datamodule, "report", {}).get("train")
    packs = 0 if report is None else report.packs
    return Setup(
        model=getattr(settings, "name", None) or model.config.name_or_path or type(model).__name__,
        kind=type(model).__name__,
        parameters=sum(sizes.values()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        dtypes=tuple(sorted(sizes, key=sizes.__getitem__, reverse=True)),
        adapter=None if adapter is None else adapter_kind(type(adapter).__name__),
        objective=f"auto, which takes {named}" if auto else f"{named}, as configured",
        optimizer=type(trainer.optimizers[0]).__name__,
        rate=rate,
        unit="packs" if packs else "rows",
        batch_size=batch_size if isinstance(batch_size, int) else None,
        accumulate=trainer.accumulate_grad_batches,
        ranks=data_parallel_size_and_rank(trainer)[0],
        steps=None if steps == float("inf") else int(steps),
        rows=None if report is None else packs or report.rows,
    )
