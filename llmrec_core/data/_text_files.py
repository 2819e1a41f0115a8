"""Delimited text of any dialect: how it is to be read, judged from its first lines.

What was told is kept; what is guessed and could be otherwise is said in the notes. The reading itself is in
``_records``: the fast reader and the careful one give the same rows with the same lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from llmrec_core.data._encodings import detect_encoding, utf8_chunks
from llmrec_core.data._raw import MAX_LISTED_REJECTS, RawTable, Rejects
from llmrec_core.data._records import Dialect, cut_records, quoted_cells, read_blocks, read_careful, read_fast
from llmrec_core.data._roles import check_headers, is_role_name
from llmrec_core.errors import DataError

_SAMPLE_LINES = 500
_SAMPLE_BYTES = 1 << 18
_MAX_ABOVE = 20
_MAX_COLUMNS = 20_000
#: Most telling first: where two of them cut the lines equally well, the earlier one is taken.
_SEPARATORS = ("\t", ",", ";", "|", "::", "||", "^", "~", "\x01", " ")
#: Taken off the share of lines that a separator cuts alike, where the first line lacks it.
_ABSENT_FIRST = 0.3
_MAY_BE_DOUBLED = (",", ";", "^", "~")
_TYPED = re.compile(r"^([^:]+):(token|token_seq|float|float_seq)$")
_SEPARATOR_LINE = re.compile(rb'"?sep=([^"\s]|\t)"?', re.IGNORECASE)
_COMMENT = re.compile(r"\s*(#|%|//)\s*")
_MAGIC = {
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\xca\xfe\xba\xbe": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"PK": "a zip archive (or an Excel workbook)",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"GIF8": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"ARROW1": "an Arrow file",
    b"{\\rtf": "a text document (RTF)",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
}
Record = tuple[int, list[str]]


def refuse_binary(path: Path, where: str = "") -> None:
    """Raises: DataError for an empty file and for the kinds of files that are no text, by their first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror}).", where=str(path), fix="Check the path."
        ) from None
    where = where or path.name
    if not head:
        raise DataError("the file is empty.", where=where, fix="Choose a file with a header and rows.")
    for magic, what in _MAGIC.items():
        # Two letters alone may begin a header: a program and an archive go on with bytes that no text has.
        if head.startswith(magic) and (len(magic) > 2 or re.search(rb"[\x00-\x08\x0e-\x1f\x80-\xff]", head[2:])):
            fix = "Unpack it first." if "archive" in what else "Save the data as CSV, TSV, Parquet or JSONL."
            raise DataError(f"this is {what}, not a table.", where=where, fix=fix)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise DataError("this is a Python pickle, which is never opened.", where=where, fix="Save the data as CSV.")


