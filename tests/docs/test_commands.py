"""No command of a page, in a shell block or in running text, has a mistake that is told before anything is read."""

import re
import shlex
from importlib import import_module

import pytest

from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.words import in_settings, tidy
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.errors import UserError
from tests.docs.pages import PAGES, name_of, program_commands, prose

#: what a shell takes for itself: pipes, redirections, jobs in the background
SHELL = re.compile(r"\s[<>&|].*$")
#: settings of a class that a page lets its reader write
OF_A_USER = {"--model.pull"}


def commands() -> list[tuple[str, str]]:
    """Page and command: those in shell blocks, and those in running text that have an option."""
    found = [(name_of(page), command) for page, command in program_commands()]
    for page in PAGES:
        joined = re.sub(r"(?<!\n)\n(?!\n)", " ", prose(page))
        inline = re.findall(r"`lightning(?:-sft)? ([\w-]+ [^`]*--\w[^`]*)`", joined)
        found += [(name_of(page), command) for command in inline]
    return list(dict.fromkeys(found))


def is_value(words: list[str], i: int) -> bool:
    """Whether a word belongs to the option before it."""
    return i > 0 and words[i - 1].startswith("--") and "=" not in words[i - 1]


def look(command: str) -> None:
    """Raise what the command line says of a command; files, folders and models of a user are not looked for."""
    verb, *words = shlex.split(SHELL.sub("", command), comments=True)
    asks = any(word.endswith("help") for word in words)
    if verb in ("VERB", "--help", "--version") or asks or OF_A_USER & set(words):
        return
    own = OWN_VERBS.get(verb)
    words = [word for word in words if word != "..."]
    if verb in LIGHTNING_VERBS or (own is not None and own.settings):
        if verb != "compare":  # whose arms have words that stand by themselves
            words = [w for i, w in enumerate(words) if w.startswith("--") or is_value(words, i)]
        words = [w for w in words if not w.endswith(".yaml") and w != "--config"]
        named = verb == "audit" or any(re.match(r"--model(=|$|\.model_name)", word) for word in words)
        words = tidy([*([] if named else ["--model=a/b", "--adapter=lora"]), *words], takes_files=True)
        check("fit" if verb in ("init", "demo") else verb, in_settings(verb, words))
        return
    assert own is not None, verb
    parser = getattr(import_module(own.module), "parser", None)
    if parser is None:
        assert not words
        return
    if verb in ("chat", "export"):  # a run's folder becomes --ckpt_path before they see it
        words = [w for i, w in enumerate(words) if w.startswith("--") or is_value(words, i)]
    rest = parser().parse_known_args(words)[1]
    assert not rest or verb == "sweep", rest  # sweep critical takes settings of fit


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_has_no_mistake(page: str, command: str) -> None:
    look(command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compare mine.yaml --objectives NLL,EAFT --replicats 4", "replicates"),
        ("chat --ckpt_path best --prompts hello", "prompt"),
        ("estimate demo.yaml --devices eight", "eight"),
        ("audit --before base --data rows.jsonl", "--after"),
    ],
)
def test_a_mistake_is_seen(command: str, said: str) -> None:
    with pytest.raises((UserError, AssertionError), match=said):
        look(command)
