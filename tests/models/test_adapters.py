"""Adapters of peft: one step against plain peft and torch; what a checkpoint holds; what is refused."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.export.folder import write_folder
from lightning_sft.models.quantization import quantization_config
from lightning_sft.training.strategies import SingleDevice
from tests.fitting import batches, loader, trainer
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


def module_with(model: Path, adapter: PeftConfig | None, **settings: Any) -> SFTModule:
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


def test_loss_that_carries_the_factor_gives_the_same_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed needs, on one device; GPT-NeoX keeps float64 throughout."""
    model = save_toy(tmp_path / "toy", "gpt_neox")
    results = []
    for scales_loss in (False, True):
        monkeypatch.setattr(SingleDevice, "scales_loss", scales_loss)
        module = module_with(model, ADAPTERS["lora"]())
        trainer().fit(module, loader(batches(6, 2)))
        results.append(module.scorer.state_dict())
    for name, value in results[0].items():
        assert (results[1][name] - value).norm() <= 1e-12 * value.norm() + 1e-18, name


def test_prompt_adapters_are_refused_by_name(untied: Path) -> None:
    module = module_with(untied, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="PromptTuningConfig works on the prompt"):
        module.configure_model()


def test_missing_targets_list_those_that_exist(untied: Path) -> None:
    module = module_with(untied, LoraConfig(target_modules=["query"]))
    with pytest.raises(UserError, match=r"\['query'\].*Linear modules that exist: .*q_proj.*all-linear"):
        module.configure_model()


ADDED = [f"<|{i}|>" for i in range(8)]  # the toy's 263 rows hold four of them


@pytest.mark.parametrize(
    ("tied", "settings", "message"),
    [
        (
            True,
            {},
            r"trainable_token_indices: \[263, 264, 265, 266\], .*\[embed_tokens, lm_head\] with ensure_weight_tying",
        ),
        (
            False,
            {},
            r"\{embed_tokens: \[263, 264, 265, 266\], lm_head: \[.*modules_to_save: \[embed_tokens, lm_head\]\.$",
        ),
        (True, {"modules_to_save": ["embed_tokens"]}, "grew from 263 to 267 rows"),
        (False, {"trainable_token_indices": [263, 264, 265, 266]}, "grew from 263 to 267 rows"),
        (True, {"trainable_token_indices": [263, 264]}, "grew from 263 to 267 rows"),
        (True, {"target_modules": ["embed_tokens", "lm_head"]}, "grew from 263 to 267 rows"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`")
def test_new_embedding_rows_must_be_trained(
    tied: bool, settings: dict[str, Any], message: str, toy_folder: Path, untied: Path
) -> None:
    adapter = LoraConfig(**{"target_modules": ["q_proj"], **settings})
    module = module_with(toy_folder if tied else untied, adapter, add_special_tokens=ADDED)
    with pytest.raises(UserError, match=message):
        module.configure_model()
    module_with(untied, LoraConfig(target_modules=["q_proj"]), add_special_tokens=ADDED[:4]).configure_model()


def test_training_goes_on_from_a_stored_adapter(untied: Path) -> None:
    first = module_with(untied, ADAPTERS["dora"]())
    trainer().fit(first, loader(batches(2, 2)))
    first.scorer.model.save_pretrained("stored")
    module = module_with(untied, None, adapter_path="stored")
    run = trainer()
    module.configure_model()
    before = {n: p.detach().clone() for n, p in first.scorer.named_parameters()}
    for name, parameter in module.scorer.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == first.scorer.get_parameter(name).requires_grad, name
    run.fit(module, loader(batches(2, 2)))
    run.save_checkpoint("more.ckpt")
    saved = torch.load("more.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
    assert any(not torch.equal(v, before[k.removeprefix("scorer.")]) for k, v in saved.items())


def test_adapter_paths_that_cannot_work_are_refused(untied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give one of them"):
        module_with(untied, ADAPTERS["lora"](), adapter_path="stored")
    with pytest.raises(UserError, match=r"folder with an adapter_config\.json"):
        module_with(untied, None, adapter_path="nowhere").configure_model()
    first = module_with(untied, ADAPTERS["lora"]())
    first.configure_model()
    first.scorer.model.save_pretrained("stored")
    other = save_toy(tmp_path / "wider", hidden_size=64, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"does not fit LlamaForCausalLM.*base_model_name_or_path"):
        module_with(other, None, adapter_path="stored").configure_model()


def test_quantization_is_refused_where_it_cannot_work(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="quantised weights cannot train"):
        module_with(untied, None, quantization="nf4")
    with pytest.raises(UserError, match="init: pretrained"):
        module_with(untied, ADAPTERS["lora"](), quantization="nf4", init="random")
    found = importlib.util.find_spec
    missing = {"bitsandbytes"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else found(name, *a))
    with pytest.raises(UserError, match=r"needs bitsandbytes.*lightning-sft\[quantization\]"):
        module_with(untied, ADAPTERS["lora"](), quantization="nf4").configure_model()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("nf4", torch.bfloat16), ("nf4-float32", torch.float32), ("nf4-float16", torch.float16)]
)
def test_nf4_computes_in_bf16_unless_a_dtype_is_named(
    kind: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("transformers.BitsAndBytesConfig.post_init", lambda self: None)
    config = quantization_config(kind)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == dtype


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra quantization")
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_stays_and_its_adapter_trains(quantization: str, tmp_path: Path) -> None:
    if quantization == "nf4" and not torch.accelerator.is_available():
        with pytest.raises(UserError, match="'nf4' without a GPU"):
            quantization_config("nf4")
        return
    wide = save_toy(tmp_path / "wide", hidden_size=128, intermediate_size=256)
    torch.manual_seed(0)
    module = SFTModule(
        str(wide), adapter=ADAPTERS["lora"](), quantization=quantization, optimizer=lambda p: torch.optim.SGD(p, lr=1)
    )
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.scorer.named_parameters()}
    run = trainer()
    run.fit(module, loader(batches(4, 2)))
    changed = {n for n, p in module.scorer.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in module.scorer.named_parameters() if p.requires_grad}
    run.save_checkpoint("quantised.ckpt")
    saved = torch.load("quantised.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
    assert write_folder(module, tmp_path / "out") == "adapter"
    assert load_file(tmp_path / "out/adapter_model.safetensors").keys()
    with pytest.raises(UserError, match=r"base is quantised \(bitsandbytes\).*without --merge"):
        write_folder(module, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()