def sniff(
    path: Path,
    encoding: str | None = None,
    separator: str | None = None,
    header: bool | None = None,
    *,
    header_row: int | None = None,
    name: str = "",
) -> Dialect:
    """How ``path`` is to be read; what was told is kept, the rest is guessed.

    Args:
        header_row: line on which the header stands (1-based), if that is known.
        name: what a person calls the file.

    Raises:
        DataError: no text, no rows, one column only, or header names missing or repeated.
    """
    where = name or path.name
    codec, notes = detect_encoding(path, encoding, where)
    lines = _first_lines(path, codec, where)
    if header_row is not None:
        if not 1 <= header_row <= len(lines):
            raise DataError(f"there is no line {header_row} among the first {len(lines)}.", where=where)
        lines[: header_row - 1] = [b""] * (header_row - 1)
        header = True
    filled = [at for at, line in enumerate(lines) if line.strip()]
    # Spreadsheets write "sep=;" in front of the header for each other.
    if filled and (hint := _SEPARATOR_LINE.fullmatch(lines[filled[0]])):
        separator = separator or hint[1].decode("utf-8", "replace")
        lines[filled.pop(0)] = b""
    if not filled:
        raise DataError("the file has no rows.", where=where, fix="Choose a file with a header and rows.")
    separator = _told_separator(separator, where) if separator else _guess_separator(lines)
    if separator is None:
        raise DataError(
            "only one column was found.",
            where=where,
            fix="Separate columns by comma, semicolon, tab, | or ::, or say which with separator:FILE=...",
        )
    first_text = lines[filled[0]].decode("utf-8", "replace")
    typed = [_TYPED.match(cell) for cell in first_text.split(separator)]
    style = Dialect(codec, separator, not all(typed), 0, 0, ())
    records = _records_of(lines, style)
    marked = [line.decode("utf-8", "replace") for line in lines if rb"\"" in line]
    if style.quoting and marked:
        other = replace(style, escape=True)
        escaped = _records_of(lines, other)
        if _whole(marked, other, escaped) > _whole(marked, style, records):
            style, records = other, escaped
            notes = [*notes, "a backslash is taken to stand before quotes inside cells"]
    if not records:
        records = [(filled[0], first_text.split(separator))]
    if len(records[0][1]) > _MAX_COLUMNS:
        raise DataError(f"more than {_MAX_COLUMNS:,} columns.", where=where, fix="Name another separator.")
    columns: list[str] | None
    if all(typed):
        at, columns = 0, [m[1].strip() for m in typed if m]
    else:
        at, columns = _find_header(records, header if header_row is None else True, exact=header_row is not None)
    if columns is None:
        width = max(Counter(len(cells) for _, cells in records[at:]).most_common(1)[0][0], 1)
        columns = [f"column_{i}" for i in range(1, width + 1)]
        header_line, first_line = 0, records[at][0] + 1
    else:
        if (
            len(columns) > 1
            and not columns[-1]
            and all(not r[-1] for _, r in records[at + 1 :] if len(r) >= len(columns))
        ):
            columns = columns[:-1]
            notes = [*notes, "a last column without name and values was left out"]
        if len(columns) > 2 and not columns[0] and all(columns[1:]):
            # The corner of a matrix, or the index that pandas writes in front of its columns.
            columns = ["column_1", *columns[1:]]
            notes = [*notes, "the first column has no name: it is called column_1"]
        check_headers(columns, f"{where}, line {records[at][0] + 1}")
        header_line, first_line = records[at][0] + 1, records[at][0] + 2
    above = [lines[index].decode("utf-8", "replace").strip() for index, _ in records[:at]]
    if above:
        what = f"the header in line {header_line}" if header_line else "the rows"
        notes = [*notes, f"{len(above)} lines above {what} were left out: {above[0][:60]!r}"]
    header_cells = tuple(records[at][1][: len(columns)]) if header_line else ()
    return Dialect(
        codec,
        separator,
        style.quoting,
        header_line,
        first_line,
        tuple(columns),
        tuple(notes),
        style.escape,
        header_cells,
    )


def _told_separator(told: str, where: str) -> str:
    separator = {"\\t": "\t", "tab": "\t", "space": " ", "\\x01": "\x01"}.get(told, told)
    if set(separator) & set('"\r\n\0'):
        raise DataError("a quote or a line end cannot separate columns.", where=where, fix="Use comma, tab, ; or |.")
    if len(separator) > 4:
        raise DataError("a separator has at most four characters.", where=where, fix="Use comma, tab, ; or |.")
    return separator


def _first_lines(path: Path, codec: str, where: str) -> list[bytes]:
    chunk = next(utf8_chunks(path, codec, where, _SAMPLE_BYTES), b"")
    return chunk.splitlines()[:_SAMPLE_LINES]


def _records_of(lines: list[bytes], style: Dialect) -> list[Record]:
    """(index of the line, cells) of the records that can be cut."""
    cut = cut_records(lines, style, None, lambda: False, len(lines))
    return [(index, cells) for index, _, cells in cut if isinstance(cells, list)]


def _whole(marked: list[str], style: Dialect, records: list[Record]) -> tuple[int, float]:
    """How well a meaning of backslashes fits: lines whose quotes add up by it, then rows of equal width."""
    return sum(bool(quoted_cells(line, style)) for line in marked), _agreement(records)


def _agreement(records: list[Record]) -> float:
    """Share of the records that have the most common number of cells."""
    counts = Counter(len(cells) for _, cells in records)
    return counts.most_common(1)[0][1] / len(records) if counts else 0.0


def _guess_separator(lines: list[bytes]) -> str | None:
    """The one that cuts most lines into the same number of cells, at least two."""
    best: tuple[float, int, int] | None = None
    choice = None
    for rank, separator in enumerate(_SEPARATORS):
        records = _records_of(lines, Dialect("utf-8", separator, True, 0, 0, ()))
        counts = Counter(len(cells) for _, cells in records)
        wide = [(times, width) for width, times in counts.items() if width > 1]
        if not wide:
            continue
        times, width = max(wide)
        if separator == " " and (choice is not None or times < max(2, 0.9 * len(records))):
            # Words have spaces between them too.
            continue
        if separator == "||" and choice == "|" and not _always_doubled(lines, "|"):
            continue
        # What cells hold here and there does not stand in the first line; what stands below a title cuts nearly all.
        share = times / len(records) - (_ABSENT_FIRST if len(records[0][1]) < 2 else 0.0)
        score = (round(share, 1), 10_000 if separator in ("||", "::") else width, -rank)
        if best is None or score > best:
            best, choice = score, separator
    if choice in _MAY_BE_DOUBLED and _always_doubled(lines, choice):
        return choice * 2
    return choice


