"""Random conversations over every kind of template: exactly the assistant's words and ends of turn, or a refusal."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.encoding.forms import FORMS
from lightning_sft.data.reading.formats import to_example
from lightning_sft.data.types import BadRowError
from tests.data.encoding.kinds import KINDS, schema, tokenizer_of

END, EOT = "<|im_end|>", "<|eot|>"


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def calls(m: dict[str, Any], write=lambda f: f"CALL {f['name']} {dumps(f['arguments'])}") -> str:
    return "".join(write(c["function"]) for c in m.get("tool_calls", ()))


def thought(m: dict[str, Any]) -> str:
    return f"<think>{m['reasoning_content']}</think>" if "reasoning_content" in m else ""


def written(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def by_name(f: dict[str, Any]) -> str:
    items = sorted(f["arguments"].items(), key=lambda item: item[0].lower())
    return f"CALL {f['name']}" + "".join(f"<{k}>{written(v)}</{k}>" for k, v in items)


def by_text(f: dict[str, Any]) -> str:
    return f"CALL {f['name']}{dumps(f['arguments'])}"


#: kind -> what the assistant says in a message, the end of its turn included, by hand
SAYS = {
    "whole": lambda m, last: thought(m) + m["content"] + calls(m) + END,
    "markers": lambda m, last: thought(m) + m["content"] + calls(m) + END,
    "call_ends_otherwise": lambda m, last: calls(m) + EOT if m.get("tool_calls") else m["content"] + END,
    "result_inside_turn": lambda m, last: calls(m) if m.get("tool_calls") else m["content"] + END,
    "two_end_tokens": lambda m, last: m["content"] + "<|/header|>" + END,
    "ignores_tool_calls": lambda m, last: m["content"] + END,
    "chatml": lambda m, last: m["content"] + END,
    "no_tool_role": lambda m, last: m["content"] + calls(m) + END,
    "prompt_opens_think": lambda m, last: m["content"] + END,
    "prompt_opens_words": lambda m, last: m["content"] + END,
    "strips_all_reasoning": lambda m, last: m["content"] + calls(m) + END,
    "text_or_calls": lambda m, last: (calls(m) or m["content"]) + END,
    "string_arguments": lambda m, last: (
        m["content"] + calls(m, lambda f: f"CALL {f['name']}{dumps(f['arguments'])}") + END
    ),
    "printed_arguments": lambda m, last: m["content"] + calls(m) + END,
    "content_parts": lambda m, last: m["content"] + END,
    "sorted_arguments": lambda m, last: m["content"] + calls(m, by_name) + END + EOT * last,
    "closes_the_last_otherwise": lambda m, last: m["content"] + (EOT if last else "<|/header|>"),
    "closes_with_the_next": lambda m, last: m["content"] + (END if last else EOT),
    "always_prompts": lambda m, last: m["content"] + END,
    "ids": lambda m, last: m["content"] + "".join(f"CALL {dumps(c)}" for c in m.get("tool_calls", ())) + END,
    "markers_with_header": lambda m, last: m["content"] + END,
    "markers_over_results": lambda m, last: m["content"] + calls(m) + END,
}
TOKENIZERS = {kind: tokenizer_of(kind) for kind in SAYS}
#: kinds that write all that a message can hold
COMPLETE = ("whole", "markers")

texts = st.text(st.sampled_from("aab \n\"'{}<>,:é\u4e2d\U0001f350\U00020000"), min_size=1, max_size=12).filter(
    str.strip
)
names = st.sampled_from(["alpha", "beta", "a", "get_it"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text(st.sampled_from('ab "é'), max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["k", "m"]), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def answers(draw: Any, with_calls: bool, thinks: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
    if with_calls:
        message["content"] = draw(st.just("") | texts)
        message["tool_calls"] = [
            {
                "id": f"abcdefgh{i}",
                "type": "function",
                "function": {
                    "name": draw(names),
                    "arguments": draw(st.dictionaries(st.sampled_from(["x", "city", "n"]), plain, max_size=3)),
                },
            }
            for i in range(draw(st.integers(1, 2)))
        ]
    if thinks and draw(st.booleans()):
        message["reasoning_content"] = draw(texts)
    return message


@st.composite
def rows(draw: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    uses_tools, thinks = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(texts)})
        for _ in range(draw(st.integers(0, 2)) if uses_tools else 0):
            asked = draw(answers(True, thinks))
            messages.append(asked)
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": draw(st.just("") | texts)}
                for call in asked["tool_calls"]
            ]
        messages.append(draw(answers(False, thinks)))
    return {"messages": messages, **({"tools": [schema(draw(names))]} if draw(st.booleans()) else {})}


@pytest.mark.parametrize("kind", SAYS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=rows(), train_on=st.sampled_from(["assistant", "last_turn"]))
def test_what_the_assistant_said_or_a_refusal(kind, row, train_on):
    tokenizer, messages = TOKENIZERS[kind], row["messages"]
    try:
        encoded = Encoder(tokenizer, train_on)(to_example(row, "messages"))
    except BadRowError:
        if kind in COMPLETE:
            raise
        return
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    said = [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and (train_on == "assistant" or i > last_user)
    ]
    expected = "".join(SAYS[kind](messages[i], i == len(messages) - 1) for i in said)
    assert tokenizer.decode(encoded.ids[encoded.trained]) == expected
    renderings = []
    for form in FORMS:
        given = form.shape(messages)
        try:
            renderings.append(tokenizer.apply_chat_template(given, tools=row.get("tools"), tokenize=False))
        except (TypeError, AttributeError, UndefinedError):
            continue
    text = tokenizer.decode(encoded.ids)
    assert text in renderings or text.removesuffix(END) in renderings


def test_every_kind_is_covered():
    told_apart_elsewhere = {"strips_past_reasoning", "one_call", "markers_without_calls"}
    assert set(KINDS) == set(SAYS) | told_apart_elsewhere
