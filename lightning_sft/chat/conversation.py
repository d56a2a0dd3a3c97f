"""A conversation: what the user says, what the speakers answer, and a few commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from lightning_sft.chat.columns import layout
from lightning_sft.chat.speakers import Speaker
from lightning_sft.errors import UserError
from lightning_sft.progress import note
from lightning_sft.units import plural

HELP = "/reset begins a new conversation, /exit or Ctrl-D ends. Ctrl-C stops an answer, which is then forgotten."


def ask(speakers: list[Speaker], text: str, options: dict[str, Any], output: TextIO) -> None:
    """Let every speaker answer a message.

    Args:
        speakers: one or two.
        text: what the user says.
        options: of `stream_answer`.
        output: where answers go.

    Raises:
        UserError: a speaker cannot answer; none of them then remembers the message.
        KeyboardInterrupt: the user has stopped an answer; none remembers the message.
    """
    before = [list(speaker.messages) for speaker in speakers]
    place = layout(output, [speaker.label for speaker in speakers])
    cut = f"[cut at {plural(options.get('max_new_tokens', 256), 'token')}: --max_new_tokens takes more]"

    def say_cut(label: str) -> None:
        """Say it behind the answer in a terminal, and beside it where a program may read the answer."""
        if output.isatty():
            place.write(f" {cut}")
        else:
            note(f"{label}: {cut}")

    try:
        for index, speaker in enumerate(speakers):
            place.begin(index)
            try:
                speaker.answer(text, place.write, options, partial(say_cut, speaker.label))
            finally:
                place.end()
    except BaseException:
        for speaker, messages in zip(speakers, before, strict=True):
            speaker.messages = messages
        raise


def converse(
    speakers: list[Speaker], options: dict[str, Any], output: TextIO, read: Callable[[str], str] | None = None
) -> None:
    """Talk until the input ends.

    Args:
        speakers: one or two.
        options: of `stream_answer`.
        output: where answers go.
        read: gives a line of the user's and takes what to show before it; raises ``EOFError`` at the end. None is
            ``input``.

    Raises:
        KeyboardInterrupt: Ctrl-C while nobody answers.
    """
    read = read or input
    shown = "> " if sys.stdin.isatty() and output.isatty() else ""
    while True:
        try:
            text = read(shown).strip()
        except EOFError:
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            for speaker in speakers:
                speaker.forget()
        elif text.startswith("/"):
            print(HELP, file=output)
        elif text:
            _answered(speakers, text, options, output)


def _answered(speakers: list[Speaker], text: str, options: dict[str, Any], output: TextIO) -> None:
    try:
        ask(speakers, text, options, output)
    except KeyboardInterrupt:
        print("(stopped; this message is forgotten)", file=output)
    except UserError as error:
        print(f"error: {error} /reset begins a new conversation.", file=output)
