"""Fixtures that make each of their values when a test first asks for it.

A fixture counts towards the time limit of the test that asks for it first, which therefore waits for its own value
alone; and values that only slow tests use are not made for the others.
"""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Lazy(dict[str, T]):
    """A mapping that calls ``make`` with the name of a value it does not have yet."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> T:
        self[name] = self.make(name)
        return self[name]
