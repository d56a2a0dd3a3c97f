"""Whether this machine has the devices that a run asks for."""

from __future__ import annotations

import os

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn

from lightning_sft.errors import UserError


def check_devices(trainer: Namespace) -> None:
    """Raise where a configuration asks for more devices than there are; warn where processors stand in for GPUs.

    Args:
        trainer: its configuration.

    Raises:
        UserError: says how many there are.
    """
    asked = trainer.devices
    count = len(asked) if isinstance(asked, list) else int(asked) if str(asked).isdecimal() else 0
    accelerator = trainer.accelerator if isinstance(trainer.accelerator, str) else ""
    gpus = torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and str(asked) != "auto" and not (str(asked).isdecimal() and count):
        raise UserError(
            f"trainer.devices is {asked!r}, and this run is on the processor, where it is a number of processes. "
            "Allowed: a whole number from 1, or auto."
        )
    if accelerator in ("gpu", "cuda", "auto") and gpus and count > gpus:
        raise UserError(f"trainer.devices is {asked}, and this machine has {gpus} GPUs. Allowed: 1 to {gpus}, or auto.")
    if accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"trainer.accelerator is {accelerator!r}, and torch {torch.__version__} finds no GPU on this machine. Give "
            "--trainer.accelerator cpu, or see what `lightning env` says about drivers."
        )
    if accelerator == "auto" and count > 1 and not torch.accelerator.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        text = (
            f"trainer.devices is {asked}, and this machine has no GPU: it would be {count} processes on {cores} cores"
        )
        if count > cores:
            raise UserError(f"{text}. Leave trainer.devices out, or ask for processes by --trainer.accelerator cpu.")
        rank_zero_warn(f"{text}.")
