"""Two ranks read what one device reads: DDP and FSDP2, whatever module is the root of the shards."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.callbacks.synonym_rank import SynonymRankMonitor
from lightning_sft.metrics.order_parameter import OrderParameter
from lightning_sft.metrics.synonyms import SynonymRank
from tests.callbacks.stranger import PROBES, Stranger, fit
from tests.distributed.ranks import two_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no process groups")


class Outer(nn.Module):
    """A module around the language model that does not call it by its own forward."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids):
        hidden = self.inner.model(input_ids=ids, use_cache=False).last_hidden_state
        return self.inner.lm_head(hidden)


class Sharded(Stranger):
    """Shards its layers, and as a root the model or a module around it."""

    def __init__(self, root, **options):
        super().__init__(**options)
        self.root = root
        if root == "outer":
            self.net = Outer(self.net)

    def training_step(self, batch, batch_idx):
        if self.root == "model":
            return super().training_step(batch, batch_idx)
        logits = self.net(batch)[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        model = self.net.inner if self.root == "outer" else self.net
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def on_train_end(self):
        assert all(isinstance(p, DTensor) and p.to_local().shape != p.shape for p in self.parameters())


def readings(folder):
    content = json.loads(next(folder.rglob("verdicts.json")).read_text())
    return content["readings"], content["training_loss"]


def train(module, folder, n=2, **options):
    """Fit with both callbacks; rank 0 writes what they find."""
    callbacks = [SynonymRankMonitor(PROBES, n), OrderParameterLogger(PROBES, n)]
    fit(module, callbacks, folder, logger=CSVLogger(folder), max_steps=4, use_distributed_sampler=False, **options)


def run(module, folder, **options):
    train(module, folder, **options)
    return readings(folder)


@pytest.fixture
def one(tmp_path):
    return run(Stranger(), tmp_path / "one")


def assert_same(got, expected):
    for name, history in expected[0].items():
        assert got[0][name]["step"] == history["step"] == [0, 2, 4]
        for key in ("p_correct", "p_competitor", "loss", "phi", "signal", "drag"):
            assert got[0][name][key] == pytest.approx(history[key], rel=1e-4, abs=1e-7), (name, key)
        for key in ("geometry_share", "counterfactual_share"):
            assert got[0][name][key][0] is None
            assert got[0][name][key][1:] == pytest.approx(history[key][1:], abs=1e-3), (name, key)
    assert got[1][1:] == pytest.approx(expected[1][1:], rel=1e-4)


@pytest.mark.ranks
def test_ddp_reads_what_one_device_reads(tmp_path, one):
    assert_same(run(Stranger(), tmp_path / "two", devices=2, strategy="ddp_fork"), one)


def fit_sharded(rank, root):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    train(Sharded(root), Path(root), devices=2, strategy=strategy)


@pytest.mark.ranks
@pytest.mark.parametrize("root", ["model", "outer"])
def test_fsdp2_reads_what_one_device_reads(tmp_path, one, root):
    two_ranks(f"{__name__}:fit_sharded", tmp_path, root=root)
    assert_same(readings(tmp_path / root), one)


def values(first, last):
    """Both metrics over some of five probes."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    logits = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    correct, competitor, probe = torch.arange(5), torch.arange(5) + 7, torch.tensor([0, 1, 0, 0, 1])
    part = slice(first, last)
    rank, order = SynonymRank(2), OrderParameter(2, with_purity=True)
    rank.update(logits[part], correct[part], competitor[part], probe[part])
    order.update(logits[part], embeddings, correct[part], competitor[part], probe[part])
    return rank.compute() | order.compute()


def unequal_shares(rank):
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    return values(*((0, 1), (1, 5))[rank])


@pytest.mark.ranks
def test_metrics_over_two_ranks_with_unequal_shares_equal_one(tmp_path):
    expected = values(0, 5)
    for found in two_ranks(f"{__name__}:unequal_shares", tmp_path):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
