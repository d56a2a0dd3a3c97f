"""SFTModule against Hugging Face's own loss and plain torch."""

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from peft import LoraConfig
from torch.nn.functional import cross_entropy

from lightning_sft import SFTModule
from lightning_sft.objectives import Adaptive, PowerFamily
from lightning_sft.scores import TokenScores
from tests.fitting import KeepLosses, batches, loader, trainer
from tests.toys import KINDS, save_toy


@pytest.mark.parametrize("head", ["fused", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_equals_hugging_face(kind: str, head: str, device: torch.device, tmp_path: Path) -> None:
    folder = save_toy(tmp_path / kind, kind)
    module = SFTModule(
        str(folder), dtype="float64", head=head, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lr_scheduler="constant"
    )
    (batch,) = batches(2, 2)
    module.configure_model()
    module.scorer.eval()  # no dropout: both sides see the same activations
    theirs = copy.deepcopy(module.scorer.causal_lm).to(device)  # positions are rotated in fp32: a device's own sines
    inputs = {k: batch[k].to(device) for k in ("input_ids", "attention_mask", "labels")}
    output = theirs(**inputs, use_cache=False)
    loss = cross_entropy(output.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)  # Hugging Face's own, computed in fp32

    keep = KeepLosses()
    trainer(callbacks=[keep], accelerator=device.type, devices=1).fit(module, loader([batch]))

    assert keep.losses == [pytest.approx(loss.item(), rel=1e-10)]
    with torch.no_grad():
        for (name, expected), ours in zip(theirs.named_parameters(), module.scorer.causal_lm.parameters(), strict=True):
            # transformers' RMSNorm computes in fp32 whatever the dtype: rounding differs by the scale of the gradient
            exact = kind in ("gpt2", "gpt_neox", "opt")
            step = 0.5 * expected.grad.cpu()
            difference = (ours.cpu() - (expected.cpu() - step)).norm()
            assert difference <= (1e-12 if exact else 1e-6) * step.norm() + 1e-15, name


def test_dropout_is_on_in_training_and_off_in_evaluation(tmp_path: Path) -> None:
    module = SFTModule(str(save_toy(tmp_path / "toy")), config_overrides={"attention_dropout": 0.5})
    module.configure_model()
    (batch,) = batches(2, 2)
    assert float(module(batch).loss_sum.detach()) != float(module(batch).loss_sum.detach())
    module.eval()
    assert float(module(batch).loss_sum.detach()) == float(module(batch).loss_sum.detach())


class MakesTensorsElsewhere(SingleDeviceStrategy):
    """As on a GPU, where Lightning makes new tensors of ``configure_model`` on the device: here on none at all."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        with torch.device("meta"), self.precision_plugin.tensor_init_context():
            yield


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear")], ids=["full", "lora"])
def test_a_model_is_built_wherever_lightning_makes_tensors(adapter: LoraConfig | None, toy_folder: Path) -> None:
    losses = []
    for strategy in ("auto", MakesTensorsElsewhere("cpu")):
        torch.manual_seed(0)
        module, keep = SFTModule(str(toy_folder), adapter=adapter, dtype="fastest"), KeepLosses()
        trainer(callbacks=[keep], strategy=strategy, max_steps=2).fit(module, loader(batches(4, 2)))
        losses.append(keep.losses)
    assert losses[0] == losses[1]


def test_configure_model_is_idempotent(toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder))
    module.configure_model()
    first = module.scorer
    module.configure_model()
    assert module.scorer is first


def test_a_step_without_supervision_changes_nothing_and_is_counted(toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder), optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5))
    rows = batches(4, 2)
    for batch in rows:
        batch["labels"].fill_(-100)
    module.configure_model()
    before = copy.deepcopy(module.scorer.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        trainer().fit(module, loader(rows))
    assert module.skipped_steps == 2
    for name, value in module.scorer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_added_special_tokens_grow_the_embeddings(toy_folder: Path) -> None:
    tokens = [f"<|extra_{i}|>" for i in range(10)]  # 259 + 10 tokens; the toy has 263 embeddings
    module = SFTModule(str(toy_folder), add_special_tokens=tokens)
    module.configure_model()
    assert module.scorer.causal_lm.get_input_embeddings().weight.shape[0] == 269
    assert module.tokenizer.convert_tokens_to_ids(tokens[-1]) == 268


def test_random_init_differs_by_seed_and_from_the_weights(toy_folder: Path) -> None:
    def norm(**settings: object) -> float:
        module = SFTModule(str(toy_folder), **settings)
        module.configure_model()
        return sum(p.double().abs().sum().item() for p in module.scorer.parameters())

    torch.manual_seed(1)
    first = norm(init="random")
    torch.manual_seed(2)
    second = norm(init="random")
    torch.manual_seed(1)
    assert norm(init="random") == first
    assert len({first, second, norm()}) == 3


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "torch_compile"])
def test_memory_and_speed_options_change_no_gradient(setting: str, toy_folder: Path, monkeypatch) -> None:
    compiled = []
    compile_with_eager = functools.partialmethod(_compile_with_eager, compiled)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_eager)
    gradients = []
    for on in (False, True):
        module = SFTModule(str(toy_folder), dtype="float64", **{setting: on})
        module.configure_model()
        (batch,) = batches(2, 2)
        module(batch).loss_sum.backward()
        gradients.append([p.grad for p in module.scorer.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-10, atol=1e-12)
    assert len(compiled) == (setting == "torch_compile")


_plain_compile = torch.nn.Module.compile


def _compile_with_eager(module: torch.nn.Module, compiled: list[torch.nn.Module]) -> None:
    """Trace as usual, but skip the C++ compiler, which takes a minute."""
    compiled.append(module)
    _plain_compile(module, backend="aot_eager")


def test_hyperparameters_are_plain_data(toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder), objective=PowerFamily(2.0), optimizer=torch.optim.SGD, dtype="bfloat16")
    assert module.hparams["dtype"] == "bfloat16"
    assert not {"objective", "optimizer"} & set(module.hparams)


def test_a_seeded_objective_knows_the_first_step_before_it_trains(toy_folder: Path) -> None:
    rows = batches(4, 2)
    module = SFTModule(str(toy_folder), objective=Adaptive(), dtype="float64")
    assert module.objective.needs_seed()
    module.configure_model()
    module.eval()
    first_step = torch.cat([module(batch).scores.p for batch in rows])
    expected = Adaptive()
    scores = TokenScores(first_step.log(), first_step.long())
    expected.seed({k: v.double() for k, v in expected.statistics(scores).items()})

    seen: list[dict[str, float]] = []

    class FirstBatch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append({k: float(v) for k, v in pl_module.objective.logged().items()})

    trainer(callbacks=[FirstBatch()], accumulate_grad_batches=2).fit(module, loader(rows))
    assert seen[0] == pytest.approx({k: float(v) for k, v in expected.logged().items()}, rel=1e-6)


def test_a_module_of_objects_is_not_rebuilt_in_silence_under_another_objective(toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder), objective=PowerFamily(alpha=2.0))
    run = trainer(max_steps=1)
    run.fit(module, loader(batches(2, 2)))
    run.save_checkpoint("objects.ckpt")
    with pytest.warns(UserWarning, match=r"trained under PowerFamily\(alpha=2\.0\); this run uses NLL\(\)"):
        SFTModule.load_from_checkpoint("objects.ckpt")
    again = SFTModule.load_from_checkpoint("objects.ckpt", objective=PowerFamily(alpha=2.0))
    assert again.objective.alpha == 2.0
