"""Trains the project in plain.py, watched by callbacks of lightning-sft, and under one of its objectives.

    python train.py --model HuggingFaceTB/SmolLM2-135M-Instruct --train train.jsonl --val val.jsonl

Rows are JSON lines such as {"prompt": "12 + 30 =", "completion": " 42"}.
"""

import argparse

from lightning.pytorch import Trainer
from plain import Plain, Rows, collate
from torch.utils.data import DataLoader

from lightning_sft import TokenScores
from lightning_sft.callbacks import BestCheckpoint, DriftMonitor, LearningRateSweep, SilentFailureMonitor
from lightning_sft.objectives import NLL, PowerFamily


class WithObjective(Plain):
    """The plain module under an objective: a map from the log-probabilities of the right tokens to losses."""

    def __init__(self, name, objective, lr=2e-5):
        super().__init__(name, lr)
        self.objective = objective

    def losses(self, logits, targets):
        logp = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return self.objective(TokenScores(logp=logp, targets=targets, logits=logits))


def main(arguments=None):
    """Train, and return the trainer with what its callbacks have read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--train", default="train.jsonl")
    parser.add_argument("--val", default="val.jsonl")
    parser.add_argument("--alpha", type=float, default=0.0, help="0 is NLL, 1 is the loss 1 - p")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--max_steps", type=int, default=100)
    given = parser.parse_args(arguments)

    objective = NLL() if given.alpha == 0 else PowerFamily(alpha=given.alpha)
    module = WithObjective(given.model, objective, given.lr)
    train, val = (Rows(path, module.tokenizer) for path in (given.train, given.val))
    callbacks = [
        # a range test on copies of the weights; the run goes on as if it had not been
        LearningRateSweep(low=1e-7, high=1e-1, steps=20),
        # which tokens become likelier and stay behind the same wrong token
        SilentFailureMonitor(train_rows=16),
        # how far the model moves on text outside of the task
        DriftMonitor({"general": ["The cat sat on the mat.", "Water boils at a hundred degrees."]}),
        # the best of the checkpoints that have moved little
        BestCheckpoint(monitor="val/nll", subject_to={"drift/general/kl": 1.0}),
    ]
    trainer = Trainer(max_steps=given.max_steps, val_check_interval=0.5, callbacks=callbacks)
    loaders = (DataLoader(train, batch_size=4, shuffle=True, collate_fn=collate),
               DataLoader(val, batch_size=4, collate_fn=collate))  # fmt: skip
    trainer.fit(module, *loaders)
    return trainer


if __name__ == "__main__":
    print(main().callback_metrics)
