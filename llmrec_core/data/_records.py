"""Lines -> rows of cells, in one known dialect: pyarrow where a block can be read in one way, line by line where not.

A block of lines goes to pyarrow unless something in it (a quote inside a cell, a broken character) could be read in two
ways. Such a block goes to the careful reader, which refuses single rows and knows where they stand. Both give the same.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llmrec_core.data._encodings import MAX_LINE_BYTES, utf8_chunks
from llmrec_core.data._raw import MAX_RAW_CHARS, RawTable, Rejects, text_schema, whole

#: A quoted cell with more lines than this is taken for a quote that was never closed.
_MAX_QUOTED_LINES = 500
#: Stands for a separator of several characters while a line is cut; lines that hold it themselves are refused.
_UNIT = "\x1f"
_SPACES = b" \t\x0b\x0c"
_BLANK = re.compile(rb"[ \t\x0b\x0c]*")


@dataclass(frozen=True)
class Dialect:
    """How a text file is to be read.

    Attributes:
        quoting: double quotes may surround a cell; they are doubled inside it.
        escape: inside quotes a backslash takes its meaning from a quote or a backslash.
        header_line: line of the header (1-based), 0 without one.
        first_line: first line that may hold data.
        header_cells: the header as it stands in the file.
    """

    encoding: str
    separator: str
    quoting: bool
    header_line: int
    first_line: int
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    escape: bool = False
    header_cells: tuple[str, ...] = ()


def read_blocks(
    path: Path, dialect: Dialect, max_rows: int | None = None, *, name: str = "", fast: bool = True
) -> Iterator[RawTable]:
    """The rows in order, block by block, each with its lines and all refused lines of its own.

    Args:
        max_rows: most rows in total.
        name: what refused rows are listed under; the file's name without it.
        fast: let pyarrow read the blocks that it reads without doubt.

    Raises:
        DataError: a line is too long, or the text is broken in a way that has no single line.
    """
    name = name or path.name
    chunks = utf8_chunks(path, dialect.encoding, name)
    first, skip, left = 1, dialect.first_line - 1, max_rows
    chunk = next(chunks, None)
    while chunk is not None and (left is None or left > 0):
        if skip:
            ends = [m.end() for _, m in zip(range(skip), re.finditer(rb"\r\n?|\n", chunk), strict=False)]
            at = ends[-1] if len(ends) == skip else len(chunk)
            skip -= len(ends)
            first += len(ends)
            chunk = chunk[at:]
        rest: list[bytes] = []
        n_lines = _count_lines(chunk) if fast and chunk else 0
        block = _fast_block(chunk, dialect, first, name, n_lines) if n_lines else None
        if block is not None:
            first += n_lines
        elif chunk:
            lines = chunk.splitlines()
            n_lines = len(lines)
            position = 0

            def more(lines: list[bytes] = lines) -> bool:
                following = next(chunks, None)
                lines += [] if following is None else following.splitlines()
                return following is not None

            rows, numbers, rejects = [], [], Rejects(name, limit=None)
            for start, after, cells in cut_records(lines, dialect, len(dialect.columns), more, n_lines):
                position = after
                if isinstance(cells, str):
                    rejects.add(first + start, cells, lines[start][:MAX_RAW_CHARS].decode("utf-8", "replace"))
                elif cells is not None:
                    rows.append(cells)
                    numbers.append(first + start)
            block = _block_of(rows, numbers, dialect, rejects)
            rest, first = lines[position:], first + position
        if block is not None:
            block = _without_headers(block, dialect)
            yield block if left is None else _head(block, left)
            left = None if left is None else left - len(block.table)
        chunk = b"\n".join(rest) + b"\n" if rest else next(chunks, None)


def read_careful(path: Path, dialect: Dialect, max_rows: int | None = None, *, name: str = "") -> RawTable:
    """The file line by line: ragged rows, open quotes and broken characters are refused where they stand."""
    blocks = read_blocks(path, dialect, max_rows, name=name, fast=False)
    return whole(blocks, dialect.columns, name or path.name)


def read_fast(path: Path, dialect: Dialect, *, name: str = "") -> RawTable:
    """The same rows and lines as :func:`read_careful`, several times sooner."""
    return whole(read_blocks(path, dialect, name=name), dialect.columns, name or path.name)


def _without_headers(block: RawTable, dialect: Dialect) -> RawTable:
    """Refuses rows that are the header again, as in files that were put one behind the other."""
    if not dialect.header_cells or block.lines is None:
        return block
    again = np.ones(len(block.table), bool)
    for name, cells in zip(dialect.header_cells, block.table.columns, strict=True):
        again &= np.asarray(pc.equal(cells, name), bool)
        if not again.any():
            return block
    for line in block.lines[again].tolist():
        block.rejects.add(line, "the header stands here again", dialect.separator.join(dialect.header_cells))
    block.rejects.listed.sort(key=lambda entry: entry[0])
    return RawTable(block.table.filter(pa.array(~again)).combine_chunks(), block.lines[~again], block.rejects)


def _head(block: RawTable, n_rows: int) -> RawTable:
    """The first rows of a block, without the refused lines after them."""
    if len(block.table) <= n_rows or block.lines is None:
        return block
    end = int(block.lines[n_rows])
    rejects = Rejects(block.rejects.file, limit=None)
    for line, reason in block.rejects.listed:
        if line < end:
            rejects.add(line, reason, block.rejects.texts.get(line, ""))
    return RawTable(block.table.slice(0, n_rows), block.lines[:n_rows], rejects)


def _block_of(rows: list[list[str]], numbers: list[int], dialect: Dialect, rejects: Rejects) -> RawTable:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(dialect.columns)
    arrays = [pa.array(cells, pa.large_string()) for cells in columns]
    return RawTable(
        pa.table(arrays, schema=text_schema(dialect.columns)), np.array(numbers, np.int64), rejects
    )  # fmt: skip


def _count_lines(chunk: bytes) -> int:
    ends = int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == ord("\n")))
    if b"\r" in chunk:
        ends += chunk.count(b"\r") - chunk.count(b"\r\n")
    return ends + (not chunk.endswith((b"\n", b"\r")))


def _has_empty_line(chunk: bytes) -> bool:
    if chunk[:1] in b"\r\n" or b"\n\n" in chunk:
        return True
    return b"\r" in chunk and (b"\n\r" in chunk or b"\r\r" in chunk)


def _has_blank_row(table: pa.Table) -> bool:
    """Whether all cells of some row are empty; mostly the last column alone can tell that there is none."""
    blank = np.ones(len(table), bool)
    for cells in reversed(table.columns):
        blank &= np.asarray(pc.equal(pc.binary_length(cells), 0), bool)
        if not blank.any():
            return False
    return True


# ------------------------------------------------------------------------------------------------ pyarrow


def _fast_block(chunk: bytes, dialect: Dialect, first: int, name: str, n_lines: int) -> RawTable | None:
    """A block of whole lines through pyarrow, or None where anything in it could be read in two ways."""
    separator, n_columns = dialect.separator.encode(), len(dialect.columns)
    quotes = dialect.quoting and b'"' in chunk
    if n_columns < 2 or (quotes and (len(separator) > 1 or _doubtful_quotes(chunk, dialect))):
        return None
    if not chunk.isascii():
        try:
            chunk.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if len(separator) > 1:
        if _UNIT.encode() in chunk:
            return None
        chunk, separator = chunk.replace(separator, _UNIT.encode()), _UNIT.encode()
    skipped: list[int] = []
    rejects = Rejects(name, limit=None)
    mark = separator.decode()

    def odd_row(row: pacsv.InvalidRow) -> str:
        if not _BLANK.fullmatch(row.text.encode()) or mark in row.text:
            cells = quoted_cells(row.text, dialect) if quotes and '"' in row.text else row.text.split(mark)
            fitted = None if not cells or len(cells) != row.actual_columns else _fitted(cells, n_columns)
            if not isinstance(fitted, str):
                return "error"
            rejects.add(first + row.number - 1, fitted, row.text.replace(mark, dialect.separator))
        skipped.append(row.number - 1)
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(chunk),
            # Only one thread tells the numbers of odd rows.
            pacsv.ReadOptions(column_names=list(dialect.columns), use_threads=False, block_size=len(chunk) + 1),
            pacsv.ParseOptions(
                delimiter=mark,
                quote_char='"' if quotes else False,
                newlines_in_values=False,
                ignore_empty_lines=False,
                invalid_row_handler=odd_row,
            ),
            pacsv.ConvertOptions(
                column_types=text_schema(dialect.columns),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowException:
        return None
    if len(table) + len(skipped) != n_lines:
        return None
    lines = np.arange(first, first + n_lines, dtype=np.int64)
    if skipped:
        lines = np.delete(lines, skipped)
    if _has_blank_row(table) and _has_empty_line(chunk):
        # pyarrow gives a row of empty cells for them; leaving that to it would lose count of the lines.
        empty = [first + at for at, line in enumerate(chunk.splitlines()) if not line]
        kept = ~np.isin(lines, empty)
        table, lines = table.filter(pa.array(kept)), lines[kept]
    return RawTable(table.combine_chunks(), lines, rejects)


def _doubtful_quotes(chunk: bytes, dialect: Dialect) -> bool:
    """Whether any cell is neither free of quotes nor quoted as a whole."""
    if dialect.escape and b"\\" in chunk:
        return True
    end = re.escape(dialect.separator.encode())
    plain = rb'(?:(?:[^"\r\n%b]*+|"(?:[^"]++|"")*+")(?:%b|\r\n?|\n|\Z))*+' % (end, end)
    return re.fullmatch(plain, chunk) is None


# ------------------------------------------------------------------------------------------------ line by line


def cut_records(
    lines: list[bytes], dialect: Dialect, n_columns: int | None, more: Callable[[], bool], n_lines: int
) -> Iterator[tuple[int, int, list[str] | str | None]]:
    """(index of the line it begins on, index after it, cells or why it is refused) for each record.

    Blank lines come with None instead of cells. A quoted cell may run over lines. When that ends badly, only the first
    of these lines is refused and reading goes on at the next one, so that one stray quote never eats the rows below it.

    Args:
        lines: UTF-8 without line ends; ``more()`` adds following ones and says whether there were any.
        n_columns: cells of a row; None: any number.
        n_lines: records begin in the first ``n_lines`` lines.
    """
    separator, quoting = dialect.separator, dialect.quoting
    position = 0
    while position < n_lines:
        start = position
        position += 1
        raw = lines[start]
        if raw[:1] in _SPACES and _BLANK.fullmatch(raw) and separator.encode() not in raw:
            yield start, position, None
            continue
        line = _decoded(raw)
        if line is None:
            yield start, position, _why_not(raw, dialect)
            continue
        if not quoting or '"' not in line:
            plain = line.split(separator)
            yield start, position, plain if len(plain) == n_columns else _fitted(plain, n_columns)
            continue
        cells = quoted_cells(line, dialect)
        if cells is None:
            cells, taken = _over_lines(line, lines, position, dialect, n_columns, more)
            position += taken
        if not cells and _is_open(line, dialect):
            yield start, position, "a quote is opened and not closed"
            continue
        if not cells and len(line) > csv.field_size_limit():
            yield start, position, f"a quoted cell is longer than {csv.field_size_limit():,} characters"
            continue
        if not cells:
            # Quotes inside a cell that does not mean them as such: "Weird" names, inches.
            cells = line.split(separator)
        yield start, position, _fitted(cells, n_columns)


def _over_lines(
    line: str,
    lines: list[bytes],
    position: int,
    dialect: Dialect,
    n_columns: int | None,
    more: Callable[[], bool],
) -> tuple[list[str], int]:
    """(cells, further lines they took) of a record whose quote is open at the end of ``line``; ([], 0): none."""
    joined, size = [line], len(line)
    for taken in range(1, _MAX_QUOTED_LINES + 1):
        at = position + taken - 1
        if at >= len(lines) and not more():
            break
        following = _decoded(lines[at])
        if following is None:
            break
        joined.append(following)
        size += len(following)
        if size > MAX_LINE_BYTES:
            break
        if '"' in following:
            cells = quoted_cells("\n".join(joined), dialect)
            if cells is not None:
                # What is broken or too wide by now does not get better by further lines.
                return (cells, taken) if cells and n_columns in (None, len(cells)) else ([], 0)
    return [], 0


def _decoded(raw: bytes) -> str | None:
    if len(raw) > MAX_LINE_BYTES:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _why_not(raw: bytes, dialect: Dialect) -> str:
    if len(raw) > MAX_LINE_BYTES:
        return f"the line is longer than {MAX_LINE_BYTES:,} bytes"
    return f"the line is not valid {dialect.encoding.removesuffix('-sig')}"


def _fitted(cells: list[str], n_columns: int | None) -> list[str] | str:
    if n_columns is None or len(cells) == n_columns:
        return cells
    if len(cells) > n_columns and not any(cell.strip() for cell in cells[n_columns:]):
        return cells[:n_columns]
    return f"{len(cells)} cells instead of {n_columns}"


def quoted_cells(text: str, dialect: Dialect) -> list[str] | None:
    """Cells of one record under strict quoting; None: a quote is still open at its end; []: quotes do not add up."""
    separator = dialect.separator
    if len(separator) > 1:
        if _UNIT in text:
            return []
        text = text.replace(separator, _UNIT)
    mark = _UNIT if len(separator) > 1 else separator
    if dialect.escape and "\\" in text:
        cells = _escaped(text, mark)
    else:
        try:
            rows = list(csv.reader([text], delimiter=mark, strict=True))
        except csv.Error as error:
            return None if "unexpected end of data" in str(error) else []
        cells = rows[0] if len(rows) == 1 else []
    if not cells or len(separator) == 1:
        return cells
    return [cell.replace(_UNIT, separator) for cell in cells]


def _escaped(text: str, mark: str) -> list[str] | None:
    """:func:`quoted_cells` where backslashes protect quotes: "He said \\"no\\""."""
    end = re.escape(mark)
    cell = re.compile(rf'"((?:[^"\\]|\\.|"")*+)("?)|((?!")[^{end}]*+)', re.DOTALL)
    cells, position = [], 0
    while True:
        match = cell.match(text, position)
        if match is None:
            return []
        quoted, closed, bare = match.groups()
        if quoted is not None and not closed:
            return None
        cells.append(bare if quoted is None else re.sub(r'\\(["\\])|"(")', r"\1\2", quoted))
        if match.end() == len(text):
            return cells
        if text[match.end()] != mark:
            return []
        position = match.end() + 1


def _is_open(line: str, dialect: Dialect) -> bool:
    """Whether a quote that opens a cell is still open at the end of the line."""
    starts = line.startswith('"') or f'{dialect.separator}"' in line
    if dialect.escape:
        line = line.replace("\\\\", "").replace('\\"', "")
    return starts and line.count('"') % 2 == 1
