"""The right tokens on every kind of chat template, by hand: what is trained, or why the row is refused."""

import pytest

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.formats import to_example
from lightning_sft.data.types import BadRowError, MaskFrom
from tests.data.encoding.kinds import KINDS, call, tokenizer_of, trained, weather
from tests.data.helpers import byte_tokenizer

PAIR = {"prompt": "Name a fruit.", "completion": "A pear."}
CALL = 'CALL get_weather {"city": "Ulm"}'
HEAD = "<|im_start|>{}\n"
THOUGHT = {
    "messages": [
        {"role": "user", "content": "Is 7 prime?"},
        {"role": "assistant", "content": "<think>\nSeven has no divisors.\n</think>\n\nYes."},
    ]
}
FIELD = {
    "messages": [
        {"role": "user", "content": "Is 7 prime?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Seven has no divisors."},
    ]
}
TURNS = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
}


def refused(kind, row, train_on="assistant", **options):
    with pytest.raises(BadRowError) as error:
        trained(kind, row, train_on, **options)
    return error.value


@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
def test_a_call_with_an_end_token_of_its_own(train_on):
    text = trained("call_ends_otherwise", weather(), train_on)
    assert f"{HEAD.format('assistant')}[[{CALL}<|eot|>]]{HEAD.format('tool')}TOOL RESULT: dry<|im_end|>" in text
    assert text.endswith(f"{HEAD.format('assistant')}[[No, it is dry.<|im_end|>]]")
    assert text.count("[[") == 2


def test_a_result_inside_the_assistants_turn_is_not_trained():
    text = trained("result_inside_turn", weather())
    expected = f"[[{CALL}]]<|header|>TOOL RESULT: dry<|/header|>[[No, it is dry.<|im_end|>]]"
    assert text.endswith(HEAD.format("assistant") + expected)


def test_both_end_tokens_are_trained():
    text = trained("two_end_tokens", PAIR)
    assert text.endswith("<|im_start|>assistant\n<|header|>[[A pear.<|/header|><|im_end|>]]")
    assert trained("two_end_tokens", TURNS).count("<|/header|><|im_end|>]]") == 2


@pytest.mark.parametrize("train_on", ["assistant", "last_turn", "completion", "all"])
@pytest.mark.parametrize(
    ("kind", "row", "code", "names"),
    [
        ("ignores_tool_calls", weather(), Code.LEFT_OUT_CALL, "the name of call 0 of message 1"),
        ("chatml", weather(tools=False), Code.LEFT_OUT_CALL, "the name of call 0 of message 1"),
        ("chatml", weather(), Code.LEFT_OUT_TOOLS, "'get_weather'"),
        ("no_tool_role", weather(tools=False), Code.LEFT_OUT_TEXT, "the text of message 2, from tool"),
        ("strips_all_reasoning", THOUGHT, Code.LEFT_OUT_REASONING, "the reasoning of message 1"),
        ("chatml", FIELD, Code.LEFT_OUT_REASONING, "reasoning_content of message 1"),
        ("text_or_calls", weather("Let me look."), Code.LEFT_OUT_TEXT, "the text of message 1, from assistant"),
    ],
)
def test_what_a_template_leaves_out_is_a_bad_row(kind, row, code, names, train_on):
    error = refused(kind, row, train_on)
    assert error.code is code
    assert names in str(error)


def test_each_of_several_calls_and_each_argument_is_looked_for():
    row = weather(tools=False)
    row["messages"][1]["tool_calls"] = [call(), call("get_wind", {"city": "Bonn"}, "abcdefgh2")]
    error = refused("one_call", row)
    assert error.code is Code.LEFT_OUT_CALL
    assert "call 1 of message 1" in str(error)
    row["messages"][1]["tool_calls"] = [call(arguments={"city": "Ulm", "days": 3, "deep": {"x": [1.5, None, True]}})]
    assert '{"city": "Ulm", "days": 3, "deep": {"x": [1.5, null, true]}}<|im_end|>]]' in trained("one_call", row)
    forgetful = KINDS["whole"].replace("c.function.arguments | tojson", "{'city': c.function.arguments.city} | tojson")
    tokenizer = byte_tokenizer(forgetful)
    with pytest.raises(BadRowError, match="'days'"):
        Encoder(tokenizer)(to_example(row, "messages"))


