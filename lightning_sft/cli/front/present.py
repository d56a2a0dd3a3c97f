"""What settings name and this machine lacks: data, models, checkpoints, packages; found before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import Given, has_files_elsewhere, read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.meant import is_data_path
from lightning_sft.cli.front.run_folder import READERS
from lightning_sft.cli.front.say import nothing_for
from lightning_sft.cli.front.values import NULL, is_inline
from lightning_sft.cli.front.words import class_of_word, expand, split
from lightning_sft.errors import UserError
from lightning_sft.places import (
    DEMO_EXTRA,
    data_files,
    is_installed,
    require_checkpoint_place,
    require_model_place,
)

#: verb -> the settings whose rows it surely reads; `score` reads those of its --sets
READS = {
    **dict.fromkeys(("fit", "inspect", "advise", "forecast", "compare"), ("data.train", "data.val")),
    "validate": ("data.val",),
    "test": ("data.test",),
    "predict": ("data.predict",),
    "audit": ("data.test",),
}
#: verb -> the setting without which there is nothing for it to do
_NEEDS = {
    **dict.fromkeys(("fit", "advise", "forecast"), "data.train"),
    "validate": "data.val",
    "test": "data.test",
    "predict": "data.predict",
}
#: verbs that name their models otherwise, or write down what is still to come
_OTHER_MODEL = ("audit", "score", "estimate", "init")
#: logger -> the package that it needs
_LOGGERS = {"WandbLogger": "wandb", "CometLogger": "comet_ml", "MLFlowLogger": "mlflow", "LitLogger": "litlogger"}
_SOURCE, _TASK = "Source", "ReasoningGymTask"


def require_present(verb: str, arguments: Sequence[str], typed: Sequence[str] = ()) -> None:
    """Raise if settings name no rows at all, or a file of data, a model's folder, or a package that is not there.

    What only the run itself can tell, such as a name on the hub, is left to it.

    Args:
        verb: fit, or another that takes its settings.
        arguments: those after the verb, tidied.
        typed: the same as they were typed.

    Raises:
        UserError: says where it is named, and what to change.
    """
    given = {one.key: one for one in read_given(expand(arguments), listing())}  # the last one of each key counts
    if any(key == "print_config" or key.endswith("help") for key in given):
        return
    if "ckpt_path" in given and verb in READERS:  # a comparison refuses it altogether
        _require_named(given["ckpt_path"], require_checkpoint_place)
    if not has_files_elsewhere(arguments):
        _require_any(verb, given, typed)
    if "trainer.logger" in given:
        _require_loggers(given["trainer.logger"])
    # a class of the user's own may mean something else by them, and arms of a comparison may have rows of their own
    if not {"data", "data.class_path", "arm"} & given.keys():
        for key in READS.get(verb, ()):
            # of a configuration, an audit reads the set that --set names
            if key in given and not (verb == "audit" and given[key].file):
                _require_rows(key, given)
    model = given.get("model.model_name_or_path")
    if model is not None and verb not in _OTHER_MODEL and not {"model", "model.class_path"} & given.keys():
        _require_named(model, require_model_place)


def _require_any(verb: str, given: Mapping[str, Given], typed: Sequence[str]) -> None:
    """Raise if a verb has no rows to work on."""
    if verb not in _NEEDS or {"data", "data.class_path"} & given.keys():
        return
    if {"model", "model.class_path"} & given.keys():  # a class of the user's own comes first: it may not be found
        return
    key = _NEEDS[verb]
    named = {k for k, one in given.items() if not _is_null(one)}
    validates = any(k in ("data.val", "data.val_split") or k.startswith("data.val.") for k in named)
    if not (verb == "validate" and validates) and not any(k == key or k.startswith(f"{key}.") for k in named):
        raise UserError(nothing_for(verb, typed, validates=validates))


def _is_null(one: Given) -> bool:
    value = one.value.value if isinstance(one.value, yaml.ScalarNode) else one.value
    return isinstance(value, str) and value in NULL


def require_checkpoint(arguments: Sequence[str]) -> None:
    """Raise if ``--ckpt_path`` of a verb without settings names what is not there.

    Args:
        arguments: those after the verb, tidied.

    Raises:
        UserError: see `require_checkpoint_place`.
    """
    for name, values, _ in split(arguments):
        if name == "--ckpt_path" and values:
            _require_named(Given("ckpt_path", values[0]), require_checkpoint_place)


def _require_named(one: Given, look: Callable[[str], object]) -> None:
    name = one.value.value if isinstance(one.value, yaml.ScalarNode) else one.value
    if isinstance(name, str) and name not in NULL:
        _placed(one, name, look)


def _require_loggers(one: Given) -> None:
    for name in _class_names(one.value):
        logger = (class_of_word("trainer.logger", name) or name).rpartition(".")[2]
        package = _LOGGERS.get(logger)
        if package is not None and not is_installed(package):
            raise UserError(
                f"{one.where}{one.name} is {logger}, which needs the package {package}, and it is not installed here. "
                f"Install it: `pip install {package}`; or log with tensorboard or csv."
            )


def _class_names(value: str | yaml.Node | None) -> Iterator[str]:
    """Yield the classes that a value names, their arguments aside."""
    node = _composed(value)
    if isinstance(node, str):
        yield node
    elif isinstance(node, yaml.ScalarNode):
        yield str(node.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _class_names(item)
    elif isinstance(node, yaml.MappingNode):
        yield from _class_names(_fields(node).get("class_path"))


def _require_rows(key: str, given: Mapping[str, Given]) -> None:
    """Raise if a setting such as ``data.train`` names a file, or a source's package, that is not there."""
    for at, kind, name in named_rows(key, given):
        if kind == _TASK and not is_installed("reasoning_gym"):
            raise UserError(
                f"{at.where}{at.name} is a {_TASK}, which needs the package reasoning_gym, and it is not installed "
                f"here. Install it: `{DEMO_EXTRA}`."
            )
        if name is not None:
            _placed(at, name, data_files)


