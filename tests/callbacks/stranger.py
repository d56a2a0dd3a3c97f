"""A LightningModule that knows nothing of this package, around a toy causal LM."""

import copy
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_sft.probes import Probe
from tests.toys import toy_model, toy_tokenizer

PROBES = [
    Probe("the first letter of the alphabet is ", "a", "b", name="first", leading_space=False, split="train"),
    Probe("and the last is ", "z", "y", name="last", leading_space=False, split="test"),
    Probe("one, two, ", "t", "f", name="three", kind="control", leading_space=False),
]
TEXT = "the first letter of the alphabet is a and the last is z; one, two, three. "


class Stranger(LightningModule):
    """Plain language modelling: the loss is Hugging Face's own."""

    def __init__(self, kind: str = "llama", lr: float = 1e-2, freeze_embeddings: bool = False, **overrides):
        super().__init__()
        self.net = toy_model(kind, **overrides).train()
        self.net.get_input_embeddings().requires_grad_(not freeze_embeddings)
        if freeze_embeddings:
            self.net.get_output_embeddings().requires_grad_(False)
        self.tokenizer = toy_tokenizer()
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return self.net(input_ids=batch, labels=batch, use_cache=False).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)

    def train_dataloader(self):
        # the same batch over and over: a resumed run, or another rank, sees what one uninterrupted run sees
        ids = toy_tokenizer()(TEXT * 2).input_ids
        rows = torch.tensor([ids[i : i + 24] for i in range(0, 60, 15)])
        return DataLoader(rows.repeat(20, 1), batch_size=4)


def fit(module: LightningModule, callbacks: list[Callback], folder: Path, ckpt_path=None, **options) -> Trainer:
    """Fit without bars and checkpoints, deterministic, and return the trainer."""
    settings = {
        "max_steps": 6,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    trainer = Trainer(**{**settings, **options}, callbacks=callbacks)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def by_definition(net, probe):
    """p_c, p_s, Phi, S, rank of a probe from Hugging Face's logits and dim x dim matrices in float64."""
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        return from_logits(net, probe, net(torch.tensor([toy_tokenizer()(probe.context).input_ids])).logits[0, -1])


def from_hidden(net, probe, hidden):
    """The same of the hidden state that a run in another precision had."""
    net = copy.deepcopy(net).double()
    return from_logits(net, probe, net.get_output_embeddings().weight.detach() @ hidden.double())


def from_logits(net, probe, logits):
    tokenizer = toy_tokenizer()
    c, s = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (probe.correct, probe.competitor))
    p = logits.softmax(0)
    unit = torch.nn.functional.normalize(net.get_input_embeddings().weight.detach(), dim=1)
    rho = (unit * p[:, None]).T @ unit
    a = torch.outer(unit[c], unit[c]) - torch.outer(unit[s], unit[s])
    signal = (p[c] - p[s]) * (1 - (unit[c] @ unit[s]) ** 2)
    rank = 1 + (logits > logits[c]).sum()
    return [float(x) for x in (p[c], p[s], (rho @ a).trace(), signal, rank)]