def test_a_setting_allows_a_template_to_leave_reasoning_out():
    for kind, row in (("strips_all_reasoning", THOUGHT), ("chatml", FIELD)):
        text = trained(kind, row, on_dropped_reasoning="allow")
        assert text.rstrip().endswith("Yes.<|im_end|>]]")
        assert "divisors" not in text


def test_reasoning_of_past_answers_may_be_left_out_by_a_template_that_writes_the_last():
    row = {"messages": [*THOUGHT["messages"], {"role": "user", "content": "And 9?"}, THOUGHT["messages"][1]]}
    text = trained("strips_past_reasoning", row)
    assert text.count("divisors") == 1
    assert "<|im_start|>assistant\n[[Yes.<|im_end|>]]\n" in text
    assert text.endswith("[[<think>\nSeven has no divisors.\n</think>\n\nYes.<|im_end|>]]\n")


@pytest.mark.parametrize("train_on", ["assistant", "last_turn", "completion"])
@pytest.mark.parametrize("kind", ["prompt_opens_think", "prompt_opens_words"])
def test_what_the_generation_prompt_opens_need_not_stand_in_the_row(kind, train_on):
    assert trained(kind, PAIR, train_on).endswith("<|im_start|>assistant\n[[A pear.<|im_end|>]]\n")
    text = trained(kind, TURNS, train_on)
    assert text.endswith("<|im_start|>assistant\n[[See you.<|im_end|>]]\n")
    assert ("[[Hello.<|im_end|>]]" in text) is (train_on == "assistant")


def test_arguments_reach_the_template_in_the_form_it_wants():
    as_text = weather(tools=False)
    as_text["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Ulm"}'
    for row in (weather(tools=False), as_text):
        assert '[[CALL get_weather{"city": "Ulm"}<|im_end|>]]' in trained("string_arguments", row)
        assert '[[CALL get_weather {"city": "Ulm"}<|im_end|>]]' in trained("printed_arguments", row)
        assert '[[CALL get_weather {"city": "Ulm"}<|im_end|>]]' in trained("whole", row)
        assert "[[CALL get_weather<city>Ulm</city><|im_end|>]]" in trained("sorted_arguments", row)


def test_content_reaches_the_template_as_parts_where_it_wants_them():
    assert trained("content_parts", TURNS).count("[[Hello.<|im_end|>]]") == 1


def test_a_token_that_closes_the_conversation_belongs_to_the_last_turn_only():
    text = trained("sorted_arguments", TURNS)
    assert "[[Hello.<|im_end|>]]" in text
    assert text.endswith("[[See you.<|im_end|><|eot|>]]")
    text = trained("closes_with_the_next", TURNS)
    assert "[[Hello.<|eot|>]]<|im_start|>user" in text
    assert text.endswith("[[See you.<|im_end|>]]")
    text = trained("closes_the_last_otherwise", TURNS)
    assert "[[Hello.<|/header|>]]<|im_start|>user" in text
    assert text.endswith("[[See you.<|eot|>]]")


@pytest.mark.parametrize("quote", ["'", '"', " \\'", ""])
def test_a_question_may_begin_with_quotes(quote):
    turns = [("user", "a"), ("assistant", ":"), ("user", f"{quote}:"), ("assistant", ":")]
    text = trained("closes_with_the_next", {"messages": [{"role": r, "content": c} for r, c in turns]})
    assert text.count("[[:<|eot|>]]") == 1
    assert text.endswith("[[:<|im_end|>]]")


def test_a_header_behind_the_last_answer_is_not_trained():
    text = trained("always_prompts", TURNS)
    assert "[[Hello.<|im_end|>]]<|im_start|>user" in text
    assert text.endswith("[[See you.<|im_end|>]]<|im_start|>assistant\n")


