"""What the gradient of a step is divided by, under any split of the step, and references that are renewed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sft import SFTModule
from lightning_sft.objectives import (
    EAFT,
    IWSFT,
    NLL,
    PSFT,
    Distill,
    KLAnchor,
    Objective,
    PowerFamily,
    Rho1,
    SpecialTokens,
    TailSFT,
    Thresholded,
    TrustRegion,
)
from lightning_sft.objectives.base import Denominator
from tests.toys import save_toy

Row = dict[str, Tensor]
SIZES = (9, 5, 7, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("model") / "model")


def row(number: int, weight: float = 1.0) -> Row:
    ids = (torch.arange(SIZES[number]) * 7 + 11 * number) % 250 + 3
    labels = torch.where(torch.arange(len(ids)) < 2, -100, ids)
    return {"input_ids": ids, "labels": labels, "loss_weight": torch.full((len(ids),), weight, dtype=torch.float64)}


def collate(rows: list[Row]) -> dict[str, Tensor]:
    longest = max(len(r["input_ids"]) for r in rows)
    fill = {"input_ids": 2, "labels": -100, "loss_weight": 1.0}

    def padded(key: str) -> Tensor:
        return torch.stack([torch.nn.functional.pad(r[key], (0, longest - len(r[key])), value=fill[key]) for r in rows])

    lengths = torch.tensor([len(r["input_ids"]) for r in rows])
    return {key: padded(key) for key in fill} | {"attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


class Keep(Callback):
    """The gradient of each step, as callbacks see it, and what is logged."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.scorer.named_parameters()
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(
    model: Path, rows: list[Row], split: int, objective: Objective, denominator: Denominator, **trainer: Any
) -> tuple[Keep, SFTModule]:
    """One step over the rows, in micro-batches of ``split`` rows."""
    keep = Keep()
    module = SFTModule(
        str(model),
        objective,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler="constant",
        denominator=denominator,
        dtype="float64",
    )
    accumulate = -(-len(rows) // split)
    plain: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        **{**plain, "max_steps": 1, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1, **trainer},
        callbacks=[keep],
        enable_model_summary=False,
    ).fit(module, DataLoader(rows, batch_size=split, collate_fn=collate))
    return keep, module


def distance(a: dict[str, Tensor], b: dict[str, Tensor], factor: float = 1.0) -> float:
    one, other = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (a, b))
    return float((one - factor * other).norm() / other.norm() / factor)


