"""An objective by name and arguments, as a configuration and a command line name it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lightning_sft import objectives
from lightning_sft.objectives import Objective


@dataclass(frozen=True)
class Choice:
    """An objective of this package; in plain data, so that it can be printed, stored and built anywhere.

    Attributes:
        name: of its class.
        arguments: of its constructor; objectives in them are choices, too.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_plain(self) -> bool:
        """Whether its arguments are plain values."""
        return not any(isinstance(value, Choice | dict) for value in self.arguments.values())

    def build(self) -> Objective:
        """Return the objective."""
        made: Objective = getattr(objectives, self.name)(**_mapped(self.arguments, lambda choice: choice.build()))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return it as a configuration names it: ``class_path`` and ``init_args``."""
        path = f"{objectives.__name__}.{self.name}"
        return {"class_path": path, "init_args": _mapped(self.arguments, lambda choice: choice.to_dict())}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Choice:
        """Return the choice of what `to_dict` gave."""
        return cls(content["class_path"].rpartition(".")[2], _unmapped(content["init_args"]))

    def options(self) -> str:
        """Return the options of the command line that name it, as a shell takes them."""
        if not self.is_plain:
            return f"--objective '{json.dumps(self.to_dict())}'"
        given = [f"--objective {self.name}"]
        return " ".join(given + [f"--objective.{key} {value}" for key, value in self.arguments.items()])

    def short(self) -> str:
        """Return it as Python writes it, such as ``PowerFamily(alpha=1.0)``; without arguments the name alone."""
        given = ", ".join(f"{key}={_short(value)}" for key, value in self.arguments.items())
        return f"{self.name}({given})" if given else self.name


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(v)}" for key, v in value.items()) + "}"
    return value.short() if isinstance(value, Choice) else str(value)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    return change(value) if isinstance(value, Choice) else value


def _unmapped(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"class_path", "init_args"}:
        return Choice.from_dict(value)
    return {key: _unmapped(inner) for key, inner in value.items()} if isinstance(value, dict) else value


NLL = Choice("NLL")
MINUS_P = Choice("PowerFamily", {"alpha": 1.0})
WITH_FLOOR = Choice("PowerFamily", {"alpha": 1.0, "floor": 0.1})
SMALL_ALPHA = Choice("PowerFamily", {"alpha": 0.1})
HALF_WAY = Choice("PowerFamily", {"alpha": 0.5})
LIKELY_ONLY = Choice("Thresholded", {"threshold": 0.1})
NLL_ON_SPECIAL = Choice("SpecialTokens", {"base": MINUS_P})
