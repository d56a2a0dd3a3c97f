"""Messages about settings: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import Given
from lightning_sft.cli.front.instead import instead
from lightning_sft.cli.front.listing import KnownClass, Listing, Setting, listing
from lightning_sft.cli.front.names import (
    CLASSES,
    OPTIONS,
    USUAL,
    USUAL_OPTIONS,
    nearest,
    nearest_setting,
    not_offered,
    plain,
)
from lightning_sft.cli.front.typed import in_full, typed
from lightning_sft.cli.front.words import LOGGERS, WORDS, class_of_word

_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null", "str": "a text"}
#: base class -> what it is called, one and many
KINDS = {
    "Objective": ("an objective", "Objectives"),
    "PeftConfig": ("an adapter", "Adapters"),
    "Optimizer": ("an optimizer", "Optimizers"),
    "LRScheduler": ("a schedule", "Schedules"),
    "Callback": ("a callback", "Callbacks"),
    "Logger": ("a logger", "Loggers"),
    "DataSource": ("a data source", "Data sources"),
    "Profiler": ("a profiler", "Profilers"),
}


def allowed(setting: Setting) -> str:
    """Return what a setting takes, in words."""
    if setting.choices:
        also = [_NUMBERS[t] for t in setting.takes if t in ("int", "float", "null")]
        return f"Allowed: {', '.join([*setting.choices, *also])}."
    words = [_NUMBERS[t] for t in setting.takes if t in _NUMBERS and not (t == "int" and "float" in setting.takes)]
    return f"Allowed: {' or '.join(words)}." if words else ""


def unknown_setting(one: Given, known: Listing, own: Iterable[str]) -> str:
    """Say that there is no such setting."""
    key = one.key.rstrip("+")
    section = key.rpartition(".")[0]
    options = [*own] if not section else []
    meant = nearest(key, options) or nearest_setting(key, known.settings)
    if meant is None and not section:
        meant = nearest(key, [*WORDS, "model", "output"])
    text = f"{one.where}There is no setting {key!r}"
    if (other := not_offered(key) or (None if _is_near(key, meant) else instead(key))) is not None:
        return f"{text}. {other}"
    if meant is not None:
        return f"{text}; did you mean {_as_written(one, meant)}?"
    kind = _of_any_kind(key.rpartition(".")[2], known)
    if kind is not None:
        return f"{text}; did you mean {kind}?"
    inside = [k.removeprefix(f"{section}.") for k in known.settings if section and k.startswith(f"{section}.")]
    if inside:
        return f"{text}. Settings of {section!r}: {', '.join(inside)}."
    return f"{text}. `lightning fit --help` shows those people turn, `lightning fit --help all` the rest."


def _as_written(one: Given, key: str) -> str:
    """Return a setting as it is to be written where another was given: a file's key, or an option, in short first."""
    return repr(key) if one.file else in_full(key)


def _is_near(key: str, meant: str | None) -> bool:
    """Return whether a key is a setting's own name, elsewhere or in another case, and not one of another tool."""
    return meant is not None and plain(meant.rpartition(".")[2]) == plain(key.rpartition(".")[2])


def _of_any_kind(word: str, known: Listing) -> str | None:
    """Return the setting that takes a class of this name, such as ``--nll``."""
    for key, setting in known.settings.items():
        found = next((n for n in known.of_class(key) if setting.bases and plain(n) == plain(word)), None)
        found = found or next((c for c in setting.choices if len(c) > 4 and plain(c) == plain(word)), None)
        if found is not None:
            return f"{typed(key)} {found}"
    return None


def wrong_value(one: Given, key: str, text: str, setting: Setting, known: Listing) -> str:
    """Say that a setting cannot have such a value."""
    meant = nearest(text, setting.choices, _ELSEWHERE.get(key)) if setting.choices else None
    if meant is None and plain(text) == "none" and "null" in setting.takes:
        meant = "null"
    hint = f"; did you mean {meant!r}?" if meant else "."
    return f"{one.where}{key} is {text!r}{hint} {allowed(setting)}"


def wrong_devices(one: Given) -> str:
    """Say that ``trainer.devices`` can be no such value."""
    given = one.value if isinstance(one.value, str) else yaml.serialize(one.value).strip().removesuffix("\n...")
    return (
        f"{one.where}trainer.devices is {given!r}. Allowed: how many (a whole number from 1), auto, -1 for all, or a "
        "list of GPUs by their number, such as [0, 1]."
    )


_ELSEWHERE: dict[str, Mapping[str, str]] = {
    "trainer.precision": {"fp16": "16-mixed", "float16": "16-mixed", "bfloat16": "bf16-mixed", "fp32": "32-true"},
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"},
    "model.quantization": {"4bit": "nf4", "8bit": "int8", "true": "nf4"},
    "data.train_on": {"answers": "assistant", "output": "completion", "prompt": "all"},
}


def unknown_class(one: Given, key: str, name: str, setting: Setting, known: Listing) -> str:
    """Say that a setting takes no class of this name, and which ones it takes."""
    named, classes = name.rpartition(".")[2], known.of_class(key)
    one_of, many = KINDS.get(setting.bases[0], (f"a {setting.bases[0]}", "Known"))
    there = [*setting.choices, *classes]
    elsewhere = {name.removesuffix("Config").removesuffix("Logger"): name for name in classes}
    for base in setting.bases:
        elsewhere |= CLASSES.get(base, {})
    if (other_way := not_offered(named) or instead(named)) is not None:
        return f"{one.where}{key} is {name!r}. {other_way}"
    meant = nearest(named, there, elsewhere)
    hint = f"; did you mean {_as_typed(key, meant)!r}?" if meant else "."
    if meant is None or plain(meant) != plain(named):
        other = next(
            (k for k, s in known.settings.items() if k != key for n in (*known.of_class(k), *s.choices)
             if (s.bases or len(n) > 4) and plain(n) == plain(named)),
            None,
        )  # fmt: skip
        if other is not None:
            hint = f": it is a value of another setting; did you mean --{other} {name}?"
    usual = [name for base in setting.bases for name in USUAL.get(base, ())]
    return (
        f"{one.where}{key}: {name!r} is not {one_of}{hint} {_some(many, there, usual, f'--{key}.help')} A class of "
        "your own works by its full path, such as my_module.MyClass."
    )


