"""StepAccumulator in LightningModules that know nothing else of this package: those that the page shows."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_sft.callbacks import TrainingMetrics
from lightning_sft.sweep.trial import TrialRunner
from tests.distributed.strangers import assert_exact, from_page, step, toy, whole_step
from tests.fitting import batches, loader, trainer
from tests.sweep.toys import Between

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["Exact", "ExactByHand"])
def test_every_split_gives_the_gradient_of_the_whole_step(kind: str, dtype: str) -> None:
    expected = whole_step(dtype)
    for size in (8, 4, 2, 1):
        assert_exact(step(kind, dtype, size), expected, TOLERANCE[dtype])


class Shown(Callback):
    """What callbacks see: the loss of each micro-batch, and the gradient right after a backward pass."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_after_backward(self, trainer, pl_module) -> None:
        self.norms.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))


def test_callbacks_see_mean_losses_and_exact_gradients() -> None:
    expected = whole_step("float64")["gradients"]
    shown = Shown()
    trainer(callbacks=[shown], accumulate_grad_batches=4).fit(from_page("Exact")(toy("float64")), loader(batches(8, 2)))
    assert shown.norms[-1] == pytest.approx(
        float(torch.cat([g.flatten() for g in expected.values()]).norm()), rel=1e-10
    )
    model = toy("float64")
    for loss, batch in zip(shown.losses, batches(8, 2), strict=True):
        theirs = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
        assert loss == pytest.approx(theirs.item(), rel=1e-6)  # Hugging Face's own, computed in fp32


@pytest.mark.parametrize(("kind", "moved"), [("Exact", True), ("ExactByHand", False)])
def test_a_step_without_tokens(kind: str, moved: bool) -> None:
    """Zero gradients in automatic optimization, where AdamW's decay still moves; no step by hand."""
    rows = batches(4, 2)
    for row in rows:
        row["labels"].fill_(-100)
    module = from_page(kind)(toy("float64"), *([2] if kind == "ExactByHand" else []))
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    trainer(accumulate_grad_batches=1 if kind == "ExactByHand" else 2).fit(module, loader(rows))
    assert module.steps.skipped_steps == 1
    assert not module.steps.learned
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert bool((after != before).any()) == moved
    assert (after - before).abs().max() <= 1e-5 * 0.01 * before.abs().max(), "decay alone"


def test_training_metrics_show_what_the_accumulator_counts() -> None:
    expected = whole_step("float64")
    fit = trainer(callbacks=[TrainingMetrics()], accumulate_grad_batches=4)
    fit.fit(from_page("Exact")(toy("float64")), loader(batches(8, 2)))
    shown = {key: float(value) for key, value in fit.callback_metrics.items()}
    assert shown["train/loss"] == pytest.approx(expected["loss"], rel=1e-6)
    norm = torch.cat([g.flatten() for g in expected["gradients"].values()]).norm()
    assert shown["train/grad_norm"] == pytest.approx(float(norm), rel=1e-6)
    assert shown["train/skipped_steps"] == 0
    assert not {"train/nll", "train/token_accuracy", "perf/padding_share"} & shown.keys()


@pytest.mark.parametrize("kind", ["Exact", "ExactByHand"])
def test_trials_of_a_sweep_read_the_exact_loss(kind: str) -> None:
    by_hand = kind == "ExactByHand"
    module = from_page(kind)(toy("float64"), *([4] if by_hand else []))

    def one_step(trainer, module) -> list[float]:
        with TrialRunner(trainer, module, steps=1) as runner:
            return runner.run(1e-3).losses

    between = Between(one_step)
    fit = trainer(callbacks=[between], accumulate_grad_batches=1 if by_hand else 4)
    fit.fit(module, loader(batches(8, 2)))
    assert between.result == [pytest.approx(whole_step("float64")["loss"], rel=1e-10)]
    assert module.steps.skipped_steps == 0
    assert float(module.steps.totals["supervised"]) == whole_step("float64")["tokens"], "the fit's own step, afterwards"
