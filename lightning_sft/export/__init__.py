"""Checkpoints as Hugging Face folders, with a model card."""

from lightning_sft.export.folder import write_folder

__all__ = ["write_folder"]
