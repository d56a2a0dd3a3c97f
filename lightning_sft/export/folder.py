"""Write a checkpoint as a Hugging Face folder: the whole model, an adapter, or an adapter merged into its base."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from lightning_sft.checkpoints import shards
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.checkpoints.state import KEY
from lightning_sft.errors import OutputExistsError, UserError, first_line
from lightning_sft.export.model_card import Kind, is_on_hub, model_card, run_config
from lightning_sft.files import new_folder
from lightning_sft.models.access import find_causal_lm
from lightning_sft.models.generation import end_tokens
from lightning_sft.models.gguf import quiet_progress
from lightning_sft.models.loading import resolve
from lightning_sft.models.tuners import changes_base, initialisation
from lightning_sft.module import SFTModule


def load_module(checkpoint: Path) -> SFTModule:
    """Rebuild the module that the command line trained from its checkpoint, on the CPU.

    Raises:
        UserError: no checkpoint of ours, one of a module built from Python objects, or one whose model cannot be
            rebuilt as it was.
    """
    hparams = _read(checkpoint).get("hyper_parameters", {})
    objects = sorted({"adapter", "objective"} - hparams.keys())
    if objects:
        given = ", ".join(f"{name}=..." for name in objects)
        raise UserError(
            f"The checkpoint {str(checkpoint)!r} is of an SFTModule that was built from Python objects ({given}), "
            "which a checkpoint does not hold. Export it in Python, with the same objects:\n"
            "    from lightning_sft import SFTModule\n"
            "    from lightning_sft.export.folder import write_folder\n"
            f"    module = SFTModule.load_from_checkpoint({str(checkpoint)!r}, {given})\n"
            '    write_folder(module, "folder", merge=False)'
        )
    with warnings.catch_warnings():
        # an adapter's checkpoint leaves the frozen base out, and peft is given LoraConfig's default spelled out
        warnings.filterwarnings("ignore", message="Found keys that are in the model state dict but not in the checkp")
        warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
        try:
            with _one_file(checkpoint) as file:
                return SFTModule.load_from_checkpoint(file, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except (ValueError, TypeError, ImportError, argparse.ArgumentError) as error:
            raise UserError(
                f"The settings in the checkpoint {str(checkpoint)!r} do not build a module here: {error}. Run the "
                "export where the run's own classes can be imported, with the version that trained it."
            ) from error


def write_folder(
    module: SFTModule,
    output: str | Path,
    *,
    merge: bool = False,
    checkpoint: str | Path | None = None,
    repository: str | None = None,
) -> Kind:
    """Write a module's model, tokenizer, chat template and model card as a Hugging Face folder.

    Everything is written into a hidden folder and renamed at the end: there is no half folder after a failure.

    Args:
        module: the module; its model must be whole, on one device.
        output: the folder; it must not exist.
        merge: merge the adapter into its base. This changes the module's model for good.
        checkpoint: where the module came from; the card then tells steps, readings and data.
        repository: of the hub, where the folder will go: stands in the card's example.

    Returns:
        What was written: ``"full"``, ``"adapter"`` or ``"merged"``.

    Raises:
        UserError: the folder exists or cannot be written, the base is quantised and would have to be merged, or the
            frozen part of the model is not what it was in training; or an adapter alone is meant for a repository, and
            its base is not on the hub.
    """
    output = Path(output)
    refuse_existing(output)
    module.configure_model()
    model = cast("PreTrainedModel | PeftModel", module.scorer.model)
    kind: Kind = "full" if not isinstance(model, PeftModel) else "merged" if merge else "adapter"
    if repository is not None and kind == "adapter" and not is_on_hub(module.settings.name):
        raise UserError(
            f"--push_to_hub is {repository!r}, but the adapter stands on {module.settings.name!r}, which is not on the "
            "hub: nobody else could load it. Add --merge."
        )
    saved = None if checkpoint is None else _read(Path(checkpoint))
    if isinstance(model, PeftModel):
        _require_known_base(module, merge)
        if merge:
            model = module.scorer.model = _merged(model)
        else:
            _name_base(module, model)
    _for_generation(module)
    config = None if checkpoint is None else run_config(Path(checkpoint), (saved or {}).get("global_step"))
    title = output.name if repository is None else repository.rpartition("/")[2]
    card = model_card(module, kind, title, saved, config, repository)
    place = next(folder for folder in output.absolute().parents if folder.is_dir())
    try:
        with new_folder(output, place=place) as partial:
            _write(module, model, partial)
            (partial / "README.md").write_text(card, encoding="utf-8")  # in place of the one that peft writes
    except OSError as error:
        raise UserError(f"The folder {str(output)!r} could not be written: {error}. Give another --output.") from error
    return kind


def _write(module: SFTModule, model: PreTrainedModel | PeftModel, folder: Path) -> None:
    with quiet_progress():
        if isinstance(model, PeftModel):
            # told outright, since peft would ask the hub whether the vocabulary grew
            model.save_pretrained(str(folder), save_embedding_layers=False)
            module.scorer.causal_lm.generation_config.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)


def refuse_existing(output: Path) -> None:
    """Raise if something lies where a folder is to be written.

    Raises:
        OutputExistsError: it does.
    """
    if output.exists() or output.is_symlink():
        raise OutputExistsError(output, "Give a folder that does not exist yet, or remove that one.")


def _read(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint of ours, its tensors left on the disk."""
    content = read_checkpoint(checkpoint)
    if KEY not in content:
        raise UserError(
            f"--ckpt_path is {str(checkpoint)!r}, which holds no SFTModule. Allowed: a .ckpt that `lightning fit` "
            "wrote, 'last' or 'best'. What is a Hugging Face model already needs no export."
        )
    return content