def _always_doubled(lines: list[bytes], separator: str) -> bool:
    one = separator.encode()
    filled = [line for line in lines if line.strip()]
    return all(line.count(one * 2) * 2 == line.count(one) for line in filled)


# ------------------------------------------------------------------------------------------------ the header


def _find_header(records: list[Record], told: bool | None, *, exact: bool) -> tuple[int, list[str] | None]:
    """(which record comes first: the header or, without one, the first row; the header's names or None).

    A title, a date of export or comments may stand above the header. They are passed over only where a line that
    is clearly a header follows; lines that begin as comments do, also without one.
    """
    width = Counter(len(cells) for _, cells in records if len(cells) > 1)
    usual = width.most_common(1)[0][0] if width else 1
    at = 0
    for at, (_, cells) in enumerate(records[: _MAX_ABOVE + 1]):
        names = [cell.strip() for cell in cells]
        comment = _COMMENT.match(cells[0]) if not exact else None
        if comment and len(cells) == usual:
            bare = [names[0][comment.end() :].strip(), *names[1:]]
            if told is not False and all(bare) and any(is_role_name(cell) for cell in bare):
                return at, bare
        if comment and (len(cells) != usual or told is False):
            continue
        filled = sum(map(bool, names))
        title = len(cells) < usual or filled <= 1
        named = filled > 1 and any(is_role_name(cell) for cell in names)
        if exact or not title or named or at == len(records) - 1:
            break
        follows = _next_full(records, at, usual)
        if follows is None or told is False:
            break
        candidate = [cell.strip() for cell in records[follows][1]]
        known = any(is_role_name(cell) for cell in candidate)
        if not known or not _looks_like_header(candidate, [r for _, r in records[follows + 1 :]]):
            break
        return follows, candidate
    names = [cell.strip() for cell in records[at][1]]
    has_header = told if told is not None else _looks_like_header(names, [r for _, r in records[at + 1 :]])
    return at, names if has_header else None


def _next_full(records: list[Record], at: int, usual: int) -> int | None:
    """The next record of full width, if it comes soon."""
    for position in range(at + 1, min(len(records), at + _MAX_ABOVE)):
        cells = records[position][1]
        if len(cells) >= usual and sum(bool(cell.strip()) for cell in cells) > 1:
            return position
    return None


def _looks_like_header(first: list[str], rest: list[list[str]]) -> bool:
    below = [row for row in rest if len(row) == len(first)]
    known = [i for i, cell in enumerate(first) if is_role_name(cell)]
    if len(known) > 1:
        # A header may come again where files were put one behind the other.
        below = [row for row in below if [cell.strip() for cell in row] != first]
    numbers = [i for i, cell in enumerate(first) if _is_number(cell)]
    # A word such as "book" may also be a value, which then comes again below it or stands beside a number.
    again = any(row[i].strip() == first[i] for row in below for i in known)
    if known and not again and (not numbers or known == [0]):
        return True
    if numbers:
        return False
    if any(below and all(_is_number(row[i]) for row in below) for i in range(len(first))):
        return True
    if _written_alike(first, rest):
        return False
    # Nothing but words: a name is short and does not come again below.
    return len(set(first)) == len(first) and not any(set(first) & set(row) for row in below)


def _written_alike(first: list[str], rest: list[list[str]]) -> bool:
    """Whether the cells are ids like those below them: "u1" above "u2", "i7" above "i10"."""
    columns = [[row[i].strip() for row in rest if len(row) > i and row[i].strip()] for i in range(len(first))]
    shapes = [_shape(cell) for cell in first]
    below = [[_shape(cell) for cell in column] for column in columns]
    filled = [i for i in range(len(first)) if below[i]]
    return bool(filled) and all("9" in shapes[i] and below[i].count(shapes[i]) * 2 > len(below[i]) for i in filled)


def _shape(cell: str) -> str:
    """How an id is written, and as one a list of such: "u1" is "u9", "i7,i10,i2" is "i9"."""
    written = re.sub(r"[0-9]+", "9", cell)
    parts = set(re.split(r"[\s,;|#]+", written.strip("[]()'\" ")))
    return parts.pop() if len(parts) == 1 else written


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]+([.,][0-9]+)?\s*", cell) is not None


def with_columns(dialect: Dialect, columns: Iterable[str]) -> Dialect:
    """The dialect with known names for a file without a header."""
    return replace(dialect, columns=tuple(columns))


__all__ = [
    "MAX_LISTED_REJECTS",
    "Dialect",
    "RawTable",
    "Rejects",
    "read_blocks",
    "read_careful",
    "read_fast",
    "refuse_binary",
    "sniff",
    "with_columns",
]
