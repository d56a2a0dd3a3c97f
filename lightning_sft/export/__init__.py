"""Checkpoints as Hugging Face folders, with a model card."""
