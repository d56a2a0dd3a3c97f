"""Chat templates of our own, one for each way in which public ones treat messages, and what is trained under them."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.formats import detect, to_example
from tests.data.helpers import byte_tokenizer, marked

ROLE = "{{ '<|im_start|>' + m.role + '\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TOOLS = "{% if tools %}{{ '<|header|>' + (tools | tojson) + '<|/header|>' }}{% endif %}"
EACH_CALL = "{% for c in m.tool_calls or [] %}"
CALLS = EACH_CALL + "{{ 'CALL ' + c.function.name + ' ' + (c.function.arguments | tojson) }}{% endfor %}"
END = "{{ '<|im_end|>\\n' }}"
EACH, DONE = "{% for m in messages %}", "{% endfor %}"
LAST = "{% if m.role == 'assistant' %}"
THINKS = "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"

KINDS = {
    # all that a message can hold, each turn closed by one token
    "whole": TOOLS + EACH + ROLE + THINKS + "{{ m.content }}" + CALLS + END + DONE + PROMPT,
    # a call ends with a token of its own
    "call_ends_otherwise": TOOLS
    + EACH
    + ROLE
    + "{% if m.tool_calls %}"
    + CALLS
    + "{{ '<|eot|>' }}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    + DONE
    + PROMPT,
    # the tool's result stands inside the assistant's turn
    "result_inside_turn": TOOLS
    + EACH
    + "{% if m.role == 'tool' %}{{ '<|header|>' + m.content + '<|/header|>' }}{% elif m.role == 'assistant' %}"
    + "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    + ROLE
    + "{% endif %}{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% else %}"
    + ROLE
    + "{{ m.content + '<|im_end|>' }}{% endif %}"
    + DONE
    + "{% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # two special tokens close an answer
    "two_end_tokens": EACH
    + ROLE
    + LAST
    + "{{ '<|header|>' + m.content + '<|/header|>' }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}"
    + DONE
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<|header|>' }}{% endif %}",
    # reads tools, but not tool_calls
    "ignores_tool_calls": TOOLS + EACH + ROLE + "{{ m.content + '<|im_end|>' }}" + DONE + PROMPT,
    # knows neither tools nor calls nor reasoning
    "chatml": EACH + ROLE + "{{ m.content + '<|im_end|>\\n' }}" + DONE + PROMPT,
    # leaves out messages of tools
    "no_tool_role": EACH
    + "{% if m.role != 'tool' %}"
    + ROLE
    + "{{ m.content }}"
    + CALLS
    + END
    + "{% endif %}"
    + DONE
    + PROMPT,
    # the generation prompt opens the reasoning; past answers, and answers without, do not have the opener
    "prompt_opens_think": EACH
    + ROLE
    + "{{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}"
    + DONE
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
    # the generation prompt opens with words
    "prompt_opens_words": EACH
    + ROLE
    + "{{ m.content + '<|im_end|>\\n' }}"
    + DONE
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\nLet me think:\\n' }}{% endif %}",
    # strips the reasoning of every answer
    "strips_all_reasoning": EACH + ROLE + "{{ m.content.split('</think>')[-1] }}" + CALLS + END + DONE + PROMPT,
    # strips the reasoning of past answers only
    "strips_past_reasoning": EACH
    + ROLE
    + "{% set later = namespace(user=false) %}{% for x in messages[loop.index:] %}{% if x.role == 'user' %}"
    + "{% set later.user = true %}{% endif %}{% endfor %}"
    + "{{ m.content.split('</think>')[-1].lstrip() if later.user and m.role == 'assistant' else m.content }}"
    + CALLS
    + END
    + DONE
    + PROMPT,
    # writes the text or the calls of a message
    "text_or_calls": TOOLS
    + EACH
    + ROLE
    + "{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}"
    + END
    + DONE
    + PROMPT,
    # writes the first of several calls
    "one_call": EACH
    + ROLE
    + "{{ m.content }}{% if m.tool_calls %}{{ 'CALL ' + m.tool_calls[0].function.name }}"
    + "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}"
    + END
    + DONE
    + PROMPT,
    # takes arguments as text
    "string_arguments": EACH
    + ROLE
    + "{{ m.content }}"
    + EACH_CALL
    + "{{ 'CALL ' + c.function.name + c.function.arguments }}{% endfor %}"
    + END
    + DONE
    + PROMPT,
    # prints arguments as they come
    "printed_arguments": EACH
    + ROLE
    + "{{ m.content }}"
    + EACH_CALL
    + "CALL {{ c.function.name }} {{ c.function.arguments }}{% endfor %}"
    + END
    + DONE
    + PROMPT,
    # takes content as parts
    "content_parts": EACH + ROLE + "{% for p in m.content %}{{ p.text }}{% endfor %}" + END + DONE + PROMPT,
    # sorts the arguments, and closes a conversation with one more token
    "sorted_arguments": EACH
    + ROLE
    + "{{ m.content }}"
    + EACH_CALL
    + "{{ 'CALL ' + c.function.name }}"
    + "{% for k, v in c.function.arguments | dictsort %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% endfor %}"
    + "{{ '<|im_end|>' }}"
    + DONE
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ '<|eot|>' }}{% endif %}",
    # other tokens close the last answer and earlier ones
    "closes_the_last_otherwise": "{{ '<|header|>Be brief.<|/header|>' }}"
    + EACH
    + ROLE
    + "{{ m.content + ('<|eot|>' if loop.last and m.role == 'assistant' else '<|/header|>') }}"
    + DONE
    + PROMPT,
    # closes an answer when the next message comes
    "closes_with_the_next": EACH
    + "{% if not loop.first and messages[loop.index0 - 1].role == 'assistant' %}{{ '<|eot|>' }}{% endif %}"
    + ROLE
    + "{{ m.content + ('' if m.role == 'assistant' else '<|header|>') }}"
    + DONE
    + PROMPT,
    # writes the next answer's header whether it is asked for or not
    "always_prompts": "{{ 'Be brief.<|im_end|>' }}"
    + EACH
    + ROLE
    + "{{ m.content + '<|im_end|>' }}"
    + DONE
    + "{{ '<|im_start|>assistant\\n' }}",
    # the result's id and name stand behind it, and in the call
    "ids": EACH
    + ROLE
    + "{{ m.content }}"
    + EACH_CALL
    + "{{ 'CALL ' + (c | tojson) }}{% endfor %}"
    + "{% if m.tool_call_id %}{{ ' for ' + m.tool_call_id }}{% endif %}"
    + END
    + DONE
    + PROMPT,
    # markers around all that the assistant writes
    "markers": TOOLS
    + EACH
    + ROLE
    + LAST
    + "{% generation %}"
    + THINKS
    + "{{ m.content }}"
    + CALLS
    + "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}"
    + DONE
    + PROMPT,
    # markers that begin with the turn's header
    "markers_with_header": EACH
    + LAST
    + "{% generation %}"
    + ROLE
    + "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    + ROLE
    + "{{ m.content + '<|im_end|>' }}{% endif %}"
    + DONE
    + PROMPT,
    # markers that leave out the calls
    "markers_without_calls": TOOLS
    + EACH
    + ROLE
    + LAST
    + "{% generation %}{{ m.content }}{% endgeneration %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}"
    + END
    + DONE
    + PROMPT,
    # one marked span over all that follows a question, results of tools included
    "markers_over_results": TOOLS
    + EACH
    + "{% if m.role == 'assistant' and messages[loop.index0 - 1].role == 'user' %}"
    + ROLE
    + "{% generation %}{% for x in messages[loop.index0:] %}{{ x.content }}"
    + CALLS.replace("m.tool_calls", "x.tool_calls")
    + "{% if x.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}{% endgeneration %}"
    + "{% elif m.role in ('user', 'system') %}"
    + ROLE
    + "{{ m.content + '<|im_end|>' }}{% endif %}"
    + DONE
    + "{% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Return a byte tokenizer with one of the templates."""
    return byte_tokenizer(KINDS[kind])


def trained(kind: str, row: dict[str, Any], train_on: str = "assistant", **options: Any) -> str:
    """Return a row as text, what is trained in double brackets."""
    tokenizer = tokenizer_of(kind)
    form = detect(row)
    assert form is not None
    return marked(tokenizer, Encoder(tokenizer, train_on, **options)(to_example(row, form)))


def schema(name: str = "get_weather") -> dict[str, Any]:
    """Return the schema of a tool."""
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": "Weather of a city", "parameters": city}}


def call(name: str = "get_weather", arguments: Any = None, id: str = "abcdefgh1") -> dict[str, Any]:
    """Return a call of a tool."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments or {"city": "Ulm"}}}


def weather(content: str | None = "", tools: bool = True, **keys: Any) -> dict[str, Any]:
    """Return a row with a question, a call, its result and an answer; ``content`` stands beside the call."""
    messages = [
        {"role": "user", "content": "Is it raining in Ulm?"},
        {"role": "assistant", "content": content, "tool_calls": [call()], **keys},
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefgh1", "content": "TOOL RESULT: dry"},
        {"role": "assistant", "content": "No, it is dry."},
    ]
    return {"messages": messages, **({"tools": [schema()]} if tools else {})}
