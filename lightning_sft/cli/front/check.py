"""Mistakes that can be told from the list of settings alone: unknown keys, classes, options and impossible values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front import say
from lightning_sft.cli.front.given import SECTIONS, Given, read_given
from lightning_sft.cli.front.instead import instead
from lightning_sft.cli.front.listing import KnownClass, Listing, Setting, listing
from lightning_sft.cli.front.meant import may_be_class
from lightning_sft.cli.front.names import not_offered
from lightning_sft.cli.front.needs import require_needed
from lightning_sft.cli.front.ranges import OPTIONS, SETTINGS, out_of_range
from lightning_sft.cli.front.values import fits, is_inline, is_number, names_devices
from lightning_sft.cli.front.words import REPORT, SETS, class_of_word, expand
from lightning_sft.cli.verbs import LIGHTNING_VERBS
from lightning_sft.errors import UserError

#: mistakes that one answer tells of
_TOLD = 5
#: what a class takes beside its arguments
_OF_ANY_CLASS = {"class_path", "init_args", "dict_kwargs", "help"}
#: modules of this package in which every class is listed
_OURS = {"lightning_sft.objectives", "lightning_sft.callbacks", "lightning_sft.data"}
#: names that classes had before, which config.yaml of earlier runs hold; the package still knows them
_FORMER = {"lightning_sft.callbacks.Readings"}


def check(verb: str, arguments: Sequence[str]) -> list[str]:
    """Raise if arguments hold a mistake that the list of settings tells; what it cannot tell is left to the parser.

    Args:
        verb: fit, or another that takes its settings.
        arguments: those after the verb, tidied.

    Returns:
        Remarks on what is allowed and may surprise.

    Raises:
        UserError: all mistakes that it finds, of many the first `_TOLD`.
    """
    known = listing()
    own = known.verbs.get(verb, {})
    if verb not in LIGHTNING_VERBS and not own:
        return []
    checker = Checker(known, verb, own)
    given = list(read_given(expand(arguments), known))
    checker.foreign = any(_is_foreign(one, known) for one in given)
    for one in given:
        with checker.collecting():
            checker.look(one)
    checker.require_none()
    keys = {one.key for one in given}
    # a class of the user's own may have a model by itself
    if not checker.foreign and not any(key == "print_config" or key.endswith("help") for key in keys):
        _require_rows(verb, keys)
        require_needed(verb, keys)
    return checker.remarks


def _require_rows(verb: str, keys: Collection[str]) -> None:
    """Raise if a source's columns are given, and no rows that they are of."""
    for key in (option.removeprefix("--") for option in SETS):
        columns = f"{key}.columns"
        if columns in keys and not {key, f"{key}.path", f"{key}.class_path"} & set(keys):
            audits = " The rows of an audit's --data FILE are data.test: give --data.test.columns."
            said = f"{columns} is given, and no rows that it is of: {key} is not set."
            raise UserError(said + (audits if verb == "audit" else ""))


