"""The example of docs/near_synonyms.md runs as it stands, and its probe file is one."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lightning_sft.probes import load_probes
from tests.probes.tokenizers import word_tokenizer
from tests.toys import toy_model

PAGE = (Path(__file__).parents[2] / "docs" / "near_synonyms.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_example_runs_around_a_plain_module(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    tokenizer = word_tokenizer(["shame", "guilt"])
    toy_model(vocab_size=len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    assert len(AutoTokenizer.from_pretrained(model)) == len(tokenizer)
    example, _ = blocks("python")  # the second makes a probe for a chat template
    assert len(example.splitlines()) <= 36
    exec(compile(example, "near_synonyms.md", "exec"), {"__name__": "page"})
    assert re.search(r"flipped at step|never behind|stopped early|failed|did not fall", capsys.readouterr().out)
    assert list(tmp_path.rglob("verdicts.json"))


def test_the_probe_file_on_the_page_loads(tmp_path):
    (tmp_path / "probes.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    assert load_probes(tmp_path / "probes.yaml")[0].name == "cottage"
