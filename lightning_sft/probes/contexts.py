"""The worst contexts of a run: what a person reads, and what probes, margins and weights are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_sft.files import write_text
from lightning_sft.probes.watched_set import WatchedSet

#: tokens of a context that are decoded for people
SHOWN = 48


def failed_contexts(
    watched: Sequence[WatchedSet],
    tokenizer: PreTrainedTokenizerBase | None,
    source_names: Sequence[str] = (),
    most: int = 100,
    min_fall: float = 0.1,
) -> list[dict[str, Any]]:
    """Return the contexts whose loss fell and that are still outranked, those of each set furthest behind first.

    Args:
        watched: the sets, read twice.
        tokenizer: makes the texts; None leaves them out.
        source_names: name of each source by its index.
        most: the most contexts of a set.
        min_fall: nats by which the NLL of a token must have fallen.

    Returns:
        For each context the fields of a probe (``context_ids``, ``correct_id``, ``competitor_id``, and for people
        ``context``, its end, ``correct`` and ``competitor``) and the evidence: the competitor at the start, the same
        where the token failed silently; the probabilities of the correct token and the competitor now; the correct
        token's NLL at the start and now; and where in the data it stands.
    """
    lines = []
    for of in watched:
        for token in of.failures(most, min_fall):
            assert of.now is not None
            assert of.before is not None
            document, position = of.sample.document(token), int(of.sample.position[token])
            context, correct = document.ids[:position].tolist(), int(document.ids[position])
            competitor, first = int(of.now.competitor[token]), int(of.before.competitor[token])
            logp = float(of.now.logp[token])
            texts: dict[str, str] = {}
            if tokenizer is not None:
                one = {"correct": [correct], "competitor": [competitor], "competitor_start": [first]}
                parts = {"context": context[-SHOWN:], **one}
                texts = {name: str(tokenizer.decode(ids)) for name, ids in parts.items()}
            known = 0 <= document.source < len(source_names)
            lines.append(
                {
                    **texts,
                    "p_correct": math.exp(logp),
                    "p_competitor": math.exp(float(of.now.competitor_logp[token])),
                    "nll_start": -float(of.before.logp[token]),
                    "nll": -logp,
                    "near_synonym": bool(of.near[token]),
                    "set": of.name,
                    "source": source_names[document.source] if known else None,
                    "row": document.row,
                    "position": position,
                    "step": of.step,
                    "correct_id": correct,
                    "competitor_id": competitor,
                    "competitor_start_id": first,
                    "context_ids": context,
                }
            )
    return lines


def write_contexts(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write contexts as JSON lines; a file that stood there is replaced."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def contexts_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return contexts as a Markdown table."""
    head = "| context | right | stood first | stands first | p | NLL start | NLL now | set |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        names = ("correct", "competitor_start", "competitor")
        words = " | ".join(_cell(str(line.get(name, line[f"{name}_id"]))) for name in names)
        text = _cell(str(line.get("context", line["context_ids"][-SHOWN:])))
        odds = f"{line['p_correct']:.3f} / {line['p_competitor']:.3f}"
        place = " ".join(str(line[name]) for name in ("set", "source", "row") if line[name] is not None)
        rows.append(f"| {text} | {words} | {odds} | {line['nll_start']:.2f} | {line['nll']:.2f} | {place} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Return a text with its white space visible, as part of a Markdown table."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "↵")
    return f"`{text}`" if text == "" or text != text.strip() else text