@dataclass
class Checker:
    """Goes through what was given, in its order.

    Attributes:
        known: the list.
        verb: whose options also count.
        own: those options.
        foreign: whether some class is not in the list: short names may then be of classes that it brings along.
        chosen: setting -> the class that was last chosen for it; None for one that is not in the list.
        remarks: on what is allowed and may surprise.
        mistakes: what was said of those that were found.
    """

    known: Listing
    verb: str
    own: dict[str, Setting]
    foreign: bool = False
    chosen: dict[str, KnownClass | None] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    _lists: dict[str, Given] = field(default_factory=dict)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep a mistake and go on behind it, so that one answer tells of all."""
        try:
            yield
        except UserError as error:
            self.mistakes.append(str(error))

    def require_none(self) -> None:
        """Raise if mistakes were found."""
        found = list(dict.fromkeys(self.mistakes))
        if len(found) == 1:
            raise UserError(found[0])
        if found:
            more = [f"and {len(found) - _TOLD} more."] if len(found) > _TOLD else []
            raise UserError("\n  ".join([f"{len(found)} mistakes:", *found[:_TOLD], *more]))

    def look(self, one: Given) -> None:
        """Raise if one of those given cannot be right."""
        key = one.key.rstrip("+")
        setting = self.known.settings.get(key) or self.own.get(key)
        if key == "output" and self.verb in LIGHTNING_VERBS:
            return
        if one.name == REPORT and self.verb == "fit":
            if one.value is not None:
                raise UserError(
                    f"{REPORT} is {one.value!r}. It takes no value: give it to get a page, or leave it out."
                )
            return
        if setting is not None:
            self._value(one, key, setting)
            return
        above = key
        while "." in above and above not in self.known.settings:
            above = above.rpartition(".")[0]
        setting = self.known.settings.get(above)
        if setting is not None:
            if setting.bases:
                self._option(one, above, key.removeprefix(f"{above}."))
            elif not {"dict", "list"} & set(setting.takes):
                raise UserError(say.unknown_setting(one, self.known, self.own))
        elif above not in SECTIONS and not (self.foreign and self._of_foreign(key)):
            raise UserError(say.unknown_setting(one, self.known, self.own))
        elif above in SECTIONS and above != key and not (self.foreign and self._of_foreign(key)):
            raise UserError(say.unknown_setting(one, self.known, self.own))

    def _of_foreign(self, key: str) -> bool:
        """Return whether a key may be an argument of a class of the user's own."""
        return key.partition(".")[0] in ("model", "data")

    def _value(self, one: Given, key: str, setting: Setting) -> None:
        if key == "trainer.callbacks":
            self._replaced(one)
        if one.value is None:
            if "flag" not in setting.takes and "help" not in key:
                raise UserError(f"{one.name} has no value. {say.allowed(setting)}")
            return
        node = one.value
        if isinstance(node, str) and is_inline(node) and (setting.bases or "list" in setting.takes):
            try:
                node = yaml.compose(node, Loader=yaml.SafeLoader) or node
            except yaml.YAMLError:
                return  # the parser says what is wrong with it
        if key == "trainer.devices" and not names_devices(node):
            raise UserError(say.wrong_devices(one))
        if isinstance(node, yaml.SequenceNode):
            if setting.bases and "list" in setting.takes:
                for item in node.value:
                    with self.collecting():
                        self._class(one, key, setting, item)
        elif setting.bases:
            self._class(one, key, setting, node)
        else:
            text = node.value if isinstance(node, yaml.ScalarNode) else node
            if isinstance(text, str) and not fits(text, setting):
                raise UserError(say.wrong_value(one, key, text, setting, self.known))
            self._in_range(one, key, text)

    def _in_range(self, one: Given, key: str, value: object) -> None:
        """Raise if a number lies outside its range."""
        allowed = OPTIONS.get(self.verb, {}).get(key) if key in self.own else SETTINGS.get(key)
        said = None if allowed is None else out_of_range(one.name if key in self.own else key, value, allowed)
        if said is not None:
            raise UserError(f"{one.where}{said}")

    def _class(self, one: Given, key: str, setting: Setting, node: str | yaml.Node) -> None:
        """Check a value that names a class, alone or with its arguments."""
        line = node.start_mark.line + 1 if isinstance(node, yaml.Node) and one.file else one.line
        one = Given(one.key, one.value, one.file, line)
        if isinstance(node, yaml.MappingNode):
            fields = {k.value: v for k, v in node.value if isinstance(k, yaml.ScalarNode)}
            path = fields.get("class_path")
            if isinstance(path, yaml.ScalarNode):
                with self.collecting():
                    self._name(one, key, setting, path.value, is_path=True)
            arguments = fields.get("init_args")
            if isinstance(arguments, yaml.MappingNode) and (path is not None or key in self.chosen):
                for option, value in arguments.value:
                    at = Given(f"{key}.{option.value}", value, one.file, option.start_mark.line + 1)
                    with self.collecting():
                        self._option(at, key, option.value)
        else:
            text = node.value if isinstance(node, yaml.ScalarNode) else node
            if isinstance(text, str):
                self._name(one, key, setting, text)

    def _name(self, one: Given, key: str, setting: Setting, name: str, *, is_path: bool = False) -> None:
        """Check a class's name, which may also be another value of the setting unless it is a ``class_path``."""
        classes = self.known.of_class(key)
        name = name if is_path else class_of_word(key, name) or name
        found = classes.get(name) or next((c for c in classes.values() if c.path == name), None)
        self.chosen[key] = found
        if key == "trainer.strategy" and (other := not_offered(name) or _other_strategy(name)) is not None:
            raise UserError(f"{one.where}{key} is {name!r}. {other}")
        if found is not None or not classes or name in _FORMER or (fits(name, setting) and not is_path):
            return
        module, dot, _ = name.rpartition(".")
        if module in _OURS or (not dot and name not in setting.choices and not self.foreign):
            raise UserError(say.unknown_class(one, key, name, setting, self.known))

    def _option(self, one: Given, key: str, option: str) -> None:
        """Check an argument of the class that stands at ``key``."""
        option = option.removeprefix("init_args.").partition(".")[0]
        if option in _OF_ANY_CLASS:
            if option == "class_path" and isinstance(one.value, str):
                self._name(one, key, self.known.settings[key], one.value, is_path=True)
            return
        if (key, option) == ("model.optimizer", "lr") and isinstance(one.value, str) and not is_number(one.value):
            raise UserError(f"{one.where}{one.name} is {one.value!r}. Allowed: a number, such as 2e-5.")
        self._in_range(one, f"{key}.{option}", one.value.value if isinstance(one.value, yaml.ScalarNode) else one.value)
        setting = self.known.settings[key]
        if key not in self.chosen and len(setting.bases) == 1 and "list" not in setting.takes:
            named = self.known.of_class(key)
            by_default = next((c for c in named.values() if c.path == setting.default), None)
            only = next(iter(named.values())) if len(named) == 1 else None
            if by_default is None and only is None and named and not self.foreign:
                self.chosen[key] = None  # said once, not of each of its arguments
                raise UserError(say.no_class_yet(one, key, self.known))
            self.chosen[key] = by_default or only
        known = self.chosen.get(key)
        if known is None or known.is_open or not self.known.is_exact(known) or option.isdecimal():
            return
        if option not in known.options:
            raise UserError(say.unknown_option(one, key, option, known, self.known))

    def _replaced(self, one: Given) -> None:
        """Remark that a list of one file is replaced by that of a later one."""
        before = self._lists.get(one.key)
        if not one.key.endswith("+") and one.value is not None:
            if before is not None and before.file != one.file and isinstance(before.value, yaml.SequenceNode):
                self.remarks.append(say.replaced(before, one))
            self._lists[one.key] = one


