"""What the two ranks of tests/callbacks/test_capability_probe.py do."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe
from tests.distributed.work import fsdp2
from tests.invariants.kept import whole


def fitted(model: str, strategy: Any, probe: CapabilityProbe, rank: int) -> SFTModule:
    torch.manual_seed(0)
    module = SFTModule(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lr_scheduler="constant")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fit = Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=1, logger=False, callbacks=[probe], **quiet
    )
    fit.fit(module, SFTDataModule(train="rows.jsonl", batch_size=1, cache_dir=f"cache_{rank}"))
    return module


def readings(rank: int, model: str) -> dict[str, Any]:
    """Readings under DDP and FSDP2, and whether the weights after a step are those of a run without a probe."""
    found: dict[str, Any] = {}
    weights = []
    for name, strategy in (("ddp", "ddp"), ("fsdp2", fsdp2())):
        probe = CapabilityProbe(most_share=None)
        module = fitted(model, strategy, probe, rank)
        assert probe.start is not None
        assert probe.end is not None
        start = probe.start.all
        found[name] = {
            "rows": start.rows,
            "mean_p": start.mean_p,
            "interval": list(start.mean_p_interval or ()),
            "exact": start.exact_match,
            "end": probe.end.all.mean_p,
        }
        if name == "fsdp2":
            weights.append([whole(p) for p in module.scorer.parameters()])
    without = fitted(model, fsdp2(), CapabilityProbe(enabled=False), rank)
    weights.append([whole(p) for p in without.scorer.parameters()])
    found["same"] = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    return found


def auto(rank: int, model: str) -> dict[str, str]:
    """The objectives that auto picks under DDP and FSDP2, and the one of a resumed FSDP2 run with other cut-offs."""
    found = {}
    strong = {"most_share": None, "weak": 1e-6, "strong": 1e-3}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    for name, cut_offs, steps, path in (
        ("ddp", strong, 1, None),
        ("fsdp2", strong, 1, None),
        ("resumed", {"most_share": None}, 2, "fsdp2.ckpt"),
    ):
        strategy = "ddp" if name == "ddp" else fsdp2()
        probe = CapabilityProbe(**cut_offs)
        fit = Trainer(
            accelerator="cpu", devices=2, strategy=strategy, max_steps=steps, logger=False, callbacks=[probe], **quiet
        )
        module = SFTModule(model, objective="auto", lr_scheduler="constant")
        fit.fit(module, SFTDataModule(train="rows.jsonl", batch_size=1, cache_dir=f"cache_{rank}"), ckpt_path=path)
        if name == "fsdp2":
            fit.save_checkpoint("fsdp2.ckpt")
        found[name] = repr(module.objective)
    return found
