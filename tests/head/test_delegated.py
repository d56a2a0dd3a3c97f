"""Delegation to cut-cross-entropy: what it is handed, what comes back, and what it must not be handed.

Its kernels need a GPU, so a stand-in takes their place: the signature is that of version 25.1.1, and so are the demands
on its inputs. The last test compares the package itself, where there is a GPU.
"""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.head import HeadInput, Unembedding, choose_head, delegated, delegated_head, reference_head, refusal
from lightning_sft.objectives import NLL, PowerFamily
from tests.devices import RunIf, needs
from tests.head.cases import OBJECTIVES, Case, Centred, Constant, Kept, LogRatio, Smoothed, make
from tests.running import run, run_folder, scalars, toy_arguments, write_rows

DELEGATED = {"nll": NLL(), "power": PowerFamily(2.0), "kept": Kept(), "centred": Centred(), "constant": Constant()}


class Kernels:
    """The package's function, computed plainly.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        e: Tensor,
        c: Tensor,
        targets: Tensor,
        ignore_index: int = -100,
        softcap: float | None = None,
        reduction: str = "mean",
        shift: bool = False,
        filter_eps: float | str | None = "high",
        impl: str = "cce",
    ) -> Tensor:
        assert (reduction, shift, filter_eps, impl) == ("none", False, None, "cce")
        assert all(tensor.is_contiguous() for tensor in (e, c))
        assert e.dtype == c.dtype
        assert len(e) > 0
        assert not torch.is_autocast_enabled(e.device.type)
        self.calls += 1
        logits = e @ c.T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Put the stand-in where the package would be, and say that a CPU can run it."""
    stand_in = Kernels()
    package = types.ModuleType("cut_cross_entropy")
    package.linear_cross_entropy = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    monkeypatch.setattr(delegated, "DEVICE", "cpu")
    return stand_in


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("name", DELEGATED)
def test_equals_plain(kernels: Kernels, name: str, scale: float, softcap: float | None):
    """Losses, log-probabilities and the gradient of each token, weighed by what the objective makes of it."""
    case, objective = make(scale=scale, softcap=softcap), DELEGATED[name]
    results = []
    for head in (delegated_head, reference_head):
        case.hidden.grad = case.weight.grad = None
        weight = torch.linspace(0.5, 2, len(case.targets), dtype=torch.float64)
        inputs = HeadInput(case.hidden, case.targets, weight=weight)
        output = head(inputs, case.unembedding(), objective)
        (output.loss_sum * 0.3).backward()
        assert not output.losses.requires_grad
        assert not output.scores.logp.requires_grad
        results.append([output.loss_sum, output.losses, output.scores.logp, case.hidden.grad, case.weight.grad])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert kernels.calls == 1


def test_reference_model(kernels: Kernels):
    case, other = make(), make(seed=1, dim=6, scale=0.5)
    inputs = HeadInput(case.hidden, case.targets, reference_hidden=other.hidden, reference=other.unembedding())
    got, want = (head(inputs, case.unembedding(), LogRatio()) for head in (delegated_head, reference_head))
    torch.testing.assert_close(got.scores.reference_logp, want.scores.reference_logp)
    torch.testing.assert_close(got.losses, want.losses)
    got.loss_sum.backward()
    assert other.weight.grad is None
    assert kernels.calls == 2


def test_without_tokens(kernels: Kernels):
    """Nothing for the kernels, a gradient of 0 for every rank, and the same columns as with tokens."""
    case = make(tokens=0)
    output = delegated_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL())
    output.loss_sum.backward()
    assert kernels.calls == 0
    assert output.scores.is_top1 is None
    assert case.weight.grad is not None
    assert not case.weight.grad.any()


def bf16(**how: object) -> Case:
    return make(dtype=torch.bfloat16, **how)


@pytest.mark.parametrize(
    ("reason", "case", "objective", "competitors"),
    [
        (None, bf16(), NLL(), False),
        (None, bf16(softcap=3.0, scale=0.5), Centred(), False),
        ("Smoothed reads whole rows", bf16(), Smoothed(), False),
        ("has a bias", bf16(bias=True), NLL(), False),
        ("multiply in 16 bits, and this run in float32", make(dtype=torch.float32), NLL(), False),
        ("only training passes", bf16(), NLL(), True),
    ],
)
def test_refusals(kernels: Kernels, reason: str | None, case: Case, objective: NLL, competitors: bool):
    inputs = HeadInput(case.hidden, case.targets, competitors=competitors)
    got = refusal(inputs, case.unembedding(), objective)
    assert got == reason if reason is None else reason in str(got)
    with torch.no_grad():
        assert "only training" in str(refusal(inputs, case.unembedding(), objective))


def test_refused_on_other_devices_and_where_sums_must_come_in_order(monkeypatch: pytest.MonkeyPatch):
    case = bf16()
    inputs, unembedding = HeadInput(case.hidden, case.targets), case.unembedding()
    assert refusal(inputs, unembedding, NLL()) == "the model is on cpu, and its kernels are for cuda"
    monkeypatch.setattr(delegated, "DEVICE", "cpu")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "deterministic" in str(refusal(inputs, unembedding, NLL()))