def _other_strategy(name: str) -> str | None:
    """Return what to do in place of a strategy that Lightning does not know by this name."""
    return None if name == "deepspeed" else instead(name)


def _is_foreign(one: Given, known: Listing) -> bool:
    """Return whether something given may name a class that is not in the list."""
    if one.key in ("model", "data") or one.key in ("model.class_path", "data.class_path"):
        return True
    return any(may_be_class(name) and not _is_listed(name, known) for name in _names(one.value, one.key, known))


def _names(value: str | yaml.Node | None, key: str, known: Listing) -> list[str]:
    """Return the class names in a value."""
    setting = known.settings.get(key.rstrip("+"))
    if isinstance(value, str):
        takes = (setting is not None and setting.bases and "str" not in setting.takes) or key.endswith("class_path")
        return [value] if takes and not is_inline(value) else ([] if not takes else _inside(value))
    if isinstance(value, yaml.ScalarNode):
        return [value.value] if setting is not None and setting.bases and "str" not in setting.takes else []
    if isinstance(value, yaml.SequenceNode):
        return [name for item in value.value for name in _names(item, key, known)]
    if isinstance(value, yaml.MappingNode):
        found: list[str] = []
        for k, v in value.value:
            if getattr(k, "value", "") == "class_path" and isinstance(v, yaml.ScalarNode):
                found.append(v.value)
            elif not isinstance(v, yaml.ScalarNode):
                found += _names(v, key, known)
        return found
    return []


def _inside(text: str) -> list[str]:
    """Return the words of an inline value that may be paths of classes."""
    return [word for word in text.replace(",", " ").replace("{", " ").replace("}", " ").split() if may_be_class(word)]


def _is_listed(name: str, known: Listing) -> bool:
    module = name.rpartition(".")[0]
    return module in _OURS or any(c.path == name for named in known.classes.values() for c in named.values())
