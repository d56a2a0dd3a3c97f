"""A small configuration of every tuner of the installed peft, and what is expected of it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.export.folder import write_folder
from tests.fitting import batches, loader, trainer

STEPS = 6
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
#: fields beside `TARGETS`, for layers of 32 and 16 features
FIELDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 6, "target_r": 2, "total_step": STEPS, "tinit": 1, "tfinal": 1, "deltaT": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "C3A": {"block_size": 16},
    "CPT": {"task_type": "CAUSAL_LM"},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 16},
    "GRALORA": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": list(range(5, 60)), "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 16},
}
#: packages that a tuner needs and peft does not bring along
NEEDS = {"ADAMSS": "sklearn", "OFT": None, "BOFT": None}
TUNERS = sorted(kind.value for kind in PeftType)


def tuner_config(kind: str, **fields: Any) -> Any:
    """A small configuration of one tuner."""
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    given = {**FIELDS.get(kind, {}), **fields}
    accepts = "target_modules" in cls.__dataclass_fields__ and kind != "LN_TUNING"
    return cls(**{**(TARGETS if accepts else {}), **given})


def can_be_made(kind: str) -> bool:
    """Whether the packages that a tuner needs are installed."""
    needs = NEEDS.get(kind)
    return needs is None or importlib.util.find_spec(needs) is not None


class Losses(Callback):
    """The mean losses of the steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(index)  # some adapters sample in training

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        extra = sum(float(v) for k, v in module.step_totals.items() if k.startswith("extra/"))
        self.losses.append(module.step_totals.mean("loss") + extra / float(module.step_totals["supervised"]))


def plain_losses(model: PeftModel, rows: list[dict[str, torch.Tensor]], lr: float) -> list[float]:
    """A training loop of plain peft."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    model.train()
    for step, batch in enumerate(rows):
        torch.manual_seed(step)
        loss = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def nll(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """The mean loss in eval mode, from the model's logits: AdaLoRA's forward cannot take labels there."""
    logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))


def module_with(folder: Path, config: Any, lr: float, seed: int = 0) -> SFTModule:
    torch.manual_seed(seed)
    module = SFTModule(
        str(folder),
        adapter=config,
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
        lr_scheduler="constant",
    )
    module.configure_model()
    return module


def examine(kind: str, folder: Path, work: Path, lr: float = 1e-2, **fields: Any) -> dict[str, Any]:
    """Train, rebuild from the checkpoint, export and merge one tuner; return what was seen, for tests and the page.

    Args:
        kind: of ``PeftType``.
        folder: of the toy model.
        work: an empty folder.
        lr: of the few steps.
        fields: of the configuration.
    """
    if not can_be_made(kind):
        return {"needs": NEEDS[kind]}
    seen: dict[str, Any] = {}
    try:
        module = module_with(folder, tuner_config(kind, **fields), lr)
    except UserError as error:
        return {"refused": str(error)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, on its own merging
        theirs = _copy_of(module, folder, tuner_config(kind, **fields))
        rows = batches(2 * STEPS, 2)
        losses = Losses()
        run = trainer(callbacks=[losses])
        before = nll(module.scorer.causal_lm, rows[0])
        module.scorer.train()
        run.fit(module, loader(rows))
        plain = plain_losses(theirs, rows, lr)
        seen["losses"] = max(abs(a - b) / abs(b) for a, b in zip(losses.losses, plain, strict=True))
        trained = nll(module.scorer.causal_lm, rows[0])
        seen["moved"] = abs(trained - before)
        run.save_checkpoint(work / "run.ckpt")
        again = module_with(folder, tuner_config(kind, **fields), lr, seed=7)
        saved = torch.load(work / "run.ckpt", weights_only=True)
        again.load_state_dict(saved["state_dict"], strict=again.strict_loading)
        seen["rebuilt"] = abs(nll(again.scorer.causal_lm, rows[0]) - trained)
        for merge in (False, True):
            name = "merged" if merge else "adapter"
            try:
                write_folder(again, work / name, merge=merge)
                base = AutoModelForCausalLM.from_pretrained(work / name if merge else folder)
                model = base if merge else PeftModel.from_pretrained(base, str(work / name))
                seen[name] = abs(nll(model, rows[0]) - trained)
            except UserError as error:
                seen[name] = str(error)
    return seen


def _copy_of(module: SFTModule, folder: Path, config: Any) -> PeftModel:
    """The same model in plain peft: built by it, with the weights of ours."""
    from peft import get_peft_model

    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.load_state_dict(module.scorer.model.state_dict())
    return model
