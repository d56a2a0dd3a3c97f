"""How much the loss of each token counts: what rows and messages say, and the rules of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.template import Span
from lightning_sft.data.storage.dataset import SetReport
from lightning_sft.data.types import SPANS, BadRowError, Example
from lightning_sft.errors import UserError

LARGEST = 1e9
"""Of a weight, in absolute value: what rows, contexts and sources multiply to stays finite in fp32."""

Weighted = tuple[Span, float]
"""Characters of a text, and what the loss of their tokens is multiplied by."""


@dataclass(frozen=True)
class LossWeights:
    """Rules for the weights of tokens in the loss; they multiply what rows and messages say.

    Args:
        answer: weight of what the assistant says.
        prompt: weight of everything else; only under ``train_on: all`` is it trained at all.
        sources: weight of each data source's tokens, by its name; 1 where it is not named. A source's own ``weight``
            says how often its rows are seen, and is something else.
        contexts: weight of the training tokens that a file of contexts names, by the file: JSON lines with
            ``context_ids``, all token ids of a row before the token, and ``correct_id``, the token, see
            `ContextWeights`.

    Raises:
        UserError: a weight is not finite, or too large.
    """

    answer: float = 1.0
    prompt: float = 1.0
    sources: dict[str, float] = field(default_factory=dict)
    contexts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the weights; warn of negative ones.

        Raises:
            UserError: a weight is not finite, or too large.
        """
        named = {"answer": self.answer, "prompt": self.prompt}
        for rule, weights in (("sources", self.sources), ("contexts", self.contexts)):
            named |= {f"{rule}.{name}": weight for name, weight in weights.items()}
        if bad := {name: value for name, value in named.items() if not _is_allowed(value)}:
            raise UserError(f"data.loss_weights got {bad}. Allowed: finite numbers, at most {LARGEST:.0e}.")
        if negative := {name: value for name, value in named.items() if value < 0}:
            rank_zero_warn(f"data.loss_weights got {negative}: {_PUSHED}")

    def of_sources(self, names: Sequence[str]) -> list[float] | None:
        """Return the weight of each source, or None where all are 1.

        Raises:
            UserError: a rule names a source that there is not.
        """
        if unknown := sorted(self.sources.keys() - set(names)):
            raise UserError(
                f"data.loss_weights.sources names {unknown}. The sources of this run are {list(names)}: a source is "
                "called by its `name`, or by its file."
            )
        return [self.sources.get(name, 1.0) for name in names] if self.sources else None


def _is_allowed(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def tell(report: SetReport, what: str) -> None:
    """Say what weights do in a set: the same whether its rows were encoded just now or come from the cache."""
    if report.negative and what == "train":  # weights of other sets do nothing
        rank_zero_warn(f"{report.negative} of {report.rows} rows of {what} have tokens of negative weight: {_PUSHED}")
    for file, (found, contexts, others) in report.contexts.items():
        passed = f" {others} lines of validation rows were passed over." if others else ""
        if others and not contexts:
            rank_zero_warn(
                f"{file} (data.loss_weights.contexts) weighs nothing: all of its {others} lines are of validation "
                "rows, which are not trained."
            )
        elif found == contexts:
            rank_zero_info(
                f"{what}: {found} of {contexts} contexts of {file} were found and have their weight.{passed}"
            )
        else:
            rank_zero_warn(
                f"{contexts - found} of the {contexts} contexts of {file} (data.loss_weights.contexts) were not found: "
                f"no row of {what} begins with exactly these tokens and trains the token behind them. Look for a "
                "change of rows, tokenizer, chat template, system prompt, train_on, max_length or truncation since the "
                f"file was written. The others have their weight.{passed}"
            )


_PUSHED = "the model is pushed away from these tokens, without end. Mind the learning rate, and watch val/nll."


def of_messages(example: Example, text: str, spans: Sequence[Span], owners: Sequence[int]) -> list[Weighted]:
    """Return what the messages of a row say about the weight of their spans.

    Args:
        example: the row.
        text: the rendered conversation.
        spans: the trained characters.
        owners: which message each of them belongs to.

    Raises:
        BadRowError: a message weighs characters that are not found in what the template writes.
    """
    found: list[Weighted] = []
    for index in dict.fromkeys(owners):
        own = [span for span, owner in zip(spans, owners, strict=True) if owner == index]
        flag = example.flags[index]
        if flag is not None and float(flag) != 1.0:
            found += [(span, float(flag)) for span in own]
        message = example.messages[index]
        if SPANS in message:
            content = message["content"].strip()
            place = text.find(content, own[0][0], own[-1][1])
            if place < 0:
                raise BadRowError(
                    f"message {index} has {SPANS}, and the chat template does not write its content as it stands. Take "
                    "them out, or use a template that does.",
                    Code.WEIGHT,
                )
            shift = place - message["content"].index(content)
            found += [((shift + start, shift + end), weight) for start, end, weight in message[SPANS]]
    return found


def of_tokens(
    count: int, positions: Mapping[int, int], begins: Sequence[int] | None, weighted: Sequence[Weighted]
) -> NDArray[np.float32]:
    """Return the weight of each token, (count,): the product of those of all characters that it begins with.

    Args:
        count: number of tokens.
        positions: how many tokens stand before a character, where that is known.
        begins: the first character of each token, (count,); None where the tokenizer cannot tell.
        weighted: weighted characters.

    Raises:
        BadRowError: characters are weighted whose tokens cannot be told, or weights multiply to too much.
    """
    weights = np.ones(count)
    for (start, end), weight in weighted:
        if start in positions and end in positions:
            weights[positions[start] : positions[end]] *= weight
        elif begins is None:
            raise BadRowError(
                f"the row has {SPANS}, and this tokenizer does not say which characters its tokens stand for. Weigh "
                "whole messages, or use a fast tokenizer.",
                Code.WEIGHT,
            )
        else:
            at = np.asarray(begins)
            weights[(at >= start) & (at < end)] *= weight
    if (np.abs(weights) > LARGEST).any():
        raise BadRowError(
            f"the weights of the row multiply to {np.abs(weights).max():g}. Allowed: at most {LARGEST:.0e}.",
            Code.WEIGHT,
        )
    return weights.astype(np.float32)
