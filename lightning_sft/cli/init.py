"""``lightning init``: a commented file of settings from options, made without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.given import SECTIONS, Given, read_given
from lightning_sft.cli.front.help import SCREEN
from lightning_sft.cli.front.listing import Listing, listing
from lightning_sft.cli.front.words import expand, join, spell_out, split
from lightning_sft.cli.init_rows import map_columns, training_rows
from lightning_sft.errors import OutputExistsError, UserError
from lightning_sft.files import write_text
from lightning_sft.held_out import ENOUGH, split_of

#: what a run needs and may not be given
START: dict[str, Any] = {
    "model.model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "model.objective": "NLL",
    "data.train": "train.jsonl",
    "trainer.max_epochs": 1,
    "trainer.num_sanity_val_steps": -1,  # the table at the end then has a column from before the first step
    "trainer.log_every_n_steps": 1,  # a first run is often shorter than Lightning's 50
}
_HEAD = """\
# Made by `lightning init`. A line with a leading # is a default, or an example of what may stand there; other settings:
# `lightning fit --help all`. Start with: lightning fit {name}
"""


def main(arguments: list[str]) -> None:
    """Write a file of settings: ``lightning init [FILE.yaml ...] [--KEY VALUE ...] [--output FILE]``."""
    output, rest = _output(arguments)
    if output.exists():
        raise OutputExistsError(output)
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output is {str(output)!r}. Allowed: a file that ends in .yaml.")
    check("fit", [*rest, f"--model.model_name_or_path={START['model.model_name_or_path']}"])
    values = settings_of(rest)
    remarks = [*_the_model(values, output)]
    for key in ("data.train", "data.val"):
        remarks += map_columns(key, values, arguments, START.get(key))
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
    texts = {key: text for keys in SCREEN.values() for key, text in keys.items() if key in listing().settings}
    if not {"data.val", "data.val_split"} & values.keys():
        values["data.val_split"], texts["data.val_split"] = split_of(training_rows(values["data.train"], ENOUGH))
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
