"""Tool calls and schemas of tools in the forms in which public data has them -> the one that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.reading.fields import as_list, kind
from lightning_sft.data.types import BadRowError


def read_call(call: object, at: str) -> dict[str, Any]:
    """Return one tool call with its arguments as an object.

    Args:
        call: ``{"function": {"name", "arguments"}}``, or only what is inside; arguments as an object or as JSON text.
        at: its place, for messages.

    Raises:
        BadRowError: it is no call.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRowError(f"{at}: a tool call needs function.name and function.arguments", Code.TOOL_CALL)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _loads(arguments, f"{at}: the tool call's arguments are") if arguments.strip() else {}
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {
        **identity,
        "type": "function",
        "function": {"name": function["name"], "arguments": {} if arguments is None else arguments},
    }


def read_call_text(text: object, at: str) -> list[dict[str, Any]]:
    """Return the calls in the text of a message that is nothing else: JSON of one call or of a list of them."""
    if not isinstance(text, str):
        raise BadRowError(f"{at} is a tool call and must be JSON text, got {kind(text)}", Code.TOOL_CALL)
    calls = _loads(text, f"{at} is a tool call, and its text is")
    return [read_call(call, at) for call in (calls if isinstance(calls, list) else [calls])]


def read_tools(value: object) -> tuple[dict[str, Any], ...] | None:
    """Return the schemas of a row's tools: a list of them, JSON text of one, or a list of JSON texts.

    A schema that is not wrapped in ``{"type": "function", "function": ...}`` is.

    Raises:
        BadRowError: it is no list of schemas.
    """
    if isinstance(value, str):
        value = _loads(value, "tools is") if value.strip() else None
    if not value:
        return None
    tools = [_loads(tool, "tools is") if isinstance(tool, str) else tool for tool in as_list(value, "tools")]
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("tools must be a list of JSON schemas", Code.TOOL_CALL)
    return tuple(
        {"type": "function", "function": tool} if "function" not in tool and "name" in tool else tool for tool in tools
    )


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadRowError(f"{what} not valid JSON: {e}", Code.TOOL_CALL) from e
