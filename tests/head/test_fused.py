"""The fused head equals the plain one: losses, scores and all gradients."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_sft.head import HeadInput, Unembedding, fused_head, reference_head
from lightning_sft.head.run import HeadRun
from lightning_sft.head.sizes import IN_PLACE, Sizes, pick_sizes, sizes_for_memory, sizes_in_place
from lightning_sft.head.workspace import Workspace
from lightning_sft.objectives import NLL, Objective, PowerFamily
from tests.head.cases import KL, OBJECTIVES, SMALL, Case, Centred, Kept, Largest, LogRatio, Smoothed, make


class Operations(TorchDispatchMode):
    """Notes the operations that run, with the dtype of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] = str(getattr(result, "dtype", ""))
        return result


small_head = partial(fused_head, sizes=SMALL)


def same(case: Case, objective: Objective, **tolerance: float) -> None:
    for fused, plain in zip(case.run(small_head, objective), case.run(reference_head, objective), strict=True):
        torch.testing.assert_close(fused, plain, **tolerance)


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_plain_float64(
    name: str, bias: bool, scale: float, softcap: float | None, frozen: bool, device: torch.device
):
    case = make(bias=bias, scale=scale, softcap=softcap, frozen=frozen, device=device)
    same(case, OBJECTIVES[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_plain_float32(name: str, device: torch.device):
    same(make(dtype=torch.float32, bias=True, softcap=5.0, device=device), OBJECTIVES[name])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(name: str, tokens: int, device: torch.device):
    case = make(tokens=tokens, bias=True, device=device)
    same(case, OBJECTIVES[name], rtol=1e-11, atol=1e-12)
    assert case.hidden.grad is not None
    assert case.weight.grad is not None
    assert case.weight.grad.shape == case.weight.shape
    if tokens == 0:
        assert not case.weight.grad.any()


@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
def test_vocabulary_of_one(name: str):
    same(make(tokens=5, vocab=1), OBJECTIVES[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["nll", "power", "smoothed", "row_alone", "centred"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradcheck(name: str, softcap: float | None):
    case = make(tokens=5, dim=3, vocab=7, bias=True, softcap=softcap, scale=0.8)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        unembedding = Unembedding(weight, bias, case.scale, case.softcap)
        objective = OBJECTIVES[name]
        return fused_head(HeadInput(hidden, case.targets), unembedding, objective, Sizes(2, 3, 2, 60)).loss_sum

    class Again(torch.autograd.Function):
        """Calls the head once for each backward: gradcheck goes backward several times through one forward."""

        @staticmethod
        def forward(ctx, *leaves):
            ctx.save_for_backward(*leaves)
            return loss(*leaves)

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                leaves = [leaf.detach().requires_grad_() for leaf in ctx.saved_tensors]
                return torch.autograd.grad(loss(*leaves), leaves, grad)

    assert torch.autograd.gradcheck(Again.apply, (case.hidden, case.weight, case.bias))


@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
def test_block_sizes_change_rounding_only(name: str):
    case = make(tokens=70, vocab=301, bias=True)
    want = case.run(fused_head, OBJECTIVES[name])
    for sizes in (Sizes(1, 1000, 1, 1), Sizes(70, 1, 70, 1 << 20), Sizes(64, 128, 32, 8 * 301 * 3), SMALL):
        for got, expected in zip(case.run(partial(fused_head, sizes=sizes), OBJECTIVES[name]), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("objective", [LogRatio(), KL()], ids=["logp", "logits"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_reference_model(objective: Objective, own: bool):
    case, other = make(bias=True), make(seed=1, dim=6, scale=0.5, softcap=9.0)
    reference_hidden = other.hidden if own else case.hidden.detach() + 0.5
    results = []
    for head in (small_head, reference_head):
        case.hidden.grad = case.weight.grad = None
        inputs = HeadInput(
            case.hidden,
            case.targets,
            reference_hidden=reference_hidden,
            reference=other.unembedding() if own else None,
        )
        output = head(inputs, case.unembedding(), objective)
        output.loss_sum.backward()
        results.append([output.losses, output.scores.reference_logp, case.hidden.grad, case.weight.grad])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-11, atol=1e-12)
    assert other.hidden.grad is None
    assert other.weight.grad is None


@pytest.mark.parametrize("name", ["nll", "smoothed", "centred"])
def test_no_gradient_is_made_without_need(name: str):
    case = make(tokens=40, dim=8, vocab=50)
    with torch.no_grad(), Largest() as seen:
        output = small_head(HeadInput(case.hidden, case.targets), case.unembedding(), OBJECTIVES[name])
    assert not output.loss_sum.requires_grad
    assert seen.multiplied == 40 * 8 * 50
    torch.testing.assert_close(output.losses, case.run(reference_head, OBJECTIVES[name])[1])


@pytest.mark.parametrize(("name", "full", "frozen"), [("nll", 3, 2), ("smoothed", 3, 2), ("centred", 4, 3)])
def test_number_of_products(name: str, full: int, frozen: int):
    for is_frozen, products in ((False, full), (True, frozen)):
        case = make(tokens=40, dim=8, vocab=50, frozen=is_frozen)
        with Largest() as seen:
            case.run(small_head, OBJECTIVES[name])
        assert seen.multiplied == products * 40 * 8 * 50


def test_weight_alone():
    case = make()
    case.hidden.requires_grad_(False)
    with Largest() as seen:
        case.run(small_head, NLL())
    assert seen.multiplied == 2 * case.hidden.numel() * len(case.weight)
    got = case.weight.grad
    case.run(reference_head, NLL())
    torch.testing.assert_close(got, case.weight.grad)


@pytest.mark.parametrize("reads", ["logp", "batch"])
def test_tokens_without_pull_leave_the_backward(reads: str):
    case = make(tokens=60, dim=8, vocab=50, confident=2.0)
    objective = Kept(0.05)
    objective.reads = reads  # type: ignore[assignment]
    with Largest() as seen:
        results = case.run(small_head, objective)
    kept = int((results[2].exp() >= 0.05).sum())
    assert 0 < kept < 40
    backward = 2 if reads == "logp" else 3
    assert seen.multiplied == (60 + backward * kept) * 8 * 50
    same(case, objective, rtol=1e-11, atol=1e-12)
    same(case, Kept(2.0))  # nobody is left


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("frozen", [False, True])
def test_never_a_tensor_of_tokens_by_vocabulary(name: str, frozen: bool):
    case = make(tokens=64, dim=6, vocab=301, bias=True, softcap=5.0, frozen=frozen)
    with Largest() as seen:
        case.run(partial(fused_head, sizes=Sizes(8, 64, 16, 301 * 8 * 4)), OBJECTIVES[name])
    assert seen.numel <= 8 * 301


def test_gradient_flows_through_a_made_weight():
    """Tied weights, and adapters merged into the weight, are reached by autograd."""
    grads = []
    for head in (small_head, reference_head):
        torch.manual_seed(0)
        table = torch.randn(33, 8, dtype=torch.float64, requires_grad=True)
        a = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
        b = torch.randn(33, 2, dtype=torch.float64, requires_grad=True)
        ids = torch.randint(33, (19,))
        output = head(HeadInput(table[ids].tanh(), ids.roll(1)), Unembedding(table + b @ a), NLL())
        output.loss_sum.backward()
        grads.append((table.grad, a.grad, b.grad))
    for fused, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-11, atol=1e-12)


def test_a_second_backward_says_why_not():
    case = make()
    output = fused_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL())
    output.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands its gradient out once"):
        output.loss_sum.backward()


def test_gradients_add_up_over_calls():
    case = make()
    once = case.run(small_head, NLL())[-1].clone()
    output = small_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL())
    (output.loss_sum * 0.3).backward()
    torch.testing.assert_close(case.weight.grad, 2 * once)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_breaks_the_graph_under_compile(backend: str):
    case = make()
    want = case.run(reference_head, PowerFamily())

    def step(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        doubled = hidden * 2
        return small_head(HeadInput(doubled / 2, case.targets), Unembedding(weight), PowerFamily()).loss_sum * 0.3

    case.hidden.grad = case.weight.grad = None
    torch.compile(step, backend=backend)(case.hidden, case.weight).backward()
    torch.testing.assert_close(case.hidden.grad, want[5])
    torch.testing.assert_close(case.weight.grad, want[6])


@pytest.mark.parametrize("inside", [False, True], ids=["head outside", "head inside"])
def test_activation_checkpointing(inside: bool):
    layer = torch.nn.Linear(8, 8, dtype=torch.float64)
    case = make()
    grads = []
    for head, use in ((small_head, True), (reference_head, False)):
        layer.zero_grad()

        def body(hidden: torch.Tensor, head=head) -> torch.Tensor:
            return head(HeadInput(layer(hidden), case.targets), case.unembedding(), NLL()).loss_sum

        if not use:
            loss = body(case.hidden)
        elif inside:
            loss = checkpoint(body, case.hidden, use_reentrant=False)
        else:
            hidden = checkpoint(layer, case.hidden, use_reentrant=False)
            loss = head(HeadInput(hidden, case.targets), case.unembedding(), NLL()).loss_sum
        loss.backward()
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


def test_hit_counts_ties():
    hidden, weight = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    output = fused_head(HeadInput(hidden, torch.tensor([1, 2])), Unembedding(weight), Smoothed())
    assert output.scores.is_top1.tolist() == [True, False]


@pytest.mark.parametrize("name", ["nll", "kept", "power"])
@pytest.mark.parametrize("softcap", [None, 90.0])
def test_logits_of_all_magnitudes(name: str, softcap: float | None):
    """Exponentials change their base from tile to tile where logits climb, and keep it where they fall."""
    case = make(softcap=softcap)
    with torch.no_grad():
        climb = torch.linspace(0.2, 8, len(case.weight), dtype=torch.float64)
        case.weight *= climb[:, None]
        case.hidden[::2] *= 4
    for kept in (case, Case(case.hidden, case.weight.detach().flip(0).requires_grad_(), None, case.targets)):
        logits = (kept.hidden @ kept.weight.T).detach()
        assert (logits.amax(-1) - logits[:, : SMALL.tile].amax(-1)).max() > 32 or kept is not case
        same(kept, OBJECTIVES[name], rtol=1e-11, atol=1e-12)


def test_memory_is_let_go_before_backward():
    case = make(tokens=40, vocab=2000, dim=8)
    run_workspace: list[Workspace] = []
    with pytest.MonkeyPatch.context() as patch:
        made = Workspace.__init__
        patch.setattr(Workspace, "__init__", lambda self, device: (run_workspace.append(self), made(self, device))[1])
        fused_head(HeadInput(case.hidden, case.targets), case.unembedding(), NLL(), SMALL)
    assert len(run_workspace) == 1
    assert not run_workspace[0]._flat


def test_sizes_on_a_gpu_follow_its_memory_and_not_what_is_free(monkeypatch: pytest.MonkeyPatch):
    """No GPU is needed: what CUDA would say is made up."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    for free in (10 << 30, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 << 30))
        assert pick_sizes(torch.device("cuda"), 49152, 2) == sizes_for_memory(80 << 30, 49152, 2)


def test_sizes_follow_memory():
    assert pick_sizes(torch.device("cpu"), 49152, 2) == Sizes()
    roomy, tight = sizes_for_memory(80 << 30, 151936, 2), sizes_for_memory(16 << 30, 151936, 2)
    assert tight.chunk < roomy.chunk <= 4096
    assert tight.chunk * 151936 * 2 <= (16 << 30) // 32
    assert sizes_for_memory(0, 151936, 2).chunk == 128


def test_sizes_in_place_follow_the_tokens_as_long_as_it_saves_memory():
    few, many = sizes_in_place(Sizes(), 2048, 576), sizes_in_place(Sizes(), 4096, 576)
    assert few == Sizes()
    assert (many.chunk, many.tile) == (512, 1024)
    assert sizes_in_place(Sizes(), 100_000, 576) == Sizes()


@pytest.mark.parametrize(
    ("objective", "kept"), [(NLL(), torch.bfloat16), (Centred(), torch.bfloat16), (Smoothed(), torch.float32)]
)
def test_what_a_bf16_gradient_is_summed_in(objective: Objective, kept: torch.dtype):
    """In its own dtype over a few chunks of exponentials, so that no second copy of it is held; else in fp32."""
    case = make(tokens=8 * IN_PLACE, dtype=torch.bfloat16)
    inputs, need = HeadInput(case.hidden, case.targets), (True, True, False)
    for chunk, dtype in ((8, kept), (7, torch.float32 if objective.reads != "batch" else kept)):
        sizes = Sizes(chunk=chunk, tile=10, block=8, rows=600)
        run = HeadRun(inputs, case.unembedding(), objective, torch.bfloat16, need, sizes)
        assert run.gradients is not None
        assert run.gradients.weight is not None
        assert run.gradients.weight.dtype == dtype


@pytest.mark.parametrize("name", ["nll", "kept", "smoothed", "centred"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_algorithms_are_at_hand_for_every_operation(name: str, dtype: torch.dtype):
    """`Trainer(deterministic=True)` asks torch for them, and torch refuses operations that have none on a GPU.

    Which these are is read from torch's own documentation; sums in floating point along a dimension are among them.
    """
    text = torch.use_deterministic_algorithms.__doc__ or ""
    text = text.split("nondeterministic operations will throw")[1].split("In addition")[0]
    refused = {name.rstrip("_") for name in re.findall(r"(?:torch|Tensor|functional)\.(\w+)`", text)}
    assert {"histc", "bincount", "cumsum"} <= refused
    with Operations() as seen:
        make(dtype=dtype, bias=True, softcap=3.0).run(small_head, OBJECTIVES[name])
    assert "index_add_" in seen.names  # has one, as torch says in the first part
    assert not {f"{n}: {kind}" for n, kind in seen.names.items() if n.rstrip("_") in refused and "int" not in kind}
