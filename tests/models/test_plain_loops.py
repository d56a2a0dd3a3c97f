"""Twenty steps of fits of ten kinds of models, whole and with LoRA, beside a loop of plain transformers and peft."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_sft import SFTModule
from tests.fitting import batches, loader, trainer
from tests.models.remote import save_remote
from tests.models.zoo import save_tiny

STEPS = 20
#: what kind of model -> its type
KINDS = {
    "dense": "llama",
    "mixture of experts": "mixtral",
    "sliding window": "gemma3_text",
    "soft-capped": "gemma2",
    "hybrid": "bamba",
    "linear attention": "qwen3_next",
    "sparse attention": "deepseek_v32",
    "encoder-like": "roberta",
    "text of a multimodal model": "gemma3",
    "code of its own": "running_average",
}
LR = 0.02  # of SGD: Adam steps by the sign of gradients that are rounding alone, and routers choose by what follows
#: where that rate lets rounding grow a hundredfold in a few steps, through routers beside recurrences
RATES = {"qwen3_next": 0.002}


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.seen.append(module.step_totals.mean("loss"))


def saved(kind: str, folder: Path) -> str:
    if kind != "running_average":
        return save_tiny(folder, kind)
    torch.manual_seed(0)
    source = save_remote(folder / "code")
    model = AutoModelForCausalLM.from_config(_config(source), trust_remote_code=True)
    model.save_pretrained(folder / "whole")
    save_remote(folder / "whole")  # its configuration again, with the place of the code
    return str(folder / "whole")


def _config(folder: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=True)


def plain_losses(model: PreTrainedModel | PeftModel, rows: list[dict[str, torch.Tensor]], lr: float) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    model.train()
    losses = []
    for batch in rows:
        loss = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.filterwarnings(
    "ignore:The fused head cannot serve this model",
    "ignore:`is_gradient_checkpointing`",
    "ignore:These parts of the adapter got no gradient",  # layers of a vision tower, of an indexer
)
def test_steps_are_those_of_a_plain_loop(what: str, adapter: bool, tmp_path: Path) -> None:
    kind = KINDS[what]
    folder = saved(kind, tmp_path)
    remote = kind == "running_average"
    config = LoraConfig(r=4, target_modules="all-linear") if adapter else None
    module = SFTModule(
        folder,
        adapter=config,
        trust_remote_code=remote,
        optimizer=lambda p: torch.optim.SGD(p, lr=RATES.get(kind, LR), momentum=0.9),
        lr_scheduler="constant",
    )
    module.configure_model()
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, dtype=torch.float32)
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peft, on its own patterns
            plain = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
            theirs = get_peft_model(theirs, plain)
        theirs.load_state_dict(module.scorer.model.state_dict())
    rows = batches(2 * STEPS, 2)
    losses = Losses()
    trainer(callbacks=[losses]).fit(module, loader(rows))
    expected = plain_losses(theirs, rows, RATES.get(kind, LR))
    assert len(losses.seen) == STEPS
    assert max(abs(a - b) for a, b in itertools.pairwise(expected)) > 1e-3  # something is learnt
    for step, (ours, plain_loss) in enumerate(zip(losses.seen, expected, strict=True)):
        assert abs(ours - plain_loss) <= 1e-5 * abs(plain_loss), (step, ours, plain_loss)
