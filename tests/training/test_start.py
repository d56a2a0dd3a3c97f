"""What a fit looks at before its first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from peft import LoraConfig

from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings
from lightning_sft.objectives import ASFT, NLL, PSFT, Distill, Objective, Rho1, RunFacts, WeightedSum
from lightning_sft.training.start import check_length, check_reference, prepare
from tests.toys import save_toy, toy_model, toy_tokenizer


def data(*lengths: int) -> SimpleNamespace:
    """A data module with one set of such rows and an empty one."""
    sets = {"train": np.array(lengths), "val": np.array([], int)}
    return SimpleNamespace(report={name: SimpleNamespace(lengths=rows) for name, rows in sets.items()})


def test_rows_that_fit_pass() -> None:
    check_length(toy_model("gpt2"), data(3, 512))
    check_length(toy_model("gpt2"), None)


def test_a_model_with_learned_positions_has_no_more() -> None:
    with pytest.raises(UserError, match="longest row has 513 tokens, but GPT2LMHeadModel has 512 positions"):
        check_length(toy_model("gpt2"), data(3, 513))


def test_rotary_positions_go_on_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM has 512 positions\. Set data\.max_length to 512 or less"):
        check_length(toy_model("llama"), data(513))


class Listener(NLL):
    """Keeps what it may know of the run."""

    facts: RunFacts

    def prepare(self, facts: RunFacts) -> None:
        self.facts = facts


@pytest.mark.parametrize(("training", "steps"), [(True, 7), (False, None)])
def test_an_objective_learns_the_facts_of_the_run(training: bool, steps: int | None) -> None:
    run = SimpleNamespace(estimated_stepping_batches=7, datamodule=SimpleNamespace(source_names=("a", "b")))
    known = objective_told(run, "kept", training=training, has_reference=True)
    assert (known.sources, known.total_steps, known.has_reference) == (("a", "b"), steps, True)
    assert (known.denominator, known.vocabulary, known.training) == ("kept", 259, training)


def test_a_run_without_end_or_sources_has_none_of_both() -> None:
    run = SimpleNamespace(estimated_stepping_batches=float("inf"))
    known = objective_told(run, "all", training=True, has_reference=False)
    assert (known.sources, known.total_steps, known.has_reference) == ((), None, False)


def objective_told(run: SimpleNamespace, denominator: str, **given: bool) -> RunFacts:
    run.limit_train_batches, run.gradient_clip_val = 1.0, None
    run.strategy = SingleDeviceStrategy("cpu")
    objective = Listener()
    prepare(objective, run, denominator, toy_tokenizer(), **given)
    return objective.facts


# ------------------------------------------------------------------------------------------------ reference models


def under(kind: type, tensor_parallel: int = 1) -> Any:
    """A trainer with a strategy of a kind that may need GPUs, or a package that is not here."""
    strategy = kind.__new__(kind)
    if kind is ModelParallelStrategy:
        sizes = {"data_parallel": 2, "tensor_parallel": tensor_parallel}
        strategy._device_mesh = {name: SimpleNamespace(size=lambda n=n: n) for name, n in sizes.items()}
    return SimpleNamespace(strategy=strategy, limit_train_batches=1.0, gradient_clip_val=None)


OFFLOADING: dict[str, tuple[Any, ...]] = {
    "FSDP1, which would flatten, and offload": (FSDPStrategy,),
    "DeepSpeed, which would partition, and offload": (DeepSpeedStrategy,),
    "tensor parallelism, which splits the layers": (ModelParallelStrategy, 2),
}


@pytest.mark.parametrize("why", OFFLOADING)
@pytest.mark.parametrize("objective", [ASFT(), Rho1(), Distill(), WeightedSum({"a": NLL(), "b": ASFT()})], ids=repr)
def test_a_frozen_reference_needs_a_place(why: str, objective: Objective, toy_folder: Path) -> None:
    lora, teacher = LoraConfig(), str(toy_folder)
    for settings in (ModelSettings("model"), ModelSettings("model", adapter=lora, reference=teacher)):
        with pytest.raises(UserError, match=f"the run uses {why}.* Use configs/strategy/fsdp2.yaml"):
            check_reference(objective, settings, toy_tokenizer(), under(*OFFLOADING[why]))
    # the model with its adapter switched off is no model of its own
    check_reference(objective, ModelSettings("model", adapter=lora), toy_tokenizer(), under(*OFFLOADING[why]))
    check_reference(NLL(), ModelSettings("model"), toy_tokenizer(), under(*OFFLOADING[why]))


@pytest.mark.parametrize("kind", [SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy])
def test_other_strategies_take_one(kind: type, toy_folder: Path) -> None:
    check_reference(ASFT(), ModelSettings("model", reference=str(toy_folder)), toy_tokenizer(), under(kind))


@pytest.mark.parametrize("why", OFFLOADING)
def test_snapshots_are_taken_on_whole_models_alone(why: str) -> None:
    run = under(*OFFLOADING[why])
    run.estimated_stepping_batches = 5
    with pytest.raises(UserError, match="PSFT compares the model with snapshots of itself, and this run takes none"):
        prepare(PSFT(4), run, "all", toy_tokenizer(), training=True, has_reference=True)
    run.strategy = SingleDeviceStrategy("cpu")
    prepare(PSFT(4), run, "all", toy_tokenizer(), training=True, has_reference=True)


def test_a_reference_of_another_vocabulary_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    grown = toy_tokenizer()
    grown.add_tokens(["<tool>"])
    grown.save_pretrained(save_toy(tmp_path / "other"))
    settings = ModelSettings("nowhere", reference=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"vocabulary is another one: 1 tokens .*'<tool>' \(none and 259\)"):
        check_reference(Distill(), settings, toy_tokenizer(), None)


def test_a_reference_that_nothing_looks_at_is_told(toy_folder: Path) -> None:
    with pytest.warns(UserWarning, match="NLL compares with nothing: it is not loaded"):
        check_reference(NLL(), ModelSettings("model", reference=str(toy_folder)), toy_tokenizer(), None)
