"""Cells of `tests/benchmarks/predict_grid.py`: architectures, optimizers, schedules, and which were kept aside.

Parts of whole architectures, optimizers and schedules. The predictor was designed on `design`. `kept` was kept aside
until it was frozen, and has been seen since: with `design` it is what the widths of the intervals were calibrated on,
twice. `fresh` was kept aside until the first calibration, which failed on its optimizers. `unseen` was kept aside until
the second: the architectures, optimizers and schedules of `fresh` with other weights in other contexts, and three
optimizers that no cell had before. With these and with `strangers`, optimizer classes that others wrote, the widths
were calibrated by group, and `judged` was kept aside until that was frozen: other weights of the eight architectures,
the kept schedules and six that no cell had before, and optimizer classes that no cell had before
(tests/benchmarks/predict_strangers.py). With `judged`, with `strangers` and with `more`, which has all architectures,
schedules and classes so far once more, the widths were calibrated anew. `last` was kept aside until that was frozen:
eight architectures, ten schedules and the remaining optimizer classes, of all of which no cell was run before.
"""

import math

import torch
from torch import optim

CONTEXTS = (
    "He saw the", "A b", "The quick brown fox said", "On the table lay a", "We then sent them the",
    "Nobody had told her of the", "In 1999 the",
)  # fmt: skip
#: the contexts from here on are those of `unseen`, and so are the weights of the toys that they are given to
SEEN_CONTEXTS = 5
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
    # last: the first eight of the dense ones that transformers can build, by the SHA-256 of their names
    "persimmon": WIDE,
    "biogpt": WIDE,
    "glm": {**GROUPED, "head_dim": 16},
    "gptj": {"hidden_size": 64, "rotary_dim": 8},
    "arcee": GROUPED,
    "gemma": {**GROUPED, "head_dim": 16},
    "smollm3": GROUPED,
    "olmo3": GROUPED,
}
DESIGN, KEPT = ("llama", "gpt2", "qwen3", "olmo2"), ("gpt_neox", "gemma2", "opt")
FRESH, LAST = tuple(SIZES)[7:15], tuple(SIZES)[15:]
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


