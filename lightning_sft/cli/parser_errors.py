"""Messages of the parser, rewritten: what was given, what is allowed, what to change."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable

from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.names import nearest
from lightning_sft.cli.front.typed import in_full

_NOISE = re.compile(
    r"Expected a <class 'NoneType'>|Expected a typing.Literal\['auto'\]|Does not validate|Subtypes:|Errors:|"
    r"Given value|Expected a path but|"
    r"Not a valid subclass of|Subclass types expect one of|- a class path \(str\)|- a dict with|"
    r"there is no option '([^']+)'; did you mean '\1'"  # it exists, and an earlier line says what is wrong with it
)


def explain(message: str, keys: Iterable[str], classes: dict[str, type]) -> str:
    """Return a message of jsonargparse in the words of a user.

    Args:
        message: the parser's message.
        keys: the settings that exist, such as ``model.objective``.
        classes: short name to class, for every setting that takes a class.
    """
    keys = sorted(keys)
    unknown = re.search(
        r"unrecognized arguments: --(\S+?)(?:=|\s|$)|does not accept (?:option|nested key) '([^']+)'", message
    )
    if unknown:
        return _unknown_key(unknown.group(1) or unknown.group(2), keys, is_typed=bool(unknown.group(1)))
    required = re.search(r"arguments are required: (.*)", message)
    if required:
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", n) for n in required.group(1).split(", ")]
        return f"Required but not given: {', '.join(names)}. Set them in a --config file or as --{names[0]} VALUE."
    place = re.search(r'[Kk]ey "([^"]+)"', message)
    at = f"{place.group(1)}: " if place else ""
    option = re.search(r"Option '([^']+)' is not accepted", message)
    if option:
        return at + _unknown_option(option.group(1), message, classes)
    name = re.search(r"Expected a dot import path string: (\S+)", message)
    if name:
        return at + _unknown_class(name.group(1), place.group(1) if place else "", classes)
    kept = [line.strip(" -") for line in message.splitlines() if line.strip() and not _NOISE.search(line)]
    kept = [re.sub(r'^Parser key "[^"]+":\s*', "", line) for line in kept]
    text = _in_words(" ".join(dict.fromkeys(line for line in kept if line)), message)
    if not text and (alone := re.search(r"there is no option '([^']+)'", message)):
        text = f"there is no option {alone.group(1)!r} here, though another class has one of this name."
    return at + text if text else message


_TYPE = re.compile(r"Expected an? <class '(\w+)'>\.?")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
}


def _in_words(text: str, message: str) -> str:
    """Return a text with the types that it speaks of at its end, in words, behind what was given.

    Args:
        text: what is kept of a message.
        message: the whole of it.
    """
    types = [_TYPES.get(name, name) for name in _TYPE.findall(text)]
    if not types:
        return text
    if "Expected a <class 'NoneType'>" in message:
        types.append("null")
    given = re.search(r"(?:Got|Given) value: (.+)", message)
    rest = re.sub(r"Got value: \S+|\s+(?=\s)", "", _TYPE.sub("", text)).strip()
    said = f"{given.group(1)} was given. " if given else ""
    return f"{rest} {said}Allowed: {' or '.join(dict.fromkeys(types))}.".strip()


def _unknown_key(key: str, keys: list[str], is_typed: bool) -> str:
    parent = key.rpartition(".")[0]
    siblings = [k for k in keys if k.rpartition(".")[0] == parent] if parent else [k for k in keys if "." not in k]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    meant = f"; did you mean {in_full(close[0]) if is_typed else repr(close[0])}?" if close else "."
    if close or not (parent and siblings):
        return f"There is no setting {key!r}{meant}"
    return f"There is no setting {key!r}. Settings of {parent!r}: {', '.join(k.rpartition('.')[2] for k in siblings)}."


def _unknown_option(option: str, message: str, classes: dict[str, type]) -> str:
    named = [c for n, c in classes.items() if re.search(rf"class_path['\"]?[:=]\s*['\"]?[\w.]*\b{n}\b", message)]
    takers = named or list(classes.values())
    names = sorted({p for c in takers for p in inspect.signature(c).parameters} - {"args", "kwargs"})
    close = difflib.get_close_matches(option, names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    listed = f" {named[0].__name__} takes: {', '.join(names) or 'nothing'}." if len(named) == 1 else ""
    return f"there is no option {option!r}{meant}{listed}"


def _unknown_class(name: str, key: str, classes: dict[str, type]) -> str:
    listed = listing().of_class(re.sub(r"^(fit|validate|test|predict)\.", "", key))  # all that fit this setting
    kind = key.rpartition(".")[2].rstrip("s")
    fitting = [n for n, c in classes.items() if any(kind in base.__name__.lower() for base in c.__mro__)]
    fitting = list(dict.fromkeys([*listed, *fitting])) or [*classes]
    close = nearest(name, fitting)
    meant = f"; did you mean {close!r}?" if close else "."
    return (
        f"{name!r} cannot be imported as a class{meant} Known: {', '.join(sorted(fitting))}. A class of your own "
        "works by its full path, such as my_package.my_module.MyClass, when Python can import it from here."
    )
