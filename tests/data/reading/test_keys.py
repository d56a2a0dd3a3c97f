"""Keys and shapes of public files: what each means for what is trained, or why the row is refused."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_sft.data import BadRow, SFTDataModule, Source
from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.conversation import Rules
from lightning_sft.data.reading.formats import detect, to_example
from lightning_sft.data.types import BadRowError, MaskFrom
from lightning_sft.errors import UserError
from tests.data.encoding.kinds import call, schema, tokenizer_of, trained, weather
from tests.data.helpers import byte_tokenizer, marked, write_jsonl


def user(content, **keys):
    return {"role": "user", "content": content, **keys}


def assistant(content, **keys):
    return {"role": "assistant", "content": content, **keys}


def refused(row, **rules):
    with pytest.raises(BadRowError) as error:
        to_example(row, detect(row), rules=Rules(**rules))
    return error.value


def parts(text):
    """Return what is trained, piece by piece."""
    return [piece.partition("]]")[0] for piece in text.split("[[")[1:]]


def test_alpaca_with_a_blank_input_and_with_a_history():
    blank = trained("chatml", {"instruction": "Name a fruit.", "input": " ", "output": "A pear."})
    assert blank == trained("chatml", {"instruction": "Name a fruit.", "input": "", "output": "A pear."})
    history = [["Which country has the Louvre?", "France."]]
    row = {"instruction": "And its capital?", "input": "", "output": "Paris.", "history": history}
    assert parts(trained("chatml", row)) == ["Paris.<|im_end|>"]
    assert "France." in trained("chatml", row)
    assert "France." in parts(trained("chatml", row, "all"))[0]
    plain = trained("chatml", row, apply_chat_template="never")
    assert plain.index("Louvre") < plain.index("France.") < plain.index("capital")
    assert parts(plain) == ["Paris.<|im_end|>"]
    assert refused({**row, "history": [["only one"]]}).code is Code.COLUMNS


def test_empty_system_messages_and_empty_results():
    row = {"messages": [{"role": "system", "content": ""}, user("Hi"), assistant("Hello.")]}
    assert trained("chatml", row) == trained("chatml", {"messages": row["messages"][1:]})
    row = weather(tools=False)
    row["messages"][2]["content"] = ""
    assert "<|im_start|>tool\n<|im_end|>\n" in trained("whole", row)


def test_the_demo_files_of_llama_factory():
    tools = json.dumps([schema()["function"]])
    turns = [
        {"from": "human", "value": "Is it raining in Ulm?"},
        {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": "Ulm"}})},
        {"from": "observation", "value": '{"rain": false}'},
        {"from": "gpt", "value": "No, it is dry."},
    ]
    text = trained("whole", {"conversations": turns, "tools": tools})
    assert parts(text) == ['CALL get_weather {"city": "Ulm"}<|im_end|>', "No, it is dry.<|im_end|>"]
    assert json.dumps([schema()]) in text
    turns[1]["value"] = json.dumps([{"name": n, "arguments": {}} for n in ("get_weather", "get_wind")])
    assert parts(trained("whole", {"conversations": turns}))[0].count("CALL") == 2
    turns[1]["value"] = "no JSON"
    assert refused({"conversations": turns}).code is Code.TOOL_CALL


@pytest.mark.parametrize("roles", [("Human", "GPT"), ("human", "model"), ("USER", "bot"), ("user", "ChatGPT")])
def test_roles_in_any_case_and_name(roles):
    turns = [{"from": role, "value": value} for role, value in zip(roles, ("Hi", "Hello."), strict=True)]
    assert parts(trained("chatml", {"conversations": turns})) == ["Hello.<|im_end|>"]
    messages = [{"role": role, "content": value} for role, value in zip(roles, ("Hi", "Hello."), strict=True)]
    assert trained("chatml", {"messages": messages}) == trained("chatml", {"conversations": turns})


def test_calls_in_messages_of_their_own():
    asked = [json.dumps({"name": name, "arguments": {"city": "Ulm"}}) for name in ("rain", "wind")]
    calls = [{"role": "tool_call", "content": text} for text in asked]
    results = [{"role": "tool_response", "content": "no"}, {"role": "tool_response", "content": "yes"}]
    row = {"messages": [user("Rain or wind?"), *calls, *results, assistant("Wind.")]}
    expected = 'CALL rain {"city": "Ulm"}CALL wind {"city": "Ulm"}<|im_end|>'
    assert parts(trained("whole", row)) == [expected, "Wind.<|im_end|>"]


def test_function_call_beside_content():
    legacy = {"name": "get_weather", "arguments": '{"city": "Ulm"}'}
    row = {"messages": [user("Weather?"), assistant("Let me see", function_call=legacy)], "functions": [legacy]}
    row["functions"] = [schema()["function"]]
    assert parts(trained("whole", row)) == ['Let me seeCALL get_weather {"city": "Ulm"}<|im_end|>']
    with pytest.raises(BadRowError, match="call 0 of message 1"):
        trained("chatml", {"messages": row["messages"]})


def test_text_parts_of_both_names():
    for key in ("text", "value"):
        hi, hello = ([{"type": "text", key: text}] for text in ("hi", "Hello!"))
        assert parts(trained("chatml", {"messages": [user(hi), assistant(hello)]})) == ["Hello!<|im_end|>"]


@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_rows_with_media_are_refused(column):
    row = {"messages": [user("<image>What is it?"), assistant("A cat.")], column: ["a.png"]}
    error = refused(row)
    assert error.code is Code.MEDIA
    assert column in str(error)
    assert to_example({**row, column: []}, "messages").messages
    image = {"messages": [user([{"type": "image", "image": "a.png"}]), assistant("A cat.")]}
    assert refused(image).code is Code.MEDIA


@pytest.mark.parametrize(
    "keys",
    [
        ({"loss": False}, {"loss": True}),
        ({"loss": False}, {}),
        ({"loss_scale": 0}, {"loss_scale": 1.0}),
        ({"loss_weight": 0.0}, {"loss_weight": 1}),
        ({"weight": 0}, {"weight": 1}),
        ({"train": False}, {"train": True}),
    ],
)
def test_keys_that_say_whether_an_answer_is_trained(keys):
    messages = [user("Hi"), assistant("bad answer", **keys[0]), user("Again"), assistant("good answer", **keys[1])]
    assert parts(trained("chatml", {"messages": messages})) == ["good answer<|im_end|>"]
    assert "bad answer" not in "".join(parts(trained("chatml", {"messages": messages}, "all")))


@pytest.mark.parametrize(
    "keys", [{"weight": "heavy"}, {"loss_scale": float("nan")}, {"loss_weight": "half"}, {"train": True, "loss": False}]
)
def test_what_is_no_weight_is_refused_by_name(keys):
    error = refused({"messages": [user("Hi"), assistant("Hello.", **keys)]})
    assert error.code is Code.WEIGHT
    assert all(key in str(error) for key in keys)
    for key, value in keys.items():
        if key != "train" and not isinstance(value, bool):
            assert refused({"prompt": "a", "completion": "b", key: value}).code is Code.WEIGHT


def test_unwanted_rows_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "Say hi", "completion": "Go away", "label": False},
        {"prompt": "Say hi", "completion": "Hi!", "label": True},
        {"prompt": "Say hi", "completion": "Go!", "weight": 0},
    ]
    path = write_jsonl(tmp_path / "kto.jsonl", rows)
    data = SFTDataModule(
        train=str(path), tokenizer=tokenizer_of("chatml"), rejected_file=str(tmp_path / "out.jsonl"), cache_dir=False
    )
    data.setup("fit")
    report = data.report["train"]
    assert (report.rows, report.codes, report.counts()["rejected/unwanted"]) == (1, {"unwanted": 2}, 2)
    listed = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["code"], row["set"]) for row in listed] == [("unwanted", "train")] * 2


def test_what_is_not_used_is_named(tmp_path):
    messages = [user("Hi", mood="sad"), assistant("Hello.", mood="glad", id=3)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages, "id": i, "source": "x"} for i in range(2)])
    data = SFTDataModule(train=str(path), tokenizer=byte_tokenizer(MOODY), cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        data.setup("fit")
        assert data.report["train"].unused == {"id": 2, "source": 2, "messages.id": 2}
        assert data.report["train"].masks == {"turns found in the template's text": 2}
        data = SFTDataModule(train=str(path), tokenizer=byte_tokenizer(MOODY), cache_dir=str(tmp_path / "cache"))


MOODY = "{% for m in messages %}{{ m.role + (m.mood or '') + '<|header|>' + m.content + '<|im_end|>' }}{% endfor %}"


def test_unanswered_conversations():
    row = {"messages": [user("Hi"), assistant("Hello."), user("Bye")]}
    error = refused(row)
    assert error.code is Code.UNANSWERED
    assert "on_unanswered: drop_tail" in str(error)
    example = to_example(row, "messages", rules=Rules(on_unanswered="drop_tail"))
    assert example.messages == to_example({"messages": row["messages"][:2]}, "messages").messages
    assert example.unused == ("messages behind the last answer",)
    assert refused({"messages": [user("Hi")]}, on_unanswered="drop_tail").code is Code.UNANSWERED


def test_messages_of_one_role_behind_each_other():
    row = {"messages": [user("Hi"), user("there"), assistant("Hello."), assistant("", tool_calls=[call()])]}
    error = refused(row)
    assert error.code is Code.REPEATED_ROLE
    assert "on_repeated_role: join" in str(error)
    joined = to_example(row, "messages", rules=Rules(on_repeated_role="join"))
    assert [message["content"] for message in joined.messages] == ["Hi\n\nthere", "Hello."]
    assert joined.messages[1]["tool_calls"] == [call()]
    row["messages"][2]["train"] = False
    assert refused(row, on_repeated_role="join").code is Code.REPEATED_ROLE


def test_the_rules_of_data_module_and_source(tmp_path):
    rows = [{"messages": [user("Hi"), user("there"), assistant("Hello."), user("Bye")]}]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    rules = {"on_unanswered": "drop_tail", "on_repeated_role": "join"}
    for train, options in ((path, rules), (Source(path, **rules), {})):
        data = SFTDataModule(train=train, tokenizer=tokenizer_of("chatml"), cache_dir=False, **options)
        data.setup("fit")
        assert data.report["train"].rows == 1
    data = SFTDataModule(train=Source(path, on_unanswered="error"), tokenizer=tokenizer_of("chatml"), **rules)
    with pytest.raises(UserError, match="on_unanswered: drop_tail"):
        data.setup("fit")


def bos_tokenizer():
    """A tokenizer that begins texts with ``<s>`` by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(eos="</s>")
    begin = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return tokenizer


