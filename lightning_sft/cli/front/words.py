"""Short words of the command line, and the long keys that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.meant import YAML, is_data_path, is_model_name, is_settings_file, no_settings
from lightning_sft.cli.front.names import plain
from lightning_sft.errors import UserError
from lightning_sft.places import ADAPTER_CONFIG, here_or_shipped

#: short word -> the key that it stands for; what follows a dot is kept
WORDS = {
    "lr": "model.optimizer.lr",
    "objective": "model.objective",
    "adapter": "model.adapter",
    "train": "data.train",
    "val": "data.val",
    "batch_size": "data.batch_size",
    "max_length": "data.max_length",
    "max_steps": "trainer.max_steps",
    "max_epochs": "trainer.max_epochs",
    "logger": "trainer.logger",
    "seed": "seed_everything",
}
#: argument of an adapter in short -> what peft calls it
ADAPTER_WORDS = {"alpha": "lora_alpha", "rank": "r", "dropout": "lora_dropout"}
LOGGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "."}),
    "tensorboard": ("lightning.pytorch.loggers.TensorBoardLogger", {"save_dir": ".", "default_hp_metric": False}),
    "wandb": ("lightning.pytorch.loggers.WandbLogger", {}),
}
#: what a short adapter starts from; alpha follows r unless it is given
LORA: dict[str, int | str] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
#: option of fit that adds `RunReport`; it takes no value
REPORT = "--report"
#: options that take the path of rows, or a source of them
SETS = tuple(f"--data.{name}" for name in ("train", "val", "test", "predict"))
#: options whose value stands in a word of its own -> they may have several
Word = tuple[str, list[str], bool]


def is_option(word: str) -> bool:
    """Return whether a word of the command line names an option."""
    return word.startswith("--") or word in ("-c", "-h")


def split(arguments: Sequence[str]) -> Iterator[Word]:
    """Yield each option with the words that follow it, and whether they were joined to it by ``=``.

    Words before the first option come first, with an empty name.
    """
    left = list(arguments)
    first: list[str] = []
    while left and not is_option(left[0]):
        first.append(left.pop(0))
    if first:
        yield "", first, False
    while left:
        name, equals, value = left.pop(0).partition("=")
        values = [value] if equals else []
        while left and not is_option(left[0]):
            values.append(left.pop(0))
        yield name, values, bool(equals)


def join(words: Sequence[Word]) -> list[str]:
    """Return the arguments again."""
    made: list[str] = []
    for name, values, joined in words:
        made += [f"{name}={values[0]}", *values[1:]] if joined else [*([name] if name else []), *values]
    return made


def underscored(name: str) -> str:
    """Return an option's name with underscores, except below settings that hold names of the user's own."""
    if not name.startswith("--"):
        return name
    settings = listing().settings
    made: list[str] = []
    for part in name.removeprefix("--").split("."):
        above = settings.get(".".join(made))
        own = above is not None and "dict" in above.takes and "class" not in above.takes
        made.append(part if own else part.replace("-", "_"))
    return "--" + ".".join(made)


def tidy(arguments: Sequence[str], *, takes_files: bool) -> list[str]:
    """Return arguments in one spelling: underscores in names, and a settings file by itself as ``--config FILE``.

    Args:
        arguments: after the verb.
        takes_files: whether the verb takes settings of ``fit``, and so files of them.

    Raises:
        UserError: a word by itself that is no file of settings.
    """
    made: list[Word] = []
    for name, values, joined in split(arguments):
        name = underscored(name)
        one = 1 if name and (joined or not _is_flag(name)) else 0
        if takes_files:
            first = 0 if name in ("--config", "-c") else one  # where files may stand
            values = [*values[:first], *map(here_or_shipped, values[first:])]
        loose = values[one:] if takes_files and name != "--arm" else []
        if not all(is_settings_file(word) for word in loose):
            missing = next(word for word in loose if not is_settings_file(word))
            if not name or Path(missing).suffix in YAML or _takes_one(name):
                raise UserError(no_settings(missing))
            loose = []  # a list of values of an option that we do not know
        kept = values[:one] if loose else values
        made += [(name, kept, joined)] if name or kept else []
        made += [("--config", [word], True) for word in loose]
    return join(made)


def in_settings(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return arguments with the settings that a verb's own options stand for: ``audit --data FILE`` is data.test.

    Its ``--data.columns`` is that set's, too.
    """
    if verb != "audit":
        return list(arguments)
    words = split(arguments)
    test = {"--data": "--data.test", "--data.columns": "--data.test.columns"}
    return join([(test.get(name, name), values, joined) for name, values, joined in words])