@contextlib.contextmanager
def _one_file(checkpoint: Path) -> Iterator[Path]:
    """Yield a checkpoint as one file; a folder of shards is joined into a temporary file."""
    if not checkpoint.is_dir():
        yield checkpoint
        return
    import torch

    with tempfile.TemporaryDirectory(prefix=".joined-", dir=checkpoint.parent) as folder:
        joined = Path(folder) / checkpoint.name
        torch.save({**_read(checkpoint), "state_dict": shards.weights(checkpoint)}, joined)
        yield joined


def _require_known_base(module: SFTModule, merge: bool) -> None:
    """Raise if readers of the folder could not get the frozen part of an adapter run."""
    settings = module.settings
    if settings.init == "random" and not merge:
        raise UserError(
            f"The adapter was trained on random weights (init: random of {settings.name!r}), which nobody else has. "
            "Add --merge: the checkpoint holds them, and the folder will."
        )
    start = initialisation(settings.adapter_config)
    if start and changes_base(settings.adapter_config) and not merge:
        raise UserError(
            f"The adapter began with init_lora_weights: {start}, which took what the fresh adapter adds off the base. "
            f"The adapter alone would stand on {settings.name!r} as it was. Add --merge: the checkpoint holds the base "
            "that it was trained on, and the folder will."
        )


def _merged(model: PeftModel) -> PreTrainedModel:
    causal_lm = find_causal_lm(model)
    quantised = getattr(causal_lm.config, "quantization_config", None)
    if quantised is not None or getattr(causal_lm, "hf_quantizer", None) is not None:
        method = getattr(quantised, "quant_method", None) or "unknown method"
        raise UserError(
            f"--merge was given, but the base is quantised ({getattr(method, 'value', method)}): merging would round "
            "the adapter away with it. Export the adapter alone, without --merge, or train on the base as it was "
            "before quantisation."
        )
    _untie_adapted(causal_lm)
    peft_model: Any = model  # torch types what a module forwards to another one as a tensor
    try:
        merged = peft_model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        kind = type(model.active_peft_config).__name__
        raise UserError(
            f"--merge was given, but the adapter {kind} cannot be merged into {type(causal_lm).__name__}: "
            f"{first_line(error)} Export the adapter alone, without --merge."
        ) from error
    assert isinstance(merged, PreTrainedModel)
    return merged


def _untie_adapted(model: PreTrainedModel) -> None:
    """Give input and output embeddings their own weights if they are tied and an adapter works on either.

    An adapter on one of two tied embeddings changes that one alone; merged into the shared weights it would change
    both.
    """
    embeddings: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    bases = [getattr(e, "base_layer", getattr(e, "original_module", e)) for e in embeddings]
    adapted = any(base is not embedding for base, embedding in zip(bases, embeddings, strict=True))
    whole = all(isinstance(e, ModulesToSaveWrapper) for e in embeddings)
    one_copy = whole and embeddings[0].weight is embeddings[1].weight  # as peft's ensure_weight_tying makes it
    if adapted and bases[0].weight is bases[1].weight and not one_copy:
        bases[1].weight = nn.Parameter(bases[1].weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _name_base(module: SFTModule, model: PeftModel) -> None:
    """Write into the adapter's configuration what plain peft can load the base from."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = resolve(module.settings.name)
        config.revision = module.settings.revision


def _for_generation(module: SFTModule) -> None:
    """Prepare the configuration for generation: answers end where ``predict`` ends them."""
    model = module.scorer.causal_lm
    model.config.use_cache = True
    generation = model.generation_config
    assert generation is not None, "a model that can generate has one"
    generation.use_cache = True
    generation.eos_token_id = end_tokens(model, module.tokenizer)
    generation.pad_token_id = module.tokenizer.pad_token_id
