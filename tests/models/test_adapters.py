"""Adapters of peft: one step against plain peft and torch; what a checkpoint holds; what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig
from torch.nn.functional import cross_entropy

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.strategies import SingleDevice
from tests.test_module import batches, loader, trainer
from tests.toys import save_toy

UNTIED = {"tie_word_embeddings": False}
ADAPTERS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=4, target_modules="all-linear"),
    "dora": lambda: LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=2, target_modules="all-linear", use_rslora=True),
    "ia3": lambda: IA3Config(),
    "trained norms": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    "trained head": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "trained embeddings": lambda: LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "lora on the embeddings": lambda: LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "lora on the head": lambda: LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
}
LR = 0.5


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("untied"), **UNTIED)


def module_with(model: Path, adapter: PeftConfig, **settings: Any) -> SFTModule:
    torch.manual_seed(0)
    return SFTModule(
        str(model),
        adapter=adapter,
        dtype="float64",
        optimizer=lambda p: torch.optim.SGD(p, lr=LR),
        lr_scheduler="constant",
        **settings,
    )


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore:The fused head cannot serve this model")
def test_one_step_is_that_of_plain_peft(kind: str, untied: Path) -> None:
    module = module_with(untied, ADAPTERS[kind]())
    module.configure_model()
    for name, parameter in module.scorer.named_parameters():
        if parameter.requires_grad and "lora_B" in name:  # zero at first: lora_A would have no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    assert module.scorer.head == ("reference" if kind == "lora on the head" else "fused")
    theirs = copy.deepcopy(module.scorer.model)
    (batch,) = batches(2, 2)
    logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    trainable = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    torch.optim.SGD(trainable.values(), lr=LR).step()

    trainer().fit(module, loader([batch]))

    ours = dict(module.scorer.model.named_parameters())
    assert {n for n, p in ours.items() if p.requires_grad} == trainable.keys()
    assert any(p.grad.norm() > 0 for p in trainable.values())
    for name, expected in trainable.items():
        # transformers' RMSNorm computes in fp32 whatever the dtype
        difference = (ours[name] - expected).norm()
        assert difference <= 1e-5 * (LR * expected.grad).norm() + 1e-15, name


@pytest.mark.parametrize("kind", ["lora", "ia3", "trained norms", "trained head"])
def test_a_checkpoint_holds_the_adapter_and_no_more(kind: str, untied: Path) -> None:
    module = module_with(untied, ADAPTERS[kind]())
    run = trainer()
    run.fit(module, loader(batches(2, 2)))
    run.save_checkpoint("adapter.ckpt")
    checkpoint = torch.load("adapter.ckpt", weights_only=True)
    parameters = dict(module.named_parameters())
    assert checkpoint["state_dict"].keys() == {n for n, p in parameters.items() if p.requires_grad}
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad) * 8
    assert trained <= Path("adapter.ckpt").stat().st_size <= 1.1 * trained + 60_000  # RNG states and names

    again = module_with(untied, ADAPTERS[kind]())
    Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False).fit(
        again, loader(batches(2, 2)), ckpt_path="adapter.ckpt"
    )
    assert again.trainer.global_step == 2


def test_loss_that_carries_the_factor_gives_the_same_update(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed needs, on one device."""
    results = []
    for scales_loss in (False, True):
        monkeypatch.setattr(SingleDevice, "scales_loss", scales_loss)
        module = module_with(untied, ADAPTERS["lora"]())
        trainer().fit(module, loader(batches(6, 2)))
        results.append(module.scorer.state_dict())
    for name, value in results[0].items():
        # transformers' RMSNorm rounds to fp32 in the middle, so that float64 is not kept to its last digits
        assert (results[1][name] - value).norm() <= 1e-10 * value.norm(), name


def test_prompt_adapters_are_refused_by_name(untied: Path) -> None:
    module = module_with(untied, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="PromptTuningConfig works on the prompt"):
        module.configure_model()


def test_missing_targets_list_those_that_exist(untied: Path) -> None:
    module = module_with(untied, LoraConfig(target_modules=["query"]))
    with pytest.raises(UserError, match=r"\['query'\].*Linear modules that exist: .*q_proj.*all-linear"):
        module.configure_model()
