"""One screen of help: the settings that people turn, with examples; the rest by a word or ``all``."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from lightning_sft.cli.front.about import ABOUT, About
from lightning_sft.cli.front.listing import Setting, listing
from lightning_sft.cli.front.say import allowed
from lightning_sft.cli.front.words import WORDS
from lightning_sft.cli.verbs import EXAMPLES, LIGHTNING_VERBS, OWN_VERBS

#: group -> key -> what it is, in a line
SCREEN: dict[str, dict[str, str]] = {
    "Model": {
        "model.model_name_or_path": "hub name, folder, GGUF file, or pkg://package/file.gguf",
        "model.adapter": "lora, dora, ia3, ... or a class of peft; --adapter.r 16 --adapter.alpha 32",
        "model.adapter_path": "a trained adapter to go on with",
        "model.dtype": "of the weights: float32, bfloat16, fastest, auto",
        "model.quantization": "int8 or nf4 for the frozen base",
        "model.gradient_checkpointing": "less memory, more time",
        "model.attn_implementation": "sdpa, eager, flash_attention_2",
        "model.chat_template": "a Jinja template or its file, in place of the tokenizer's",
    },
    "What is learned": {
        "model.objective": "NLL, PowerFamily, EAFT, ... or auto; --objective.alpha 1 sets an argument",
        "model.denominator": "what a step's gradient is divided by: all, kept, weights, sequences",
        "model.reference": "the model that objectives with a reference compare with",
    },
    "Optimizer": {
        "model.optimizer.lr": "learning rate",
        "model.optimizer": "AdamW, SGD, Muon, ... or a class of your own",
        "model.lr_scheduler": "linear, cosine, constant, ...",
        "model.warmup_ratio": "share of all steps that warms up",
        "model.warmup_steps": "the same as a number of steps",
        "model.parameter_rules": "rates and weight decay by parameter name",
        "trainer.gradient_clip_val": "clip the gradient's norm at this",
    },
    "Data": {
        "data.train": "JSON lines, CSV, Parquet, a hub name, or a DataSource",
        "data.val": "rows to validate on",
        "data.val_split": "or a share (0.05) or number (200) of the training rows",
        "data.test": "rows of `lightning test`",
        "data.predict": "rows of `lightning predict`",
        "data.batch_size": "rows of a batch on one device",
        "data.max_length": "the most tokens of a row",
        "data.truncation": "of longer rows: error, drop, left, right, keep_completion",
        "data.train_on": "assistant, completion, last_turn, all",
        "data.order": "shuffled, grouped, packed, sequential",
        "data.layout": "how a batch lies in memory: auto, flat, padded",
        "data.system": "system prompt of rows that bring none",
    },
    "Run": {
        "trainer.max_epochs": "passes over the data",
        "trainer.max_steps": "or optimizer steps",
        "trainer.accumulate_grad_batches": "batches of one optimizer step",
        "trainer.val_check_interval": "batches, or a share of the epoch, between validations",
        "trainer.num_sanity_val_steps": "-1: the whole validation before the first step",
        "trainer.log_every_n_steps": "steps between points of the curves",
        "trainer.precision": "32-true, bf16-mixed, bf16-true, 16-mixed",
        "trainer.devices": "how many devices, or a list",
        "trainer.strategy": "auto, ddp, fsdp, deepspeed_stage_2, ...",
        "trainer.logger": "tensorboard, csv, wandb, or a class",
        "trainer.callbacks": "--trainer.callbacks+=NAME appends one",
        "ckpt_path": "go on from last, best, or a file",
        "output": "folder in which runs lie side by side; of predict: the file to write",
        "report": "fit alone, without a value: write a page about the run when it is over",
        "seed_everything": "seed of everything random",
    },
}
#: further examples of `fit`
_MORE = (
    "lightning fit mine.yaml --lr 1e-4 --objective PowerFamily --objective.alpha 1",
    "lightning fit lightning_logs/RUN --max_steps 500",
)


def answer(verb: str, word: str = "") -> str:
    """Return the help of a verb: a screen, or all settings that have a word in their name.

    Args:
        verb: Lightning's, or one of ours whose options are in the list.
        word: what was asked for.
    """
    width = screen_width()
    if word == "all":
        return _every(verb, width)
    if word:
        return _found(word, width)
    if verb in OWN_VERBS:
        return _own(verb, width)
    lines = [
        f"usage: lightning {verb} [FILE.yaml ...] [--KEY VALUE ...]",
        f"  {LIGHTNING_VERBS[verb]}",
        "",
        "examples:",
        f"  {EXAMPLES[verb]}",
        *(f"  {example}" for example in (_MORE if verb == "fit" else ())),
    ]
    for group, keys in SCREEN.items():
        lines += ["", f"{group}:"]
        lines += [_line(key, text, width) for key, text in keys.items()]
    lines += ["", *_more(verb)]
    return "\n".join(lines)


def screen_width() -> int:
    """Return how many characters a line of help may have."""
    return max(80, min(shutil.get_terminal_size((120, 40)).columns, 140))


def has_help(verb: str) -> bool:
    """Return whether the list knows the verb's options; verbs that take no settings of ``fit`` have their own help."""
    own = OWN_VERBS.get(verb)
    known = own is not None and bool(own.usage or (own.settings and verb in listing().verbs))
    return verb in LIGHTNING_VERBS or known


