"""What people call things elsewhere, and what they are called here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from lightning_sft.places import DOCS

#: last word of a setting, as it is called elsewhere -> our key
SETTINGS: dict[str, str] = {
    "learning_rate": "model.optimizer.lr",
    "optimizer_name": "model.optimizer",
    "num_workers": "data.num_workers",
    "mixed_precision": "trainer.precision",
    "lr": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "optim": "model.optimizer",
    "scheduler": "model.lr_scheduler",
    "lr_scheduler_type": "model.lr_scheduler",
    "schedule": "model.lr_scheduler",
    "warmup": "model.warmup_ratio",
    "loss": "model.objective",
    "loss_type": "model.objective",
    "loss_function": "model.objective",
    "criterion": "model.objective",
    "model_name": "model.model_name_or_path",
    "model_id": "model.model_name_or_path",
    "base_model": "model.model_name_or_path",
    "pretrained_model_name_or_path": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "peft_config": "model.adapter",
    "peft": "model.adapter",
    "lora": "model.adapter",
    "lora_r": "model.adapter.r",
    "lora_rank": "model.adapter.r",
    "rank": "model.adapter.r",
    "lora_alpha": "model.adapter.lora_alpha",
    "lora_dropout": "model.adapter.lora_dropout",
    "target_modules": "model.adapter.target_modules",
    "lora_target_modules": "model.adapter.target_modules",
    "load_in_8bit": "model.quantization",
    "load_in_4bit": "model.quantization",
    "use_gradient_checkpointing": "model.gradient_checkpointing",
    "activation_checkpointing": "model.gradient_checkpointing",
    "compile": "model.torch_compile",
    "flash_attention": "model.attn_implementation",
    "tokenizer": "model.tokenizer_name_or_path",
    "neftune": "model.neftune_noise_alpha",
    "data": "data.train",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "dataset_path": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "train_dataset": "data.train",
    "eval_dataset": "data.val",
    "eval_file": "data.val",
    "validation_file": "data.val",
    "val_data": "data.val",
    "val_size": "data.val_split",
    "val_set_size": "data.val_split",
    "test_size": "data.val_split",
    "bs": "data.batch_size",
    "micro_batch_size": "data.batch_size",
    "per_device_train_batch_size": "data.batch_size",
    "train_batch_size": "data.batch_size",
    "per_device_eval_batch_size": "data.val_batch_size",
    "eval_batch_size": "data.val_batch_size",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "block_size": "data.max_length",
    "sample_packing": "data.packing",
    "group_by_length": "data.order",
    "train_on_inputs": "data.train_on",
    "assistant_only_loss": "data.train_on",
    "completion_only_loss": "data.train_on",
    "system_prompt": "data.system",
    "dataset_num_proc": "data.num_proc",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "grad_accum": "trainer.accumulate_grad_batches",
    "accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "grad_clip": "trainer.gradient_clip_val",
    "clip": "trainer.gradient_clip_val",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "tf32": "trainer.precision",
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "nodes": "trainer.num_nodes",
    "nnodes": "trainer.num_nodes",
    "device": "trainer.accelerator",
    "fsdp": "trainer.strategy",
    "deepspeed": "trainer.strategy",
    "logging_steps": "trainer.log_every_n_steps",
    "eval_steps": "trainer.val_check_interval",
    "eval_strategy": "trainer.val_check_interval",
    "report_to": "trainer.logger",
    "wandb": "trainer.logger",
    "tensorboard": "trainer.logger",
    "csv": "trainer.logger",
    "callback": "trainer.callbacks",
    "output_dir": "output",
    "out": "output",
    "run_dir": "output",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "random_seed": "seed_everything",
    "configuration": "config",
    "yaml": "config",
}
_LONG_ROWS = (
    "Context parallelism, which splits one row over devices, is not supported. For rows that a device cannot hold, in "
    "this order: model.gradient_checkpointing: true; data.batch_size: 1 and more trainer.accumulate_grad_batches; "
    "configs/strategy/fsdp2.yaml; configs/strategy/fsdp2_tensor_parallel.yaml; data.truncation: keep_completion. "
    "`lightning estimate` says what each saves. Why it is so: "
    f"{DOCS}/how_to/strategies.md#rows-longer-than-a-device-holds"
)
#: what is asked for and not offered, by its names elsewhere -> what to do instead
NOT_OFFERED: dict[str, str] = dict.fromkeys(
    (
        "contextparallel", "contextparallelism", "contextparallelsize", "contextparalleldegree", "cpsize", "cpdegree",
        "cpbackend", "cprotatemethod", "sequenceparallel", "sequenceparallelism", "sequenceparallelsize",
        "sequenceparalleldegree", "spsize", "spdegree", "ringattention", "ulysses", "ulyssessize", "ulyssesdegree",
        "ulyssessequenceparallelsize", "contextparallelstrategy",
    ),
    _LONG_ROWS,
)  # fmt: skip
#: base class -> what its arguments are called elsewhere
OPTIONS: dict[str, dict[str, str]] = {
    "PeftConfig": {
        "rank": "r",
        "lora_r": "r",
        "dim": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "modules": "target_modules",
        "targets": "target_modules",
        "rslora": "use_rslora",
        "dora": "use_dora",
    },
    "Optimizer": {"learning_rate": "lr", "wd": "weight_decay", "decay": "weight_decay", "epsilon": "eps"},
    "LRScheduler": {"total": "total_steps", "max_learning_rate": "max_lr"},
    "Logger": {"dir": "save_dir", "output": "save_dir", "run_name": "name"},
    "DataSource": {"file": "path", "data": "path"},
}
#: base class -> what its classes are called elsewhere
CLASSES: dict[str, dict[str, str]] = {
    "Objective": {
        "ce": "NLL",
        "crossentropy": "NLL",
        "crossentropyloss": "NLL",
        "nllloss": "NLL",
        "mle": "NLL",
        "sft": "NLL",
        "power": "PowerFamily",
        "p": "PowerFamily",
        "kl": "KLAnchor",
        "distillation": "Distill",
    },
    "PeftConfig": {"lora": "LoraConfig", "dora": "LoraConfig", "qlora": "LoraConfig", "ia3": "IA3Config"},
    "Optimizer": {"adamwtorch": "AdamW", "adamwtorchfused": "AdamW", "adamwhf": "AdamW"},
    "Logger": {
        "wandb": "WandbLogger",
        "weightsandbiases": "WandbLogger",
        "csv": "CSVLogger",
        "tensorboard": "TensorBoardLogger",
        "tb": "TensorBoardLogger",
        "mlflow": "MLFlowLogger",
        "comet": "CometLogger",
    },
    "DataSource": {"jsonl": "Source", "json": "Source", "parquet": "Source", "hub": "Source"},
}

NOT_OFFERED["qlora"] = "QLoRA is --adapter lora with --model.quantization nf4."
#: base class -> what people mostly take of many, by the word that they type
USUAL: dict[str, tuple[str, ...]] = {
    "PeftConfig": ("lora", "dora", "adalora", "ia3", "loha", "lokr", "oft", "vera", "prompttuning"),
    "Callback": (
        "EarlyStopping", "ModelCheckpoint", "LearningRateMonitor", "CapabilityProbe", "SilentFailureMonitor",
        "GenerationMonitor", "DriftMonitor", "LearningRateSweep", "BestCheckpoint",
    ),
}  # fmt: skip
#: class -> the arguments that people mostly set, of many
USUAL_OPTIONS: dict[str, tuple[str, ...]] = {
    "LoraConfig": (
        "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora", "modules_to_save",
        "init_lora_weights",
    ),
}  # fmt: skip


def plain(word: str) -> str:
    """Return a name without case, dashes and underscores."""
    return word.casefold().replace("-", "").replace("_", "")


def not_offered(name: str) -> str | None:
    """Return what to do instead of a thing that is not offered, by the name that a setting or a class has elsewhere."""
    return NOT_OFFERED.get(plain(name.rpartition(".")[2]))


def nearest(word: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str | None:
    """Return what was probably meant: the same name in another case, its name elsewhere, or the closest spelling.

    Args:
        word: as it was given.
        names: what there is.
        elsewhere: a name elsewhere to ours.
    """
    names = list(names)
    same = next((name for name in names if plain(name) == plain(word)), None)
    if same is not None:
        return same
    known = {plain(name): ours for name, ours in (elsewhere or {}).items()}.get(plain(word))
    if known is not None and known in names:
        return known
    spelled = {plain(name): ours for name, ours in (elsewhere or {}).items() if ours in names}
    spelled |= {plain(name): name for name in reversed(names)}
    close = difflib.get_close_matches(plain(word), spelled, n=1, cutoff=0.6)
    if close:
        return spelled[close[0]]
    longer = [name for name in names if len(plain(word)) > 3 and plain(name).startswith(plain(word))]
    return longer[0] if len(longer) == 1 else None


def nearest_setting(key: str, keys: Iterable[str]) -> str | None:
    """Return the setting that was probably meant by an unknown key."""
    keys = list(keys)
    if key in keys:
        return key
    section, _, last = key.rpartition(".")
    known = SETTINGS.get(last.casefold().replace("-", "_"))
    same = [k for k in keys if plain(k) == plain(key)]
    ends = [k for k in keys if plain(k.rpartition(".")[2]) == plain(last)]
    if same:
        return same[0]
    if known is not None and (not ends or section in ("", known.partition(".")[0])):
        return known
    if len(ends) == 1 or (ends and not section):
        return ends[0]
    inside = [k for k in keys if k.rpartition(".")[0] == section]
    close = nearest(last, [k.rpartition(".")[2] for k in inside]) if inside and section else None
    if close is not None:
        return f"{section}.{close}"
    if not inside:  # the section may be misspelt, too
        whole = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
        if whole:
            return whole[0]
    last_words = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in keys], n=1, cutoff=0.75)
    if last_words:
        return next(k for k in keys if k.rpartition(".")[2] == last_words[0])
    there = difflib.get_close_matches(last.casefold(), SETTINGS, n=1, cutoff=0.9)  # a typo of its name elsewhere
    return SETTINGS[there[0]] if there else None
