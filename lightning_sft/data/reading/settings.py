"""What a setting such as ``data.train`` stands for."""

from __future__ import annotations

from collections import Counter

from lightning_sft.data.reading.conversation import STRICT, Rules
from lightning_sft.data.reading.sources import DataSource, Source
from lightning_sft.errors import UserError


def as_sources(
    value: DataSource | list[DataSource | str] | str | None, what: str, rules: Rules = STRICT
) -> list[DataSource]:
    """Return the sources that a setting such as ``train`` stands for; a string is a path.

    Args:
        value: the setting.
        what: its name, for messages.
        rules: what to do with conversations that are not in order, where a source does not say.

    Raises:
        UserError: ``value`` is of another kind, or two sources have one name.
    """
    items = [] if value is None else value if isinstance(value, list) else [value]
    sources = [Source(item) if isinstance(item, str) else item for item in items]
    for source in sources:
        if not isinstance(source, DataSource):
            raise UserError(f"data.{what}: expected a path or a DataSource, got {type(source).__name__}.")
        if isinstance(source, Source):
            source.obey(rules)
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise UserError(f"data.{what}: several sources are named {', '.join(twice)}. Give each its own `name`.")
    return sources
