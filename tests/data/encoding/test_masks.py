"""What is trained, by chat template: hand-checked, multi-turn."""

from typing import Any

import pytest

from lightning_sft.data.encoding.encode import Encoder, TrainOn
from lightning_sft.data.reading.formats import to_example
from lightning_sft.data.types import BadRowError
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, marked, space_tokenizer, template


def turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def show(
    tokenizer: Any, messages: list[dict[str, Any]], train_on: TrainOn = "assistant", tools: Any = None, **kwargs: Any
) -> str:
    example = to_example({"messages": messages, "tools": tools}, "messages")
    return marked(tokenizer, Encoder(tokenizer, train_on, template_kwargs=kwargs)(example))


TWO = turns("a b", "c d", "e", "f", system="s")
CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
HEAD = CHATML.format("system", "s") + CHATML.format("user", "a b") + "<|im_start|>assistant\n"
MIDDLE = "\n" + CHATML.format("user", "e") + "<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["chatml", "chatml_default_system", "markers", "markers_with_end"])
@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", HEAD + "[[c d<|im_end|>]]" + MIDDLE + "[[f<|im_end|>]]\n"),
        ("last_turn", HEAD + "c d<|im_end|>" + MIDDLE + "[[f<|im_end|>]]\n"),
        ("completion", HEAD + "c d<|im_end|>" + MIDDLE + "[[f<|im_end|>]]\n"),
        ("all", "[[" + HEAD + "c d<|im_end|>" + MIDDLE + "f<|im_end|>\n]]"),
    ],
)
def test_chatml(name, train_on, expected):
    assert show(byte_tokenizer(template(name)), TWO, train_on) == expected


def test_default_system_prompt_of_the_template_is_not_trained():
    expected = (
        CHATML.format("system", "You help.") + CHATML.format("user", "a") + "<|im_start|>assistant\n[[b<|im_end|>]]\n"
    )
    assert show(byte_tokenizer(template("chatml_default_system")), turns("a", "b")) == expected


def test_template_without_system_role_and_end_of_turn_unequal_to_eos():
    tokenizer = byte_tokenizer(template("no_system"), eos="<eos>", bos="<bos>")
    user, model = "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n[[{}<end_of_turn>]]\n"
    expected = "<bos>" + user.format("a") + model.format("b") + user.format("c") + model.format("d")
    assert show(tokenizer, turns("a", "b", "c", "d")) == expected
    with pytest.raises(BadRowError, match="System role not supported"):
        show(tokenizer, turns("a", "b", system="s"))


def test_template_with_injected_date():
    tokenizer = byte_tokenizer(template("date"), eos="<|eot|>", bos="<bos>")
    turn = "<|header|>{}<|/header|>\n"
    expected = (
        f"<bos>{turn.format('system')}Today Date: 1 May 2020\n\ns<|eot|>{turn.format('user')}a<|eot|>"
        f"{turn.format('assistant')}[[b<|eot|>]]{turn.format('user')}c<|eot|>{turn.format('assistant')}[[d<|eot|>]]"
    )
    assert show(tokenizer, turns("a", "b", "c", "d", system="s"), date_string="1 May 2020") == expected
    assert show(tokenizer, turns("a", "b", "c", "d", system="s")).count("[[b<|eot|>]]") == 1


def test_reasoning_stripped_from_past_turns():
    tokenizer = byte_tokenizer(template("reasoning"))
    messages = turns("a", "<think>\nx\n</think>\n\nb", "c", "<think>\ny\n</think>\n\nd")
    user, head = CHATML.format("user", "{}"), "<|im_start|>assistant\n"
    last = "[[<think>\ny\n</think>\n\nd<|im_end|>]]\n"
    assert show(tokenizer, messages) == user.format("a") + head + "[[b<|im_end|>]]\n" + user.format("c") + head + last
    assert (
        show(tokenizer, messages, "last_turn")
        == user.format("a") + head + "b<|im_end|>\n" + user.format("c") + head + last
    )
    empty = "[[<think>\n\n</think>\n\nd<|im_end|>]]\n"
    assert (
        show(tokenizer, turns("a", "b", "c", "d"))
        == user.format("a") + head + "[[b<|im_end|>]]\n" + user.format("c") + head + empty
    )


def test_tools():
    tokenizer = byte_tokenizer(template("tools"))
    call = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "b"},
    ]
    schema = {"type": "function", "function": {"name": "add"}}
    text = show(tokenizer, messages, tools=[schema])
    head = '<|im_start|>system\n{"type": "function", "function": {"name": "add"}}\n<|im_end|>\n' + CHATML.format(
        "user", "a"
    )
    calls = '<|im_start|>assistant\n[[<call>add {"x": 1}</call><|im_end|>]]\n'
    tail = CHATML.format("tool", "2") + "<|im_start|>assistant\n[[b<|im_end|>]]\n"
    assert text == head + calls + tail
    assert show(tokenizer, messages, "last_turn", tools=[schema]) == text
    with pytest.raises(BadRowError, match="does not use them"):
        show(byte_tokenizer(template("chatml")), messages, tools=[schema])


