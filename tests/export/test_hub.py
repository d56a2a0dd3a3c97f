"""`export --push_to_hub`: a fake hub takes the folder; where it does not, the folder stays and the way on is named."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from lightning_sft.cli.entry import main
from lightning_sft.models.finished import find_finished
from lightning_sft.models.generation import generate
from tests.running import run, run_folder, toy_arguments, write_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:`loftq_config` specified"),
    pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`"),
]
LORA = '{"class_path": "peft.LoraConfig", "init_args": {"target_modules": "all-linear", "r": 4}}'


class Hub:
    """Stands for huggingface_hub.HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.repositories: list[tuple[str, bool]] = []
        self.uploaded: dict[str, set[str]] = {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.repositories.append((name, private))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.error is not None:
            raise self.error
        assert commit_message
        self.uploaded[repo_id] = {path.name for path in folder_path.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return made


@pytest.fixture(scope="module")
def trained(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("fit", toy_arguments(toy_folder, write_rows(folder / "rows.jsonl"), model__adapter=LORA))
    return run_folder(folder / "lightning_logs") / "checkpoints/last.ckpt"


def refused(given: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, given)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_folder_is_uploaded_with_its_card(trained: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", f"--ckpt_path={trained}", "--output=out", "--merge", "--push_to_hub=me/counts", "--private"])
    assert hub.repositories == [("me/counts", True)]
    assert hub.uploaded["me/counts"] == {path.name for path in Path("out").iterdir()}
    assert "out -> https://hub/me/counts" in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    assert "# counts" in card
    assert 'folder = "me/counts"' in card
    blocks = [yaml.safe_load(text) for text in re.findall(r"````yaml\n(.*?)````\n", card, re.S)]
    assert blocks[0]["adapter"]["init_args"]["r"] == 4
    assert blocks[0]["objective"]["class_path"].endswith("NLL")
    assert "train" in blocks[1]
    assert "| val/nll |" in card


def test_the_example_of_the_card_runs(trained: Path) -> None:
    main(["export", f"--ckpt_path={trained}", "--output=adapter"])
    (code,) = re.findall(r"```python\n(.*?)```", Path("adapter/README.md").read_text(), re.S)
    code = code.replace("path/of/this/folder", "adapter").replace("max_new_tokens=64", "max_new_tokens=4")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    model = find_finished("adapter").load()
    asked = [{"role": "user", "content": "Hello"}]
    ids = model.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert done.stdout == generate(model.causal_lm, model.tokenizer, [ids], max_new_tokens=4)[0] + "\n"


@pytest.mark.parametrize(
    "error", [ConnectionError("no route to host"), RuntimeError("403 Forbidden: you may not write")], ids=["net", "hub"]
)
def test_a_failed_upload_leaves_the_folder_and_the_way_on(
    error: Exception, trained: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.error = error
    place = "my models/out"
    message = refused([f"--ckpt_path={trained}", f"--output={place}", "--merge", "--push_to_hub=me/counts"], capsys)
    assert str(error) in message
    assert Path(place, "model.safetensors").is_file()
    command = shlex.split(message.strip().rpartition("exporting again: ")[2])
    assert command == ["hf", "upload", "me/counts", place, "."]


def test_an_adapter_whose_base_is_not_on_the_hub_is_refused(
    trained: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused([f"--ckpt_path={trained}", "--output=out", "--push_to_hub=me/counts"], capsys)
    assert "is not on the hub: nobody else could load it. Add --merge" in message
    assert not Path("out").exists()
    assert not hub.repositories


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--push_to_hub=not a/name/at all"], "which is no name of a repository"),
        (["--private"], "without --push_to_hub"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    given: list[str], message: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.ckpt").touch()
    assert message in refused(["--ckpt_path=run.ckpt", "--output=out", *given], capsys)


def test_nobody_logged_in_is_said_before_anything_is_loaded(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    Path("run.ckpt").touch()
    message = refused(["--ckpt_path=run.ckpt", "--output=out", "--push_to_hub=me/counts"], capsys)
    assert "Run `hf auth login`, or set HF_TOKEN" in message
