"""What a kind of adapter wants beside its place in the modules: a loss of its own, a call after each step, its base.

A tuner of peft is a module around the model. Our scorer calls the decoder inside it, so what a tuner's own forward does
besides is either done here or refused by name.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from lightning_sft.errors import UserError

#: Initialisations of LoRA that are computed from data before training, by functions of peft that nobody calls here.
FROM_DATA = ("eva", "corda", "lora_ga")
#: Initialisations of LoRA that take what the fresh adapter adds off the base, so that the base is another one.
CHANGE_BASE = ("pissa", "olora", "loftq", "orthogonal")


def require_served(config: PeftConfig) -> None:
    """Raise for kinds of adapters and initialisations that would not be what they are called.

    Raises:
        UserError: says why, and what to use.
    """
    name = type(config).__name__
    allowed = (
        "Allowed: adapters that act inside modules, such as peft.LoraConfig (also with use_dora or use_rslora) and "
        "peft.IA3Config."
    )
    if config.is_prompt_learning or config.peft_type == PeftType.ADAPTION_PROMPT:
        raise UserError(
            f"The adapter {name} works on the prompt ({config.peft_type}), which the head does not see. {allowed}"
        )
    tuner = None if config.peft_type is None else PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(config.peft_type))
    if tuner is not None and tuner.forward is not BaseTuner.forward and config.peft_type != PeftType.ADALORA:
        raise UserError(
            f"The adapter {name} ({config.peft_type}) does more in its own forward than the modules that it puts into "
            f"the model, and the head works on the decoder inside. {allowed}"
        )
    if getattr(config, "use_asa", False):
        raise UserError(
            f"The adapter {name} has use_asa: true, which freezes parts of the adapter as training goes on; a "
            "checkpoint would leave them out with the base. Set use_asa: false."
        )
    start = initialisation(config)
    if start.startswith(FROM_DATA):
        raise UserError(
            f"The adapter {name} has init_lora_weights: {start}, which peft computes from data before training; "
            "nothing here does that, and the adapter would not be what it is called. Compute it with peft, save the "
            "adapter and give its folder as model.adapter_path, or use another init_lora_weights: true or pissa."
        )


def initialisation(config: PeftConfig | None) -> str:
    """Return the name of a LoRA's initialisation in lower case, empty for those without a name."""
    start = getattr(config, "init_lora_weights", None)
    return start.lower() if isinstance(start, str) else ""


def changes_base(config: PeftConfig | None) -> bool:
    """Return whether a fresh adapter changes the weights that it freezes, so that their source is not enough."""
    if config is None:
        return False
    return initialisation(config).startswith(CHANGE_BASE) or config.peft_type in (PeftType.OSF,)


def adapter_loss(model: nn.Module) -> Tensor | None:
    """Return what a tuner adds to the loss of each batch, such as AdaLoRA's orthogonality, (); None without it."""
    if not isinstance(model, PeftModel):
        return None
    tuner: Any = model.base_model
    config = model.active_peft_config
    if config.peft_type == PeftType.ADALORA:
        return _added_by_forward(tuner)
    losses = [
        getattr(tuner, method)()
        for field, method in (("kasa_config", "_get_kasa_loss"), ("monteclora_config", "_get_monteclora_loss"))
        if getattr(config, field, None) is not None and hasattr(tuner, method)
    ]
    return torch.stack(losses).sum() if losses else None


def _added_by_forward(tuner: Any) -> Tensor:
    """Return what a tuner's forward adds to the loss of the model inside, which is not run for it."""
    parameter = next(p for p in tuner.parameters() if p.requires_grad)
    nothing = SimpleNamespace(loss=parameter.new_zeros(()))
    model = tuner.model
    model.forward = lambda: nothing  # in the instance, over the class's
    try:
        tuner.forward()
    finally:
        del model.forward
    loss = nothing.loss
    assert isinstance(loss, Tensor)
    return loss


def after_step(model: nn.Module, step: int) -> None:
    """Let a tuner that spreads a budget over modules (AdaLoRA) do so; gradients of the step are still there.

    Args:
        model: what was trained.
        step: number of the optimizer step that was just taken, from 0.
    """
    tuner: Any = model.base_model if isinstance(model, PeftModel) else None
    if hasattr(tuner, "update_and_allocate"):
        tuner.update_and_allocate(step)


def tuner_state(model: nn.Module) -> dict[str, Any]:
    """Return what AdaLoRA remembers of the steps so far, plain data and tensors; empty for others."""
    allocator = _allocator(model)
    if allocator is None:
        return {}
    assert isinstance(model, PeftModel)
    ranks = getattr(model.active_peft_config, "rank_pattern", None) or {}
    return {"rank_pattern": dict(ranks), **{name: dict(getattr(allocator, name)) for name in _REMEMBERED}}


def load_tuner_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Put back what `tuner_state` returned."""
    allocator = _allocator(model)
    if allocator is None or not state:
        return
    assert isinstance(model, PeftModel)
    places = dict(model.named_parameters())
    config: Any = model.active_peft_config
    config.rank_pattern = state["rank_pattern"]
    for name in _REMEMBERED:
        remembered = {k: v.to(places[f"base_model.model.{k}"].device) for k, v in state[name].items()}
        setattr(allocator, name, remembered)


_REMEMBERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _allocator(model: nn.Module) -> Any:
    return getattr(model.base_model, "rankallocator", None) if isinstance(model, PeftModel) else None
