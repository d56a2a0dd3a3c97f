"""A prediction on disk: written atomically before any sweep begins, with a hash of its inputs."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.files import code_digest, finite, tensor_bytes, to_json, write_text
from lightning_sft.probes.encode import EncodedProbes
from lightning_sft.sweep.prediction.estimate import Estimate

SOURCE = "formulas reconstructed from the abstract of arXiv 2606.07559; not the paper's own"


@dataclass(frozen=True)
class ProbePrediction:
    """One prediction, with those of two simple baselines.

    Attributes:
        name: of the probe, or of the set.
        estimate: the prediction.
        constant_lr: the first rule: one rate for all probes.
        per_logit_lr: the second: a rate proportional to d0, so that the kinematic number of all probes is the same.
        steps: optimizer steps that the prediction took; those of a set are counted there alone.
        seconds: wall time.
    """

    name: str
    estimate: Estimate
    constant_lr: float
    per_logit_lr: float
    steps: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """Return the prediction in words."""
        e = self.estimate
        if e.lr is None or e.low is None or e.high is None:
            return f"{self.name}: {e.status} (D0 {e.d0:+.3f})"
        return f"{self.name}: {e.lr:.4g}, 80% interval {e.low:.4g} to {e.high:.4g} (D0 {e.d0:+.3f})"


@dataclass(frozen=True)
class CriticalLRPrediction:
    """Predicted critical learning rates.

    Attributes:
        probes: one prediction a probe.
        together: the prediction for the set, if the probes are trained as one batch.
        inputs: what the prediction depends on, as plain data; large things by their hash.
        date: when it was made, UTC, ISO 8601.
        notes: what limits it.
    """

    probes: list[ProbePrediction]
    together: ProbePrediction | None
    inputs: dict[str, Any]
    date: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )
    notes: list[str] = field(default_factory=lambda: [SOURCE])

    @property
    def hash(self) -> str:
        """Hash of the inputs."""
        return _hash(self.inputs)

    @property
    def steps(self) -> int:
        """Optimizer steps of all of it."""
        return sum(p.steps for p in self._all)

    @property
    def seconds(self) -> float:
        """Wall time of all of it."""
        return sum(p.seconds for p in self._all)

    @property
    def _all(self) -> list[ProbePrediction]:
        return [*self.probes, *([self.together] if self.together else [])]

    def __str__(self) -> str:
        return "\n".join(p.line() for p in self._all)

    def content(self) -> dict[str, Any]:
        """Return everything as plain data; ``seal`` is a hash of all the rest."""
        content = {"hash": self.hash, **asdict(self)}
        return {**content, "seal": _hash(content)}

    def write(self, path: str | Path) -> Path:
        """Write a JSON file, atomically.

        Raises:
            UserError: there is a file already: a prediction is made once.
        """
        path = Path(path).expanduser()
        if path.exists():
            raise UserError(
                f"There is a prediction {str(path)!r} already, and predictions are not replaced, so that nobody can "
                "make one after the fact. Give another path, or delete the file."
            )
        write_text(path, to_json(self.content(), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: str | Path) -> CriticalLRPrediction:
        """Read a file back.

        Raises:
            UserError: no such file, no prediction, or one that was changed after it was written.
        """
        try:
            content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
            seal = content.pop("seal")
            sound = seal == _hash(content) and content.pop("hash") == _hash(content["inputs"])
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is no file of a prediction: {error}.") from error
        if not sound:
            raise UserError(f"The prediction {str(path)!r} was changed after it was written: its seal does not fit.")
        together = content.pop("together")
        return cls(
            probes=[_made(p) for p in content.pop("probes")], together=_made(together) if together else None, **content
        )

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise unless the prediction was made from these inputs.

        Raises:
            UserError: which of them differ.
        """
        names = sorted({*self.inputs, *inputs})
        differ = [n for n in names if finite(self.inputs.get(n)) != finite(inputs.get(n))]
        if differ:
            raise UserError(
                f"The prediction of {self.date} was made for other inputs: {', '.join(differ)} differ. Predict again, "
                "or restore them."
            )


def predicted_rate(folder: Path | None, name: str) -> tuple[float, float, float] | None:
    """Return the rate that was predicted for the probes of a sweep together, and its interval; None without one.

    Args:
        folder: of the run.
        name: of the sweep.
    """
    files = [] if folder is None else list((folder / "sweep").glob(f"{name}.prediction.*.json"))
    if not files:
        return None
    together = CriticalLRPrediction.read(max(files, key=lambda path: path.stat().st_mtime_ns)).together
    found = None if together is None else together.estimate
    if found is None or found.lr is None or found.low is None or found.high is None:
        return None
    return found.lr, found.low, found.high


def _made(fields: dict[str, Any]) -> ProbePrediction:
    return ProbePrediction(**{**fields, "estimate": Estimate(**fields["estimate"])})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(finite(value), sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """Return a hash of the predictor's own source: every file of this room."""
    return code_digest(Path(__file__).parent)


def versions() -> dict[str, str]:
    """Return the versions of what the numbers come from."""
    return {name: version(name) for name in ("lightning-sft", "torch", "transformers")}


def weights_hash(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, with their names, dtypes, and whether they are trained."""
    own = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        own.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}".encode())
        own.update(tensor_bytes(tensor))
    return own.hexdigest()


def probes_inputs(encoded: EncodedProbes, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a prediction depends on in probes and tokenizer."""
    ids: Sequence[Any] = [encoded.input_ids.tolist(), encoded.correct.tolist(), encoded.competitor.tolist()]
    return {
        "probes": [asdict(p) for p in encoded.probes],
        "token_ids": _hash([*ids, encoded.attention_mask.tolist()]),
        "tokenizer": _hash([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]),
    }
