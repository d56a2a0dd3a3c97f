"""One small batch for every objective: probabilities from near 0 to near 1, four sequences, two sources."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sft.head.reference import reference_head
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives import NLL, Objective, RunFacts
from lightning_sft.scores import TokenScores
from tests.objectives.rows import Truth

VOCAB, DIM, TOKENS, SEQUENCES = 29, 12, 24, 4
FACTS = RunFacts(
    sources=("web", "math.jsonl"),
    total_steps=10,
    has_reference=True,
    takes_snapshots=True,
    special_tokens=(3, 7, 11, 20),
    vocabulary=VOCAB,
)


@dataclass(frozen=True)
class Batch:
    """Leaves of the graph (``hidden``, ``weight``) and everything a head wants beside them."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    reference_hidden: Tensor
    row: Tensor
    source: Tensor

    def inputs(self) -> tuple[HeadInput, Unembedding]:
        given = HeadInput(self.hidden, self.targets, self.row, self.source, self.reference_hidden)
        return given, Unembedding(self.weight)

    def truth(self) -> Truth:
        z = self.hidden.double() @ self.weight.double().T
        reference = (self.reference_hidden.double() @ self.weight.double().T).detach()
        return Truth(z, self.targets, reference, self.row, self.source)

    def part(self, keep: Tensor) -> "Batch":
        names = ("hidden", "targets", "reference_hidden", "row", "source")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


def make_batch(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Batch:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(VOCAB, DIM, generator=draw, dtype=torch.float64)
    sharpness = torch.linspace(0.1, 1.6, TOKENS, dtype=torch.float64)[torch.randperm(TOKENS, generator=draw)]
    hidden = sharpness[:, None] * torch.randn(TOKENS, DIM, generator=draw, dtype=torch.float64)
    likeliest = (hidden @ weight.T).argmax(-1)
    other = torch.randint(VOCAB, (TOKENS,), generator=draw)
    targets = torch.where(torch.arange(TOKENS) % 3 == 0, other, likeliest)
    reference = hidden + 0.2 * torch.randn(TOKENS, DIM, generator=draw, dtype=torch.float64)
    row = torch.arange(TOKENS) % SEQUENCES
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in (hidden, weight)]
    beside = targets.to(device), reference.to(device, dtype), row.to(device), (row // 2).to(device)
    return Batch(*leaves, *beside)


def logits_batch(z: Tensor, like: Batch, reference: Tensor | None = None) -> Batch:
    """Return a batch whose hidden states are the logits: the unembedding is the identity."""
    tokens = len(z)
    return Batch(
        hidden=z,
        weight=torch.eye(z.shape[1], dtype=z.dtype, device=z.device),
        targets=like.targets[:tokens],
        reference_hidden=(z + 0.3 * z.roll(1, -1)).detach() if reference is None else reference,
        row=like.row[:tokens],
        source=like.source[:tokens],
    )


def scores_of(batch: Batch) -> TokenScores:
    """Return what a head hands to ``statistics``: detached scores without rows of logits."""
    return reference_head(*batch.inputs(), NLL()).scores


def started(objective: Objective, batch: Batch, facts: RunFacts = FACTS) -> Objective:
    """Return the objective as it is at the first training step on ``batch``."""
    objective.prepare(facts)
    objective.to(batch.hidden.device)
    if objective.needs_seed():
        objective.seed(objective.statistics(scores_of(batch)))
    return objective
