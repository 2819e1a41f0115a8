"""Workbooks (.xlsx, .xlsm, .xls, .ods) -> one Source a sheet: values only, wherever the table begins in it.

People put titles above a table and notes beside it. The header is the first row that reads like names and below
which columns are filled; what lies above is passed over and said. The line of a row is its row in the sheet.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import python_calamine as calamine

from llmrec_core.data._arrow_text import EXACT_DOUBLE, TEXT
from llmrec_core.data._parquet import joined
from llmrec_core.data._roles import Corrections, check_headers, is_role_name
from llmrec_core.data._sources import Source
from llmrec_core.data._tables import choose, offered
from llmrec_core.data._text_files import RawTable, Rejects
from llmrec_core.data._workbooks import ERRORS, SheetFacts, survey
from llmrec_core.errors import DataError

_BLOCK_ROWS = 20_000
_LOOK_ROWS = 200
_MAX_BYTES = 1 << 30
_NUMBER = re.compile(r"\s*[+-]?[0-9]+([.,][0-9]+)?\s*")
#: None: an old workbook, of which nothing is known before.
Facts = dict[str, SheetFacts] | None
_TIMELIKE = re.compile(r"(?i)time|date|stamp|epoch|时间|日期")


def excel_sources(path: Path, corrections: Corrections, name: str = "") -> list[Source]:
    """One Source for each visible sheet that holds a table, named ``shop.xlsx/Sheet2``.

    Options: ``table:FILE=Sheet2`` (this sheet alone, also a hidden one), ``header_row:FILE=3`` (the row of the sheet
    that names the columns), ``header:FILE=no`` (none does).

    Raises:
        DataError: no workbook, damaged, locked by a password, too large unfolded, or without a table.
    """
    name = name or path.name
    if path.stat().st_size > _MAX_BYTES:
        raise DataError("the workbook is larger than 1 GiB.", where=name, fix="Save the sheets as CSV.")
    with path.open("rb") as stream:
        head = stream.read(8)
    old = head.startswith(b"\xd0\xcf\x11\xe0")
    facts = None if old else survey(path, name)
    with _workbook(path, name) as workbook:
        metas = [m for m in workbook.sheets_metadata if m.typ == calamine.SheetTypeEnum.WorkSheet]
        hidden = {m.name for m in metas if m.visible != calamine.SheetVisibleEnum.Visible}
    told = corrections.option("table", name)
    chosen = choose([m.name for m in metas], told, name, "sheet")
    notes = ["in an old workbook (.xls) errors such as #N/A read as empty cells"] if old else []
    looks = {
        sheet: partial(_source, path, name, sheet, facts, corrections, notes)
        for sheet in chosen
        if told or (sheet not in hidden and not _is_empty(path, name, sheet, facts))
    }
    if not looks:
        raise DataError("no sheet holds a table.", where=name, fix="Choose a workbook with rows, or a hidden sheet.")
    return offered(looks, told is not None, corrections, name, "sheet")


def _workbook(path: Path, name: str) -> calamine.CalamineWorkbook:
    try:
        # By its bytes: the ending of a file name says nothing about what is in it.
        with path.open("rb") as stream:
            return calamine.load_workbook(stream)
    except calamine.PasswordError:
        raise DataError("the workbook is locked by a password.", where=name, fix="Save it without one.") from None
    except (calamine.CalamineError, OSError, ValueError) as error:
        if "password" in str(error).lower() or _is_encrypted(path):
            raise DataError("the workbook is locked by a password.", where=name, fix="Save it without one.") from None
        raise DataError(
            f"the workbook cannot be read ({str(error)[:120]}).", where=name, fix="Save it again, or as CSV."
        ) from None


def _is_encrypted(path: Path) -> bool:
    """An .xlsx with a password is an old-style container with these two streams."""
    with path.open("rb") as stream:
        data = stream.read(64 << 20)
    return "EncryptedPackage".encode("utf-16-le") in data


def _sheet(path: Path, name: str, sheet: str) -> calamine.CalamineSheet:
    with _workbook(path, name) as workbook:
        try:
            return workbook.get_sheet_by_name(sheet)
        except (calamine.CalamineError, OSError, ValueError) as error:
            raise DataError(
                f"the sheet cannot be read ({str(error)[:120]}).", where=f"{name}/{sheet}", fix="Save it as CSV."
            ) from None


def _is_empty(path: Path, name: str, sheet: str, facts: Facts) -> bool:
    if facts is None:
        return _sheet(path, name, sheet).start is None
    return sheet in facts and not facts[sheet].n_cells


@dataclass(frozen=True)
class _Layout:
    """``header``: row of the sheet, 1-based, 0 without one. ``first``: first row that may hold data. ``at``: columns
    of the sheet, 0-based, that are read as ``columns``."""

    header: int
    first: int
    columns: tuple[str, ...]
    at: tuple[int, ...]
    notes: tuple[str, ...]


def _rows(sheet: calamine.CalamineSheet) -> Iterator[tuple[int, list[object]]]:
    """(row of the sheet from 1, cells from column A on)."""
    left: list[object] = [""] * (sheet.start[1] if sheet.start else 0)
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        yield number, left + list(cells)


def _source(
    path: Path, place: str, sheet_name: str, survey_facts: Facts, corrections: Corrections, notes: Sequence[str]
) -> Source:
    name = f"{place}/{sheet_name}"
    facts = SheetFacts() if survey_facts is None else survey_facts.get(sheet_name)
    if facts is None:
        raise DataError("the sheet is not where the workbook says it is.", where=name, fix="Save the workbook again.")
    header = corrections.option("header", name)
    row = corrections.option("header_row", name)
    if row is not None and not (row.isdigit() and int(row) > 0):
        raise DataError(f"the header row is a number from 1, not {row[:20]!r}.", where=name)
    top = list(islice(_rows(_sheet(path, place, sheet_name)), max(_LOOK_ROWS, int(row or 0) + 50)))
    layout = _layout(top, name, 0 if header == "no" else int(row) if row else None, sure=header == "yes")

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        block: list[tuple[int, list[object]]] = []
        found = 0
        for number, cells in _rows(_sheet(path, place, sheet_name)):
            # An empty row is no row, but one whose only cells are errors is.
            if number < layout.first or not any(
                c != "" or (number - 1, i) in facts.faults for i, c in enumerate(cells)
            ):
                continue
            block.append((number, cells))
            found += 1
            if len(block) >= _BLOCK_ROWS or found == max_rows:
                yield _block(block, layout, facts, name)
                block = []
            if found == max_rows:
                return
        if block:
            yield _block(block, layout, facts, name)

    def careful(max_rows: int | None) -> RawTable:
        return joined(list(batches(max_rows)), layout.columns, name)

    return Source(
        path, "excel", layout.columns, lambda: careful(None), careful, header=layout.header > 0,
        notes=(*layout.notes, *notes), name=name, batches=batches,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ where the table is


def _layout(top: Sequence[tuple[int, list[object]]], name: str, told: int | None, *, sure: bool) -> _Layout:
    rows = [(number, cells) for number, cells in top if any(c != "" for c in cells)]
    if not rows:
        raise DataError("the sheet is empty.", where=name, fix="Choose another sheet.")
    at = _header_index(rows) if told is None else None
    if sure and at is None:
        at = 0
    if told:
        at = next((i for i, (number, _) in enumerate(rows) if number == told), None)
        if at is None:
            raise DataError(f"row {told} is empty.", where=name, fix="Say which row names the columns: header_row.")
    if at is None:
        n_columns = max(len(cells) for _, cells in rows)
        used = [i for i in range(n_columns) if any(i < len(cells) and cells[i] != "" for _, cells in rows)]
        columns = tuple(f"column_{i}" for i in range(1, len(used) + 1))
        return _Layout(0, rows[0][0], columns, tuple(used), ("no row names the columns",))
    number, header = rows[at]
    below = [cells for _, cells in rows[at + 1 :]]
    named = [i for i, cell in enumerate(header) if _heading(cell)]
    notes = []
    corner = named[0] - 1
    filled_corner = sum(cells[corner : named[0]] not in ([], [""]) for cells in below) if corner >= 0 else 0
    if len(named) > 1 and filled_corner * 2 > len(below):
        # The corner of a matrix, or the index that pandas writes in front of its columns.
        header = [*header[:corner], "column_1", *header[named[0] :]]
        named.insert(0, corner)
        notes.append("the first column has no name: it is called column_1")
    if above := [_title(cells) for _, cells in rows[:at]]:
        said = "; ".join(repr(title) for title in above[:3])
        notes.append(f"row {number} names the columns; above it: {said}{' ...' if len(above) > 3 else ''}")
    elif number > 1 or named[0] > 0:
        notes.append(f"the table begins in cell {letters(named[0])}{number}")
    nameless = [i for i in range(max(map(len, [header, *below]))) if i not in named]
    filled = {i: sum(i < len(cells) and cells[i] != "" for cells in below) for i in nameless}
    for i in nameless:
        if named[0] < i < named[-1] and filled[i] * 2 > len(below):
            raise DataError(
                f"column {letters(i)} has no name.", where=f"{name}, row {number}", fix="Give it a name, or empty it."
            )
    if left_out := [letters(i) for i in nameless if filled[i]]:
        notes.append(f"columns without a name are left out: {', '.join(left_out[:10])}")
    columns = tuple(_heading(header[i]) for i in named)
    check_headers(columns, f"{name}, row {number}")
    return _Layout(number, number + 1, columns, tuple(named), tuple(notes))


def _header_index(rows: Sequence[tuple[int, list[object]]]) -> int | None:
    """Which of the rows with cells names the columns; None: none of them does."""
    widths = [sum(c != "" for c in cells) for _, cells in rows]
    candidates = []
    for i, (_, cells) in enumerate(rows[:50]):
        # The table is as wide as what follows: a title above it is narrower, and so is a total below.
        width = max(widths[i : i + 20])
        names = [c for c in cells if c != ""]
        known = sum(is_role_name(_heading(c)) for c in names)
        if known < 2 and (len(names) < max(1, 0.6 * width) or (width > 1 and len(names) < 2)):
            continue
        if not isinstance(names[0], str) or not _reads_like_names(names) or any(len(_heading(c)) > 200 for c in names):
            continue
        below = [other for _, other in rows[i + 1 : i + 21]]
        if below and not any(sum(c != "" for c in other) * 2 >= len(names) for other in below):
            continue
        candidates.append((i, known))
    if not candidates:
        return None
    first, known = candidates[0]
    if known:
        return first
    # Names of roles leave no doubt, wherever they stand.
    sure = next((i for i, n in candidates if n >= 2), None)
    if sure is not None:
        return sure
    words = {(j, c) for j, c in enumerate(rows[first][1]) if isinstance(c, str) and c != ""}
    again = any(words & {(j, c) for j, c in enumerate(cells) if isinstance(c, str)} for _, cells in rows[first + 1 :])
    return None if again else first


def _reads_like_names(names: Sequence[object]) -> bool:
    """Words, or one word and then numbers that differ: a matrix is headed by the ids of items."""
    if all(isinstance(c, str) and not _NUMBER.fullmatch(c) and c not in ERRORS for c in names):
        return True
    rest = [_shown(c) for c in names[1:]]
    return (
        isinstance(names[0], str)
        and not _NUMBER.fullmatch(names[0])
        and len(rest) >= 3
        and len(set(rest)) == len(rest)
        and all(isinstance(c, int | float) and not isinstance(c, bool) and c == int(c) for c in names[1:])
    )


def _heading(value: object) -> str:
    """A name as it stands in one line."""
    return " ".join(_shown(value).split())


def _title(cells: Sequence[object]) -> str:
    return " ".join(_heading(c) for c in cells if c != "")[:60]


def letters(column: int) -> str:
    """Column 0 -> "A", 27 -> "AB"."""
    text = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        text = chr(65 + rest) + text
    return text


# ------------------------------------------------------------------------------------------------ cells


def _block(rows: Sequence[tuple[int, list[object]]], layout: _Layout, facts: SheetFacts, name: str) -> RawTable:
    faults: dict[int, str] = {}
    arrays = {}
    for column, at in zip(layout.columns, layout.at, strict=True):
        cells = [row[at] if at < len(row) else "" for _, row in rows]
        text = _plain_column(cells)
        if text is None:
            texts = []
            for position, cell in enumerate(cells):
                reason = _fault(cell, column)
                texts.append("" if reason else _shown(cell))
                if reason:
                    faults.setdefault(position, f"column {column[:60]!r} {reason}")
            text = pa.array(texts, TEXT)
        arrays[column] = text
    if facts.faults:
        for position, (number, _) in enumerate(rows):
            for column, at in zip(layout.columns, layout.at, strict=True):
                if (found := facts.faults.get((number - 1, at))) is not None:
                    faults[position] = f"column {column[:60]!r} {found}"
                    break
    table, lines = pa.table(arrays), np.array([number for number, _ in rows], np.int64)
    rejects = Rejects(name, limit=None)
    if faults:
        for position in sorted(faults):
            rejects.add(int(lines[position]), faults[position])
        good = np.ones(len(rows), bool)
        good[list(faults)] = False
        table, lines = table.filter(pa.array(good)).combine_chunks(), lines[good]
    return RawTable(table, lines, rejects)


def _plain_column(cells: list[object]) -> pa.Array | None:
    """Text of a column that is all text or all whole numbers that are exact; None: cell by cell."""
    kinds = set(map(type, cells))
    if kinds == {str}:
        return pa.array(cells, TEXT) if ERRORS.isdisjoint(cells) else None
    if kinds == {float}:
        numbers = np.array(cells)
        if bool((np.abs(numbers) < EXACT_DOUBLE).all()) and bool((numbers == np.floor(numbers)).all()):
            return pa.array(numbers.astype(np.int64)).cast(TEXT)
    return None


def _fault(value: object, column: str) -> str:
    if isinstance(value, str):
        return f"holds the error {value}" if value in ERRORS else ""
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return "holds no number"
        if abs(value) >= EXACT_DOUBLE and not _TIMELIKE.search(column):
            return f"holds {value:.17g}, and a spreadsheet keeps no number this long exactly; store ids as text"
    return ""


def _shown(value: object) -> str:
    """A cell as text: dates in ISO form, whole numbers without ".0"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, dt.datetime):
        # Days are kept as fractions: what is left of a second is noise below a millisecond.
        value = (value + dt.timedelta(microseconds=500)).replace(microsecond=0) if _is_noise(value) else value
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        seconds = value.total_seconds()
        return str(int(seconds)) if seconds == int(seconds) else repr(seconds)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return str(value)


def _is_noise(moment: dt.datetime) -> bool:
    return moment.microsecond < 500 or moment.microsecond >= 999_500
