"""A loss scaler on a CPU, with the scale made visible."""

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

SCALE = 2.0**12


class FullPrecision(MixedPrecision):
    """The scaler's path without half-precision products, so that gradients can be compared exactly."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def scaled(plugin: type[MixedPrecision], scale: float = SCALE) -> dict[str, object]:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return {"plugins": plugin("16-mixed", "cpu", scaler)}
