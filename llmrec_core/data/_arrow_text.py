"""Typed Arrow columns -> columns of text that lose nothing: ids to the last digit, nested values as JSON, ISO moments.

Parquet files and DuckDB databases come with types; the importer reads text alone, in one way for all files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._text_files import RawTable, Rejects
from llmrec_core.errors import DataError

TEXT = pa.large_string()
#: Whole numbers from here on are not exact as floating point.
EXACT_DOUBLE, EXACT_SINGLE = 2.0**53, 2.0**24
_MAX_DEPTH = 32
_NOTHING = pa.scalar("", TEXT)

#: Row positions that cannot be told as text, and why.
Refused = Callable[[npt.NDArray[np.int64], str], None]


def flat_names(schema: pa.Schema) -> list[str]:
    """Column names with the fields of structs as ``struct.field``, at every depth."""
    return [name for field in schema for name in _names(field, field.name.strip(), 0)]


def _names(field: pa.Field, name: str, depth: int) -> Iterator[str]:
    if pa.types.is_struct(field.type) and field.type.num_fields and depth < _MAX_DEPTH:
        for child in field.type:
            yield from _names(child, f"{name}.{child.name.strip()}", depth + 1)
    else:
        yield name


def flat_types(schema: pa.Schema) -> list[pa.DataType]:
    """Types in the order of :func:`flat_names`."""
    return [kind for field in schema for kind in _types(field.type, 0)]


def _types(kind: pa.DataType, depth: int) -> Iterator[pa.DataType]:
    if pa.types.is_struct(kind) and kind.num_fields and depth < _MAX_DEPTH:
        for child in kind:
            yield from _types(child.type, depth + 1)
    else:
        yield kind


def flat_columns(batch: pa.RecordBatch) -> list[pa.Array]:
    """Arrays in the order of :func:`flat_names`; where a struct is missing all of its fields are."""
    return [leaf for column in batch.columns for leaf in _leaves(column, 0)]


def _leaves(array: pa.Array, depth: int) -> Iterator[pa.Array]:
    if pa.types.is_struct(array.type) and array.type.num_fields and depth < _MAX_DEPTH:
        for child in array.flatten():
            yield from _leaves(child, depth + 1)
    else:
        yield array


def is_binary(kind: pa.DataType) -> bool:
    """Bytes without the promise of being text, also behind a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def arrow_text(values: pa.Array, name: str, where: str, refuse: Refused) -> pa.Array:
    """One column as text (large_string, no nulls; "" where there was none).

    Whole floating point numbers lose their ".0", lists become JSON arrays, moments with a zone end in "Z" (UTC).

    Args:
        refuse: told the row positions whose value is not text, or not exact; their cells are "".

    Raises:
        DataError: the type has no form as text.
    """
    while isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        words = arrow_text(values.dictionary, name, where, _later := _Collected())
        if _later.positions:
            at = values.indices
            for positions, reason in _later.positions:
                rows = np.asarray(pc.fill_null(pc.is_in(at, pa.array(positions, at.type)), False), bool)
                if rows.any():
                    refuse(np.flatnonzero(rows), reason)
        return pc.fill_null(pc.take(words, values.indices), "").cast(TEXT)
    try:
        text = _text_of(values, values.type, name, refuse)
        return pc.fill_null(text.cast(TEXT), "")
    except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"column {name[:80]!r} of type {str(values.type)[:80]} cannot be read as text "
            f"({(str(error).splitlines() or ['too deep'])[0][:100]}).",
            where=where,
            fix="Store it as text or numbers.",
        ) from None


class _Collected:
    def __init__(self) -> None:
        self.positions: list[tuple[npt.NDArray[np.int64], str]] = []

    def __call__(self, positions: npt.NDArray[np.int64], reason: str) -> None:
        self.positions.append((positions, reason))


def text_block(arrays: Sequence[pa.Array], columns: Sequence[str], name: str, before: int) -> RawTable:
    """Typed columns of equal length as a block of text; the line of a row is its number, ``before`` rows came first."""
    n_rows = len(arrays[0])
    rejects, good = Rejects(name, limit=None), np.ones(n_rows, bool)

    def refuse(positions: npt.NDArray[np.int64], reason: str) -> None:
        for position in positions[good[positions]].tolist():
            good[position] = False
            rejects.add(before + position + 1, reason)

    table = pa.table({c: arrow_text(a, c, name, refuse) for c, a in zip(columns, arrays, strict=True)})
    lines = np.arange(before + 1, before + n_rows + 1, dtype=np.int64)
    if rejects.count:
        rejects.listed.sort(key=lambda entry: entry[0])
        table, lines = table.filter(pa.array(good)), lines[good]
    return RawTable(table.combine_chunks(), lines, rejects)


def _text_of(values: pa.Array, kind: pa.DataType, name: str, refuse: Refused) -> pa.Array:
    types = pa.types
    if types.is_null(kind):
        return pa.nulls(len(values), TEXT)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_integer(kind):
        return values
    if types.is_boolean(kind):
        return pc.if_else(values, "true", "false")
    if types.is_floating(kind):
        return _floats(values, kind, name, refuse)
    if types.is_decimal(kind):
        text = values.cast(pa.decimal256(76, kind.scale)).cast(TEXT) if kind.scale >= 0 else values.cast(TEXT)
        # 5.00 and 5 are one id; a number without a point keeps its zeros.
        text = pc.replace_substring_regex(text, r"^([+-]?[0-9]+)\.0*$", r"\1")
        return pc.replace_substring_regex(text, r"^([+-]?[0-9]+\.[0-9]*[1-9])0+$", r"\1")
    if types.is_timestamp(kind):
        return _moments(values, kind)
    if is_binary(kind):
        return _bytes(values, name, refuse)
    if types.is_nested(kind):
        return nested_text(values)
    if types.is_duration(kind):
        return pa.array([None if v is None else str(v.total_seconds()) for v in values.to_pylist()], TEXT)
    return values.cast(TEXT)


