"""UserError: the input is wrong, as opposed to a defect of the program."""


class UserError(ValueError):
    """Bad input from a user: a setting, a file, a model or a combination that cannot work.

    The message says what was given, what is allowed and what to change. The command line prints it without a
    traceback (``LIGHTNING_SFT_DEBUG=1`` brings the traceback back) and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name: other libraries' messages run over pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