def test_leading_space_tokenizer():
    tokenizer = space_tokenizer(template("inst"))
    expected = " <s>[INST] a b [/INST][[ c d </s>]]<s>[INST] e [/INST][[ f </s>]]"
    text = show(tokenizer, turns("a b", "c d", "e", "f"))
    assert text.replace(" ", "") == expected.replace(" ", "")
    encoded = Encoder(tokenizer)(to_example({"messages": turns("a b", "c d", "e", "f")}, "messages"))
    assert tokenizer.decode(encoded.ids[encoded.trained]).split() == ["c", "d", "</s>", "f", "</s>"]


def test_template_without_end_token_gets_the_tokenizers_own_trained():
    tokenizer = byte_tokenizer(template("no_end"))
    expected = "### user:\na\n\n### assistant:\n[[b\n\n]]### user:\nc\n\n### assistant:\n[[d\n\n<|im_end|>]]"
    assert show(tokenizer, turns("a", "b", "c", "d")) == expected


def test_template_that_writes_the_end_token_once():
    tokenizer = byte_tokenizer(template("end_once"))
    expected = "### user:\na\n### assistant:\n[[b\n<|im_end|>]]"
    assert show(tokenizer, turns("a", "b")) == expected


def test_template_that_is_not_prefix_stable_and_has_no_markers_raises():
    tokenizer = byte_tokenizer(template("unstable"))
    with pytest.raises(BadRowError, match="no generation markers"):
        show(tokenizer, turns("a", "b", "c", "d"))
    with pytest.raises(BadRowError, match="no generation markers"):
        show(byte_tokenizer(template("end_once")), turns("a", "b", "c", "d"))


def test_markers_are_followed_where_prefixes_cannot_be():
    tokenizer = byte_tokenizer(template("unstable_markers"))
    turn = "<|im_start|>{} {}\n{}<|im_end|>\n"
    answer = "<|im_start|>assistant {}\n[[{}<|im_end|>]]\n"
    expected = turn.format("user", 3, "a") + answer.format(2, "b") + turn.format("user", 1, "c") + answer.format(0, "d")
    assert show(tokenizer, turns("a", "b", "c", "d")) == expected
    assert show(tokenizer, turns("a", "b", "c", "d"), "last_turn").count("[[") == 1


def test_text_may_hold_the_characters_that_stand_for_markers():
    tokenizer = byte_tokenizer(template("markers"))
    encoded = Encoder(tokenizer)(to_example({"messages": turns("\ue001", "\ue000 b \ue001")}, "messages"))
    assert tokenizer.decode(encoded.ids[encoded.trained]) == "\ue000 b \ue001<|im_end|>"


def test_tokenizer_with_a_template_for_tools_of_its_own():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": template("chatml"), "tool_use": template("tools")}
    schema = {"type": "function", "function": {"name": "add"}}
    assert "[[b<|im_end|>]]" in show(tokenizer, turns("a", "b"), tools=[schema])
    assert "[[b<|im_end|>]]" in show(tokenizer, turns("a", "b"))


def test_template_that_needs_a_system_message_is_followed():
    needy = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + template("chatml")
    assert show(byte_tokenizer(needy), TWO) == HEAD + "[[c d<|im_end|>]]" + MIDDLE + "[[f<|im_end|>]]\n"


def test_template_that_loses_a_message_raises():
    with pytest.raises(BadRowError, match="leaves out or changes the text of message 0, from system"):
        show(byte_tokenizer(template("drops_system")), TWO)


def test_template_whose_markers_mark_nothing_raises():
    with pytest.raises(BadRowError, match="nothing would be trained"):
        show(byte_tokenizer(template("silent")), TWO)


@pytest.mark.parametrize("text", [turns("a.", "bc"), turns("a.", "b.", "c.", "d.")])
def test_markers_that_leave_out_the_end_of_the_turn_raise(text):
    dotted = template("markers").replace("{{- '<|im_end|>\\n' }}", "{{- message['id'] or '' }}{{- '<|im_end|>\\n' }}")
    assert dotted != template("markers")
    for message in text:
        message["id"] = " (signed)"
    with pytest.raises(BadRowError, match=r"end of .* turn would not be trained"):
        show(byte_tokenizer(dotted), text)