def _is_flag(name: str) -> bool:
    known, key = listing(), name.removeprefix("--")
    found = [known.settings.get(key), *(options.get(key) for options in known.verbs.values())]
    return name in ("-h", "--help", REPORT) or any(
        setting is not None and setting.takes == ("flag",) for setting in found
    )


def _takes_one(name: str) -> bool:
    """Return whether an option is a setting of ``fit``: none of those takes several words."""
    word, dot, below = name.removeprefix("--").partition(".")
    return word in WORDS or f"{word}{dot}{below}" in listing().settings


def expand(arguments: Sequence[str]) -> list[str]:
    """Return arguments with long keys in place of short words, files of settings first: the command line beats them.

    ``--model`` is a file of settings where one of that name exists, and stays what it is where it may be a class
    (`classes` decides, which can import it); all else is the model's name.

    Args:
        arguments: of the command line; words before the first option are kept, such as the verb.

    Raises:
        UserError: a short word without its value.
    """
    first: list[Word] = []
    files: list[Word] = []
    made: list[Word] = []
    last: list[Word] = []
    for name, values, joined in split(arguments):
        word, dot, below = name.removeprefix("--").partition(".")
        if not name:
            first.append((name, values, joined))
        elif name in ("--config", "-c"):
            files.append((name, values, joined))
        elif name.startswith("--") and word in WORDS:
            if not values:
                raise UserError(f"{name} has no value. It stands for --{WORDS[word]}{dot}{below}: give one.")
            long = f"--{WORDS[word]}{dot}{below}"
            if word == "lr":
                last.append((long, values, joined))
            else:
                made += _long(word, dot, below, long, values, joined)
        elif name == "--trainer.logger" and values:
            made += _logger(values, joined)
        elif name == "--model" and values and is_model_name(values[0]):
            made.append(("--model.model_name_or_path", values, joined))
        else:
            made.append((name, values, joined))
    return join([*first, *files, *_sources(made), *_alpha(made), *last])


def as_typed(arguments: Sequence[str], key: str) -> str:
    """Return the option by which a command line sets a key: a short word where one was typed.

    >>> as_typed(["--max_steps", "5"], "trainer.max_steps"), as_typed(["--trainer.lr=1"], "trainer.lr")
    ('--max_steps', '--trainer.lr')
    """
    for name, _, _ in split(arguments):
        word, dot, below = name.removeprefix("--").partition(".")
        if f"{WORDS.get(word, word)}{dot}{below}" == key:
            return name
    return f"--{key}"


def _long(word: str, dot: str, below: str, long: str, values: list[str], joined: bool) -> list[Word]:
    if word == "adapter":
        option = below.removeprefix("init_args.")
        long = f"--model.adapter.{ADAPTER_WORDS.get(option, option)}"
        return [(long, values, joined)] if dot else _adapter(values, joined)
    if word == "logger" and not dot:
        return _logger(values, joined)
    return [(long, values, joined)]


def _sources(made: Sequence[Word]) -> list[Word]:
    """Return words with ``--data.train FILE --data.train.columns ...`` as options of a `Source` of that path."""
    above = {name.rpartition(".init_args")[0] or name.rpartition(".")[0] for name, _, _ in made}
    found: list[Word] = []
    for name, values, joined in made:
        if name in SETS and name in above and values and is_data_path(name.removeprefix("--"), values[0]):
            found += [(name, ["Source"], True), (f"{name}.path", values, joined)]
        else:
            found.append((name, values, joined))
    return found


