"""Batches: which rows share a batch, in which order, as which tensors."""
