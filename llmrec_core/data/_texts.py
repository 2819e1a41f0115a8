"""Cells that stay text: spaces around them go, and lists are written as people write them."""

from __future__ import annotations

import ast
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Formats whose readers write a list as JSON text; in other files "[x]" is what somebody typed.
_LISTING = ("json", "jsonl", "parquet", "duckdb", "postgresql", "sqlite")


def tidy(cells: pa.Array, file_format: str, *, several: bool = False) -> pa.Array:
    """Trimmed text; ``["x", "y"]`` becomes ``x, y`` where the cell was a list in its file.

    Args:
        several: the column holds several values a cell (categories), so also ``a|b`` and typed lists are lists.
    """
    text = pc.utf8_trim_whitespace(cells)
    if several or file_format in _LISTING:
        listed = pc.and_(pc.starts_with(text, "["), pc.ends_with(text, "]"))
        if pc.any(listed).as_py():
            encoded = pc.filter(text, listed).dictionary_encode()
            words = pa.array([_joined(word) for word in encoded.dictionary.to_pylist()], pa.large_string())
            text = pc.replace_with_mask(text, listed, words.take(encoded.indices))
    if several:
        text = pc.replace_substring_regex(text, r"\s*\|\s*", ", ")
    return text


def _joined(cell: str) -> str:
    """A list of plain values joined by commas; anything else as it is."""
    values = _list_of(cell)
    if values is None or any(isinstance(value, list | dict | tuple | set) for value in values):
        return cell
    return ", ".join(_word(value) for value in values if value is not None)


def _list_of(cell: str) -> list[Any] | None:
    try:
        values = json.loads(cell, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        try:
            # ['Action', 'Drama'], as Python writes a list into a CSV; only literals are read, nothing runs.
            values = ast.literal_eval(cell) if len(cell) <= 10_000 else None
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    return values if isinstance(values, list) else None


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
