"""What a fit looks at before its first step."""

from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, RunFacts
from lightning_sft.training.start import check_length, prepare
from tests.toys import toy_model, toy_tokenizer


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