def _more(verb: str) -> list[str]:
    return [
        "Every setting is a key of a YAML file and an option of the same name; - and _ are the same in options.",
        f"More: `lightning {verb} --help all` (every setting), `--help WORD` (those with a word in their name),",
        f"`--print_config` (the whole configuration), `lightning init` (write a file), `lightning {verb} "
        "--model.adapter.help LoraConfig` (a class).",
    ]


def _short(key: str) -> str:
    return next((f"--{word}" for word, long in WORDS.items() if long == key), "")


def _line(key: str, text: str, width: int) -> str:
    short = {"model.model_name_or_path": "--model"}.get(key) or _short(key)
    setting = listing().settings.get(key)
    default = "" if setting is None or setting.default in ("null", "-1") or "." in setting.default else setting.default
    name = f"  {short + ', ' if short else ''}--{key}"
    tail = f" [{default}]" if default and key not in ("config",) else ""
    return f"{name:<52}{textwrap.shorten(text + tail, width - 52, placeholder='...')}"


def _own(verb: str, width: int) -> str:
    own = OWN_VERBS[verb]
    about = ABOUT.get(verb, About())
    usage = own.usage or "[FILE.yaml ...] [--KEY VALUE ...]"
    lines = [f"usage: lightning {verb} {usage}", f"  {own.help}", ""]
    lines += [about.text, ""] if about.text else []
    lines += ["examples:" if about.examples else "example:", f"  {EXAMPLES[verb]}"]
    lines += [f"  {example}" for example in about.examples]
    options = [*_options(verb, about)]
    lines += ["", "options:"] if options else []
    for name, text in options:
        lines += [f"  --{name}", *textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    lines += [
        "",
        "It takes the settings of `lightning fit`, too: --model.KEY, --data.KEY, --trainer.KEY, --config FILE (the",
        "config.yaml of a run, for one). `lightning fit --help` shows those people turn. In short:",
        *textwrap.wrap(
            ", ".join(["--model", *(f"--{word}" for word in WORDS)]),
            width - 2,
            initial_indent="  ",
            subsequent_indent="  ",
        ),
    ]
    return "\n".join(lines)


def _options(verb: str, about: About) -> Iterator[tuple[str, str]]:
    """Yield a verb's options with what they take, and what they are; two names of one option are one."""
    yield from about.also
    named: dict[Setting, list[str]] = {}
    for name, option in listing().verbs.get(verb, {}).items():
        if not name.endswith("+"):  # what appends to a list is an option of the parser, too
            named.setdefault(option, []).append(name)
    for option, names in named.items():
        yield f"{', --'.join(names)} {placeholder(option, names[0])}".rstrip(), described(option)


def placeholder(option: Setting, name: str) -> str:
    """Return what stands for an option's value; nothing for one that takes none."""
    kinds = {"flag": "", "bool": "true|false", "int": "N", "float": "X"}
    return next((word for kind, word in kinds.items() if kind in option.takes), name.upper())


def described(option: Setting) -> str:
    """Return what an option of a verb is, with its choices and its default; without one the text says what happens."""
    text = option.help.rstrip(".")
    if option.choices:
        text += f". One of: {', '.join(option.choices)}"
    if option.default not in ("null", "") and option.takes != ("flag",) and "Default: " not in text:
        default = option.default
        if option.takes == ("list",):  # as it is typed
            default = default.replace("'", "").replace(", ", ",")
        text += f". Default: {default}"
    return f"{text}."


def _found(word: str, width: int) -> str:
    part = word.lower().replace("-", "_")
    short = [f"  --{name}\n      Short for --{key}." for name, key in WORDS.items() if part in name]
    settings = {k: s for k, s in listing().settings.items() if part in k.lower()}
    if not settings and not short:
        return f"No setting has {word!r} in its name. `lightning fit --help all` lists them all."
    return "\n".join([*short, *(line for key, setting in settings.items() for line in _full(key, setting, width))])


def _every(verb: str, width: int) -> str:
    """Return every option of a verb, and every setting."""
    own = OWN_VERBS.get(verb)
    usage = own.usage if own is not None and own.usage else "[FILE.yaml ...] [--KEY VALUE ...]"
    lines = [f"usage: lightning {verb} {usage}", f"  {LIGHTNING_VERBS.get(verb) or OWN_VERBS[verb].help}", ""]
    for name, option in listing().verbs.get(verb, {}).items():
        lines += _full(name, option, width)
    for key, setting in listing().settings.items():
        short = next((f" (in short --{word})" for word, long in WORDS.items() if long == key), "")
        name, *rest = _full(key, setting, width)
        lines += [f"{name}{short}", *rest]
    return "\n".join([*lines, "", "The arguments of a class: " + f"lightning {verb} --model.adapter.help LoraConfig"])


def _full(key: str, setting: Setting, width: int) -> Iterable[str]:
    kinds = allowed(setting) if setting.choices else ""
    classes = [*listing().of_class(key)]
    named = f" One of: {', '.join(classes)}." if classes else ""
    default = "" if setting.required or setting.takes == ("flag",) else f" [{setting.default}]"
    end = "." if kinds and not setting.help.endswith(".") else ""
    text = " ".join(f"{setting.help}{end} {kinds}{named}{default}".split())
    yield f"  --{key}"
    yield from textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
