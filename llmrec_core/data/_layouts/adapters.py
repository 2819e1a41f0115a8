"""A source that yields long rows made from the rows of another, block by block, with the lines they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._raw import RawTable, Rejects, text_schema, whole
from llmrec_core.data._sources import Source

Rows = npt.NDArray[np.int64]
TEXT = pa.large_string()
#: Cells of the wrapped table that are turned at once; a row of a matrix may become thousands.
_CELLS = 2_000_000


@dataclass(frozen=True)
class Long:
    """Long rows made from a block.

    Attributes:
        table: columns of text.
        rows [n]: the position in the block that each row came from.
        faults: (position in the block, why it gives no row).
    """

    table: pa.Table
    rows: Rows
    faults: list[tuple[int, str]] = field(default_factory=list)


class Converter(Protocol):
    """Turns blocks of one pass over a file, in order; may remember what came before."""

    def __call__(self, table: pa.Table, lines: Rows) -> Long: ...


@runtime_checkable
class Gathering(Protocol):
    """A converter that gives rows, and their lines, when everything has been read."""

    def finish(self) -> tuple[pa.Table, Rows]: ...


def adapted(
    source: Source,
    columns: Sequence[str],
    make: Callable[[], Converter],
    *,
    notes: Sequence[str] = (),
    tells_rejects: bool = True,
) -> Source:
    """``source`` with the columns that converters make of its rows.

    Args:
        make: a fresh converter for every pass.
        tells_rejects: this source hands on the refused lines. Of several made from one file only one does, so that a
            line is counted once.
    """

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        convert, left = make(), max_rows
        for raw in blocks(source, max_rows):
            lines = np.arange(1, len(raw.table) + 1, dtype=np.int64) if raw.lines is None else raw.lines
            refused = raw.rejects if tells_rejects else Rejects(source.name, limit=None)
            step = max(1, _CELLS // max(1, raw.table.num_columns))
            for start in range(0, max(1, len(raw.table)), step):
                part = raw.table.slice(start, step)
                long = convert(part, lines[start : start + step])
                rejects = Rejects(source.name, limit=None)
                if start == 0:
                    rejects.take(refused)
                if tells_rejects:
                    for position, reason in long.faults:
                        text = (source.separator or ", ").join(part.slice(position, 1).to_pylist()[0].values())
                        rejects.add(int(lines[start + position]), reason, text)
                    rejects.listed.sort(key=lambda entry: entry[0])
                table, rows = long.table.select(list(columns)), long.rows
                if left is not None:
                    table, rows = table.slice(0, left), rows[:left]
                    left -= len(table)
                if len(table) or rejects.count:
                    yield RawTable(table.combine_chunks(), lines[start + rows] if len(rows) else lines[:0], rejects)
                if left is not None and left <= 0:
                    return
        if isinstance(convert, Gathering):
            table, at = convert.finish()
            if len(table):
                end = len(table) if left is None else left
                kept = table.slice(0, end).select(list(columns))
                yield RawTable(kept.combine_chunks(), at[:end], Rejects(source.name, limit=None))

    def careful(max_rows: int | None) -> RawTable:
        return whole(batches(max_rows), columns, source.name)

    return replace(
        source,
        columns=tuple(columns),
        fast=lambda: None,
        careful=careful,
        batches=batches,
        notes=(*source.notes, *notes) if tells_rejects else tuple(notes),
    )


def blocks(source: Source, max_rows: int | None) -> Iterator[RawTable]:
    """The rows of any source, block by block where it can."""
    if source.batches is not None:
        yield from source.batches(max_rows)
    else:
        yield source.careful(max_rows)


def text_table(columns: dict[str, pa.Array | Sequence[str]]) -> pa.Table:
    """A table of large_string columns without nulls."""
    arrays = {}
    for name, cells in columns.items():
        array = cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells, TEXT)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        arrays[name] = pc.fill_null(array.cast(TEXT), "")
    return pa.table(arrays, schema=text_schema(list(arrays)))


def cells_of(table: pa.Table, column: str) -> pa.Array:
    """One column as a single array."""
    cells = table.column(column)
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
