"""What places with several tables share: which of them are offered, and rows of any origin as blocks of text."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_core.data._arrow_text import EXACT_DOUBLE, TEXT, arrow_text, looks_like_id
from llmrec_core.data._corrections import Corrections, names_file
from llmrec_core.data._roles import guess
from llmrec_core.data._sources import Source
from llmrec_core.data._text_files import RawTable, Rejects
from llmrec_core.errors import DataError

BLOCK_ROWS = 50_000
BLOCK_BYTES = 64 << 20
_LISTED = 20
_NEEDED = {"interactions": {"user_id", "item_id"}, "items": {"item_id"}, "users": {"user_id"}}


def choose(names: Sequence[str], told: str | None, place: str, what: str) -> list[str]:
    """The tables that are looked at: all of them, or those that a name or pattern (``orders``, ``sales.*``) tells.

    Raises:
        DataError: there is none, or none of that name.
    """
    if not names:
        raise DataError(f"there is no {what} in it.", where=place, fix="Choose a place that holds data.")
    if told is None:
        return list(names)
    found = [n for n in names if n == told or n.rpartition(".")[2] == told or fnmatch.fnmatchcase(n, told)]
    exact = [n for n in found if n == told]
    if not found:
        listed = ", ".join(names[:_LISTED])
        raise DataError(f"there is no {what} {told[:80]!r}.", where=place, fix=f"It holds: {listed}.")
    return exact or found


def offered(
    looks: Mapping[str, Callable[[], Source]],
    told: bool,
    corrections: Corrections,
    place: str,
    what: str,
    views: Collection[str] = (),
) -> list[Source]:
    """The tables that can be interactions, items or users; what is passed over, and why, the first one notes.

    Args:
        looks: table -> what opens it.
        told: a person named the tables: all are taken.
        views: those that are queries over the others: beside a table of their kind they would count rows twice.

    Raises:
        DataError: none of several can be any of these; one that was asked for cannot be read.
    """
    if told or len(looks) == 1:
        return [look() for look in looks.values()]
    taken: list[Source] = []
    passed, repeating, unread = [], [], []
    kinds: set[str] = set()
    for table in sorted(looks, key=lambda name: name in views):
        # One broken view must not hide the tables beside it.
        try:
            source = looks[table]()
            kind = _kind(source, corrections)
        except DataError as error:
            unread.append(f"{table} ({error.what.rstrip('.')})")
            continue
        if kind is None:
            passed.append(source)
        elif table in views and kind in kinds and not _said(source, corrections):
            repeating.append(table)
        else:
            taken.append(source)
            if table not in views:
                kinds.add(kind)
    if not taken:
        listed = "; ".join([*(f"{s.name} ({', '.join(s.columns[:8])})" for s in passed), *unread][:_LISTED])
        raise DataError(
            f"no {what} holds interactions, items or users: {listed}.",
            where=place,
            fix=f"Choose one with table:{place}=NAME, and say with --map which columns hold users and items.",
        )
    notes = list(taken[0].notes)
    if passed:
        names = ", ".join(s.name.removeprefix(f"{place}/") for s in passed[:_LISTED])
        more = f" and {len(passed) - _LISTED} more" if len(passed) > _LISTED else ""
        words = "passed over as neither interactions, items nor users"
        notes.append(f"{words}: {names}{more} (table:{place}=NAME takes one)")
    if repeating:
        words = "views are not read beside tables of the same kind, whose rows they may repeat"
        notes.append(f"{words}: {', '.join(repeating[:_LISTED])} (table:{place}=NAME takes one)")
    if unread:
        notes.append(f"cannot be read: {'; '.join(unread[:_LISTED])}")
    taken[0] = replace(taken[0], notes=tuple(notes))
    return taken


def _said(source: Source, corrections: Corrections) -> bool:
    """Whether a person named this very table, and not only the place it lies in."""
    return any(o in ("kind", "layout", "part") and names_file(p, source.name) for o, p in dict(corrections.files))


def _kind(source: Source, corrections: Corrections) -> str | None:
    """What the rows are; None where nothing speaks for any kind."""
    from llmrec_core.data import _layouts

    sample = source.sample()
    if not len(sample) and not _said(source, corrections):
        return None
    kind, roles = guess(source.name, source.columns, sample, corrections)
    if _said(source, corrections) or roles.keys() >= _NEEDED.get(kind, set()):
        return kind
    return next((p.kind for p in _layouts.expand(source, corrections) if p.layout != "rows"), None)


def row_blocks(
    rows: Iterator[Sequence[object]], columns: Sequence[str], name: str, chunk_rows: int = 2048
) -> Iterator[RawTable]:
    """Rows of Python values -> blocks of text; the line of a row is its number from 1.

    Args:
        chunk_rows: rows that are taken before their size is known.
    """
    chunks: list[RawTable] = []
    held = size = 0
    line = 1
    while chunk := list(islice(rows, min(chunk_rows, BLOCK_ROWS - held))):
        chunks.append(_chunk(chunk, columns, name, line))
        line += len(chunk)
        held += len(chunk)
        size += chunks[-1].table.nbytes
        if held >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield _merged(chunks, name)
            chunks, held, size = [], 0, 0
    if chunks:
        yield _merged(chunks, name)


def _merged(chunks: Sequence[RawTable], name: str) -> RawTable:
    rejects = Rejects(name, limit=None)
    for chunk in chunks:
        rejects.count += chunk.rejects.count
        rejects.listed += chunk.rejects.listed
    lines = [chunk.lines for chunk in chunks if chunk.lines is not None]
    return RawTable(
        pa.concat_tables([chunk.table for chunk in chunks]).combine_chunks(), np.concatenate(lines), rejects
    )


def _chunk(rows: Sequence[Sequence[object]], columns: Sequence[str], name: str, line: int) -> RawTable:
    lines = np.arange(line, line + len(rows), dtype=np.int64)
    faults: dict[int, str] = {}
    arrays = {}
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        array = _plain_column(cells, column)
        if array is None:
            texts = []
            for position, cell in enumerate(cells):
                try:
                    texts.append(cell_text(cell, looks_like_id(column)))
                except ValueError as error:
                    texts.append("")
                    faults.setdefault(position, f"column {column[:60]!r} {error}")
            array = pa.array(texts, TEXT)
        arrays[column] = array
    table, rejects = pa.table(arrays), Rejects(name, limit=None)
    if faults:
        for position in sorted(faults):
            rejects.add(line + position, faults[position])
        good = np.ones(len(rows), bool)
        good[list(faults)] = False
        table, lines = table.filter(pa.array(good)), lines[good]
    return RawTable(table, lines, rejects)


def _plain_column(cells: Sequence[object], column: str) -> pa.Array | None:
    """Text of a column of one simple type; None where each cell has to be looked at."""
    kinds = set(map(type, cells)) - {type(None)}
    try:
        if kinds == {bytes}:
            return pc.fill_null(pa.array(cells, pa.large_binary()).cast(TEXT), "")
        if kinds <= {str}:
            return pc.fill_null(pa.array(cells, TEXT), "")
        if kinds == {int}:
            return pc.fill_null(pa.array(cells, pa.int64()).cast(TEXT), "")
        if kinds == {float}:
            refused: list[str] = []
            text = arrow_text(pa.array(cells, pa.float64()), column, "", lambda rows, reason: refused.append(reason))
            return None if refused else text
    except (pa.ArrowException, UnicodeError, OverflowError):
        # Some cell is not valid text, or longer than 64 bits: it is found cell by cell.
        return None
    return None


def cell_text(cell: object, is_id: bool) -> str:
    """A Python value as text: "" for None, no ".0" behind whole numbers.

    Raises:
        ValueError: bytes that are not text, or an id that is no longer exact.
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        if not cell.isascii():
            try:
                cell.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("holds letters that are not valid text") from None
        return cell
    if isinstance(cell, bytes):
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("holds bytes that are not text") from None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        if cell != cell:
            return ""
        if is_id and abs(cell) >= EXACT_DOUBLE:
            raise ValueError(f"holds {cell!r}, an id as a floating point number that is too large to be exact")
        return str(int(cell)) if abs(cell) < EXACT_DOUBLE and cell == int(cell) else repr(cell)
    return str(cell)


def binary_columns(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions of columns whose first rows hold no bytes that are not text; notes about the others."""
    kept, notes = [], []
    for index, column in enumerate(columns):
        try:
            for row in rows:
                if isinstance(cell := row[index], bytes):
                    cell.decode("utf-8")
            kept.append(index)
        except UnicodeDecodeError:
            notes.append(f"column {column[:60]!r} holds bytes that are not text: it is left out")
    return kept, notes
