"""Which tokens compete: pairs of ids, of words, or in a file of probes, as a table that is looked up by target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import RunFacts

NOBODY = -1
Pairs = Sequence[tuple[int | str, int | str]] | str


def are_ids(pairs: Pairs) -> bool:
    """Return whether pairs are token ids, and need no tokenizer and no file."""
    return not isinstance(pairs, str) and not any(isinstance(part, str) for pair in pairs for part in pair)


def as_ids(pairs: Pairs, facts: RunFacts) -> list[tuple[int, int]]:
    """Return pairs of token ids.

    Args:
        pairs: pairs of ids or words, or the path of a file.
        facts: of the run, whose tokenizer knows the words.

    Raises:
        UserError: no such file, a line without a pair, or a word that is not one token.
    """
    listed = _read(Path(pairs).expanduser()) if isinstance(pairs, str) else list(pairs)
    found: list[tuple[int, int]] = []
    for pair in listed:
        if len(pair) != 2 or not any(isinstance(part, str) for part in pair):
            found.append(pair)  # type: ignore[arg-type]  # the table refuses what is no pair of ids
            continue
        forms = [(_word(pair[0], space, facts), _word(pair[1], space, facts)) for space in (" ", "")]
        whole = [(one, other) for one, other in forms if one is not None and other is not None]
        if not whole:
            raise UserError(
                f"RunnerUpMargin got the pair {list(pair)}, and the tokenizer does not have both as one token, neither "
                "with a space in front nor without. A margin stands between single tokens: choose other words."
            )
        found += whole
    if isinstance(pairs, str) and facts.vocabulary is not None:
        # a model's padding rows have no text, so no margin over them is worth having
        found = [pair for pair in found if max(pair) < facts.vocabulary]
    return found


def _word(part: int | str, space: str, facts: RunFacts) -> int | None:
    """Return the id of a word that is one token, or None."""
    if not isinstance(part, str):
        return part
    if facts.token_ids is None:
        raise UserError(f"RunnerUpMargin got the word {part!r}, and this run has no tokenizer. Give token ids.")
    ids = facts.token_ids(space + part)
    return ids[0] if len(ids) == 1 else None


def _read(path: Path) -> list[tuple[int | str, int | str]]:
    """Return the pairs of a file of probes; a context whose competitor is another than at the start gives both."""
    if not path.is_file() or path.suffix != ".jsonl":
        raise UserError(
            f"RunnerUpMargin got pairs={str(path)!r}, which is no .jsonl file (looked from {Path.cwd()}). Give a file "
            "of probes, such as the silent.jsonl in a run's folder, or a list of pairs."
        )
    found: list[tuple[int | str, int | str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                entry: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from error
            given = entry if isinstance(entry, dict) else {}
            pair = [given.get(f"{name}_id", given.get(name)) for name in ("correct", "competitor")]
            if any(part is None or part in ("auto", "nearest") for part in pair):
                raise UserError(
                    f"{path}, line {number} names no pair. Needed: correct_id and competitor_id, or correct and "
                    "competitor as words."
                )
            found.append((pair[0], pair[1]))  # type: ignore[arg-type]  # the table refuses what is no id
            first = given.get("competitor_start_id")
            if first is not None and first not in pair:  # which a run from the start meets again
                found.append((pair[0], first))  # type: ignore[arg-type]
    if not found:
        raise UserError(
            f"RunnerUpMargin got pairs={str(path)!r}, which is empty. A run's silent.jsonl is empty where no right "
            "word stayed behind another one while its loss fell. Give the file of another run or a list of pairs, "
            "or leave `pairs` out: all tokens compete then."
        )
    return found


def rivals_table(pairs: Any) -> tuple[Tensor, Tensor]:
    """Return the ids that have rivals, rising, (known,), and their rivals, (known, most), filled up with `NOBODY`.

    Args:
        pairs: pairs of token ids.

    Raises:
        UserError: there is none, or one holds something else than two different ids >= 0.
    """
    rivals: dict[int, set[int]] = {}
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or min(pair) < 0:
            raise UserError(f"RunnerUpMargin got the pair {list(pair)}. Allowed: two different token ids >= 0.")
        for one, other in (pair, pair[::-1]):
            rivals.setdefault(one, set()).add(other)
    if not rivals:
        raise UserError("RunnerUpMargin got no pair. Give pairs of token ids, or leave `pairs` out: all compete then.")
    most = max(map(len, rivals.values()))
    rows = [sorted(rivals[one]) + [NOBODY] * (most - len(rivals[one])) for one in sorted(rivals)]
    return torch.tensor(sorted(rivals)), torch.tensor(rows)
