"""What rows under other names than ours are taken for."""

from typing import Any

import pytest

from lightning_sft.data.reading.guess import guess, in_braces

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

KNOWN: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "ours": ({"prompt": "a", "completion": "b"}, "prompt_completion", {}),
    "messages": ({"messages": CHAT}, "messages", {}),
    "sharegpt": ({"conversations": SHARE}, "sharegpt", {}),
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, "alpaca", {}),
    "text": ({"text": "a"}, "text", {}),
    "gsm8k": ({"question": "a", "answer": "b"}, "prompt_completion", {"prompt": "question", "completion": "answer"}),
    "a half": ({"prompt": "a", "response": "b"}, "prompt_completion", {"completion": "response"}),
    "metamath": (
        {"type": "x", "query": "a", "response": "b"},
        "prompt_completion",
        {"prompt": "query", "completion": "response"},
    ),
    "dolly": (
        {"instruction": "a", "context": "c", "response": "b", "category": "d"},
        "alpaca",
        {"output": "response", "input": "context"},
    ),
    "orca": (
        {"id": "1", "system_prompt": "s", "question": "a", "response": "b"},
        "prompt_completion",
        {"prompt": "question", "completion": "response", "system": "system_prompt"},
    ),
    "flan": ({"inputs": "a", "targets": "b"}, "prompt_completion", {"prompt": "inputs", "completion": "targets"}),
    "capitals": ({"Question": "a", "Answer": "b"}, "prompt_completion", {"prompt": "Question", "completion": "Answer"}),
    "another name of a chat": ({"id": 1, "dialog": CHAT}, "messages", {"messages": "dialog"}),
    "preferences": ({"chosen": CHAT, "rejected": CHAT}, "messages", {"messages": "chosen"}),
    "preferred words": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt_completion", {"completion": "chosen"}),
    "one column": ({"sentence": "a"}, "text", {"text": "sentence"}),
    "no instruction": (
        {"input": "a", "output": "b"},
        "prompt_completion",
        {"prompt": "input", "completion": "output"},
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_columns_are_found(name: str) -> None:
    row, form, columns = KNOWN[name]
    found = guess([row, row])
    assert found is not None
    assert (found.format, found.columns, found.trouble) == (form, columns, "")


@pytest.mark.parametrize(
    "row", [{"foo": "a", "bar": "b"}, {"question": "a", "answers": {"text": ["b"]}}, {"answer": "b", "n": 1}, {"a": 1}]
)
def test_what_nothing_tells_is_not_guessed(row: dict[str, Any]) -> None:
    assert guess([row]) is None


def test_rows_that_cannot_be_read_and_columns_that_nothing_reads_are_told() -> None:
    rows = [{"question": "a", "answer": "b", "n": 1}, {"question": "a", "answer": 4}]
    found = guess(rows)
    assert found is not None
    assert found.unused == ("n",)
    assert found.trouble.startswith("row 1: ")
    assert "got text and int" in found.trouble


def test_a_mapping_as_one_types_it() -> None:
    assert in_braces({"prompt": "q: 1", "completion": "a"}) == "{prompt: 'q: 1', completion: a}"