def _floats(values: pa.Array, kind: pa.DataType, name: str, refuse: Refused) -> pa.Array:
    single = not pa.types.is_float64(kind)
    doubles = values.cast(pa.float64())
    numbers = doubles.to_numpy(zero_copy_only=False)
    finite = np.isfinite(numbers)
    limit = EXACT_SINGLE if single else EXACT_DOUBLE
    if looks_like_id(name) and (inexact := finite & (np.abs(np.where(finite, numbers, 0)) >= limit)).any():
        refuse(
            np.flatnonzero(inexact),
            f"column {name[:60]!r} holds an id as a floating point number that is too large to be exact; store ids as "
            "text or whole numbers",
        )
    whole = finite & (np.abs(np.where(finite, numbers, 0)) < EXACT_DOUBLE)
    whole &= np.where(whole, numbers, 0.5) == np.floor(np.where(whole, numbers, 0.5))
    if bool(whole.all()) and not doubles.null_count:
        return doubles.cast(pa.int64()).cast(TEXT)
    # A single of 0.1 is "0.1", which it would not be after the way through double.
    shown = (values.cast(pa.float32()) if single else doubles).cast(TEXT)
    whole_text = pc.if_else(pa.array(whole), doubles, None).cast(pa.int64()).cast(TEXT)
    nan = pa.array(np.isnan(np.where(finite, 0.0, numbers)) & np.asarray(doubles.is_valid(), bool))
    return pc.if_else(pa.array(whole), whole_text, pc.if_else(nan, None, shown))


def _moments(values: pa.Array, kind: pa.TimestampType) -> pa.Array:
    """ISO 8601 to the microsecond, no fraction where all are whole seconds."""
    # Without the zone the stored instant is UTC already: no zone database is needed.
    instants = values.cast(pa.timestamp(kind.unit))
    whole = pc.floor_temporal(instants, unit="second")
    if pc.all(pc.equal(instants, whole), min_count=0).as_py():
        text = pc.strftime(whole.cast(pa.timestamp("s")), "%Y-%m-%dT%H:%M:%S")
    else:
        text = pc.strftime(instants.cast(pa.timestamp("us"), safe=False), "%Y-%m-%dT%H:%M:%S")
    return text if kind.tz is None else _framed("", text, "Z")


def _bytes(values: pa.Array, name: str, refuse: Refused) -> pa.Array:
    """Bytes that are UTF-8 are text; older writers do not say so."""
    try:
        text = values.cast(pa.large_binary()).cast(TEXT)
        text.validate(full=True)
        return text
    except pa.ArrowException:
        cells, bad = [], []
        for position, value in enumerate(values.to_pylist()):
            try:
                cells.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError:
                cells.append(None)
                bad.append(position)
        refuse(np.array(bad, np.int64), f"column {name[:60]!r} holds bytes that are not text")
        return pa.array(cells, TEXT)


def nested_text(values: pa.Array) -> pa.Array:
    """Lists, maps and structs as JSON text, null where there was none."""
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        fast = _list_text(values)
        if fast is not None:
            return fast
    return pa.array([None if v is None else _json(_plain(v, kind)) for v in values.to_pylist()], TEXT)


def _list_text(values: pa.Array) -> pa.Array | None:
    """JSON of a list of numbers or of simple text without going through Python; None where that is not possible."""
    kind = values.type
    if pa.types.is_fixed_size_list(kind):
        values = values.cast(pa.large_list(kind.value_type))
    inner = values.flatten()
    if pa.types.is_integer(inner.type) or (
        pa.types.is_floating(inner.type) and bool(np.isfinite(inner.to_numpy(zero_copy_only=False)).all())
    ):
        words = arrow_text(inner, "", "", lambda positions, reason: None) if len(inner) else inner.cast(TEXT)
        if inner.null_count:
            return None
    elif pa.types.is_string(inner.type) or pa.types.is_large_string(inner.type):
        words = inner.cast(TEXT)
        if inner.null_count or pc.any(pc.match_substring_regex(words, r'[\\"\x00-\x1f]'), min_count=0).as_py():
            return None
        words = _framed('"', words, '"')
    else:
        return None
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    joined = pc.binary_join(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), words), pa.scalar(", ", TEXT))
    return pc.if_else(values.is_valid(), _framed("[", joined, "]"), None)


def _framed(before: str, text: pa.Array, after: str) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(before, TEXT), text.cast(TEXT), pa.scalar(after, TEXT), _NOTHING)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Python values that JSON knows; a map with text keys is an object."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        pairs = [(k, _plain(v, kind.item_type)) for k, v in value]
        return {str(k): v for k, v in pairs}
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if pa.types.is_nested(kind):
        return [_plain(v, kind.value_type) for v in value]
    if isinstance(value, float):
        if not np.isfinite(value):
            return None
        return value if pa.types.is_float64(kind) else float(str(np.float32(value)))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_other)


def _other(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def looks_like_id(name: str) -> bool:
    """Whether a column of this name is one whose digits must not be rounded."""
    last = name.rpartition(".")[2].strip().lower()
    return last.endswith(("id", "编号")) or last in ("user", "item", "asin", "sku", "isbn")
