"""``lightning chat``: talk to a finished model, beside what it began as."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_sft.cli.front.needs import missing
from lightning_sft.cli.front.on_hub import settle_hub
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.usage import VerbParser
from lightning_sft.errors import UserError
from lightning_sft.places import require_model_place
from lightning_sft.progress import SOON, loading, note, waiting

ABOUT = """\
Prompts are written as the run wrote them: its chat template, system prompt and template variables. Answers are greedy
unless something is said about sampling.

examples:
  lightning chat --ckpt_path best
  lightning chat lightning_logs/RUN --prompt "What is 12 + 30?"
  lightning chat --model my-model --temperature 0.7 --top_p 0.9

/reset begins a new conversation, /exit or Ctrl-D ends; Ctrl-C stops an answer."""
#: how transformers' `generate` calls what shapes samples
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser("chat", "(RUN | --ckpt_path CHECKPOINT | --model MODEL) [--KEY VALUE ...]", ABOUT)
    add = made.add_argument
    add(
        "--ckpt_path",
        help="a checkpoint, a run's folder, or 'last' or 'best' of the newest run below this folder; this or --model "
        "must be given",
    )
    add(
        "--model",
        help="a folder or hub name of a model or an adapter, a GGUF file or pkg://package/file.gguf; this or "
        "--ckpt_path must be given",
    )
    add(
        "--before", help="the model to put beside it, by the same names. Default: what it began as, where that is known"
    )
    add("--base", help="the model under an adapter or a checkpoint, if it has moved. Default: what it names")
    add("--alone", action="store_true", help="put nothing beside it")
    add("--prompt", help="answer this and end. Default: ask for prompts, line by line")
    add("--system", help="system prompt. Default: that of the run")
    add("--chat_template", help="a Jinja template or its file. Default: that of the tokenizer")
    add("--max_new_tokens", type=int, default=256, help="the most tokens of an answer")
    add(
        "--do_sample",
        action="store_true",
        help="sample at temperature 1, as the five options below do, too. Without any of them answers are greedy",
    )
    add("--temperature", type=float, help="sample at this temperature, above 0. Default with sampling: 1")
    add(
        "--top_p",
        type=float,
        help="sample from the likeliest tokens that hold this share of the probability. Default: from all",
    )
    add("--top_k", type=int, help="sample from so many of the likeliest tokens. Default: from all")
    add(
        "--min_p",
        type=float,
        help="leave out tokens below this share of the likeliest one's probability. Default: none is left out",
    )
    add("--repetition_penalty", type=float, help="above 1: make what was said before less likely. Default: 1")
    add("--seed", type=int, default=0, help="seed of samples")
    add(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype of the weights",
    )
    add("--device", help="where models are put, such as cpu or cuda:0. Default: the accelerator, if there is one")
    add("--trust_remote_code", action="store_true", help="run code that a hub repository brings along")
    return made


def main(arguments: Sequence[str]) -> None:
    """Talk to a finished model: ``lightning chat``."""
    asked = parser().parse_args([_underscored(argument) for argument in arguments])
    options = generation_options(asked)
    _require_one(asked)
    if remark := settle_hub("chat", arguments):
        note(f"note: {remark}")
    try:
        with _plain_interrupts():
            _talk(asked, options)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def generation_options(asked: argparse.Namespace) -> dict[str, Any]:
    """Return how answers are generated.

    Raises:
        UserError: a setting out of range.
    """
    require_options("chat", asked)
    given = {name: getattr(asked, name) for name in SAMPLING if getattr(asked, name) is not None}
    samples = asked.do_sample or bool(given.keys() - {"repetition_penalty"})
    options = {"max_new_tokens": asked.max_new_tokens, "seed": asked.seed, "do_sample": samples, **given}
    return {**options, "top_k": given.get("top_k", 0)} if samples else options  # transformers' own default is 50


def _require_one(asked: argparse.Namespace) -> None:
    """Raise unless exactly one model is named to talk to."""
    if asked.ckpt_path is None and asked.model is None:
        raise UserError(missing("chat", "a model: a run's folder, --ckpt_path best, or --model NAME"))
    if asked.ckpt_path is not None and asked.model is not None:
        raise UserError("--ckpt_path and --model are both given. Leave one of them out; --before puts a model beside.")
    if asked.model is not None:
        require_model_place(asked.model, adapters=True)


def _talk(asked: argparse.Namespace, options: dict[str, Any]) -> None:
    with loading():
        from lightning_sft.chat.conversation import HELP, ask, converse

    with _quiet_transformers(), waiting(f"Loading {asked.ckpt_path or asked.model} ...", after=SOON):
        speakers = _speakers(asked)
    if asked.prompt is not None:
        ask(speakers, asked.prompt, options, sys.stdout)
        return
    if sys.stdin.isatty():
        how = "Samples" if options["do_sample"] else "Greedy answers; --temperature 0.7 samples"
        print(f"{how}. {HELP}", file=sys.stderr)
    converse(speakers, options, sys.stdout)


def _speakers(asked: argparse.Namespace) -> list[Any]:
    from lightning_sft.chat.speakers import find_speakers, switches_off
    from lightning_sft.checkpoints.runs import find_below
    from lightning_sft.models.finished import FoundModel, find_finished

    def find(name: str, **more: Any) -> FoundModel:
        how = {"dtype": asked.dtype, "trust_remote_code": asked.trust_remote_code}
        return find_finished(name, **how, **more)

    name, prompting = asked.model, _prompting(asked, None)
    if name is None:
        checkpoint = find_below(asked.ckpt_path)
        name, prompting = str(checkpoint), _prompting(asked, checkpoint)
    tuned = find(name, base=asked.base, chat_template=asked.chat_template)
    before = None
    if asked.before is not None:
        before = find(asked.before, chat_template=asked.chat_template)
    elif tuned.base is not None and tuned.settings.init == "pretrained" and not (asked.alone or switches_off(tuned)):
        before = find(tuned.base, chat_template=asked.chat_template or tuned.tokenizer_settings.chat_template)
    speakers = find_speakers(tuned, before, prompting, device=asked.device, alone=asked.alone)
    for speaker in speakers:
        is_base = speaker.label == "base"
        named = (asked.before or tuned.base) if is_base else name
        step = f", step {tuned.step}" if tuned.step is not None and not is_base else ""
        print(f"{speaker.label}: {named}{step}", file=sys.stderr)
    return list(speakers)


def _prompting(asked: argparse.Namespace, checkpoint: Path | None) -> Any:
    """Return how prompts are written: as the config.yaml beside a checkpoint says, or plainly."""
    from lightning_sft.chat.speakers import Prompting
    from lightning_sft.export.model_card import run_config

    config = {} if checkpoint is None else run_config(checkpoint) or {}
    data = config.get("data") or {}
    data = data.get("init_args", data)  # of a data module of one's own
    return Prompting(
        system=asked.system if asked.system is not None else data.get("system"),
        template_kwargs=data.get("template_kwargs"),
        apply_chat_template=data.get("apply_chat_template") or "auto",
    )


def _underscored(argument: str) -> str:
    """Return an option as the parser knows it: dashes in names are underscores."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name.removeprefix('--').replace('-', '_')}{equals}{value}"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep what transformers says about weights while it loads them out of the conversation."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise ``KeyboardInterrupt``: there is no step to finish here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