def test_autocast_decides_what_is_multiplied(kernels: Kernels):
    case = make(dtype=torch.float32)
    inputs = HeadInput(case.hidden, case.targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert refusal(inputs, case.unembedding(), NLL()) is None
        output = delegated_head(inputs, case.unembedding(), NLL())
    output.loss_sum.backward()
    assert output.losses.dtype == torch.float32
    assert case.weight.grad is not None
    assert case.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_a_package_that_cannot_be_imported_ends_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool
):
    """As where triton, which it needs, is missing."""
    if broken:
        (tmp_path / "cut_cross_entropy.py").write_text("import triton_that_is_missing\n")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    case = make(dtype=torch.float32)

    def choose() -> str:
        parts = case.hidden, Unembedding(case.weight)
        return choose_head("cut_cross_entropy", lambda: case.hidden @ case.weight.T, lambda: parts)

    for available in (True, False):  # without a GPU the checkpoint of a run that had one can still be read
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        with pytest.raises(UserError, match=r"lightning-sft\[cce\]") if available else contextlib.nullcontext():
            assert choose() == "cut_cross_entropy"
    sys.modules.pop("cut_cross_entropy", None)


def test_chosen_only_where_the_logits_are_plain(kernels: Kernels):
    case = make(dtype=torch.float32)

    def parts() -> tuple[Tensor, Unembedding]:
        return case.hidden, Unembedding(case.weight)

    assert choose_head("cut_cross_entropy", lambda: case.hidden @ case.weight.T, parts) == "cut_cross_entropy"
    with pytest.raises(UserError, match="head=cut_cross_entropy cannot serve"):
        choose_head("cut_cross_entropy", lambda: 2 * case.hidden @ case.weight.T, parts)


def test_a_run(kernels: Kernels, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Training passes are delegated, validation is not, and no accuracy is made up for what nobody looked at."""
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl")
    logged = {}
    for head in ("cut_cross_entropy", "fused"):
        options = {"model__head": head, "model__dtype": "bfloat16", "trainer__accumulate_grad_batches": 2}
        options["trainer__max_steps"] = 2
        run("fit", toy_arguments(toy_folder, rows, **options, seed_everything=1))
        logged[head] = scalars(run_folder())
    assert kernels.calls == 4
    ours, theirs = logged["fused"], logged["cut_cross_entropy"]
    assert set(ours) - set(theirs) == {"train/token_accuracy"}
    assert not set(theirs) - set(ours)
    for key in ("train/nll", "train/grad_norm", "val/nll"):
        assert [value for _, value in theirs[key]] == pytest.approx([value for _, value in ours[key]], rel=2e-2), key


def test_a_run_that_it_cannot_serve_says_so(toy_folder: Path, kernels: Kernels):
    """In fp32 the chunks do the work, with the reason."""
    module = SFTModule(str(toy_folder), head="cut_cross_entropy")
    module.configure_model()
    ids = torch.arange(8)[None]
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.warns(UserWarning, match=r"in chunks of its own here: its kernels multiply in 16 bits"):
        output = module.scorer(batch, NLL())
    assert output.scores.is_top1 is not None
    assert kernels.calls == 0


@needs("cut_cross_entropy")
@RunIf(min_cuda_gpus=1)
@pytest.mark.parametrize("name", ["nll", "power", "centred"])
def test_the_package_itself(name: str):
    case = make(tokens=512, dim=64, vocab=2000, dtype=torch.bfloat16, confident=2.0, device="cuda")
    exact = Case(*(t.detach().double().requires_grad_() for t in (case.hidden, case.weight)), None, case.targets)
    results = []
    for head, at in ((delegated_head, case), (reference_head, case), (reference_head, exact)):
        at.hidden.grad = at.weight.grad = None
        output = head(HeadInput(at.hidden, at.targets), at.unembedding(), OBJECTIVES[name])
        output.loss_sum.backward()
        assert at.hidden.grad is not None
        assert at.weight.grad is not None
        results.append([x.double() for x in (output.losses, at.hidden.grad, at.weight.grad)])
    # in plain logits the rounding of a confident token's logit cancels in its loss; here each product is rounded apart
    products = exact.hidden.detach().abs() * exact.weight.detach()[case.targets].abs()
    apart = (2.0**-9 * products.sum(1).norm(), 0.0, 0.0)
    for got, plain, want, more in zip(*results, apart, strict=True):
        assert (got - want).norm() <= 1.2 * (plain - want).norm() + more


def test_no_token_is_more_than_certain(kernels: Kernels, monkeypatch: pytest.MonkeyPatch):
    """The package's sum over all candidates and its target's logit are rounded apart; losses take logs of 1 - p."""
    case = make(confident=30.0)
    plain = Kernels.__call__
    monkeypatch.setattr(Kernels, "__call__", lambda self, *args, **kwargs: plain(self, *args, **kwargs) - 1e-3)
    output = delegated_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL())
    assert output.scores.logp.max() == 0
    output.loss_sum.backward()
    assert case.hidden.grad is not None
    want = make(confident=30.0)
    reference_head(HeadInput(want.hidden, want.targets), want.unembedding(), NLL()).loss_sum.backward()
    torch.testing.assert_close(case.hidden.grad, want.hidden.grad)
