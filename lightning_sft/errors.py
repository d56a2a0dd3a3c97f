"""UserError: the input is wrong, as opposed to a defect of the program."""

from os import PathLike, fspath


class UserError(ValueError):
    """Bad input from a user: a setting, a file, a model or a combination that cannot work.

    The message says what was given, what is allowed and what to change. The command line prints it without a
    traceback (``LIGHTNING_SFT_DEBUG=1`` brings the traceback back) and exits with status 2.
    """


class OutputExistsError(UserError):
    """Something of an earlier call lies where a call would write, and nothing is overwritten.

    The command line says it with the command that writes beside what is there.

    Args:
        path: what is there.
        instead: what to change, in a sentence, where no command was typed.
    """

    def __init__(self, path: str | PathLike[str], instead: str = "Give another place, or remove it.") -> None:
        super().__init__(path, instead)
        self.path = fspath(path)
        self.instead = instead

    def __str__(self) -> str:
        """Return what is there, and what to change."""
        return f"{self.path!r} exists, and nothing is overwritten. {self.instead}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name: other libraries' messages run over pages.

    A first line that only announces the next one, by a colon at its end, is returned with it.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])


def require_log_name(name: object, whose: str) -> None:
    """Raise unless a name can be a part of log keys: printable text without ``/``, and without space around it.

    Args:
        name: of a set, as the user gave it.
        whose: what has that name, for the message.

    Raises:
        UserError: it cannot.
    """
    if isinstance(name, str) and name and name == name.strip() and name.isprintable() and "/" not in name:
        return
    raise UserError(
        f"{whose} has a set named {name!r}, and a name is part of log keys. Allowed: text without '/', line breaks and "
        "space around it; quote what YAML takes for a number or a truth value."
    )
