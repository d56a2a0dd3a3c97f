"""``lightning init``: a commented file of settings from options, made without torch."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.given import SECTIONS, Given, read_given
from lightning_sft.cli.front.help import SCREEN
from lightning_sft.cli.front.listing import Listing, listing
from lightning_sft.cli.front.meant import is_data_path
from lightning_sft.cli.front.names import nearest
from lightning_sft.cli.front.words import expand, join, spell_out, split
from lightning_sft.data.reading.formats import REQUIRED
from lightning_sft.data.reading.guess import Guess, an_example, first_rows, guess, in_braces
from lightning_sft.data.reading.sniff import columns_hint
from lightning_sft.data.types import printable
from lightning_sft.errors import UserError
from lightning_sft.files import write_text
from lightning_sft.places import DATA_KINDS, SUFFIXES, data_files, suffix

#: what a run needs and may not be given
START: dict[str, Any] = {
    "model.model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "model.objective": "NLL",
    "data.train": "train.jsonl",
    "trainer.max_epochs": 1,
    "trainer.num_sanity_val_steps": -1,  # the table at the end then has a column from before the first step
    "trainer.log_every_n_steps": 1,  # a first run is often shorter than Lightning's 50
}
#: taken unless rows to validate on are given
_SPLIT = ("data.val_split", 0.05)
#: files of a folder that are looked into
_LOOKED_INTO = 5
#: characters of a row in a message
_SHOWN = 300
_HEAD = """\
# Made by `lightning init`. A line with a leading # is a default, or an example of what may stand there; other settings:
# `lightning fit --help all`. Start with: lightning fit {name}
"""


def main(arguments: list[str]) -> None:
    """Write a file of settings: ``lightning init [FILE.yaml ...] [--KEY VALUE ...] [--output FILE]``."""
    output, rest = _output(arguments)
    if output.exists():
        raise UserError(f"{str(output)!r} exists already. Give another name by --output, or remove it.")
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output is {str(output)!r}. Allowed: a file that ends in .yaml.")
    check("fit", [*rest, f"--model.model_name_or_path={START['model.model_name_or_path']}"])
    values = settings_of(rest)
    remarks = [*_the_model(values, output)]
    remarks += [remark for key in ("data.train", "data.val") for remark in map_columns(key, values, rest)]
    write_text(output, document(values, output.name))
    print("\n".join([*remarks, f"{output} is written. Next:"]))
    for verb in ("inspect", "advise", "fit"):
        print(f"  lightning {verb} {output}")


def _output(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    rest, found = [], "sft.yaml"
    for name, values, joined in split(arguments):
        if name == "--output":
            if not values:
                raise UserError("--output has no value. Give the file to write, such as sft.yaml.")
            found = values[0]
        else:
            rest.append((name, values, joined))
    return Path(found), join(rest)


def _the_model(values: Mapping[str, Any], output: Path) -> Iterator[str]:
    """Say which model is taken where none was named."""
    if "model.model_name_or_path" not in values:
        yield (
            f"No model was named, so it is {START['model.model_name_or_path']}, a small one to begin with. Another: "
            f"--model NAME, or model.model_name_or_path in {output}: a hub name, a folder, a .gguf file or "
            "pkg://package/file.gguf."
        )


def map_columns(key: str, values: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """Look at the first rows of a file, map its columns to ours where they have other names, and say what was found.

    Args:
        key: ``data.train``, or another set.
        values: of all keys; a path becomes a `Source` with its columns.
        arguments: of the verb, for the message.

    Raises:
        UserError: nothing tells which column asks and which answers; says how to.
    """
    given = values.get(key, START.get(key))
    plain: dict[str, Any] = {"class_path": "Source", "init_args": {"path": given}}
    source = given if isinstance(given, dict) else plain
    asked = source.get("init_args", {})
    path = asked.get("path")
    is_source = str(source.get("class_path")).rpartition(".")[2] == "Source"
    if not isinstance(path, str) or not is_source or not is_data_path(key, path):
        return
    try:
        files = data_files(path)
    except UserError as error:
        if key in values:
            yield f"{key} is {path!r}, which was not looked at: {error}"
        else:
            there = sorted(
                file.name for file in Path().iterdir() if suffix(file) in SUFFIXES and suffix(file) != ".txt"
            )
            here = f" Here are {', '.join(there[:8])}: --train FILE takes one." if there else ""
            yield f"No rows were named: put yours into {path}, or change {key}.{here} Allowed: {DATA_KINDS}."
        return
    yield from _several(files, path)
    if not files or asked.get("format", "auto") != "auto":  # a name on the hub, or somebody who knows
        return
    rows = first_rows(files[0])
    if not rows:
        yield f"{files[0]} has no row that can be read: `lightning inspect` says why."
        return
    if "columns" in asked:
        _require_columns(asked["columns"], rows, files[0])
        return
    found = guess(rows)
    if (found is None or found.format == "text") and (hint := columns_hint(rows[0])):
        raise UserError(f"{files[0]} has the columns {', '.join(map(str, rows[0]))}. {hint} Nothing was written.")
    if found is None:
        example = in_braces(an_example(rows))
        again = shlex.join(["lightning", "init", *arguments, f"--{key.removeprefix('data.')}.columns", example])
        raise UserError(
            f"{files[0]} has the columns {', '.join(map(str, rows[0]))}, and their names do not tell which of them "
            "asks and which answers. Nothing was written. Say it, for example (our name: the name in your file):\n"
            f"  {again}\n"
            f"The first row: {printable(json.dumps(rows[0], ensure_ascii=False, default=str), _SHOWN)}"
        )
    yield f"{files[0]}: {_in_words(found)}"
    if found.trouble:
        yield f"  {found.trouble}. `lightning inspect` says how many rows are like it."
    if found.columns:
        values[key] = {"class_path": "Source", "init_args": {**asked, "path": path, "columns": found.columns}}


def _several(files: Sequence[Path], path: str) -> Iterator[str]:
    """Say which files a folder or a pattern stands for, and which of them are unlike the first."""
    if len(files) < 2:
        return
    kinds = Counter(suffix(file) for file in files)
    counted = " and ".join(f"{count} {ending}" for ending, count in kinds.most_common())
    yield f"{path} stands for {len(files)} files ({counted}), which are read one after the other: {_names(files)}."
    columns = {file: [*map(str, rows[0])] if (rows := first_rows(file)) else [] for file in files[:_LOOKED_INTO]}
    unlike = [file for file in columns if set(columns[file]) != set(columns[files[0]])]
    some = files[0].parent / f"*{files[0].suffix}"
    for file in unlike:
        yield (
            f"  {file} has other columns ({', '.join(columns[file]) or 'no row that can be read'}) than {files[0]} "
            f"({', '.join(columns[files[0]])}). Leave out what is not meant, such as --train '{some}', or give each "
            "kind as a source of its own."
        )


def _names(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _LOOKED_INTO} more" if len(files) > _LOOKED_INTO else ""
    return ", ".join(file.name for file in files[:_LOOKED_INTO]) + more


def _require_columns(columns: object, rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Raise if a mapping names a column that none of the first rows has."""
    there = {str(name): None for row in rows for name in row}
    for name in columns.values() if isinstance(columns, dict) else ():
        if isinstance(name, str) and name not in there:
            meant = nearest(name, there)
            raise UserError(
                f"{file} has no column {name!r}{'' if meant is None else f', but {meant!r}'}. Its columns: "
                f"{', '.join(there)}. Nothing was written."
            )


