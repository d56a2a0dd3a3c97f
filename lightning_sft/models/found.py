"""What stands under the name of a finished model, and how its model and tokenizer are made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from peft import PeftConfig
from transformers.utils.peft_utils import find_adapter_config_file

from lightning_sft.checkpoints.state import KEY
from lightning_sft.errors import UserError, first_line
from lightning_sft.hub import require_on_hub
from lightning_sft.models.adapters import stored_config
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.tokenizer import TokenizerSettings
from lightning_sft.places import ADAPTER_CONFIG

Kind = Literal["model", "adapter", "checkpoint"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def of_adapter(folder: str, base: str | None, how: dict[str, Any]) -> tuple[Kind, ModelSettings, TokenizerSettings]:
    """Return how to build an adapter's model; the tokenizer beside the adapter goes before that of the base."""
    config = stored_config(folder)
    named = base or config.base_model_name_or_path
    if not named:
        raise UserError(
            f"The adapter {folder!r} does not say what it stands on: its adapter_config.json has no "
            "base_model_name_or_path. Name the base (--base on the command line, base= in Python)."
        )
    revision = None if base else config.revision
    settings = ModelSettings(named, revision=revision, adapter_path=folder, **how)
    has_own = any((Path(folder) / file).is_file() for file in _TOKENIZER_FILES)
    remote = how["trust_remote_code"]
    own = TokenizerSettings(folder, trust_remote_code=remote)
    words = own if has_own else TokenizerSettings(named, revision=revision, trust_remote_code=remote)
    _require_base(named, f"The adapter {folder!r}", settings)
    return "adapter", settings, words


def adapter_folder(name: str, path: Path, revision: str | None) -> str | None:
    """Return the folder of an adapter under a name, fetched from the hub if need be; None if it is no adapter."""
    if path.is_dir():
        return str(path) if (path / ADAPTER_CONFIG).is_file() else None
    if path.suffix == ".gguf" or name.startswith(("pkg://", ".", "/", "~")) or name.count("/") != 1:
        return None
    require_on_hub(name)
    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        from huggingface_hub import snapshot_download

        return snapshot_download(name, revision=revision, ignore_patterns=["checkpoint-*", "runs/*"])
    except (OSError, ValueError) as error:
        raise UserError(f"No adapter could be loaded from {name!r}: {first_line(error)}") from error


def of_checkpoint(
    path: Path, content: dict[str, Any], base: str | None, how: dict[str, Any]
) -> tuple[Kind, ModelSettings, TokenizerSettings]:
    """Return how to build the model of a checkpoint as its run built it."""
    given = dict(content.get("hyper_parameters", {}))
    if KEY not in content or "model_name_or_path" not in given:
        raise UserError(
            f"{str(path)!r} is a checkpoint of Lightning, but not of an SFTModule, so its model is not known here. "
            "Save its model as a Hugging Face folder (save_pretrained), and give that."
        )
    if "adapter" not in given:
        raise UserError(
            f"{str(path)!r} is of an SFTModule whose adapter was given as a Python object, which a checkpoint does not "
            "hold. Write the model as a folder in Python, with the same object, and give that:\n"
            f"    module = SFTModule.load_from_checkpoint({str(path)!r}, adapter=...)\n"
            '    lightning_sft.export.folder.write_folder(module, "folder")'
        )
    if base is not None:
        given |= {"model_name_or_path": base, "revision": None}
    given["adapter"] = _as_object(given["adapter"], path)
    given |= {"reference": None, "neftune_noise_alpha": None, "torch_compile": False, "gradient_checkpointing": False}
    given |= {**how, "trust_remote_code": how["trust_remote_code"] or given["trust_remote_code"]}
    settings = ModelSettings.among(given)
    _require_base(settings.name, f"The checkpoint {str(path)!r}", settings)
    return "checkpoint", settings, TokenizerSettings.among(given)


def _as_object(adapter: Any, path: Path) -> PeftConfig | None:
    """Return an adapter's configuration from the plain data that the command line left in a checkpoint."""
    if adapter is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PeftConfig, "adapter")
    try:
        with warnings.catch_warnings():
            # peft is given LoraConfig's default spelled out
            warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
            made = parser.instantiate_classes(parser.parse_object({"adapter": adapter})).adapter
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(
            f"The adapter in the settings of {str(path)!r} cannot be made here: {error}. Read it with the version of "
            "peft that trained it, or give a folder that `lightning-sft export` wrote there."
        ) from error
    assert isinstance(made, PeftConfig)
    return made


def _require_base(base: str, whose: str, settings: ModelSettings) -> None:
    """Raise if what a model stands on is a folder or file that does not exist."""
    place = Path(base).expanduser()
    looks_local = base.startswith((".", "/", "~")) or base.count("/") > 1 or place.suffix == ".gguf"
    if base.startswith("pkg://") or not looks_local or place.exists():
        return
    raise UserError(
        f"{whose} stands on {base!r}, which does not exist (looked from {Path.cwd()}). Name the place where that model "
        "is now (--base on the command line, base= in Python)."
    )