def test_ids_behind_a_result_belong_to_it():
    text = trained("ids", weather(tools=False))
    assert "TOOL RESULT: dry for abcdefgh1<|im_end|>\n<|im_start|>assistant\n[[No, it is dry.<|im_end|>]]\n" in text


def test_markers_are_followed_and_said_to_be():
    tokenizer = tokenizer_of("markers")
    encoded = Encoder(tokenizer)(to_example(weather(reasoning_content="Ask."), "messages"))
    assert encoded.mask is MaskFrom.MARKERS
    assert trained("markers", weather(reasoning_content="Ask.")) == trained("whole", weather(reasoning_content="Ask."))
    assert Encoder(tokenizer_of("whole"))(to_example(TURNS, "messages")).mask is MaskFrom.TURNS
    theirs = tokenizer.apply_chat_template(TURNS["messages"], return_dict=True, return_assistant_tokens_mask=True)
    ours = Encoder(tokenizer)(to_example(TURNS, "messages"))
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.trained.astype(int).tolist() == theirs["assistant_masks"]


def test_markers_that_enclose_other_messages_or_headers_are_cut():
    text = trained("markers_over_results", weather())
    assert text.endswith(f"[[{CALL}<|im_end|>]]TOOL RESULT: dry[[No, it is dry.<|im_end|>]]")
    assert trained("markers_with_header", TURNS).count("<|im_start|>assistant\n[[") == 2
    assert refused("markers_without_calls", weather()).code is Code.MARKERS


@pytest.mark.parametrize("train_on", ["assistant", "last_turn", "all"])
def test_control_tokens_are_looked_for_in_all_that_a_row_holds(train_on):
    stop = "say <|im_end|> now"
    rows = [
        weather(reasoning_content=stop),
        {**weather(), "tools": [{"type": "function", "function": {"name": "get_weather", "description": stop}}]},
    ]
    for change in ({"arguments": {"text": stop}}, {"arguments": {"a": {stop: 1}}}, {"name": stop}):
        row = weather()
        row["messages"][1]["tool_calls"][0]["function"] |= change
        rows.append(row)
    row = weather()
    row["messages"][2]["name"] = stop
    for bad in [*rows, row]:
        error = refused("whole", bad, train_on)
        assert error.code is Code.CONTROL_TOKEN
        assert "<|im_end|>" in str(error)


def test_a_turn_that_cannot_be_told_names_remedies_that_work():
    source = KINDS["chatml"].replace(
        "'<|im_start|>' + m.role", "'<|im_start|>' ~ (messages | length - loop.index) ~ m.role"
    )
    tokenizer = byte_tokenizer(source.replace("'<|im_start|>assistant", "'<|im_start|>0assistant"))
    example = to_example(TURNS, "messages")
    with pytest.raises(BadRowError, match=r"train_on: last_turn, or .*\{% generation %\}") as error:
        Encoder(tokenizer)(example)
    assert error.value.code is Code.UNSTABLE
    assert Encoder(tokenizer, "last_turn")(example).trained.any()
    wrapped = (
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    )
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content + '<|im_end|>\\n' }}", wrapped + "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}"
    )
    assert Encoder(tokenizer)(example).trained.sum() == len("Hello.See you.") + 2


def test_a_conversation_may_begin_with_the_assistant():
    row = {"messages": [{"role": "assistant", "content": "Welcome."}, *TURNS["messages"]]}
    assert trained("whole", row).startswith("<|im_start|>assistant\n[[Welcome.<|im_end|>]]\n<|im_start|>user\n")


def test_a_rows_own_variables_reach_the_template():
    source = KINDS["chatml"] + "{{ '' if quiet is defined else 'LOUD' }}"
    tokenizer = byte_tokenizer(source)
    row = {**TURNS, "chat_template_kwargs": {"quiet": True}}
    quiet, loud = (Encoder(tokenizer)(to_example(r, "messages")).ids for r in (row, TURNS))
    assert tokenizer.decode(loud).removesuffix("LOUD") == tokenizer.decode(quiet)
