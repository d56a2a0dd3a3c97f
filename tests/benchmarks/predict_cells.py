"""Cells of `tests/benchmarks/predict_grid.py`: architectures, optimizers, schedules, and which were kept aside.

Three parts, each of whole architectures, optimizers and schedules. The predictor was designed on `design`. `kept` was
kept aside until the predictor was frozen, and has been seen since: with `design` it is what the widths of the intervals
were calibrated on. `fresh` was kept aside until these were frozen.
"""

import math

import torch
from torch import optim

CONTEXTS = ("He saw the", "A b", "The quick brown fox said", "On the table lay a", "We then sent them the")
#: widths that make the toys of tests/toys.py wider, by architecture
WIDE = {"hidden_size": 64, "intermediate_size": 128}
GROUPED = {**WIDE, "num_key_value_heads": 2}
SIZES = {
    "llama": WIDE,
    "gpt2": {"n_embd": 64},
    "qwen3": {**WIDE, "head_dim": 16},
    "olmo2": GROUPED,
    # kept
    "gpt_neox": WIDE,
    "gemma2": {**WIDE, "head_dim": 16},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64},
    # fresh
    "phi": WIDE,
    "stablelm": GROUPED,
    "granite": {**GROUPED, "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 0.5},
    "cohere": {**GROUPED, "logit_scale": 1.0},
    "gemma3_text": {**GROUPED, "head_dim": 16},
    "falcon": {"hidden_size": 64, "ffn_hidden_size": 128},
    "bloom": {"hidden_size": 64},
    "starcoder2": GROUPED,
}
DESIGN, KEPT = ("llama", "gpt2", "qwen3", "olmo2"), ("gpt_neox", "gemma2", "opt")
FRESH = tuple(SIZES)[7:]
LENGTHS = (12, 30)


class Lion(optim.Optimizer):
    """Sign of an interpolated moment (arXiv 2302.06675), which torch does not have."""

    def __init__(self, parameters, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                moment = self.state[p].setdefault("moment", torch.zeros_like(p))
                p.add_((moment * first + p.grad * (1 - first)).sign(), alpha=-group["lr"])
                moment.mul_(second).add_(p.grad, alpha=1 - second)


OPTIMIZERS = {
    "AdamW": lambda p: optim.AdamW(p, weight_decay=0.0, fused=True),
    "SGD": lambda p: optim.SGD(p, lr=1.0),
    "momentum": lambda p: optim.SGD(p, lr=1.0, momentum=0.9),
    # kept
    "AdamW, decay .1, beta2 .95": lambda p: optim.AdamW(p, weight_decay=0.1, betas=(0.9, 0.95)),
    "Lion": Lion,
    "RMSprop": optim.RMSprop,
    "Adafactor": optim.Adafactor,
    "NAdam": optim.NAdam,
    # fresh
    "Adamax": optim.Adamax,
    "RAdam": optim.RAdam,
    "Adagrad": optim.Adagrad,
    "Adadelta": optim.Adadelta,
    "Nesterov": lambda p: optim.SGD(p, lr=1.0, momentum=0.8, nesterov=True),
    "AdamW, beta1 .5, eps 1e-4": lambda p: optim.AdamW(p, weight_decay=0.0, betas=(0.5, 0.999), eps=1e-4),
}
DESIGN_OPTIMIZERS, FRESH_OPTIMIZERS = tuple(OPTIMIZERS)[:3], tuple(OPTIMIZERS)[8:]


def _warm_cosine(t, steps):
    warm = max(1, steps // 10)
    return (t + 1) / (warm + 1) if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (steps - warm)))


SCHEDULES = {
    "constant": lambda t, steps: 1.0,
    "linear": lambda t, steps: 1 - t / steps,
    "warm-up, cosine": _warm_cosine,
    # kept
    "warm-up over half": lambda t, steps: min(1.0, 2 * (t + 1) / steps),
    "inverse root": lambda t, steps: 1 / math.sqrt(1 + t),
    "drop to a tenth": lambda t, steps: 1.0 if t < steps // 2 else 0.1,
    # fresh
    "square": lambda t, steps: (1 - t / steps) ** 2,
    "stable, then decay": lambda t, steps: min(1.0, (t + 1) / (steps // 6), 4 * (steps - t) / steps),
    "triangle": lambda t, steps: 1 - abs(2 * (t + 0.5) / steps - 1),
    "cosine, restarted": lambda t, steps: 0.5 * (1 + math.cos(math.pi * (t % (steps // 2)) / (steps // 2))),
}
DESIGN_SCHEDULES, FRESH_SCHEDULES = tuple(SCHEDULES)[:3], tuple(SCHEDULES)[6:]
#: the five settings that are judged on the architectures that were kept aside
FIVE = (
    ("AdamW", "constant"), ("SGD", "constant"), ("momentum", "constant"), ("AdamW", "linear"),
    ("AdamW", "warm-up, cosine"),
)  # fmt: skip


def cells(part):
    """Return (block, architecture, context, optimizer, schedule, steps) of each cell."""
    if part == "design":
        settings = [(o, s) for o in DESIGN_OPTIMIZERS for s in DESIGN_SCHEDULES]
        return [("design", k, i, *s, n) for i in (0, 1) for n in LENGTHS for s in settings for k in DESIGN]
    if part == "fresh":
        found = [("architectures", k, 3, *s, n) for k in FRESH for s in FIVE for n in LENGTHS]
        settings = [(o, "constant") for o in FRESH_OPTIMIZERS]
        found += [("optimizers", k, 4, *s, n) for k in ("llama", "qwen3") for s in settings for n in LENGTHS]
        settings = [(o, s) for o in ("AdamW", "momentum") for s in FRESH_SCHEDULES]
        return found + [("schedules", k, 4, *s, n) for k in ("gpt2", "olmo2") for s in settings for n in LENGTHS]
    found = [("architectures", k, i, *s, n) for k in KEPT for s in FIVE for n in LENGTHS for i in (0, 1)]
    settings = [(o, "constant") for o in OPTIMIZERS if o not in (*DESIGN_OPTIMIZERS, *FRESH_OPTIMIZERS)]
    found += [("optimizers", k, 2, *s, n) for k in DESIGN for s in settings for n in LENGTHS]
    kept = [s for s in SCHEDULES if s not in (*DESIGN_SCHEDULES, *FRESH_SCHEDULES)]
    settings = [(o, s) for o in ("AdamW", "momentum") for s in kept]
    return found + [("schedules", k, 2, *s, n) for k in DESIGN for s in settings for n in LENGTHS]