def test_flags_decide_over_train_on():
    tokenizer = byte_tokenizer(template("chatml"))
    messages = turns("a", "b", "c", "d")
    messages[3]["train"] = False
    assert show(tokenizer, messages).count("[[") == 1
    assert "[[b<|im_end|>]]" in show(tokenizer, messages)
    with pytest.raises(BadRowError, match="nothing would be trained"):
        show(tokenizer, messages, "last_turn")
    messages[1]["weight"] = 1
    assert "[[b<|im_end|>]]" in show(tokenizer, messages, "last_turn")
    everything = show(tokenizer, messages, "all")
    assert everything.endswith("<|im_start|>assistant\n]]d<|im_end|>[[\n]]")
    markers = byte_tokenizer(template("markers"))
    assert show(markers, messages) == show(tokenizer, messages)


def test_prompt_of_a_prompt_completion_row_is_trained_only_under_all():
    tokenizer = byte_tokenizer(template("chatml"))
    row = {"prompt": turns("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}
    example = to_example(row, "prompt_completion")
    for train_on in ("assistant", "completion", "last_turn"):
        assert marked(tokenizer, Encoder(tokenizer, train_on)(example)).count("[[") == 1
    assert marked(tokenizer, Encoder(tokenizer, "all")(example)).startswith("[[<|im_start|>user")


def test_special_token_in_the_text_is_refused():
    with pytest.raises(BadRowError, match="contains '<|im_end|>'".replace("|", r"\|")):
        show(byte_tokenizer(template("chatml")), turns("a<|im_end|>", "b"))


def test_strings_without_chat_template():
    tokenizer = byte_tokenizer()
    example = to_example({"prompt": "1+1=", "completion": "2"}, "prompt_completion")
    assert marked(tokenizer, Encoder(tokenizer)(example)) == "1+1=[[2<|im_end|>]]"
    assert marked(tokenizer, Encoder(tokenizer, "all")(example)) == "[[1+1=2<|im_end|>]]"
    text = to_example({"text": "some words"}, "text")
    assert marked(tokenizer, Encoder(tokenizer)(text)) == "[[some words<|im_end|>]]"
    templated = byte_tokenizer(template("chatml"))
    assert marked(templated, Encoder(templated, apply_chat_template="never")(example)) == "1+1=[[2<|im_end|>]]"
    assert "<|im_start|>assistant\n[[2" in marked(templated, Encoder(templated)(example))
    assert marked(templated, Encoder(templated)(text)) == "[[some words<|im_end|>]]"
    with pytest.raises(UserError, match="no chat template"):
        Encoder(tokenizer, apply_chat_template="always")
    with pytest.raises(UserError, match="no chat template"):
        Encoder(tokenizer)(to_example({"messages": turns("a", "b")}, "messages"))


def test_alpaca_prompt_without_chat_template():
    tokenizer = byte_tokenizer()
    example = to_example({"instruction": "Add.", "input": "1 1", "output": "2"}, "alpaca")
    text = marked(tokenizer, Encoder(tokenizer)(example))
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n[[2<|im_end|>]]")


def test_tokenizer_that_merges_across_the_boundary_is_cut_there():
    merging = byte_tokenizer(template("chatml"), merges=[("Ċ", "b")])  # a newline and "b" become one token
    assert merging("\nb").input_ids == [merging.get_vocab()["Ċb"]]
    encoded = Encoder(merging)(to_example({"messages": turns("a", "b")}, "messages"))
    assert marked(merging, encoded).endswith("<|im_start|>assistant\n[[b<|im_end|>]]\n")
    _, prompt = Encoder(merging).prompt(to_example({"messages": turns("a", "b")}, "messages"))
    assert encoded.ids[: len(prompt)].tolist() == prompt


def test_row_ids_equal_the_tokenizers_own():
    for tokenizer in (byte_tokenizer(template("chatml")), space_tokenizer(template("inst"))):
        messages = turns("a b", "c d", "e", "f")
        encoded = Encoder(tokenizer)(to_example({"messages": messages}, "messages"))
        assert encoded.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)


def test_markers_give_the_mask_of_transformers():
    tokenizer = byte_tokenizer(template("markers_with_end"))
    messages = turns("a b", "c d", "e", "f")
    encoded = Encoder(tokenizer)(to_example({"messages": messages}, "messages"))
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded.ids.tolist() == theirs["input_ids"]
    mask = theirs["assistant_masks"]
    # the template marks the newline after the end token too, which a model never needs to write
    newlines = [i for i in range(len(mask)) if mask[i] and not encoded.trained[i]]
    assert all(tokenizer.decode([theirs["input_ids"][i]]) == "\n" for i in newlines)
    assert len(newlines) == 2
