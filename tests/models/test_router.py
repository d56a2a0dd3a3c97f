"""The load-balancing loss of mixtures of experts: transformers' own, once, in every split; or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.objectives import NLL, Thresholded
from tests.fitting import loader, trainer
from tests.models.zoo import save_tiny

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(5, 250, (4, 24), generator=GENERATOR)
ASK: dict[str, Any] = {"output_router_logits": True}


def batch(rows: slice, padding: int = 0) -> dict[str, torch.Tensor]:
    ids = IDS[rows]
    mask = torch.ones_like(ids)
    labels = ids.clone()
    if padding:
        mask[0, -padding:], labels[0, -padding:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "source": torch.zeros(len(ids), dtype=int)}


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "jamba", "dbrx", "jetmoe", "granitemoe"])
@pytest.mark.parametrize("head", ["fused", "reference"])
def test_loss_and_gradients_are_those_of_the_models_own_loss(kind: str, head: str, tmp_path: Path) -> None:
    coefficients = {"jetmoe": {"aux_loss_coef": 2.0}, "dbrx": {}}.get(kind, {"router_aux_loss_coef": 2.0})
    folder = save_tiny(tmp_path, kind)
    scorer = build_scorer(ModelSettings(folder, head=head, config_overrides={**ASK, **coefficients}), NLL(), 259)
    given = batch(slice(0, 3), padding=5)
    output = scorer(given, NLL())
    tokens = len(output.losses)
    (output.loss_sum / tokens + output.model_losses["router_loss"]).backward()
    ours = {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}
    scorer.zero_grad()
    own = scorer.causal_lm(**{k: v for k, v in given.items() if k != "source"})
    own.loss.backward()
    expected = {name: p.grad for name, p in scorer.named_parameters() if p.grad is not None}
    total = output.loss_sum / tokens + output.model_losses["router_loss"]
    torch.testing.assert_close(total, own.loss, rtol=1e-5, atol=0)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)
    assert "router_loss" not in scorer.eval()(given, NLL()).model_losses


@pytest.mark.parametrize("kind", ["deepseek_v3", "llama4_text", "doge", "lfm2_moe"])
def test_models_that_take_the_setting_and_add_nothing_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, kind, output_router_logits=True)
    with pytest.raises(UserError, match=rf"'{kind}'\) adds no load-balancing loss .*output_router_logits: false"):
        build_scorer(ModelSettings(folder), NLL(), 259)


def test_packed_rows_balance_under_usual_masks(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "qwen3_moe")
    settings = ModelSettings(folder, config_overrides=ASK)
    assert build_scorer(settings, NLL(), 259, packed=True).causal_lm.config._attn_implementation == "sdpa"
    asked = ModelSettings(folder, config_overrides=ASK, attn_implementation="per_document")
    with pytest.raises(UserError, match="'per_document' with output_router_logits: true"):
        build_scorer(asked, NLL(), 259, packed=True)


class Metrics(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append({k: float(v) for k, v in trainer.logged_metrics.items()})


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_a_step_means_over_its_micro_batches_by_their_tokens(denominator: Any, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "qwen3_moe")
    overrides = {**ASK, "router_aux_loss_coef": 3.0}
    objective = Thresholded(threshold=0.001) if denominator == "kept" else NLL()
    module = SFTModule(
        folder,
        objective=objective,
        denominator=denominator,
        config_overrides=overrides,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        lr_scheduler="constant",
    )
    module.configure_model()
    micro = [batch(slice(0, 1), padding=9), batch(slice(1, 4))]
    before = {name: p.detach().clone() for name, p in module.scorer.named_parameters()}
    losses, routers, tokens = [], [], []
    for part in micro:
        output = module.scorer(part, objective)
        kept = objective.kept(output.scores).sum() if denominator == "kept" else torch.tensor(len(output.losses))
        losses.append(output.loss_sum)
        routers.append(output.model_losses["router_loss"])
        tokens.append(kept)
    total = sum(tokens)
    router = sum(r * n for r, n in zip(routers, tokens, strict=True)) / total
    (sum(losses) / total + router).backward()
    expected = {name: before[name] - 0.5 * p.grad for name, p in module.scorer.named_parameters() if p.grad is not None}
    module.zero_grad()
    metrics = Metrics()
    trainer(accumulate_grad_batches=2, callbacks=[metrics], logger=True).fit(module, loader(micro))
    for name, parameter in module.scorer.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-5, msg=name)
    assert metrics.seen[-1]["train/router_loss"] == pytest.approx(float(router.detach()), rel=1e-5)
    nll = float(sum(losses).detach() / total) if denominator == "all" else None
    assert nll is None or metrics.seen[-1]["train/loss"] == pytest.approx(nll, rel=1e-5)
