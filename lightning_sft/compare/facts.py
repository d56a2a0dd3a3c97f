"""What runs depend on beside their settings, by name; how two runs differ in it, and why stored ones are not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from lightning_sft.compare.design import Design, RunSpec, short_digest
from lightning_sft.compare.result import RunResult

#: facts that name several things with a digest each
_PARTS = ("package code", "named classes", "own code")
#: facts that are digests, in words
_DIGESTS = {"model": "the model's files", "data": "the data, or how they are read,"}


def differences(there: Mapping[str, str], here: Mapping[str, str], there_is: str = "there") -> list[str]:
    """Return what differs between two sets of facts, in words; of code, only the rooms and files that differ.

    >>> differences({"dtype": "float32"}, {"dtype": "bfloat16"})
    ['dtype is bfloat16 here and float32 there']
    """
    found = []
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key, "none"), here.get(key, "none")
        if old == new:
            continue
        if key in _PARTS:
            found.append(f"{key} ({', '.join(_changed(old, new))}) is another here than {there_is}")
        else:
            found.append(f"{key} is {new} here and {old} {there_is}")
    return found


def _changed(old: str, new: str) -> list[str]:
    """Return the names of what two lists of names with digests differ in."""
    one, other = (set(text.split(", ")) for text in (old, new))
    return sorted({part.partition(" ")[0] for part in one ^ other} - {"none"})


def depends_on(design: Design, spec: RunSpec) -> dict[str, str]:
    """Return what a run depends on, by name, so that a later comparison can say why it does not take it."""
    arm, draw = design.arm(spec.arm), asdict(design.draw(spec))
    rows = ", ".join(f"{name} {value}" for name, value in draw.items())
    reads = "the validation alone" if design.needs_validation_alone(spec) else "all that is configured"
    settings = short_digest(arm.config)
    return {**arm.facts, "arm": arm.name, "settings": settings, "seed and rows": rows, "what was read": reads}


def why_unused(design: Design, results: Mapping[str, RunResult]) -> list[str]:
    """Return why stored runs are not used in a comparison, a sentence a reason; runs of other arms are none of it.

    Args:
        design: of the comparison.
        results: digest of a run -> what it has given.
    """
    reasons = Counter(reason for result in results.values() for reason in [_reason(design, result)] if reason)
    return [
        f"{count} stored {'run is' if count == 1 else 'runs are'} not used: {reason}."
        for reason, count in reasons.most_common()
    ]


def _reason(design: Design, result: RunResult) -> str | None:
    made = result.depends_on
    if not made:
        return "written by a version that did not say what its runs depend on"
    arm = next((arm for arm in design.arms if arm.name == made["arm"]), None)
    if arm is None:
        return None
    kind, replicate = result.key.split()[:2]
    wanted = depends_on(design, RunSpec("search" if kind == "search" else "judged", int(replicate), arm.name, None))
    changed = [key for key in dict.fromkeys([*made, *wanted]) if made.get(key) != wanted.get(key)]
    if not changed:
        return None
    said, parts = [], []
    for key in changed:
        old, new = made.get(key, "none"), wanted.get(key, "none")
        if key in _PARTS:
            parts.append(f"the {key} ({', '.join(_changed(old, new))})")
        elif key == "settings":
            said.append(f"the settings of {arm.name} were others")
        elif key == "seed and rows":
            said.append("their seeds or rows were others")
        elif key in _DIGESTS:
            said.append(f"{_DIGESTS[key]} were others")
        else:
            said.append(f"{key} was {old} and is {new}")
    code = [f"written by another version of {' and of '.join(parts)}"] if parts else []
    return "; ".join([*code, *said])