def named_rows(key: str, given: Mapping[str, Given]) -> Iterator[tuple[Given, str, str | None]]:
    """Yield where a setting such as ``data.train`` names rows, the class that reads them, and their path.

    Args:
        key: of the setting.
        given: the last value of every key.
    """
    one = given[key]
    for kind, name, node in _sources(key, _composed(one.value)):
        at = Given(one.key, None, one.file, node.start_mark.line + 1 if node is not None and one.file else one.line)
        apart = given.get(f"{key}.init_args.path") or given.get(f"{key}.path")
        is_class = name is None or isinstance(one.value, yaml.MappingNode)
        if kind == _SOURCE and is_class and apart is not None and isinstance(apart.value, str):
            name, at = apart.value, apart
        yield at, kind, name


def _sources(key: str, node: str | yaml.Node | None) -> Iterator[tuple[str, str | None, yaml.Node | None]]:
    """Yield the class, the path and the place of each source in a value; a path alone is a `Source`."""
    if isinstance(node, str | yaml.ScalarNode):
        text, place = (node, None) if isinstance(node, str) else (str(node.value), node)
        if text in NULL:
            return
        listed = listing().of_class(key)
        named = text if text in listed else next((n for n, c in listed.items() if c.path == text), None)
        if named is not None:
            yield named, None, place
        elif is_data_path(key, text):
            yield _SOURCE, text, place
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _sources(key, item)
    elif isinstance(node, yaml.MappingNode):
        fields = _fields(node)
        kind = fields.get("class_path")
        if isinstance(kind, yaml.ScalarNode):
            arguments = fields.get("init_args")
            path = _fields(arguments).get("path") if isinstance(arguments, yaml.MappingNode) else None
            name = str(path.value) if isinstance(path, yaml.ScalarNode) else None
            yield str(kind.value).rpartition(".")[2], name, path or node
        else:  # named sets, and a set with its sources
            for item in [fields["sources"]] if "sources" in fields else fields.values():
                yield from _sources(key, item)


def _composed(value: str | yaml.Node | None) -> str | yaml.Node | None:
    if isinstance(value, str) and is_inline(value):
        try:
            return yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return None  # the parser says what is wrong with it
    return value


def _fields(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    return {str(k.value): v for k, v in node.value if isinstance(k, yaml.ScalarNode)}


def _placed(one: Given, name: str, look: Callable[[str], object]) -> None:
    """Look for what a setting names; a message says where that stands."""
    try:
        look(name)
    except UserError as error:
        raise UserError(f"{one.where}{one.name}: {error}") from None
