"""The command line: Lightning's verbs through LightningCLI, and our own verbs in front of it."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import NoReturn

from lightning_sft.cli.class_help import class_help
from lightning_sft.cli.duplicates import refuse_duplicates
from lightning_sft.cli.failures import what_happened
from lightning_sft.cli.front.beside import settle_rows
from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.ending import with_an_end
from lightning_sft.cli.front.help import answer, has_help
from lightning_sft.cli.front.in_the_way import require_free_output, say_in_the_way
from lightning_sft.cli.front.names import nearest
from lightning_sft.cli.front.on_hub import settle_hub
from lightning_sft.cli.front.present import require_checkpoint, require_present
from lightning_sft.cli.front.run_folder import spell_out_run
from lightning_sft.cli.front.sources import spell_out_sources
from lightning_sft.cli.front.typed import require_two_dashes
from lightning_sft.cli.front.words import in_settings, tidy
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.errors import OutputExistsError, UserError
from lightning_sft.progress import loading
from lightning_sft.training.signals import WATCH, Stopped

#: verbs that write checkpoints
_SAVING = ("fit", "demo")
#: what asks for help in place of a verb, or before one
_HELP = ("-h", "--help", "help")
#: what our verbs are called elsewhere
_ELSEWHERE = {
    "train": "fit", "finetune": "fit", "tune": "fit", "sft": "fit", "run": "fit", "start": "fit", "resume": "fit",
    "eval": "validate", "evaluate": "validate", "val": "validate", "generate": "predict", "infer": "predict",
    "inference": "predict", "new": "init", "create": "init", "merge": "export", "convert": "export", "save": "export",
    "preview": "inspect", "show": "inspect", "memory": "estimate", "version": "--version",
}  # fmt: skip
#: options with which they only say something
_ASKING = ("--help", "-h", "--print_config", "--print-config")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; bad input ends with a message and exit status 2, without a traceback.

    Args:
        argv: the arguments after the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in _HELP:
        if not arguments[1:] or arguments[1].startswith("-"):
            print(_help())
            return
        verb, arguments = arguments[1], [arguments[1], "--help", *arguments[2:]]
    if verb == "--version":
        print(f"lightning-sft {metadata.version('lightning-sft')}, lightning {metadata.version('lightning')}")
        return
    typed = arguments[1:]
    owns_signals = WATCH.install()
    WATCH.again = _again(verb, typed)
    WATCH.saves = verb in _SAVING and not any(word.startswith(_ASKING) for word in arguments)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())  # a script's path lacks the folder where users keep classes of their own
    try:
        arguments = [verb, *_in_front(verb, arguments[1:])]
        with loading():
            run = _verb(verb)
        run(arguments)
        if WATCH.requested is not None:
            WATCH.stop("when everything was done", lost=False)
    except Stopped as stopped:
        WATCH.end_ranks()
        if stopped.done and not WATCH.is_started_rank:
            by = signal.Signals(stopped.signum).name
            print(f"Stopped by {by}: {stopped.done}. Go on with {_again(verb, typed)}", file=sys.stderr, flush=True)
        # Lightning kills all where a rank that it started ends with another status
        sys.exit(0 if WATCH.is_started_rank and WATCH.agreed else stopped.code)
    except OutputExistsError as error:
        _fail(error, say_in_the_way(error, verb, typed))
    except UserError as error:
        _fail(error)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            sys.exit(128 + signal.SIGPIPE)
        if WATCH.requested is not None and type(error).__name__ == "ProcessExitedException":  # a forked rank ended
            sys.exit(128 + WATCH.requested)
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        # What Lightning or a scheduler itself refuses is a setting, too: its own frame is the innermost one.
        innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename).as_posix()
        kind = isinstance(error, ValueError | RuntimeError | ModuleNotFoundError)
        refused = kind and any(part in innermost for part in ("/lightning/", "/torch/optim/"))
        if isinstance(error, MisconfigurationException) or refused:
            _fail(error)
        # a forked or spawned rank hands over its traceback as text
        _, found, message = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
        if found and type(error).__name__ == "ProcessRaisedException":
            _fail(UserError(message.strip()))
        said = what_happened(error)
        if said is not None:
            _fail(error, said)
        raise
    finally:
        if owns_signals:
            WATCH.restore()


def _reader_left() -> bool:
    """Return whether nobody reads the output any more, as after ``| head``; it then goes nowhere."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    left = any(event & select.POLLERR for _, event in asked.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _again(verb: str, typed: Sequence[str]) -> str:
    """Return a command as it was typed; not into a log where it holds a password, as of a database."""
    if any(re.search(r"://[^:/@]*:[^@]*@", word) for word in typed):
        return "the same command"
    return shlex.join(["lightning", verb, *typed])