def _in_words(found: Guess) -> str:
    if found.columns:
        said = ", ".join(f"{theirs} is read as {ours}" for ours, theirs in found.columns.items())
    else:
        said = f"rows with {' and '.join(REQUIRED[found.format])}"
    return said + (f"; nothing reads {', '.join(found.unused)}" if found.unused else "") + "."


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return key to value of what options and files set; a class with its arguments is one value.

    Args:
        arguments: of ``fit``, short words among them.
    """
    known = listing()
    found: dict[str, Any] = {}
    for one in read_given(expand(arguments), known):
        key = one.key.rstrip("+")
        value = _value(one)
        above = _class_above(key, known)
        if above is not None:
            option = key.removeprefix(f"{above}.").removeprefix("init_args.")
            held = found.get(above, {"class_path": known.settings[above].default})
            held = dict(held) if isinstance(held, dict) else {"class_path": held}
            if option == "class_path":
                held["class_path"] = value
            else:
                held["init_args"] = {**held.get("init_args", {}), option: value}
            found[above] = held
        elif one.key.endswith("+"):
            found[key] = [*found.get(key, []), *(value if isinstance(value, list) else [value])]
        else:
            found[key] = value
    content: dict[str, Any] = {"model": {"adapter": found.get("model.adapter")}, "trainer": {"logger": None}}
    content["trainer"]["logger"] = found.get("trainer.logger")
    if spell_out(content):
        found |= {
            key: value
            for key, value in (
                ("model.adapter", content["model"]["adapter"]),
                ("trainer.logger", content["trainer"]["logger"]),
            )
            if value is not None
        }
    return found


def _class_above(key: str, known: Listing) -> str | None:
    above = key.rpartition(".")[0]
    while above and above not in known.settings:
        above = above.rpartition(".")[0]
    return above if above and known.settings[above].bases and key not in known.settings else None


def _value(one: Given) -> Any:
    if isinstance(one.value, yaml.Node):
        value = yaml.safe_load(yaml.serialize(one.value))
    else:
        value = yaml.safe_load(one.value) if one.value is not None else True
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for a text
        except ValueError:
            return value
    return value


def document(values: dict[str, Any], name: str) -> str:
    """Return the file: what is set, and the settings that people turn as comments.

    Args:
        values: key to value.
        name: of the file, for its head.
    """
    values = {**START, **values}
    if "trainer.max_steps" in values and values["trainer.max_epochs"] == START["trainer.max_epochs"]:
        del values["trainer.max_epochs"]  # steps alone decide
    if not {"data.val", "data.val_split"} & values.keys():
        values[_SPLIT[0]] = _SPLIT[1]
    texts = {key: text for keys in SCREEN.values() for key, text in keys.items() if key in listing().settings}
    lines = [_HEAD.format(name=name)]
    top = [key for key in [*texts, *values] if "." not in key and key != "ckpt_path"]
    for key in dict.fromkeys(top):
        lines += _lines(key, key, values, texts, "")
    for section in SECTIONS:
        lines.append(f"{section}:")
        for key in dict.fromkeys(k for k in [*texts, *values] if k.startswith(f"{section}.")):
            lines += _lines(key, key.removeprefix(f"{section}."), values, texts, "  ")
    return "\n".join(lines) + "\n"


def _lines(key: str, name: str, values: dict[str, Any], texts: dict[str, str], indent: str) -> Iterator[str]:
    note = f"  # {texts[key]}" if key in texts else ""
    if key not in values:
        yield f"{indent}# {name}: {listing().settings[key].default}{note}"
        return
    flow = None if isinstance(values[key], dict | list) else False  # the innermost ones stand on one line
    text = yaml.safe_dump({name: values[key]}, sort_keys=False, width=float("inf"), default_flow_style=flow)
    dumped = str(text).rstrip().splitlines()
    yield f"{indent}{dumped[0]}{note}"
    yield from (f"{indent}{line}" for line in dumped[1:])
