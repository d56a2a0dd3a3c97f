"""Guard sets: text outside the task, read to measure what a fine-tuned model forgets."""

from lightning_sft.guard.texts import GENERAL, load_texts

__all__ = ["GENERAL", "load_texts"]
