"""Delimited text of any dialect -> columns of text, each row with the line it began on.

Two readers of the same dialect. The fast one is pyarrow's and takes only files that can be read in one way. Whatever
it will not take goes to the careful one, which goes line by line, knows where it is, and refuses single rows.
"""

from __future__ import annotations

import codecs
import csv
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import charset_normalizer
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llmrec_core.data._roles import check_headers, is_role_name
from llmrec_core.errors import DataError

MAX_LISTED_REJECTS = 1000
_SAMPLE_BYTES = 1 << 18
_BLOCK_ROWS = 50_000
#: A quoted cell longer than this is taken for a quote that was never closed.
_MAX_QUOTED_LINES = 500
_MAX_LINE_CHARS = 4_000_000
_SEPARATORS = ("\t", ",", ";", "|", "::")
_TYPED = re.compile(r"^([^:]+):(token|token_seq|float|float_seq)$")
_MAGIC = {
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"PK\x03\x04": "a zip archive (or an Excel workbook)",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"ARROW1": "an Arrow file",
}


@dataclass
class Rejects:
    """Refused rows of one file: all counted, the first ones listed."""

    file: str
    count: int = 0
    listed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        self.count += 1
        if len(self.listed) < MAX_LISTED_REJECTS:
            self.listed.append((line, reason))

    def add_many(self, lines: npt.NDArray[np.int64], reasons: Iterable[str]) -> None:
        """``reasons`` may be lazy: only those that are listed are made."""
        room = MAX_LISTED_REJECTS - len(self.listed)
        self.count += len(lines)
        self.listed += [(int(line), reason) for line, reason in zip(lines[:room].tolist(), reasons, strict=False)]


@dataclass(frozen=True)
class RawTable:
    """Columns of text (large_string, no nulls). ``lines`` [n]: where each row began; None: not tracked."""

    table: pa.Table
    lines: npt.NDArray[np.int64] | None
    rejects: Rejects


@dataclass(frozen=True)
class Dialect:
    """How a text file is to be read.

    Attributes:
        lenient: a few lines are not valid in ``encoding``; they are refused one by one.
        header_line: line of the header (1-based), 0 without one.
        first_line: first line that may hold data.
    """

    encoding: str
    separator: str
    quoting: bool
    header_line: int
    first_line: int
    columns: tuple[str, ...]
    lenient: bool = False
    notes: tuple[str, ...] = ()