def test_begin_and_end_tokens_that_stand_in_the_data_are_not_doubled():
    tokenizer = bos_tokenizer()
    text = {"text": "<s>[INST] Name a fruit. [/INST] A pear. </s>"}
    assert marked(tokenizer, Encoder(tokenizer)(to_example(text, "text"))) == (
        "<s>[[[INST] Name a fruit. [/INST] A pear. </s>]]"
    )
    plain = marked(tokenizer, Encoder(tokenizer)(to_example({"text": "A pear."}, "text")))
    assert plain == "<s>[[A pear.</s>]]"
    pair = {"prompt": "<s>[INST] Name a fruit. [/INST]", "completion": " A pear."}
    encoded = Encoder(tokenizer, apply_chat_template="never")(to_example(pair, "prompt_completion"))
    assert marked(tokenizer, encoded) == "<s>[INST] Name a fruit. [/INST][[ A pear.</s>]]"
    chat = {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"}
    assert trained("chatml", chat) == f"[[{chat['text']}]]"
    masks = [Encoder(tokenizer)(to_example(row, "text")).mask for row in (chat, text, {"text": "A pear."})]
    assert masks == [MaskFrom.ROW_WITH_CONTROL_TOKENS, MaskFrom.ROW, MaskFrom.ROW]


STRUCTS = [
    {
        "messages": [
            user("Do alpha", tool_calls=None),
            assistant(None, tool_calls=[{"type": "function", "function": {"name": name, "arguments": arguments}}]),
            {"role": "tool", "content": "ok", "tool_calls": None},
            assistant("Done", tool_calls=None),
        ],
        "tools": [{"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}],
    }
    for name, arguments, parameters in (
        ("alpha", {"city": "Ulm", "opt": {"a": 1}}, {"city": {"type": "string"}}),
        ("beta", {"opt": {"b": 2}, "n": 3}, {"n": {"type": "integer", "enum": [1, 2, 3]}}),
    )
]


def texts(path):
    found = list(Source(str(path)).examples())
    assert not any(isinstance(row, BadRow) for row in found), found
    tokenizer = tokenizer_of("whole")
    return [marked(tokenizer, Encoder(tokenizer)(row)) for row in found]


def test_structs_of_arrow_give_the_text_of_json(tmp_path):
    expected = texts(write_jsonl(tmp_path / "rows.jsonl", STRUCTS))
    table = pa.Table.from_pylist(STRUCTS)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "rows.arrow", "saved"):
        read = texts(tmp_path / name)
        assert [*map(unordered, read)] == [*map(unordered, expected)]
        assert "null" not in "".join(read)


def unordered(text):
    """Return a text with the fields of its JSON sorted, for structs have one order for all rows."""
    head, _, rest = text.partition("<|/header|>")
    return json.dumps(json.loads(head.removeprefix("<|header|>")), sort_keys=True) + rest


def test_json_features_are_read_and_their_nulls_kept(tmp_path):
    arguments = ({"t": "x", "none": None}, {"t": 3})
    rows = [json.loads(json.dumps(row)) for row in STRUCTS]
    for row, values in zip(rows, arguments, strict=True):
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = values
    features = datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.List(datasets.Json())})
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    expected = texts(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert texts(tmp_path / "rows.parquet") == texts(tmp_path / "saved") == expected
    assert '{"t": "x", "none": null}' in expected[0]
    plain = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
    assert texts(write_jsonl(tmp_path / "plain.jsonl", plain)) == expected


def test_a_json_array_in_a_file_of_lines(tmp_path):
    rows = [{"instruction": "Name a fruit.", "input": "", "output": "A pear."}] * 2
    for name, text in (
        ("a.jsonl", json.dumps(rows)),
        ("b.jsonl", json.dumps(rows, indent=1)),
        ("c.json", json.dumps(rows)),
    ):
        (tmp_path / name).write_text(text)
        assert len(list(Source(str(tmp_path / name)).examples())) == 2
