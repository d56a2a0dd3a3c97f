"""Typed columns of Arrow -> plain values: without the nulls that Arrow adds, and with JSON that it holds as text.

A column of structs has one set of fields for all rows. Fields that a row lacks are null there; such a null is no value,
while a null within JSON is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


def plain_rows(schema: pa.Schema) -> Callable[[Row], Row]:
    """Return what makes rows of an Arrow table plain.

    Args:
        schema: the table's; the features that ``datasets`` stores in it are read.
    """
    types = {field.name: field.type for field in schema}
    if b'"Json"' in (schema.metadata or {}).get(b"huggingface", b""):
        from datasets import Features

        types = {field.name: field.type for field in Features.from_arrow_schema(schema).arrow_schema}
    return lambda row: {name: _plain(value, types[name], decode=True) for name, value in row.items()}


def without_padding(features: Any) -> Callable[[Row], Row]:
    """Return what makes rows of ``datasets`` plain, which has decoded JSON itself.

    Args:
        features: the dataset's; where it does not know them (a stream), rows are left as they are.
    """
    if features is None:
        return lambda row: row
    types = {field.name: field.type for field in features.arrow_schema}
    return lambda row: {
        name: _plain(value, types[name], decode=False) if name in types else value for name, value in row.items()
    }


def _plain(value: Any, kind: pa.DataType, decode: bool) -> Any:
    import pyarrow.types as is_type

    if value is None:
        return None
    if "json" in str(getattr(kind, "extension_name", "")):
        return json.loads(value) if decode and isinstance(value, str) else value
    if is_type.is_struct(kind) and isinstance(value, dict):
        fields = ((name, _plain(item, kind.field(name).type, decode)) for name, item in value.items())
        return {name: item for name, item in fields if item is not None}
    if (is_type.is_list(kind) or is_type.is_large_list(kind) or is_type.is_fixed_size_list(kind)) and isinstance(
        value, list
    ):
        return [_plain(item, kind.value_type, decode) for item in value]
    return value