def _adapter(values: list[str], joined: bool) -> list[Word]:
    """Return the settings of a short adapter: ``lora`` and ``dora`` with usual sizes, others by peft's defaults."""
    value = values[0]
    if plain(value) in ("none", "null", "false"):
        return [("--model.adapter", ["null"], True)]
    if (Path(value) / ADAPTER_CONFIG).is_file():
        return [("--model.adapter_path", values, joined)]
    short = {plain(name.removesuffix("Config")): known for name, known in listing().of_class("model.adapter").items()}
    kind = "lora" if plain(value) in ("lora", "dora") else plain(value)
    if kind not in short:
        return [("--model.adapter", values, joined)]
    made: list[Word] = [("--model.adapter", [short[kind].path], True)]
    if kind == "lora":
        made += [(f"--model.adapter.{name}", [str(size)], True) for name, size in LORA.items()]
        made += [("--model.adapter.use_dora", ["true"], True)] if plain(value) == "dora" else []
    elif "target_modules" in short[kind].options:
        made.append(("--model.adapter.target_modules", [str(LORA["target_modules"])], True))
    return made


def _alpha(made: Sequence[Word]) -> list[Word]:
    """Return alpha as twice r, where a short adapter got another r and no alpha of its own."""
    given = [(name, values[0]) for name, values, _ in made if name.startswith("--model.adapter.") and values]
    ranks = [value for name, value in given if name == "--model.adapter.r"]
    alphas = [value for name, value in given if name == "--model.adapter.lora_alpha"]
    if len(ranks) == 2 and alphas == [str(LORA["lora_alpha"])] and ranks[0] == str(LORA["r"]) and ranks[1].isdigit():
        return [("--model.adapter.lora_alpha", [str(2 * int(ranks[1]))], True)]
    return []


def _logger(values: list[str], joined: bool) -> list[Word]:
    if values[0] not in LOGGERS:
        return [("--trainer.logger", values, joined)]
    path, options = LOGGERS[values[0]]
    made: list[Word] = [("--trainer.logger", [path], True)]
    return [*made, *((f"--trainer.logger.{name}", [str(value).lower()], True) for name, value in options.items())]


def class_of_word(key: str, word: str) -> str | None:
    """Return the path of the class that a short word stands for, in a file as on the command line; None for others.

    >>> class_of_word("trainer.logger", "csv"), class_of_word("model.adapter", "dora")
    ('lightning.pytorch.loggers.CSVLogger', 'peft.LoraConfig')
    """
    if key == "trainer.logger" and word in LOGGERS:
        return LOGGERS[word][0]
    if key == "model.adapter" and word and "." not in word:
        name, values, _ = _adapter([word], False)[0]
        return values[0] if name == "--model.adapter" and values[0] not in (word, "null") else None
    return None


def spell_out(content: dict[str, Any]) -> bool:
    """Spell out the short words that a file may hold, ``logger: csv`` and ``adapter: lora``; say if there were any."""
    trainer, model = content.get("trainer"), content.get("model")
    model = model.get("init_args", model) if isinstance(model, dict) else None
    changed = False
    if isinstance(trainer, dict) and isinstance(trainer.get("logger"), str) and trainer["logger"] in LOGGERS:
        path, options = LOGGERS[trainer["logger"]]
        trainer["logger"] = {"class_path": path, "init_args": dict(options)}
        changed = True
    if isinstance(model, dict) and isinstance(model.get("adapter"), str) and "." not in model["adapter"]:
        words = _adapter([model["adapter"]], False)
        if len(words) > 1:
            options = {name.rpartition(".")[2]: values[0] for name, values, _ in words[1:]}
            known: dict[str, Any] = {"true": True, **{str(v): v for v in LORA.values()}}
            model["adapter"] = {
                "class_path": words[0][1][0],
                "init_args": {name: known.get(value, value) for name, value in options.items()},
            }
            changed = True
    return changed
