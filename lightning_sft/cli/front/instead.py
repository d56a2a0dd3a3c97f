"""Names from TRL, Axolotl, LLaMA-Factory and torchtune that no single setting has here: what to type instead."""

from __future__ import annotations

from lightning_sft.cli.front.names import plain

_ADAPTER = "--adapter lora does that; --adapter.r 16 and --adapter.alpha 32 set its size"
_SAVE = (
    "the best and the last checkpoint are kept by default; a ModelCheckpoint among trainer.callbacks keeps others "
    "(every_n_train_steps, save_top_k)"
)
_COLUMNS = (
    "columns are recognised by their names, and others are mapped: --train FILE --train.columns "
    "'{prompt: q, completion: a}'"
)
_BEST = "the best checkpoint by val/nll is kept by default, and `lightning test RUN` reads it"
_8BIT = (
    "--model.optimizer takes any class by its full path, such as bitsandbytes.optim.AdamW8bit; to save memory first: "
    "--adapter lora, --model.quantization nf4"
)
_ATTENTION = "--model.attn_implementation flash_attention_2 does that; sdpa is transformers' choice"
_PACKED = "--data.order packed does that; no row sees another"
#: what it is called elsewhere -> what to do here
_INSTEAD: dict[tuple[str, ...], str] = {
    ("use_lora", "use_peft", "finetuning_type", "finetune_type"): _ADAPTER,
    ("lora_target", "lora_target_linear", "lora_attn_modules"): (
        "--adapter lora takes all linear layers; --adapter.target_modules '[q_proj, v_proj]' others"
    ),
    ("use_dora",): "--adapter dora does that",
    ("rslora", "use_rslora"): "--adapter lora --adapter.use_rslora true does that",
    ("lora_modules_to_save", "additional_target"): "--adapter lora --adapter.modules_to_save '[lm_head]' does that",
    ("lora_bias",): "--adapter lora --adapter.bias none sets it",
    ("loraplus_lr_ratio",): "model.parameter_rules sets a rate by parameter name",
    ("stage", "do_train", "do_eval", "do_predict"): (
        "the verb says what is done: lightning fit, validate, test or predict; all training is SFT"
    ),
    ("dataset_dir", "dataset_info", "datasets", "data_files", "dataset_mixer"): (
        "--train takes a file, a folder, a pattern or a hub name; a YAML file may list several sources under data.train"
    ),
    ("max_samples", "max_train_samples", "limit_train_samples"): (
        "max_rows of a source does that: --train Source --train.path FILE --train.max_rows 1000"
    ),
    ("dataset_text_field", "formatting_func", "field_messages", "message_property_mappings", "remove_unused_columns",
     "message_field_role", "message_field_content", "field_instruction", "field_output"): _COLUMNS,
    ("processing_class", "tokenizer_type"):
        "the model's own tokenizer is taken; --model.tokenizer_name_or_path names another",
    ("save_steps", "save_strategy", "save_total_limit", "saves_per_epoch", "save_only_model", "save_freq"): _SAVE,
    ("overwrite_output_dir",): "every run has a folder of its own, so nothing is overwritten",
    ("run_name", "logging_dir", "wandb_project", "wandb_run_name", "wandb_entity", "wandb_name"): (
        "--output is the folder of runs; --logger wandb --trainer.logger.project NAME --trainer.logger.name NAME names "
        "a run for W&B"
    ),
    ("plot_loss", "metric_logger"): "curves are logged by default, and `lightning report RUN` writes them into a page",
    ("evaluation_strategy", "evals_per_epoch", "do_eval_steps"): (
        "--trainer.val_check_interval 0.25 validates four times an epoch, and 500 every 500 batches"
    ),
    ("eval_ratio", "eval_split", "val_ratio"): "--data.val_split 0.05 holds out a share of the rows",
    ("eval_sample_packing", "neat_packing", "multipack", "packed"): _PACKED,
    ("pad_to_sequence_len", "pad_to_max_length"): "--data.layout padded pads to the longest row of a batch",
    ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"): _8BIT,
    ("flash_attn", "use_flash_attention_2", "use_flash_attn", "xformers_attention", "sdp_attention"): _ATTENTION,
    ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "quantization_config", "bnb_config"): (
        "--model.quantization nf4 does that for a frozen base"
    ),
    ("bf16", "tf32", "mixed_precision", "bf16_full_eval"): (
        "--trainer.precision bf16-mixed computes in bfloat16 and keeps the weights in float32"
    ),
    ("fp16",): "--trainer.precision 16-mixed does that; on a GPU of recent years bf16-mixed is safer",
    ("adam_beta1", "adam_beta2", "adam_epsilon"): (
        "they are arguments of the optimizer: --model.optimizer AdamW --model.optimizer.betas '[0.9, 0.95]' "
        "--model.optimizer.eps 1e-8"
    ),
    ("train_on_inputs", "train_on_prompt", "train_on_input"): (
        "--data.train_on all trains prompts, too; assistant, the default, answers alone"
    ),
    ("mask_history", "last_turn_only"): "--data.train_on last_turn does that",
    ("completion_only_loss",): "--data.train_on completion does that",
    ("assistant_only_loss", "roles_to_train"): "--data.train_on assistant does that, and is the default",
    ("model_type", "hub_strategy"): "the model's own config.json says it",
    ("hub_model_id", "push_to_hub", "hub_token"): "`lightning export RUN --push_to_hub NAME` does that after the run",
    ("ddp_find_unused_parameters",): "--trainer.strategy ddp_find_unused_parameters_true does that",
    ("fsdp_config", "fsdp_transformer_layer_cls_to_wrap"): (
        "configs/strategy/fsdp2.yaml shards the model: lightning fit sft.yaml configs/strategy/fsdp2.yaml"
    ),
    ("zero1", "zero2", "zero_stage_2"): "--trainer.strategy deepspeed_stage_2 does that",
    ("zero3", "zero_stage_3"): "--trainer.strategy deepspeed_stage_3 does that",
    ("fsdp2",): "configs/strategy/fsdp2.yaml has it: lightning fit sft.yaml configs/strategy/fsdp2.yaml",
    ("num_processes", "nproc_per_node", "n_gpu"): "--trainer.devices says how many devices",
    ("dataloader_num_workers", "preprocessing_num_workers", "dataloader_pin_memory"): (
        "rows are tokenised beforehand by data.num_proc processes; --data.num_workers loads in others"
    ),
    ("dataset_prepared_path",): "--data.cache_dir says where encoded rows are kept; it is on by default",
    ("data_seed",): "--data.seed seeds the order of rows",
    ("use_liger_kernel", "use_liger", "liger", "liger_rope", "unsloth", "use_unsloth", "cut_cross_entropy",
     "chunked_cross_entropy"): (
        "the loss is computed in chunks by default, without a table of tokens times vocabulary"
    ),
    ("early_stopping_patience", "early_stopping"): (
        "configs/callbacks/early_stopping.yaml does that: lightning fit sft.yaml configs/callbacks/early_stopping.yaml"
    ),
    ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"): _BEST,
    ("auto_resume_from_checkpoints", "resume_from", "resume_from_checkpoint", "resume"): (
        "`lightning fit RUN` goes on from a run's last checkpoint; --ckpt_path names another"
    ),
    ("label_smoothing_factor", "label_smoothing"): "--objective LabelSmoothing does that",
    ("use_dft_loss",): "--objective DFT does that",
    ("use_asft_loss",): "--objective ASFT does that",
    ("use_eaft_loss",): "--objective EAFT does that",
    ("dpo", "orpo", "kto", "grpo", "ppo", "rlhf", "reward_model", "simpo"): (
        "this package does supervised fine-tuning alone; TRL trains on preferences and rewards"
    ),
    ("max_steps_per_epoch",): "--trainer.limit_train_batches does that, counted in batches",
    ("clip_grad_norm", "gradient_clipping"): "--trainer.gradient_clip_val 1.0 does that",
    ("enable_activation_checkpointing", "enable_activation_offloading"):
        "--model.gradient_checkpointing true does that",
    ("checkpoint_dir", "checkpointer"):
        "--model takes the folder of a model, and `lightning fit RUN` goes on with a run",
    ("num_warmup_steps",): "--model.warmup_steps does that",
    ("chat_template_jinja", "chat_template_path", "template"): (
        "--model.chat_template takes a Jinja template or its file; the default is the tokenizer's own, which fits the "
        "model"
    ),
    ("load_in_4bit", "quantization_bit"): "--model.quantization nf4 does that (int8 for 8 bits); add --adapter lora",
    ("load_in_8bit",): "--model.quantization int8 does that; add --adapter lora",
    ("deepspeed",): "--trainer.strategy deepspeed_stage_2 or deepspeed_stage_3 does that, without a file of its own",
}  # fmt: skip
_WORDS = {plain(name): text for names, text in _INSTEAD.items() for name in names}


def instead(name: str) -> str | None:
    """Return what to do in place of a setting of another tool, as a sentence; None for names that are not known.

    Args:
        name: a key or a word, such as ``trainer.save_steps``.
    """
    text = _WORDS.get(plain(name.rpartition(".")[2]))
    if text is None:
        return None
    is_word = text.partition(" ")[0].isalpha()  # and not a name of ours, such as max_rows
    return f"{text[0].upper() if is_word else text[0]}{text[1:]}."
