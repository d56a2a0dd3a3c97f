"""Every tuner of the installed peft: trains as plain peft does, is rebuilt, exported and merged, or refused by name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import AdaLoraConfig, LoraConfig

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.models.tuners import adapter_loss
from lightning_sft.objectives import ASFT
from tests.fitting import batches, loader
from tests.models.tuners import NEEDS, STEPS, TUNERS, can_be_made, examine, nll, tuner_config
from tests.toys import save_toy

PROMPTS = ("ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING PREFIX_TUNING PROMPT_TUNING P_TUNING").split()
OWN_FORWARD = ("POLY", "SHADOW", "XLORA")
CANNOT_MERGE = ("BEFT", "LILY")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.mark.parametrize("kind", TUNERS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, on its own layers and kernels
def test_every_tuner_is_served_or_refused_by_name(kind: str, untied: Path, tmp_path: Path) -> None:
    if not can_be_made(kind):
        pytest.skip(f"needs {NEEDS[kind]}")
    seen = examine(kind, untied, tmp_path)
    if kind in (*PROMPTS, *OWN_FORWARD):
        reason = "works on the prompt" if kind in PROMPTS else "does more in its own forward"
        assert reason in seen["refused"]
        assert type(tuner_config(kind)).__name__ in seen["refused"]
        return
    assert seen["losses"] <= 1e-5  # step by step, of the plain loop's loss
    assert seen["moved"] > 1e-4
    assert seen["rebuilt"] == 0
    assert seen["adapter"] <= 1e-5
    if kind in CANNOT_MERGE:
        assert "cannot be merged" in seen["merged"]
    else:
        assert seen["merged"] <= 1e-5


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "orthogonal"])
def test_a_base_that_the_initialisation_changes_is_kept(start: str, untied: Path, tmp_path: Path) -> None:
    seen = examine("LORA", untied, tmp_path, r=4, init_lora_weights=start)
    assert seen["losses"] <= 1e-5
    assert seen["rebuilt"] == 0  # under another seed, so that only the checkpoint can have brought the base back
    assert f"init_lora_weights: {start}" in seen["adapter"]
    assert seen["merged"] <= 1e-5


def test_a_reference_is_the_model_before_its_base_was_changed(untied: Path) -> None:
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
    module = SFTModule(str(untied), objective=ASFT(), adapter=adapter)
    module.configure_model()
    plain = SFTModule(str(untied))
    plain.configure_model()
    (batch,) = batches(2, 2)
    with module.scorer._reference_model() as reference:
        assert nll(reference, batch) == nll(plain.scorer.causal_lm, batch)


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
@pytest.mark.filterwarnings("ignore:`init_lora_weights` is")
def test_initialisations_from_data_are_refused(start: str, untied: Path) -> None:
    module = SFTModule(str(untied), adapter=LoraConfig(r=4, init_lora_weights=start, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=rf"init_lora_weights: {start}, which peft computes from data"):
        module.configure_model()


def adalora() -> AdaLoraConfig:
    return AdaLoraConfig(
        init_r=6, target_r=2, total_step=2 * STEPS, tinit=1, tfinal=3, deltaT=1, target_modules=["q_proj", "v_proj"]
    )


def adalora_module(folder: Path) -> SFTModule:
    torch.manual_seed(0)
    return SFTModule(
        str(folder), adapter=adalora(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), lr_scheduler="constant"
    )


def pruned(module: SFTModule) -> tuple[int, int]:
    values = [p for n, p in module.scorer.named_parameters() if "lora_E" in n]
    return sum(int((v == 0).sum()) for v in values), sum(v.numel() for v in values)


def test_adalora_allocates_its_budget_and_goes_on_after_a_resume(untied: Path) -> None:
    rows = batches(2 * STEPS, 2)

    def run(module: SFTModule, epochs: int, **resume: str) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        torch.manual_seed(0)  # the model is built in fit
        made = Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet)
        made.fit(module, loader(rows), **resume)
        return made

    whole, first, second = (adalora_module(untied) for _ in range(3))
    run(whole, 2)
    zeros, values = pruned(whole)
    assert values - zeros == 2 * 4  # the target rank in each of four layers
    run(first, 1).save_checkpoint("half.ckpt")
    assert run(second, 2, ckpt_path="half.ckpt").global_step == 2 * STEPS
    for (name, expected), parameter in zip(whole.scorer.named_parameters(), second.scorer.parameters(), strict=True):
        assert torch.equal(expected, parameter), name


def test_adaloras_loss_is_the_one_that_its_forward_adds(untied: Path) -> None:
    module = adalora_module(untied)
    module.configure_model()
    model = module.scorer.model.train()
    (batch,) = batches(2, 2)
    given: dict[str, Any] = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    added = model(**given).loss - model.get_base_model()(**given).loss
    ours = adapter_loss(model)
    assert ours is not None
    torch.testing.assert_close(ours, added, rtol=1e-5, atol=1e-6)
    extra = module.scorer(batch, module.objective).model_losses
    torch.testing.assert_close(extra["adapter_loss"], ours)
    assert "adapter_loss" not in module.scorer.eval()(batch, module.objective).model_losses
    plain = copy.deepcopy(module.scorer.causal_lm)
    assert adapter_loss(plain) is None