class AdaBelief(optim.Optimizer):
    """Adam whose second moment is of what the first one did not foresee (arXiv 2010.07468)."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                own = self.state[p]
                if not own:
                    own.update(m=torch.zeros_like(p), s=torch.zeros_like(p), n=0)
                own["n"] += 1
                own["m"].lerp_(p.grad, 1 - first)
                own["s"].mul_(second).add_((p.grad - own["m"]) ** 2, alpha=1 - second).add_(group["eps"])
                size = (own["s"] / (1 - second ** own["n"])).sqrt_().add_(group["eps"])
                p.addcdiv_(own["m"], size, value=-group["lr"] / (1 - first ** own["n"]))


class Lamb(optim.Optimizer):
    """Adam whose step is as long as its layer's weights times the rate (arXiv 1904.00962)."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-6):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                own = self.state[p]
                if not own:
                    own.update(m=torch.zeros_like(p), v=torch.zeros_like(p), n=0)
                own["n"] += 1
                own["m"].lerp_(p.grad, 1 - first)
                own["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                size = (own["v"] / (1 - second ** own["n"])).sqrt_().add_(group["eps"])
                update = own["m"] / (1 - first ** own["n"]) / size
                trust = float(p.norm() / update.norm()) if p.norm() > 0 and update.norm() > 0 else 1.0
                p.add_(update, alpha=-group["lr"] * trust)


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
    # unseen
    "AdaBelief": AdaBelief,
    "LAMB": Lamb,
    "Rprop": optim.Rprop,
}
DESIGN_OPTIMIZERS, FRESH_OPTIMIZERS = tuple(OPTIMIZERS)[:3], tuple(OPTIMIZERS)[8:14]
UNSEEN_OPTIMIZERS = tuple(OPTIMIZERS)[8:]


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
    # judged
    "exponential": lambda t, steps: 0.02 ** (t / steps),
    "one cycle": lambda t, steps: 0.5 * (1 - math.cos(2 * math.pi * ((t + 1) / (steps + 1)) ** 0.6)),
    "halved thrice": lambda t, steps: 0.5 ** (4 * t // steps),
    "wave": lambda t, steps: 0.6 + 0.4 * math.sin(4 * math.pi * t / steps),
    "root cool-down": lambda t, steps: 1 - math.sqrt(max(0.0, (t - 0.6 * steps) / (0.4 * steps))),
    "growing": lambda t, steps: ((t + 1) / steps) ** 2,
    # last
    "cosine to a tenth": lambda t, steps: 0.55 + 0.45 * math.cos(math.pi * t / steps),
    "warm-up, linear": lambda t, steps: min((t + 1) / (steps // 5), (steps - t) / (steps - steps // 5)),
    "cubic": lambda t, steps: (1 - t / steps) ** 3,
    "sawtooth": lambda t, steps: 1 - 0.9 * (t % (steps // 3)) / (steps // 3),
    "fall and rise": lambda t, steps: 0.1 + 0.9 * abs(2 * (t + 0.5) / steps - 1),
    "logarithmic": lambda t, steps: 1 / (1 + math.log(1 + t)),
    "plateau": lambda t, steps: 1.0 if steps // 3 <= t < 2 * steps // 3 else 0.3,
    "linear to a half": lambda t, steps: 1 - 0.5 * t / steps,
    "warm-up, inverse root": lambda t, steps: min((t + 1) / (steps // 4), math.sqrt((steps // 4) / (t + 1))),
    "late drop": lambda t, steps: 1.0 if t < 5 * steps // 6 else 0.05,
}
DESIGN_SCHEDULES, KEPT_SCHEDULES, FRESH_SCHEDULES = (tuple(SCHEDULES)[a:b] for a, b in ((0, 3), (3, 6), (6, 10)))
JUDGED_SCHEDULES, LAST_SCHEDULES = tuple(SCHEDULES)[6:16], tuple(SCHEDULES)[16:]
#: the five settings that are judged on the architectures that were kept aside
FIVE = (
    ("AdamW", "constant"), ("SGD", "constant"), ("momentum", "constant"), ("AdamW", "linear"),
    ("AdamW", "warm-up, cosine"),
)  # fmt: skip


def cells(part, classes=()):
    """Return (block, architecture, context, optimizer, schedule, steps) of each cell.

    Args:
        part: of the grid.
        classes: names of optimizer classes that others wrote, for `strangers`, `judged`, `more` and `last`.
    """
    if part == "strangers":
        return _spread("optimizers", [(name, "constant") for name in classes], 15)
    if part in ("judged", "last"):
        first, kinds, schedules = (10, FRESH, JUDGED_SCHEDULES) if part == "judged" else (20, LAST, LAST_SCHEDULES)
        settings = [(k, first + i % 5, *s, n) for k in kinds for i, s in enumerate(FIVE) for n in LENGTHS]
        found = [("architectures", *cell) for cell in settings]
        settings = [(o, s) for s in schedules for o in ("AdamW", "momentum")]
        found += _spread("schedules", settings, first)
        return found + _spread("optimizers", [(name, "constant") for name in classes], first)
    if part == "more":
        seen = (*((k, 0) for k in (*DESIGN, *KEPT)), *((k, 2) for k in FRESH))
        settings = [(k, 15 + (i + by) % 5, *s, n) for k, by in seen for i, s in enumerate(FIVE) for n in LENGTHS]
        found = [("architectures", *cell) for cell in settings]
        settings = [(o, s) for s in tuple(SCHEDULES)[1:16] for o in ("AdamW", "momentum")]
        found += _spread("schedules", settings, 15)
        return found + _spread("optimizers", [(name, "constant") for name in classes], 16, 1)
    if part == "design":
        settings = [(o, s) for o in DESIGN_OPTIMIZERS for s in DESIGN_SCHEDULES]
        return [("design", k, i, *s, n) for i in (0, 1) for n in LENGTHS for s in settings for k in DESIGN]
    if part in ("fresh", "unseen"):
        first, others, made = (3, (4,), FRESH_OPTIMIZERS) if part == "fresh" else (5, (5, 6), UNSEEN_OPTIMIZERS)
        found = [("architectures", k, first, *s, n) for k in FRESH for s in FIVE for n in LENGTHS]
        settings, two = [(o, "constant") for o in made], ("llama", "qwen3")
        found += [("optimizers", k, i, *s, n) for i in others for k in two for s in settings for n in LENGTHS]
        settings = [(o, s) for o in ("AdamW", "momentum") for s in FRESH_SCHEDULES]
        last = others[-1]
        return found + [("schedules", k, last, *s, n) for k in ("gpt2", "olmo2") for s in settings for n in LENGTHS]
    found = [("architectures", k, i, *s, n) for k in KEPT for s in FIVE for n in LENGTHS for i in (0, 1)]
    settings = [(o, "constant") for o in OPTIMIZERS if o not in (*DESIGN_OPTIMIZERS, *UNSEEN_OPTIMIZERS)]
    found += [("optimizers", k, 2, *s, n) for k in DESIGN for s in settings for n in LENGTHS]
    settings = [(o, s) for o in ("AdamW", "momentum") for s in KEPT_SCHEDULES]
    return found + [("schedules", k, 2, *s, n) for k in DESIGN for s in settings for n in LENGTHS]


def _spread(block, settings, first, by=0):
    """Return cells of both lengths of each setting, over the architectures of `design` and five contexts in turn."""
    return [
        (block, DESIGN[(i + j + by) % len(DESIGN)], first - first % 5 + (first + i + 2 * j) % 5, *setting, n)
        for i, setting in enumerate(settings)
        for j, n in enumerate(LENGTHS)
    ]
