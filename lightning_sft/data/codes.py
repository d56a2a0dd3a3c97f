"""Why a row is not used, in one word: refusals are counted by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum


class Code(str, Enum):
    """The cause of a bad row; the values stand in the report and in ``rejected_rows.jsonl``."""

    UNREADABLE = "unreadable"
    """The file is damaged there, or the row is no JSON object or no CSV record."""
    TOO_LARGE = "too_large"
    """More than ``max_row_bytes``."""
    COLUMNS = "columns"
    """A column is missing, or of the wrong kind."""
    TEXT = "text"
    """A text is empty, no text, or holds what no tokenizer should read."""
    MEDIA = "media"
    """Images, videos or audio: only text can be trained on."""
    ROLES = "roles"
    """An unknown role, or roles out of order."""
    UNANSWERED = "unanswered"
    """The conversation does not end with the assistant's words."""
    REPEATED_ROLE = "repeated_role"
    """Two messages of one role behind each other."""
    TOOL_CALL = "tool_call"
    """A tool call or a tool's schema is malformed."""
    WEIGHT = "weight"
    """A weight of the loss is no finite number, two keys disagree on it, or it is of characters that are not there."""
    UNWANTED = "unwanted"
    """The row says that its answer is a bad one (``label: false``): left out, and not counted as a mistake."""
    CONTROL_TOKEN = "control_token"
    """A text holds what the tokenizer would read as a control token."""
    TEMPLATE_REFUSES = "template_refuses"
    """The chat template raises an error for the conversation."""
    LEFT_OUT_TOOLS = "left_out_tools"
    """The chat template does not write the tools."""
    LEFT_OUT_CALL = "left_out_call"
    """The chat template does not write a tool call, or a part of one."""
    LEFT_OUT_REASONING = "left_out_reasoning"
    """The chat template does not write the reasoning."""
    LEFT_OUT_TEXT = "left_out_text"
    """The chat template does not write the text of a message."""
    REWRITTEN = "rewritten"
    """The chat template changes the texts, so that they cannot be found again in what it writes."""
    UNSTABLE = "unstable"
    """Where an answer begins or ends cannot be told from what the chat template writes."""
    MARKERS = "markers"
    """The template's generation markers leave out what should be trained."""
    TOKENIZER = "tokenizer"
    """The tokenizer cannot keep prompt and answer apart."""
    NOTHING_TRAINED = "nothing_trained"
    """Nothing of the row would be trained."""


NO_MISTAKES = (Code.UNWANTED,)
"""Rows that are left out as they ask for: ``on_bad_row: error`` does not stop at them."""


def count_codes(codes: Iterable[Code]) -> dict[str, int]:
    """Return how many rows have each code, the most frequent first.

    >>> count_codes([Code.TEXT, Code.ROLES, Code.TEXT])
    {'text': 2, 'roles': 1}
    """
    return {code.value: rows for code, rows in Counter(codes).most_common()}
