"""The model card of an exported folder: base model, data, training settings and results."""

from __future__ import annotations

import dataclasses
import enum
import types
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml  # type: ignore[import-untyped]

from lightning_sft.checkpoints.runs import KEEPERS
from lightning_sft.checkpoints.state import KEY
from lightning_sft.places import PACKAGE_SCHEME, run_of, settings_at

if TYPE_CHECKING:
    from peft import PeftConfig

    from lightning_sft.module import SFTModule

Kind = Literal["full", "adapter", "merged"]
#: stands in the card where nobody knows yet where the folder will be
PLACE = "path/of/this/folder"
#: what peft fills in by itself, and what says nothing about the adapter
UNTOLD = {"auto_mapping", "base_model_name_or_path", "inference_mode", "loftq_config", "peft_type", "peft_version"}
UNTOLD |= {"revision", "runtime_config", "task_type"}
#: settings of the module that say how it was trained
SETTINGS: tuple[str, ...] = (
    "optimizer",
    "lr_scheduler",
    "warmup_steps",
    "warmup_ratio",
    "denominator",
    "init",
    "dtype",
    "adapter_path",
)
SETTINGS += ("config_overrides", "neftune_noise_alpha", "add_special_tokens")


def model_card(
    module: SFTModule,
    kind: Kind,
    title: str,
    checkpoint: dict[str, Any] | None,
    config: dict[str, Any] | None,
    repository: str | None = None,
) -> str:
    """Return the text of README.md: YAML front matter for the Hugging Face hub, then the description.

    Args:
        module: the module that was trained; its names and paths appear as the user gave them.
        kind: ``"full"``: a whole fine-tuned model; ``"adapter"``: an adapter alone; ``"merged"``: an adapter in its
            base.
        title: the heading.
        checkpoint: the checkpoint, for steps and readings; None leaves them out.
        config: the run's settings, for the data; None leaves it out.
        repository: of the hub, where the folder goes there.
    """
    sections = [
        f"---\n{_yaml(_front_matter(module, kind))}---\n\n# {title}",
        _summary(module, kind),
        f"## Use\n\n{_usage(module, kind, repository or PLACE)}",
        f"## Training\n\n{_block(_training(module, checkpoint))}",
    ]
    data = _given((config or {}).get("data"))
    sections += [f"## Data\n\n{_block(data)}"] if data else []
    sections += [f"## Readings\n\n{_readings(checkpoint)}"] if checkpoint is not None else []
    return "\n\n".join(sections) + "\n"


def run_config(checkpoint: Path, step: int | None = None) -> dict[str, Any] | None:
    """Return the settings of the run that a checkpoint lies in, or None if there is none.

    Args:
        checkpoint: a file or a folder of shards.
        step: its optimizer steps: a run that went on with other settings had those of its last part before that step.
            None takes those of the run's last part.
    """
    folder = run_of(checkpoint.resolve())
    if folder is None:
        return None
    config = yaml.safe_load(settings_at(folder, step).read_text(encoding="utf-8"))
    return config if isinstance(config, dict) else None


def is_converted(name: str) -> bool:
    """Return whether a model name means a GGUF file, which is loaded from its converted folder."""
    return name.startswith(PACKAGE_SCHEME) or name.endswith(".gguf")


def is_on_hub(name: str) -> bool:
    """Return whether a model name means a repository of the hub, so far as can be said without asking it."""
    return not is_converted(name) and not Path(name).expanduser().exists()


def _front_matter(module: SFTModule, kind: Kind) -> dict[str, Any]:
    name = module.settings.name
    # the hub refuses a card whose base_model is no hub name; the text below names every base
    base = {"base_model": name, "base_model_relation": "adapter" if kind == "adapter" else "finetune"}
    return {
        "library_name": "peft" if kind == "adapter" else "transformers",
        **(base if is_on_hub(name) else {}),
        "pipeline_tag": "text-generation",
        "tags": ["lightning-sft", "sft"],
    }


def _summary(module: SFTModule, kind: Kind) -> str:
    settings, adapter = module.settings, module.settings.adapter_config
    name = f"`{settings.name}`" + (f" (revision `{settings.revision}`)" if settings.revision else "")
    start = " from random weights" if settings.init == "random" else ""
    text = {
        "full": f"Base model: {name}, all of it trained{start}.",
        "merged": f"Base model: {name}, with an adapter ({type(adapter).__name__}) merged into its weights. It needs "
        "nothing else.",
        "adapter": f"Base model: {name}. This folder holds an adapter ({type(adapter).__name__}) alone, which needs "
        "that model to work.",
    }[kind]
    notes = []
    if kind == "adapter" and is_converted(settings.name):
        notes.append(
            "The base is a GGUF file, which was converted to a folder when it was trained; `adapter_config.json` names "
            "that folder, which exists only on the machine of the export. Elsewhere give the base yourself, as "
            "`PeftModel.from_pretrained(base_model, folder)`, or export again with `--merge`."
        )
    if kind == "adapter" and settings.config_overrides:
        notes.append(f"The base was trained with changes of its configuration: `{settings.config_overrides}`.")
    made = f"Made with lightning-sft {metadata.version('lightning-sft')}."
    return "\n\n".join([text, *notes, made])


