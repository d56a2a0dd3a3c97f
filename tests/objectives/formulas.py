"""Every objective once more, from plain logits in float64, in the words of its paper. Imports nothing of the package.

``z`` are logits (tokens, vocab), ``y`` targets (tokens,); the result is (tokens,). ``sg`` is detach.
"""

import math

import torch
from torch import Tensor


def log_p(z: Tensor, y: Tensor) -> Tensor:
    return z[torch.arange(len(y)), y] - torch.logsumexp(z, -1)


def sg(x: Tensor) -> Tensor:
    return x.detach()


def nll(z, y):
    return -log_p(z, y)


def power(z, y, alpha):
    return (1 - torch.exp(log_p(z, y)) ** alpha) / alpha


def log_one_minus_p(z, y, eps=1e-3):
    return torch.log(1 - torch.exp(log_p(z, y)) + eps)


def focal(z, y, gamma):
    return -((1 - torch.exp(log_p(z, y))) ** gamma) * log_p(z, y)


def huber(z, y, delta):
    x = 1 - torch.exp(log_p(z, y))
    return torch.where(x <= delta, x * x / 2, delta * (x - delta / 2))


def top(losses, z, y, q):
    return losses * (torch.exp(sg(log_p(z, y))) >= q)


def bottom(losses, z, y, q):
    return losses * (torch.exp(sg(log_p(z, y))) <= q)


def dft(z, y):
    return -sg(torch.exp(log_p(z, y))) * log_p(z, y)


def deft(z, y):
    c = (torch.softmax(z, -1) ** 2).sum(-1)
    return -sg(torch.exp(log_p(z, y)) ** c) * log_p(z, y)


def eaft(z, y, k):
    q = torch.softmax(torch.sort(z, -1, descending=True).values[:, :k], -1)
    entropy = torch.special.entr(q).sum(-1)
    return -sg(entropy / math.log(k)) * log_p(z, y)


def sequence_mean(x, row):
    return torch.stack([x[row == r].mean() for r in row])


def talr(z, y, row, floor=0.01):
    per_sequence = sorted(-log_p(z, y)[row == r].mean().item() for r in set(row.tolist()))
    middle = len(per_sequence) // 2
    t = per_sequence[middle] if len(per_sequence) % 2 else (per_sequence[middle - 1] + per_sequence[middle]) / 2
    return -sg(torch.clamp(torch.exp(log_p(z, y)) ** (1 / t), min=floor)) * log_p(z, y)


def profit(z, y, t):
    return -log_p(z, y) * (torch.exp(sg(log_p(z, y))) >= t)


def label_smoothing(base, z, y, e):
    return (1 - e) * base + e * (-torch.log_softmax(z, -1)).mean(-1)


def z_loss(base, z, weight):
    return base + weight * torch.logsumexp(z, -1) ** 2


def kl(a, b):
    """KL(softmax(a) || softmax(b)), (tokens,)."""
    p = torch.softmax(a, -1)
    return (p * (torch.log_softmax(a, -1) - torch.log_softmax(b, -1))).sum(-1)


def gem(z, y, beta, sigmoid=False):
    q = sg(torch.softmax(z / beta, -1))
    target = z[torch.arange(len(y)), y][:, None]
    h = sg(torch.sigmoid((z - target) / 100)) if sigmoid else torch.ones_like(z)
    return -(q * h * (log_p(z, y)[:, None] - torch.log_softmax(z, -1))).sum(-1)


def iwsft(z, y, reference, row, most=16.0):
    w = torch.exp(sequence_mean(log_p(z, y) - log_p(reference, y), row)).clamp(0, most)
    return -sg(w) * log_p(z, y)


def adaptive(z, y, group, weak=0.1, strong=0.7, alpha_max=1.0):
    p = torch.exp(log_p(z, y))
    mean = torch.stack([sg(p)[group == g].mean() for g in group])
    alpha = alpha_max * ((mean - weak) / (strong - weak)).clamp(0, 1)
    return torch.where(alpha == 0, -log_p(z, y), (1 - p**alpha) / alpha.clamp(min=1e-300))


def power_with_floor(z, y, alpha, floor):
    logp = log_p(z, y)
    turn = floor ** (1 / alpha)
    below = (1 - floor) / alpha + floor * (math.log(turn) - logp)
    return torch.where(torch.exp(logp) < turn, below, power(z, y, alpha))


def dft_with_floor(z, y, floor):
    return -torch.maximum(sg(torch.exp(log_p(z, y))), torch.tensor(floor, dtype=z.dtype)) * log_p(z, y)


def trust_region(z, y, alpha):
    p = torch.exp(log_p(z, y))
    return torch.where(p >= alpha, -log_p(z, y), 1 - p / alpha - math.log(alpha))


def k3(z, y, reference):
    r = torch.exp(log_p(reference, y) - log_p(z, y))
    return r - torch.log(r) - 1


def distill(base, z, teacher, share, apart, temperature=1.0):
    return (1 - share) * base + share * temperature**2 * apart(z / temperature, teacher / temperature)


def jsd(z, teacher, beta):
    s, t = torch.softmax(z, -1), torch.softmax(teacher, -1)
    m = beta * t + (1 - beta) * s
    return beta * (t * torch.log(t / m)).sum(-1) + (1 - beta) * (s * torch.log(s / m)).sum(-1)


def psft(z, y, old, clip):
    r = torch.exp(log_p(z, y) - log_p(old, y))
    return -torch.minimum(r, torch.clamp(r, 0.8, 1 + clip))


def rho1(z, y, reference, fraction):
    excess = sg(log_p(reference, y) - log_p(z, y))
    number = math.ceil(fraction * len(y))
    return nll(z, y) * (excess >= torch.sort(excess, descending=True).values[number - 1])


def tail_sft(z, y, reference, row, fraction):
    gains = sg(torch.stack([(log_p(z, y) - log_p(reference, y))[row == r].mean() for r in range(int(row.max()) + 1)]))
    aside = torch.sort(gains, descending=True).indices[: int(fraction * len(gains))]
    return nll(z, y) * ~torch.isin(row, aside)
