"""What an advice says, and how it is written out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lightning_sft.advice.choice import NLL, Choice
from lightning_sft.advice.evidence import Evidence
from lightning_sft.metrics.capability_reading import Place

#: stands in commands for the configuration of the reader
CONFIG = "CONFIG"
#: arms of a comparison: each costs a search for its rate
MOST_ARMS = 3


@dataclass(frozen=True)
class Advice:
    """Which objectives to try first and which to avoid, why, and what that rests on.

    Attributes:
        place: on the continuum.
        headline: the advice in a sentence.
        try_first: objectives worth a run, the best bet first.
        avoid: objectives that the reading speaks against.
        pick: what ``model.objective: auto`` takes.
        compare: whether the evidence is too thin for one objective, so that the command compares several.
        why: sentences.
        evidence: what it rests on.
        limits: what it does not say, sentences.
        doubts: those of them that make the place itself uncertain, so that a comparison is advised.
        trap: what would go wrong without a word; None if nothing is known.
    """

    place: Place
    headline: str
    try_first: tuple[Choice, ...]
    avoid: tuple[Choice, ...]
    pick: Choice
    compare: bool
    why: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    limits: tuple[str, ...] = ()
    trap: str | None = None
    doubts: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """What a comparison is of, as its command names it; the first is what the others are compared with."""
        # objectives that are made of others have no short name
        named = dict.fromkeys(c.short() for c in (NLL, *self.try_first, *self.avoid) if c.is_plain)
        return (*named,)[:MOST_ARMS]

    @property
    def reason(self) -> str:
        """What speaks for the command, in a clause."""
        if self.compare:
            return "what the model knew before training does not tell which objective is best, and a comparison does"
        return f"what the model knew before training speaks for {self.pick.short()}"

    def speaks_against(self, objective: Any) -> bool:
        """Return whether an objective, as a module has it, is one of those to avoid."""
        return str(objective) in {str(choice.build()) for choice in self.avoid}

    def command(self, options: str = CONFIG) -> str:
        """Return the one command to run next.

        Args:
            options: those that name the reader's run.
        """
        if not self.compare:
            return self.fit(options)
        return f'lightning compare {options} --objectives "{",".join(self.arms)}"'

    def fit(self, options: str = CONFIG) -> str:
        """Return the command of one fit, under the objective that is taken where nothing is compared.

        Args:
            options: those that name the reader's run.
        """
        return f"lightning fit {options} {self.pick.options()}"

    def text(self, options: str | None = CONFIG) -> str:
        """Return a few lines for a log.

        Args:
            options: those that name the reader's run, for the command; None leaves out the command.
        """
        lines = [*self.doubts, self.headline, f"Try first: {_named(self.try_first)}."]
        lines += [f"Avoid: {_named(self.avoid)}."] if self.avoid else []
        lines += [] if self.trap is None else [self.trap]
        lines += [] if options is None else [f"Next: {self.command(options)}"]
        return "\n".join(lines)

    def markdown(self, options: str = CONFIG, *, command: bool = True, wraps: bool = False) -> str:
        """Return the whole advice as Markdown.

        Args:
            options: those that name the reader's run, for the command.
            command: whether to end with the command.
            wraps: whether the command may be wrapped, for TensorBoard, which cuts what is wider than its box.
        """
        lines = [f"**{self.headline}**", ""]
        lines += [f"- Try first: {_named(self.try_first, '`')}"]
        lines += [f"- Avoid: {_named(self.avoid, '`')}"] if self.avoid else []
        lines += [] if self.trap is None else ["", f"**{self.trap}**"]
        lines += ["", *self.why, "", "What this rests on:", ""]
        lines += [f"- {e.kind}: {e.what} {e.link}" for e in self.evidence]
        lines += ["", "What it does not say:", "", *(f"- {limit}" for limit in self.limits)]
        run = [f"`{self.command(options)}`"] if wraps else ["```sh", self.command(options), "```"]
        lines += ["", "Run next:", "", *run] if command else []
        return "\n".join(lines)

    def to_dict(self, options: str = CONFIG) -> dict[str, Any]:
        """Return plain data.

        Args:
            options: those that name the reader's run, for the command.
        """
        content = asdict(self)
        for name in ("try_first", "avoid"):
            content[name] = [choice.to_dict() for choice in getattr(self, name)]
        return {**content, "pick": self.pick.to_dict(), "command": self.command(options)}


def _named(choices: tuple[Choice, ...], mark: str = "") -> str:
    return ", ".join(f"{mark}{choice.short()}{mark}" for choice in choices)