def _verb(verb: str) -> Callable[[list[str]], None]:
    if verb in OWN_VERBS:
        own = OWN_VERBS[verb]
        run: Callable[[list[str]], None] = getattr(import_module(own.module), own.function)
        return lambda arguments: run(arguments[1:])
    if verb in LIGHTNING_VERBS or verb.startswith("-"):
        return _run_lightning_cli
    raise UserError(_unknown_verb(verb))


def _in_front(verb: str, arguments: list[str]) -> list[str]:
    """Return a verb's arguments in one spelling; help and mistakes are answered here, before torch is imported.

    Raises:
        UserError: a mistake.
    """
    takes_settings = verb in LIGHTNING_VERBS or (verb in OWN_VERBS and OWN_VERBS[verb].settings)
    if verb.startswith("-"):
        return arguments
    require_two_dashes(verb, arguments, takes_settings=takes_settings)
    asked = next((i for i, word in enumerate(arguments) if word in ("-h", "--help")), None)
    if asked is not None and has_help(verb):
        word = next(iter(arguments[asked + 1 :]), "")
        print(answer(verb, "" if Path(word).exists() else word.lstrip("-").replace("-", "_")))
        sys.exit(0)
    typed, arguments = arguments, spell_out_run(verb, tidy(arguments, takes_files=takes_settings))
    if takes_settings and (text := class_help(verb, arguments)) is not None:
        print(text)
        sys.exit(0)
    if asked is None:
        require_free_output(verb, arguments)
    if takes_settings and asked is None:
        refuse_duplicates([verb, *arguments])  # first: of a key that stands twice only one would be checked
        arguments = spell_out_sources(verb, arguments)
        settings = in_settings(verb, arguments)
        remarks = check(verb, settings)
        require_present(verb, settings, typed)
        arguments, more = settle_rows(verb, arguments)
        arguments, remark = with_an_end(verb, arguments)
        more += [remark, settle_hub(verb, arguments, settings=True)]
        remarks += [line for line in more if line]
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of the ranks that Lightning starts
            for line in remarks:
                print(f"note: {line}", file=sys.stderr)
    elif asked is None:
        require_checkpoint(arguments)
    return arguments


def _run_lightning_cli(arguments: list[str]) -> None:
    if not sys.stderr.isatty():
        for library in ("HUB", "DATASETS"):  # read when they are imported; the former is also transformers' switch
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    with loading():
        from lightning_sft.cli.lightning_cli import SFTCLI

    SFTCLI(args=arguments)


def _unknown_verb(verb: str) -> str:
    known = [*LIGHTNING_VERBS, *OWN_VERBS]
    close = nearest(verb, known, _ELSEWHERE) or _ELSEWHERE.get(verb)
    hint = "." if close is None else f"; did you mean {close!r}?"
    message = f"There is no verb {verb!r}{hint} Verbs: {', '.join(known)}. `lightning --help` says what they do."
    try:
        scripts = metadata.distribution("lightning-sdk").entry_points.select(group="console_scripts")
    except metadata.PackageNotFoundError:
        return message
    names = [script.name for script in scripts if script.name.startswith("lightning-")]
    other = names[0] if names else f"python -m {next(iter(scripts)).module}"
    return f"{message} For the command of the installed package lightning-sdk, run: {other} {verb}"


def _help() -> str:
    lines = ["usage: lightning VERB [FILE.yaml ...] [--KEY VALUE ...]", "", "verbs:"]
    helps = {**LIGHTNING_VERBS, **{verb: own.help for verb, own in OWN_VERBS.items()}}
    lines += [f"  {verb:<14}{text}" for verb, text in helps.items()]
    lines += ["", "`lightning VERB --help` shows the settings of a verb, `lightning --version` prints the versions."]
    return "\n".join(lines)


def _fail(error: Exception, said: str | None = None) -> NoReturn:
    if os.environ.get("LIGHTNING_SFT_DEBUG"):
        raise error
    print(f"error: {said or error}", file=sys.stderr)
    sys.exit(2)