def _usage(module: SFTModule, kind: Kind, place: str) -> str:
    remote = ", trust_remote_code=True" if module.settings.trust_remote_code else ""
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    model, options, after = "AutoModelForCausalLM", remote, []
    if kind == "adapter":
        imports = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer, GenerationConfig",
        ]
        # a base is loaded in the dtype it was stored in, which need not be the one it was trained in
        trained_in = str(module.scorer.causal_lm.dtype).removeprefix("torch.")
        dtype = "" if module.settings.dtype == "auto" else f', dtype="{trained_in}"'
        model, options = "AutoPeftModelForCausalLM", dtype + remote
        after = ["model.generation_config = GenerationConfig.from_pretrained(folder)"]
    lines = [
        *imports,
        "",
        f'folder = "{place}"',
        f"model = {model}.from_pretrained(folder{options})",
        *after,
        f"tokenizer = AutoTokenizer.from_pretrained(folder{remote})",
        "",
        *_question(module),
        "answer = model.generate(**inputs, max_new_tokens=64)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(["```python", *lines, "```"])


def _question(module: SFTModule) -> list[str]:
    if module.tokenizer.chat_template is None:
        return ['inputs = tokenizer("Hello", return_tensors="pt")']
    return [
        'messages = [{"role": "user", "content": "Hello"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
    ]


def _training(module: SFTModule, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    # a module that is rebuilt from a checkpoint gets objects where the checkpoint holds their recipes
    hparams: dict[str, Any] = dict(module.hparams if checkpoint is None else checkpoint["hyper_parameters"])
    class_path = f"{type(module.objective).__module__}.{type(module.objective).__qualname__}"
    adapter = module.settings.adapter_config
    steps = {} if checkpoint is None else {"steps": checkpoint["global_step"], **_epochs(checkpoint)}
    facts = {} if checkpoint is None else checkpoint.get(KEY, {}).get("facts", {})
    return {
        **steps,
        **facts,
        "objective": _given(hparams.get("objective")) or {"class_path": class_path},
        **({} if adapter is None else {"adapter": _adapter(adapter, hparams.get("adapter"))}),
        **(_given({k: hparams.get(k) for k in SETTINGS})),
    }


def _epochs(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return how often the data had been passed over; Lightning's own `epoch` counts from zero, and begun ones."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    try:
        begun, progress = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]
        if progress["is_last_batch"]:
            return {"epochs": begun}
        done, ever = progress["current"]["completed"], progress["total"]["completed"]
    except KeyError:  # of a checkpoint that holds no loops
        return {}
    if begun < 2 or ever <= done:
        return {"epochs": "less than 1"}
    return {"epochs": round(begun - 1 + done * (begun - 1) / (ever - done), 2)}


def _adapter(config: PeftConfig, recipe: dict[str, Any] | None) -> dict[str, Any]:
    """Return the class of an adapter and what differs from the defaults of its class, as the user wrote it."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in UNTOLD}
    try:
        default: Any = type(config)()
    except (TypeError, ValueError):  # some classes cannot be made without settings, such as AdaLoRA's total_step
        default = types.SimpleNamespace(**{f.name: _default(f) for f in dataclasses.fields(config)})
    written = (recipe or {}).get("init_args", {})  # such as all-linear, where the configuration has a list by now
    changed = {k: written.get(k, _plain(v)) for k, v in values.items() if v != getattr(default, k)}
    return {"class_path": f"peft.{type(config).__name__}", "init_args": changed}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, enum.Enum) else value


def _readings(checkpoint: dict[str, Any]) -> str:
    states: dict[str, Any] = checkpoint.get("callbacks", {})
    summary: dict[str, Any] = states.get("RunSummary", {})
    start = "before" if summary.get("before_step", 0) == 0 else f"step {summary['before_step']}"
    both = {start: summary.get("before", {}), "last validation": summary.get("after", {})}
    columns = {name: values for name, values in both.items() if values}
    first, last = summary.get("before_objective"), summary.get("after_objective")
    parts = []
    if first and last and first != last:  # a loss is in the units of its objective
        columns = {n: {k: v for k, v in row.items() if n != start or k != "val/loss"} for n, row in columns.items()}
        parts.append(f"The run began under {first} and went on under {last}: `val/loss` is the latter's.")
    if columns:
        keys = sorted({key for values in columns.values() for key in values})
        lines = [["held out", *columns], ["---"] * (1 + len(columns))]
        lines += [[key, *(_number(values.get(key)) for values in columns.values())] for key in keys]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    for key, state in states.items():
        if key.startswith(KEEPERS) and state.get("best_model_score") is not None:
            parts.append(f"Best `{state['monitor']}` of the run so far: {_number(state['best_model_score'])}.")
    return "\n\n".join(parts) or "No validation had run when the checkpoint was written."


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.5g}"


def _given(value: Any) -> Any:
    """Return settings without those left at None."""
    return {k: _given(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _block(value: Any) -> str:
    return f"````yaml\n{_yaml(value)}````"  # four: a system prompt may hold a fence of three
