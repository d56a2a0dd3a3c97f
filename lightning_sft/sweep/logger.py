"""A logger that takes everything and keeps nothing, in the place of the fit's loggers while a trial runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.loggers import Logger
from typing_extensions import override


class _Nothing:
    """Answers whatever is asked of it with itself: calls, attributes, items, contexts."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):  # copying and pickling ask for what is not there
            raise AttributeError(name)
        return self

    def __getitem__(self, key: object) -> _Nothing:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        return

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def __iter__(self) -> Iterator[object]:
        return iter(())


class SilentLogger(Logger):
    """Stands for one logger of the fit: it has that one's name, version and folder, and swallows what it is given.

    A training step that writes to ``self.logger`` or ``self.logger.experiment`` runs in a trial as in the fit.

    Args:
        logger: the fit's own.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._of = logger

    @property
    @override
    def name(self) -> str | None:
        return self._of.name

    @property
    @override
    def version(self) -> int | str | None:
        return self._of.version

    @property
    @override
    def save_dir(self) -> str | None:
        return self._of.save_dir

    @property
    def experiment(self) -> Any:
        """What stands for the run of the logging service."""
        return _Nothing()

    @override
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        return

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_of":
            raise AttributeError(name)
        return _Nothing()
