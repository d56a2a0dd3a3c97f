"""Checkpoints: what they hold, what a resume checks, where runs keep them."""
