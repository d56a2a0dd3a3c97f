"""Verdicts on a run's effect on a probe, from its readings.

The failure modes are reconstructed from the abstract of arXiv 2606.07559; the thresholds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sft.metrics.run_length import STEEP, steepness
from lightning_sft.probes.history import Jump, JumpSettings, ProbeHistory, find_jumps


@dataclass(frozen=True)
class VerdictSettings(JumpSettings):
    """Thresholds of the verdicts, and of jumps.

    Attributes:
        tau: kinematic: the signal S stayed below this all along.
        delta: structural: the drag D ended more than this below its start.
        fall: nats by which a probe's loss must have fallen before a run can have failed silently.
        steep: the loss still falls steeply if its rate over the last quarter of the run is above this share of its
            rate over the whole run.
        jump_factor: see `JumpSettings`.
        jump_floor: see `JumpSettings`.
        phantom_share: see `JumpSettings`.
    """

    tau: float = 0.05
    delta: float = 0.005
    fall: float = 0.05
    steep: float = STEEP


@dataclass(frozen=True)
class Verdict:
    """The verdict on one probe.

    Attributes:
        outcome: ``"flipped"``, ``"never behind"``, ``"stopped early"``, ``"failed"``, ``"loss did not fall"`` or
            ``"diverged"``.
        modes: of a failure: any of ``"kinematic"`` and ``"structural"``.
        flip_step: first reading from which the correct token stayed above its competitor; None if it ended below.
        jumps: sudden changes of Phi.
        reason: one sentence with the figures behind the outcome.
        advice: what to try next; empty where nothing is wrong.
        others_ahead: words ahead of the correct one at the end, of a probe that ended ahead of its competitor; None
            where it did not, or where that is unknown.
    """

    outcome: str
    modes: tuple[str, ...]
    flip_step: int | None
    jumps: tuple[Jump, ...]
    reason: str
    advice: str
    others_ahead: int | None = None

    @property
    def title(self) -> str:
        """The outcome in a few words."""
        if self.outcome in ("flipped", "never behind"):
            at = f" at step {self.flip_step}" if self.outcome == "flipped" else ""
            return f"{self.outcome}{at}{f', {_words(self.others_ahead)} ahead' if self.others_ahead else ''}"
        return f"failed: {' and '.join(self.modes) or 'unclassified'}" if self.outcome == "failed" else self.outcome


def flip_step(history: ProbeHistory) -> int | None:
    """Return the step of the first reading from which the correct token stayed above its competitor, or None."""
    above = [c > s for c, s in zip(history.p_correct, history.p_competitor, strict=True)]
    if not above or not above[-1]:
        return None
    first = len(above) - 1
    while first and above[first - 1]:
        first -= 1
    return history.step[first]


def judge(
    history: ProbeHistory,
    others: Sequence[Sequence[float]] = (),
    settings: VerdictSettings | None = None,
    *,
    finished: bool = False,
    rank: float | None = None,
) -> Verdict:
    """Name what happened to a probe.

    Args:
        history: its readings, at least one.
        others: other losses of the same run on the same steps, in nats per token: other probes' and, if known, the
            training loss. Where one of them was below this probe's final loss by three quarters of the run, the run
            had time enough, and a probe that is still behind has failed although its own loss still falls.
        settings: thresholds; None is the defaults.
        finished: the readings are of finished models, so that nothing was stopped early.
        rank: of the correct token among all at the last reading, 1 being the first; None if unknown.
    """
    settings = settings or VerdictSettings()
    jumps = find_jumps(history, settings)
    flipped = flip_step(history)
    broken = [step for step, loss in zip(history.step, history.loss, strict=True) if not math.isfinite(loss)]
    if broken:
        reason = f"loss {history.loss[history.step.index(broken[0])]} at step {broken[0]}"
        return Verdict("diverged", (), None, jumps, reason, "lower the learning rate, or clip")
    start, end = history.loss[0], history.loss[-1]
    losses = f"loss {start:.2f} -> {end:.2f} nats"
    if flipped is not None:
        ahead = None if rank is None or not math.isfinite(rank) else round(rank) - 1
        return _above(history, flipped, jumps, losses, ahead)
    fall = start - end
    odds = f"p {history.p_correct[-1]:.3f} against {history.p_competitor[-1]:.3f}"
    if fall <= settings.fall:
        advice = (
            "too little was learned of this word to fail: if the probe's text is among the training rows, raise the "
            "learning rate or the number of steps; if it is not, training did not carry over to it"
        )
        little = f"{losses}, a fall of no more than {settings.fall:g}; {odds}"
        return Verdict("loss did not fall", (), None, jumps, little, advice)
    still, overtaken = steepness(history.step, history.loss), _below_by_three_quarters(history, others, end)
    if still > settings.steep and not overtaken and not finished:
        reason = f"{losses}, still falling at {still:.0%} of its mean rate; {odds}"
        return Verdict("stopped early", (), None, jumps, reason, "train longer; it is too early to speak of failure")
    modes = []
    if max(history.signal) < settings.tau:
        modes.append("kinematic")
    if history.drag[-1] < history.drag[0] - settings.delta:
        modes.append("structural")
    lowest = min(history.loss)
    if overtaken:
        why = "other tokens of the run fell below it long ago"
    elif end - lowest > settings.fall:
        why = f"its loss rose again after {lowest:.2f} at step {history.step[history.loss.index(lowest)]}"
    else:
        why = "training is over" if finished else "its loss has settled"
    lost = any(c > s for c, s in zip(history.p_correct, history.p_competitor, strict=True))
    reason = (
        f"{losses}{' (above ln 2)' if end > math.log(2) else ''}, {why}; {odds}; S at most {max(history.signal):+.3f}, "
        f"D {history.drag[0]:+.3f} -> {history.drag[-1]:+.3f}{'; it was ahead for a while' if lost else ''}"
    )
    return Verdict("failed", tuple(modes), None, jumps, reason, _advice(modes))


def _words(count: int) -> str:
    return "1 other word" if count == 1 else f"{count} other words"


def _above(history: ProbeHistory, flipped: int, jumps: tuple[Jump, ...], losses: str, others: int | None) -> Verdict:
    """Return the verdict on a probe whose correct token ended above its competitor, the one word that it names."""
    never = flipped == history.step[0]
    odds = f"p {history.p_correct[-1]:.3f} against {history.p_competitor[-1]:.3f}"
    negative = history.phi[-1] <= 0
    reason = f"{losses}; {odds}{f'; Phi is still {history.phi[-1]:+.3f}: the drag outweighs S' if negative else ''}"
    advice = ""
    if others:
        reason += f"; ahead of the named word, but {_words(others)} {'is' if others == 1 else 'are'} ahead of it"
        advice = "the right word is not the model's first choice yet: train longer, or raise the learning rate"
    return Verdict("never behind" if never else "flipped", (), flipped, jumps, reason, advice, others)


def _below_by_three_quarters(history: ProbeHistory, others: Sequence[Sequence[float]], loss: float) -> bool:
    cut = history.step[-1] - (history.step[-1] - history.step[0]) / 4
    i = max(i for i, step in enumerate(history.step) if step <= cut)
    return any(other[0] > loss and other[i] < loss for other in others)


def _advice(modes: Sequence[str]) -> str:
    advice = {
        "kinematic": "raise the learning rate (a sweep finds the critical one) or the number of steps, or weigh such "
        "tokens more",
        "structural": "the bulk of the vocabulary pulls the score down: hold the embeddings still (freeze or untie "
        "them, or use LoRA), lower the learning rate, or mix in general data",
    }
    return "; ".join(advice[m] for m in modes) or "look at the curves: it was ahead once, so shorten or anneal the run"
