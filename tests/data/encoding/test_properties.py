"""Random conversations: what is trained decodes to the assistant's words and ends of turn, nothing else."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.encoding.truncate import truncate
from lightning_sft.data.reading.formats import to_example
from tests.data.helpers import byte_tokenizer, space_tokenizer, template

TOKENIZERS = {
    "chatml": byte_tokenizer(template("chatml")),
    "markers": byte_tokenizer(template("markers")),
    "markers_with_end": byte_tokenizer(template("markers_with_end")),
    "merging": byte_tokenizer(template("chatml"), merges=[("Ċ", "Ċ"), ("Ċ", "a"), ("a", "b"), ("b", "Ċ"), ("Ġ", "Ġ")]),
    "date": byte_tokenizer(template("date"), eos="<|eot|>"),
    "reasoning": byte_tokenizer(template("reasoning")),
}
ENDS = {"date": "<|eot|>"}
words = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\tab "), min_size=1, max_size=30)
contents = words.filter(str.strip)


PAST_LINE_BREAK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "\n0"},
    {"role": "user", "content": "0"},
    {"role": "assistant", "content": "0"},
]


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(contents)})
        messages.append({"role": "assistant", "content": draw(contents)})
    return messages


@pytest.mark.parametrize("name", TOKENIZERS)
@example(messages=PAST_LINE_BREAK, train_on="assistant")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=conversations(), train_on=st.sampled_from(["assistant", "last_turn"]))
def test_trained_tokens_decode_to_the_answers(name, messages, train_on):
    tokenizer = TOKENIZERS[name]
    encoded = Encoder(tokenizer, train_on)(to_example({"messages": messages}, "messages"))
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if name == "reasoning":  # the template drops line breaks at the start of past answers
        answers[:-1] = [answer.lstrip("\n") for answer in answers[:-1]]
    chosen = answers if train_on == "assistant" else answers[-1:]
    trained = tokenizer.decode(encoded.ids[encoded.trained])
    expected = "".join(answer + ENDS.get(name, "<|im_end|>") for answer in chosen)
    assert trained.replace("<think>\n\n</think>\n\n", "") == expected
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole


@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_the_prompt_to_generate_from_is_the_beginning_of_the_row(messages):
    tokenizer = TOKENIZERS["merging"]
    example = to_example({"messages": messages}, "messages")
    encoded = Encoder(tokenizer, "last_turn")(example)
    text, prompt = Encoder(tokenizer).prompt(example)
    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert not encoded.trained[: len(prompt)].any()
    assert encoded.trained[len(prompt)]
    assert tokenizer.decode(prompt) == text


plain = st.text(st.sampled_from("abc XYZ.,!?\n"), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(prompt=plain, completion=plain)
def test_strings_with_a_leading_space_tokenizer(prompt, completion):
    tokenizer = space_tokenizer()
    example = to_example({"prompt": prompt, "completion": completion}, "prompt_completion")
    encoded = Encoder(tokenizer)(example)
    whole = tokenizer.decode(tokenizer(prompt + completion + "</s>").input_ids)
    assert tokenizer.decode(encoded.ids) == whole
    trained = tokenizer.convert_ids_to_tokens(encoded.ids[encoded.trained].tolist())
    assert "".join(trained).replace("▁", " ").lstrip(" ") == (completion + "</s>").lstrip(" ")


@settings(max_examples=100, deadline=None)
@given(
    messages=conversations(),
    max_length=st.integers(1, 120),
    how=st.sampled_from(["drop", "left", "right", "keep_completion"]),
)
def test_truncation(messages, max_length, how):
    row = Encoder(TOKENIZERS["chatml"], "last_turn")(to_example({"messages": messages}, "messages"))
    cut = truncate(row, max_length, how)
    if len(row.ids) <= max_length:
        assert cut is row
        return
    if cut is None:
        if how in ("left", "right"):
            kept = slice(None, max_length) if how == "right" else slice(-max_length, None)
            assert not row.trained[kept].any()
        if how == "keep_completion":
            assert row.trained[:-max_length].any() or not row.trained[-max_length:].any()
        return
    assert how != "drop"
    assert len(cut.ids) == max_length
    kept = slice(None, max_length) if how == "right" else slice(-max_length, None)
    assert (cut.ids == row.ids[kept]).all()
    assert (cut.trained == row.trained[kept]).all()
    if how == "keep_completion":
        assert cut.trained.sum() == row.trained.sum()