def unknown_class_of(key: str, name: str) -> str:
    """Say that a setting takes no class of this name, where nothing else was given."""
    return unknown_class(Given(key, name), key, name, listing().settings[key], listing())


def _as_typed(key: str, name: str) -> str:
    """Return the short word of a class, where it has one."""
    words = [*LOGGERS] if key == "trainer.logger" else [*USUAL["PeftConfig"]] if key == "model.adapter" else []
    path = f".{name}"
    return next((word for word in words if (class_of_word(key, word) or "").endswith(path)), name)


def _some(many: str, names: Sequence[str], usual: Sequence[str], where: str) -> str:
    """Return a sentence of names; of many those that people mostly take, and where all are listed."""
    if not usual:
        return f"{many}: {', '.join(names)}."
    return f"{many} that are often used: {', '.join(usual)}. `lightning fit {where}` lists all {len(names)}."


def no_class_yet(one: Given, key: str, known: Listing) -> str:
    """Say that an argument came before its class."""
    kind, many = KINDS.get(known.settings[key].bases[0], ("a class", "Known"))
    name = _as_typed(key, next(iter(known.of_class(key))))
    option = one.key.rpartition(".")[2]
    meant, takers = _taken_elsewhere(option, key, known)
    fit = f" {many} take no {option!r}." if not takers else f" {meant!r} is an argument of {', '.join(takers[:8])}."
    return (
        f"{one.where}{one.name} is an argument of {kind}, and none is chosen before it.{fit} Give {typed(key)} "
        f"{takers[0] if takers else name} first."
    )


def _taken_elsewhere(option: str, key: str, known: Listing) -> tuple[str, list[str]]:
    """Return the argument that was probably meant among those of all classes of a setting, and who takes it."""
    classes = known.of_class(key)
    meant = nearest(option, dict.fromkeys(o for c in classes.values() for o in c.options)) or option
    takers = [_as_typed(key, name) for name, c in classes.items() if meant in c.options]
    usual = [name for base in known.settings[key].bases for name in USUAL.get(base, ())]
    return meant, sorted(takers, key=lambda name: usual.index(name) if name in usual else len(usual))


def unknown_option(one: Given, key: str, option: str, known: KnownClass, listed: Listing) -> str:
    """Say that a class has no such argument, and which it has."""
    if (other_way := not_offered(option)) is not None:
        return f"{one.where}{key}: there is no option {option!r}. {other_way}"
    elsewhere: dict[str, str] = {}
    for base in listed.settings[key].bases:
        elsewhere |= OPTIONS.get(base, {})
    meant = nearest(option, known.options, elsewhere)
    written = repr(meant) if one.file else _as_written(one, f"{key}.{meant}")
    hint = f"; did you mean {written}?" if meant else "."
    name = known.path.rpartition(".")[2]
    usual = USUAL_OPTIONS.get(name, ())
    takes = ", ".join(usual or sorted(known.options)) or "nothing"
    takes += f", and {len(known.options) - len(usual)} more: `lightning fit --{key}.help {name}`" if usual else ""
    others = ""
    if meant is None:
        other, takers = _taken_elsewhere(option, key, listed)
        others = f" {other!r} is an argument of {', '.join(takers[:8])}." if takers else ""
    return f"{one.where}{key}: there is no option {option!r}{hint} {name} takes: {takes}.{others}"


def replaced(before: Given, after: Given) -> str:
    """Remark that a list of a file is replaced by a later one."""
    names = []
    for item in before.value.value if isinstance(before.value, yaml.SequenceNode) else ():
        fields = {k.value: v for k, v in item.value} if isinstance(item, yaml.MappingNode) else {}
        path = fields.get("class_path", item)
        names.append(str(path.value).rpartition(".")[2])
    by = after.file or f"--{after.key}"
    return (
        f"{by} replaces the callbacks of {before.file} ({', '.join(names)}). To keep them, write `callbacks+:` in "
        f"{after.file}." if after.file else
        f"{by} replaces the callbacks of {before.file} ({', '.join(names)}). To keep them, write --{after.key}+=..."
    )  # fmt: skip


def nothing_for(verb: str, arguments: Sequence[str] = (), *, validates: bool = False) -> str:
    """Say that a verb has no rows to work on, and what to type.

    Args:
        verb: of Lightning, or one that looks at training rows.
        arguments: after it, as they were typed.
        validates: whether the settings name rows to validate on.
    """
    key = {"validate": "val", "test": "test", "predict": "predict"}.get(verb, "train")
    typed = shlex.join(["lightning", verb, *(arguments or ["..."])])
    text = f"There is nothing for {verb}: data.{key} is not set. Give the rows: {typed} --data.{key} FILE"
    if key == "train":
        return f"{text}; or `lightning init --train FILE` writes a file of settings."
    if verb == "validate":
        return f"{text}; or hold out some of data.train by --data.val_split 0.05."
    if verb == "test" and validates:
        return f"{text}; or read the rows that were held out: {shlex.join(['lightning', 'validate', *arguments])}"
    return text
