"""Optimizer steps: sums over micro-batches and ranks, the exact factor, optimizers and groups, strategies."""
