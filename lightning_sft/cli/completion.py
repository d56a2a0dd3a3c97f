"""``lightning completion SHELL``: what a shell needs to complete verbs, options and their choices."""

from __future__ import annotations

import argparse
import sys

from lightning_sft.cli.front.listing import Setting, listing
from lightning_sft.cli.front.needs import missing
from lightning_sft.cli.front.words import WORDS
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.errors import UserError

SHELLS = {
    "bash": 'eval "$(lightning completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(lightning completion zsh)"  # in ~/.zshrc, after compinit',
    "tcsh": "lightning completion tcsh > ~/.lightning.tcsh  # and `source` it in ~/.tcshrc",
}


def main(arguments: list[str]) -> None:
    """Print the script of a shell."""
    if {"-h", "--help"} & set(arguments):
        print(
            "usage: lightning completion {bash,zsh,tcsh}\n  print the script that completes verbs, options and choices"
        )
        print("\n" + "\n".join(f"  {shell:<6}{how}" for shell, how in SHELLS.items()))
        sys.exit(0)
    if not arguments:
        raise UserError(missing("completion", f"the name of a shell: {', '.join(SHELLS)}"))
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UserError(f"`lightning completion` got {' '.join(arguments)}. Allowed: {', '.join(SHELLS)}.")
    try:
        import shtab
    except ImportError as error:
        raise UserError("Shell completion needs shtab: pip install 'lightning-sft[completion]'.") from error
    print(shtab.complete(parser(), shell=arguments[0]))


def parser() -> argparse.ArgumentParser:
    """Return a parser of all verbs with their options, made from the list of settings."""
    made = argparse.ArgumentParser("lightning", add_help=False)
    verbs = made.add_subparsers()
    known = listing()
    for verb, text in {**LIGHTNING_VERBS, **{name: own.help for name, own in OWN_VERBS.items()}}.items():
        one = verbs.add_parser(verb, help=text, add_help=False)
        one.add_argument("--help", help="show help")
        own = known.verbs.get(verb, {})
        settings = known.settings if verb in LIGHTNING_VERBS or OWN_VERBS[verb].settings else {}
        short = {w: known.settings.get(k, Setting(("str",))) for w, k in WORDS.items()} if settings else {}
        if verb in LIGHTNING_VERBS:
            short["output"] = Setting(("str",), help="folder in which runs lie side by side")
        for name, setting in {**settings, **short, **own}.items():
            _add(one, name, setting, [*known.of_class(name), *known.of_class(WORDS.get(name, ""))])
        if settings:
            _file(one.add_argument("files", nargs="*", help="files of settings"))
    return made


def _add(parser: argparse.ArgumentParser, name: str, setting: Setting, classes: list[str]) -> None:
    text = setting.help.replace("%", "%%")
    if setting.takes == ("flag",):
        parser.add_argument(f"--{name}", action="store_true", help=text)
        return
    choices = [*setting.choices, *classes] + (["true", "false"] if "bool" in setting.takes else [])
    added = parser.add_argument(f"--{name}", help=text, choices=list(dict.fromkeys(choices)) or None)
    if not choices and "str" in setting.takes:
        _file(added)


def _file(action: argparse.Action) -> None:
    """Let the shell complete files."""
    import shtab

    action.complete = shtab.FILE  # type: ignore[attr-defined]