def refuse_binary(path: Path) -> None:
    """Raises: DataError for an empty file and for the kinds of files that are no text, by their first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror}).", where=str(path), fix="Check the path."
        ) from None
    where = path.name
    if not head:
        raise DataError("the file is empty.", where=where, fix="Choose a file with a header and rows.")
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            fix = "Unpack it first." if "archive" in what else "Save the data as CSV, TSV, Parquet or JSONL."
            raise DataError(f"this is {what}, not a table.", where=where, fix=fix)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise DataError("this is a Python pickle, which is never opened.", where=where, fix="Save the data as CSV.")


def detect_encoding(path: Path, told: str | None = None) -> tuple[str, bool, list[str]]:
    """(codec, lenient, notes). UTF-8 wins wherever the whole file, or nearly all of it, is valid UTF-8.

    Raises:
        DataError: an unknown codec was asked for, or the bytes are no text.
    """
    if told:
        try:
            # Codecs such as rot13 exist, but are not encodings of text; this call knows the difference.
            b"a".decode(told, "replace")
            return codecs.lookup(told).name, False, []
        except (LookupError, UnicodeError):
            raise DataError(f"unknown encoding {told[:40]!r}.", where=path.name, fix="Try utf-8 or gb18030.") from None
    with path.open("rb") as stream:
        head = stream.read(_SAMPLE_BYTES)
        for bom, codec in (
            (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):  # fmt: skip
            if head.startswith(bom):
                return codec, False, []
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if max(even, odd) > 0.3 * (len(head) / 2) and min(even, odd) < 0.05 * (len(head) / 2):
            return ("utf-16-le" if odd > even else "utf-16-be"), False, ["no byte order mark: taken as UTF-16"]
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            zero = data.find(b"\0")
            if zero >= 0:
                number = data[:zero].count(b"\n") + 1
                where = f"{path.name}, line {number}"
                raise DataError("the file holds zero bytes: it is not text.", where=where, fix="Save it as CSV.")
        stream.seek(0)
        good = bad = 0
        odd_lines: list[bytes] = []
        for line in stream:
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                good += 1
            except UnicodeDecodeError:
                bad += 1
                if sum(map(len, odd_lines)) < _SAMPLE_BYTES:
                    odd_lines.append(line)
    if not bad:
        return "utf-8", False, []
    if good > 4 * bad:
        return "utf-8", True, [f"{bad} lines are not valid UTF-8"]
    codec = _legacy_codec(b"".join(odd_lines))
    return codec, False, [f"encoding guessed as {codec}; look at the preview"]


def _legacy_codec(sample: bytes) -> str:
    """The likeliest codec of text that is not UTF-8."""
    # Runs of paired high bytes are Chinese; single ones between ASCII letters are Western. The general detector
    # confuses both on short samples, so it is asked last.
    high = re.findall(rb"[\x80-\xff]+", sample)
    paired = sum(len(run) % 2 == 0 for run in high)
    try:
        text = sample.decode("gb18030")
        han = sum("\u4e00" <= c <= "\u9fff" for c in text)
        if high and paired >= 0.9 * len(high) and han * 2 >= 0.8 * sum(map(len, high)):
            return "gb18030"
    except UnicodeDecodeError:
        pass
    best = charset_normalizer.from_bytes(
        sample, cp_isolation=["cp1252", "cp1250", "cp1251", "gb18030", "big5", "shift_jis", "euc_kr", "euc_jp"]
    ).best()
    lone = sum(len(run) == 1 for run in high)
    if best is None or lone >= 0.6 * len(high):
        try:
            sample.decode("cp1252")
            return "cp1252"
        except UnicodeDecodeError:
            return "latin-1"
    return best.encoding


def sniff(path: Path, encoding: str | None = None, separator: str | None = None, header: bool | None = None) -> Dialect:
    """How ``path`` is to be read; what was told is kept, the rest is guessed.

    Raises:
        DataError: no text, no rows, one column only, or header names missing or repeated.
    """
    codec, lenient, notes = detect_encoding(path, encoding)
    lines = _first_lines(path, codec, lenient)
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise DataError("the file has no rows.", where=path.name, fix="Choose a file with a header and rows.")
    separator = _unescape(separator) if separator else _guess_separator([line for _, line in filled])
    if separator is not None and set(separator) & set('"\r\n'):
        raise DataError(
            "a quote or a line end cannot separate columns.", where=path.name, fix="Use comma, tab, ; or |."
        )
    if separator is None:
        raise DataError(
            "only one column was found.",
            where=path.name,
            fix="Separate columns by comma, semicolon, tab, | or ::, or say which with separator:FILE=...",
        )
    first_number, first_text = filled[0]
    typed = [_TYPED.match(cell) for cell in first_text.split(separator)]
    quoting = not all(typed)
    records = [cells for _, cells in _records(iter(filled), separator, quoting, None) if isinstance(cells, list)]
    first = [cell.strip() for cell in (records[0] if records else first_text.split(separator))]
    has_header = header if header is not None else (all(typed) or _looks_like_header(first, records[1:]))
    if has_header:
        columns = [m[1].strip() for m in typed if m] if all(typed) else first
        while len(columns) > 1 and not columns[-1] and all(len(r) >= len(columns) and not r[-1] for r in records[1:]):
            columns = columns[:-1]
            notes = [*notes, "a last column without name and values was left out"]
            break
        check_headers(columns, f"{path.name}, line {first_number}")
        header_line, first_line = first_number, first_number + 1
    else:
        columns = [f"column_{i}" for i in range(1, len(first) + 1)]
        header_line, first_line = 0, first_number
    return Dialect(codec, separator, quoting, header_line, first_line, tuple(columns), lenient, tuple(notes))


def _unescape(separator: str) -> str:
    return {"\\t": "\t", "tab": "\t"}.get(separator, separator)


def open_lines(path: Path, codec: str, lenient: bool) -> Iterator[str]:
    errors = "surrogateescape" if lenient else "strict"
    try:
        with path.open("r", encoding=codec, errors=errors, newline=None) as stream:
            while line := stream.readline(_MAX_LINE_CHARS):
                if len(line) >= _MAX_LINE_CHARS:
                    raise DataError("a line is longer than 4 million characters.", where=path.name)
                yield line.removesuffix("\n")
    except UnicodeError as error:
        raise DataError(
            f"the text is not valid {codec} ({error}).", where=path.name, fix="Save the file as UTF-8."
        ) from None


def _first_lines(path: Path, codec: str, lenient: bool) -> list[tuple[int, str]]:
    found, size = [], 0
    for number, line in enumerate(open_lines(path, codec, lenient), start=1):
        found.append((number, line))
        size += len(line)
        if number >= 500 or size > _SAMPLE_BYTES:
            break
    return found


def _guess_separator(lines: list[str]) -> str | None:
    best: tuple[float, int, int] | None = None
    choice = None
    for rank, separator in enumerate(_SEPARATORS):
        numbered = iter(enumerate(lines, start=1))
        counts = [len(c) for _, c in _records(numbered, separator, True, None) if isinstance(c, list)]
        if not counts or counts[0] < 2:
            continue
        share = sum(count == counts[0] for count in counts) / len(counts)
        score = (round(share, 1), counts[0], -rank)
        if best is None or score > best:
            best, choice = score, separator
    return choice


def _looks_like_header(first: list[str], rest: list[list[str]]) -> bool:
    if any(is_role_name(cell) for cell in first):
        return True
    if any(_is_number(cell) for cell in first):
        return False
    below = [row for row in rest if len(row) == len(first)]
    if any(below and all(_is_number(row[i]) for row in below) for i in range(len(first))):
        return True
    # Nothing but words: a name is short and does not come again below.
    return len(set(first)) == len(first) and not any(set(first) & set(row) for row in below)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]+([.,][0-9]+)?\s*", cell) is not None


def read_fast(path: Path, dialect: Dialect) -> RawTable | None:
    """The whole file through pyarrow, or None where anything in it could be read in two ways."""
    if dialect.lenient or dialect.encoding.startswith(("utf-16", "utf-32")):
        return None
    separator = dialect.separator
    if len(separator) != 1 and separator != "::":
        return None
    quotes = False
    if dialect.quoting:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            quotes = data.find(b'"') >= 0
            if quotes:
                if separator == "::":
                    return None
                sep = re.escape(separator.encode())
                if re.search(rb'[^"\r\n' + sep + rb']"[^"\r\n' + sep + rb"]", data):
                    return None
    names = list(dialect.columns)
    if separator == "::":
        # pyarrow splits at one character, so at ":" with an empty cell between every two.
        names = [part for name in names for part in (name, f"\0{name}")][:-1]
    try:
        table = pacsv.read_csv(
            path,
            pacsv.ReadOptions(
                column_names=names, skip_rows=dialect.first_line - 1, encoding=dialect.encoding.removesuffix("-sig")
            ),
            pacsv.ParseOptions(delimiter=separator[0], quote_char='"' if quotes else False),
            pacsv.ConvertOptions(
                column_types={name: pa.large_string() for name in names},
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, UnicodeError):
        return None
    for name in names:
        if name.startswith("\0") and not pc.all(pc.equal(table.column(name), "")).as_py():
            return None
    table = table.select(list(dialect.columns))
    for column in table.columns:
        if quotes and pc.any(pc.match_substring_regex(column, r"[\r\n]")).as_py():
            return None
    return RawTable(table, None, Rejects(path.name))


def read_careful(path: Path, dialect: Dialect, max_rows: int | None = None) -> RawTable:
    """The file line by line: ragged rows, open quotes and broken characters are refused where they stand."""
    rejects = Rejects(path.name)
    n_columns = len(dialect.columns)
    schema = pa.schema([(name, pa.large_string()) for name in dialect.columns])
    tables, lines_kept = [schema.empty_table()], []
    rows: list[list[str]] = []
    lines: list[int] = []

    def flush() -> None:
        columns = list(zip(*rows, strict=True)) if rows else [()] * n_columns
        tables.append(pa.table([pa.array(c, pa.large_string()) for c in columns], schema=schema))
        lines_kept.append(np.array(lines, np.int64))
        rows.clear()
        lines.clear()

    numbered = enumerate(open_lines(path, dialect.encoding, dialect.lenient), start=1)
    body = ((number, line) for number, line in numbered if number >= dialect.first_line)
    n_rows = 0
    for number, cells in _records(body, dialect.separator, dialect.quoting, n_columns):
        if isinstance(cells, str):
            rejects.add(number, cells)
            continue
        if dialect.lenient and not _encodable(cells):
            rejects.add(number, f"the line is not valid {dialect.encoding}")
            continue
        rows.append(cells)
        lines.append(number)
        n_rows += 1
        if len(rows) >= _BLOCK_ROWS:
            flush()
        if max_rows is not None and n_rows >= max_rows:
            break
    flush()
    table = pa.concat_tables(tables).combine_chunks()
    return RawTable(table, np.concatenate(lines_kept), rejects)


def _encodable(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _records(
    lines: Iterator[tuple[int, str]], separator: str, quoting: bool, n_columns: int | None
) -> Iterator[tuple[int, list[str] | str]]:
    """(line it began on, cells) for each record, or (line, why it is refused).

    A quoted cell may run over lines. When that ends badly, only the first of these lines is refused and reading goes
    on at the next one, so that one stray quote never eats the rows below it.
    """
    pending: list[tuple[int, str]] = []
    while True:
        if pending:
            number, line = pending.pop()
        else:
            try:
                number, line = next(lines)
            except StopIteration:
                return
        if not quoting or '"' not in line:
            if not line or line.isspace():
                continue
            yield number, _fitted(line.split(separator), n_columns)
            continue
        cells = _quoted(line, separator)
        if cells is None and _is_open(line, separator):
            joined = [line]
            taken: list[tuple[int, str]] = []
            while cells is None and len(taken) < _MAX_QUOTED_LINES:
                following = pending.pop() if pending else next(lines, None)
                if following is None:
                    break
                taken.append(following)
                joined.append(following[1])
                if '"' in following[1]:
                    cells = _quoted("\n".join(joined), separator)
                    if cells is not None and n_columns is not None and len(cells) != n_columns:
                        cells = None
                        break
            if cells is None:
                pending += reversed(taken)
                yield number, "a quote is opened and not closed"
                continue
        if cells is None:
            # Quotes inside a cell that does not mean them as such: "Weird" names, inches.
            cells = line.split(separator)
        yield number, _fitted(cells, n_columns)


def _fitted(cells: list[str], n_columns: int | None) -> list[str] | str:
    if n_columns is None or len(cells) == n_columns:
        return cells
    if len(cells) > n_columns and not any(cell.strip() for cell in cells[n_columns:]):
        return cells[:n_columns]
    return f"{len(cells)} cells instead of {n_columns}"


def _quoted(text: str, separator: str) -> list[str] | None:
    """Cells of one record under strict quoting; None where the quotes do not add up."""
    if len(separator) > 1:
        return text.split(separator) if text.count('"') % 2 == 0 and "\n" not in text else None
    try:
        rows = list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _is_open(line: str, separator: str) -> bool:
    """Whether a quote that opens a cell is still open at the end of the line."""
    if len(separator) > 1:
        return False
    starts = line.startswith('"') or f'{separator}"' in line
    return starts and line.count('"') % 2 == 1


def with_columns(dialect: Dialect, columns: Iterable[str]) -> Dialect:
    """The dialect with known names for a file without a header."""
    return replace(dialect, columns=tuple(columns))
