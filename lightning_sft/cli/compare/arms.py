"""Arms of a comparison as settings of the command line: objectives by name, and anything else by key."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass

import lightning_sft.objectives
from lightning_sft.errors import UserError
from lightning_sft.objectives import Objective


@dataclass(frozen=True)
class ArmSettings:
    """An arm as it was asked for.

    Attributes:
        name: in tables.
        arguments: of the command line that only this arm has.
    """

    name: str
    arguments: tuple[str, ...]


def objective_arms(text: str) -> list[ArmSettings]:
    """Return an arm for each of some objectives, such as ``NLL,PowerFamily(1),Focal(gamma=2)``.

    Arguments in parentheses are those of the class, in its order or by name; plain values only. Objectives that are
    made of others, or of a file, are arms by key: `setting_arm`.

    Raises:
        UserError: an unknown name, or arguments that the class does not take.
    """
    return [_objective_arm(part) for part in _split(text)]


def setting_arm(words: Sequence[str]) -> ArmSettings:
    """Return the arm that ``--arm NAME KEY=VALUE ...`` asks for.

    Raises:
        UserError: a word that is no setting.
    """
    name, *settings = words
    if "=" in name:
        raise UserError(f"--arm begins with {name!r}. Give a name first: --arm NAME KEY=VALUE ...")
    wrong = [s for s in settings if "=" not in s or s.startswith("=")]
    if wrong:
        raise UserError(f"--arm {name} has {', '.join(map(repr, wrong))}. Allowed: KEY=VALUE, as model.adapter.r=8.")
    return ArmSettings(name, tuple(f"--{s.removeprefix('--')}" for s in settings))


def _split(text: str) -> list[str]:
    """Split at commas outside of parentheses."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts = [part.strip() for part in (*parts, text[start:])]
    if not all(parts):
        raise UserError(f"--objectives is {text!r}. Allowed: names with commas between, as NLL,PowerFamily(1),EAFT.")
    return parts


def _objective_arm(text: str) -> ArmSettings:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"--objectives has {text!r}, which is no name with arguments, as PowerFamily(1).") from error
    call = tree if isinstance(tree, ast.Call) else None
    path = ast.unparse(call.func if call else tree)
    kind = getattr(lightning_sft.objectives, path, None)
    if "." in path:  # a class of one's own, which the parser imports; its arguments are by name
        arguments = _named(call, text, None)
    elif isinstance(kind, type) and issubclass(kind, Objective):
        arguments = _named(call, text, kind)
    else:
        every = {name: getattr(lightning_sft.objectives, name) for name in lightning_sft.objectives.__all__}
        known = sorted(
            n for n, k in every.items() if isinstance(k, type) and issubclass(k, Objective) and k != Objective
        )
        spelt = {name.lower(): name for name in known}
        close = difflib.get_close_matches(path.lower(), spelt, n=1)
        meant = f"; did you mean {spelt[close[0]]!r}?" if close else "."
        raise UserError(f"--objectives names {path!r}{meant} Allowed: {', '.join(known)}, or my_module.MyObjective.")
    setting = {"class_path": path, **({"init_args": arguments} if arguments else {})}
    return ArmSettings(text.replace(" ", ""), (f"--model.objective={json.dumps(setting)}",))


def _named(call: ast.Call | None, text: str, kind: type | None) -> dict[str, object]:
    """Return the arguments of a call by name."""
    if call is None:
        return {}
    try:
        positional = [ast.literal_eval(a) for a in call.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except ValueError as error:
        raise UserError(f"--objectives has {text!r}: arguments are plain values. Use --arm for others.") from error
    if kind is None:
        if positional:
            raise UserError(f"--objectives has {text!r}. Give the arguments of a class of your own by name.")
        return named
    try:
        return dict(inspect.signature(kind).bind(*positional, **named).arguments)
    except TypeError as error:
        raise UserError(
            f"--objectives has {text!r}: {error}. It is {kind.__name__}{inspect.signature(kind)}."
        ) from error
