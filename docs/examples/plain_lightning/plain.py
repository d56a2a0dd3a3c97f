"""A plain fine-tuning project: rows, a collate function and a LightningModule. Nothing here is of lightning-sft."""

import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


class Rows(Dataset):
    """Prompts with their completions, as token ids; the labels of the prompt are -100: it is read and not trained."""

    def __init__(self, path, tokenizer):
        self.rows = []
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt = tokenizer(row["prompt"]).input_ids
            completion = [*tokenizer(row["completion"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            self.rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def collate(rows):
    """Pad a list of rows to the longest."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def nll(logits, targets):
    """Losses of tokens, (tokens,), from their logits, (tokens, vocab)."""
    return cross_entropy(logits, targets, reduction="none")


class Plain(LightningModule):
    """A causal language model with its loss and its optimizer."""

    def __init__(self, name, lr=2e-5):
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(name)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.lr = lr

    def losses(self, logits, targets):
        """What is trained; a subclass may have another loss."""
        return nll(logits, targets)

    def mean(self, losses, batch):
        """The mean of some losses over the trained tokens of a batch."""
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        trained = targets != -100
        return losses(logits[trained].float(), targets[trained]).mean()

    def training_step(self, batch, batch_idx):
        loss = self.mean(self.losses, batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        # NLL whatever is trained, so that runs can be compared
        self.log("val/nll", self.mean(nll, batch), batch_size=len(batch["input_ids"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
