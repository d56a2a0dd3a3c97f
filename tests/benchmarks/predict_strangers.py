"""Optimizer classes that others wrote, for `tests/benchmarks/predict_grid.py`: those that widths are calibrated on and
those that they are judged on.

The classes are those of torch and of the package pytorch_optimizer, where it is installed (the project does not depend
on it), each with its default settings. The rule that parts them was written down before any of them was run: a class is
one of those that are judged if the first hexadecimal digit of the SHA-256 of its name in lower case is odd, unless its
name is that of an optimizer that an earlier round of the grid has run. All others are for calibration.

Of those for calibration only some had been run, in shuffled order, when the time for it was over. The others have been
kept aside since, and are what the last round is judged on; those that were judged first are for its calibration.
"""

import hashlib
import importlib.util
import inspect
import warnings

import torch
from torch import nn, optim

#: classes whose updates earlier rounds have run, in whatever package
RUN_BEFORE = {
    "sgd", "adam", "adamw", "lion", "rmsprop", "adafactor", "nadam", "adamax", "radam", "adagrad", "adadelta",
    "adabelief", "lamb", "rprop",
}  # fmt: skip
#: classes for calibration that were run before the last round, beside those of RUN_BEFORE
CALIBRATED = {
    "a2grad", "adai", "adamc", "alice", "avagrad", "dadaptlion", "diffgrad", "fromage", "kate", "pid", "pnm", "qhadam",
    "qhm", "spam", "signsgd", "apollo",
}  # fmt: skip
INSTALLED = importlib.util.find_spec("pytorch_optimizer") is not None


def found():
    """Return all optimizer classes by name; those of torch stand before others of their name."""
    classes = {}
    if INSTALLED:
        import pytorch_optimizer

        for name in pytorch_optimizer.get_supported_optimizers():
            kind = pytorch_optimizer.load_optimizer(name)
            if inspect.isclass(kind):
                classes[kind.__name__] = kind
    own = {name: kind for name, kind in vars(optim).items() if inspect.isclass(kind) and kind is not optim.Optimizer}
    return {**classes, **{name: kind for name, kind in own.items() if issubclass(kind, optim.Optimizer)}}


def part_of(name):
    """Return the part of the grid that a class is for by its name: `judged`, `strangers` or `last`."""
    digit = hashlib.sha256(name.lower().encode()).hexdigest()[0]
    if name.lower() in RUN_BEFORE | CALIBRATED:
        return "strangers"
    return "judged" if int(digit, 16) % 2 == 1 else "last"


def takes_steps(kind):
    """Return whether a class with default settings takes three steps from gradients alone that move every weight."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 64), (128, 64), (64,))]
    before = [w.detach().clone() for w in weights]
    try:
        optimizer = kind(weights)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
    except Exception:  # whatever another package raises
        return False
    moved = [bool((w != b).any() and torch.isfinite(w).all()) for w, b in zip(weights, before, strict=True)]
    return all(moved)


def strangers(*parts):
    """Return the classes for some parts of the grid that take steps, and the names of those that do not."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # some classes leave weights out at random
        own = {name: kind for name, kind in sorted(found().items()) if part_of(name) in parts}
        steps = {name: kind for name, kind in own.items() if takes_steps(kind)}
    return steps, sorted(set(own) - set(steps))