WEIGHTS = (2.0, 0.5, -1.0, 3.0)


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
@pytest.mark.parametrize("denominator", ["all", "kept", "weights", "sequences"])
def test_every_split_of_a_step_has_the_gradient_by_hand(model: Path, denominator: Denominator) -> None:
    objective = Thresholded(PowerFamily(0.5), threshold=0.0035)
    rows = [row(i, w) for i, w in enumerate(WEIGHTS)]
    runs = {split: fit(model, rows, split, objective, denominator) for split in (4, 2, 1, 3)}
    _, module = runs[4]
    # by hand, on the model before the step: every loss once, weighted and divided as the setting says
    fresh = SFTModule(str(model), objective, dtype="float64")
    fresh.configure_model()
    total, divisor = torch.zeros((), dtype=torch.float64), 0.0
    for r, weight in zip(rows, WEIGHTS, strict=True):
        output = fresh.scorer(collate([r]), objective)
        tokens, kept = len(output.losses), int(objective.kept(output.scores).sum())
        share = weight / tokens if denominator == "sequences" else weight
        total = total + share * output.loss_sum
        divisor += {"all": tokens, "kept": kept, "weights": abs(weight) * tokens, "sequences": 1}[denominator]
    (total / divisor).backward()
    expected = {n: p.grad for n, p in fresh.scorer.named_parameters() if p.grad is not None}
    # the toy's norms work in fp32 whatever its dtype, so that a factor taken before the backward pass rounds otherwise
    assert distance(runs[4][0].gradients[0], expected) < 1e-6
    for keep, _ in runs.values():
        assert distance(keep.gradients[0], runs[4][0].gradients[0]) < 1e-12
    if denominator in ("weights", "sequences"):
        assert runs[4][0].logged[-1]["train/loss"] == pytest.approx(float(total.detach() / divisor))
    assert module.step_totals["sequences"] == 4
    assert runs[1][1].step_totals["sequences"] == 4


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
def test_a_row_of_weight_two_is_a_row_seen_twice(model: Path) -> None:
    plain = [row(i) for i in range(4)]
    heavy, twice = [row(0, 2.0), *plain[1:]], [plain[0], *plain]
    tokens, more = sum(SIZES) - 8, sum(SIZES) - 8 + SIZES[0] - 2
    (doubled, _) = fit(model, twice, 5, NLL(), "all")
    (weights, _) = fit(model, heavy, 2, NLL(), "weights")
    (everything, _) = fit(model, heavy, 2, NLL(), "all")
    assert distance(weights.gradients[0], doubled.gradients[0]) < 1e-6
    assert distance(everything.gradients[0], doubled.gradients[0], more / tokens) < 1e-6


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before .*optimizer.step:UserWarning")
@pytest.mark.parametrize("denominator", ["all", "weights", "sequences"])
def test_a_step_whose_weights_are_all_zero_is_skipped_and_counted(model: Path, denominator: Denominator) -> None:
    _, module = fit(model, [row(0, 0.0), row(1, 0.0)], 1, NLL(), denominator)
    assert module.skipped_steps == 1
    before = SFTModule(str(model), dtype="float64")
    before.configure_model()
    assert all(torch.equal(p, module.scorer.get_parameter(n)) for n, p in before.scorer.named_parameters())


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
def test_validation_counts_every_token_once(model: Path) -> None:
    heavy, plain = ([row(i, w) for i in range(4)] for w in (5.0, 1.0))
    readings = []
    for rows in (heavy, plain):
        module = SFTModule(str(model), PowerFamily(1), dtype="float64", denominator="weights")
        trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        readings.append(trainer.validate(module, DataLoader(rows, batch_size=2, collate_fn=collate), verbose=False))
    assert readings[0] == readings[1]


# --------------------------------------------------------------------- references that are renewed, or remember

RESUMED = {
    "PSFT": lambda: PSFT(3, clip=0.02),
    "Rho1": lambda: Rho1(0.5),
    "TailSFT": lambda: TailSFT(0.5),
    "IWSFT": IWSFT,
    "Distill": lambda: Distill(divergence="jsd", temperature=2.0),
    "KLAnchor": lambda: KLAnchor(weight=0.5),
    "KLAnchor, target": lambda: KLAnchor(weight=0.5, estimate="target"),
    "TrustRegion": TrustRegion,
    "floor": lambda: PowerFamily(2.0, floor=0.1),
    "EAFT": lambda: EAFT(5, 0.5),
    "SpecialTokens": lambda: SpecialTokens(PowerFamily(1)),
}


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*in the middle of an epoch|.*checkpoint directory:UserWarning")
@pytest.mark.parametrize(
    ("name", "adapter"), [*((name, True) for name in RESUMED), *((name, False) for name in ("PSFT", "Rho1", "IWSFT"))]
)
def test_a_resumed_run_continues_the_uninterrupted_one(model: Path, tmp_path: Path, adapter: bool, name: str) -> None:
    rows = [row(i) for i in range(4)]

    def run(steps: int, resume: Path | None = None) -> tuple[SFTModule, Trainer]:
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False) if adapter else None
        torch.manual_seed(0)
        module = SFTModule(
            str(model),
            RESUMED[name](),
            lora,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
            lr_scheduler="constant",
            dtype="float64",
        )
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(rows, batch_size=4, collate_fn=collate), ckpt_path=resume)
        return module, trainer

    whole, _ = run(8)
    _, first = run(4)
    first.save_checkpoint(tmp_path / "half.ckpt")
    continued, _ = run(8, tmp_path / "half.ckpt")
    for place, parameter in whole.scorer.named_parameters():
        assert torch.equal(parameter, continued.scorer.get_parameter(place)), place
    if isinstance(whole.objective, PSFT):
        assert int(whole.scorer.reference.age) == 8 % 3
        at_last = [whole.scorer.reference.get_buffer(f"copy{i}") for i in range(2)]
        assert not any(
            torch.equal(a, b) for a, b in zip(at_last, whole.scorer.parameters(), strict=False) if b.requires_grad
        )
