"""One door to every kind of file: what it is, its columns, its first rows, and all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_core.data import _text_files as text_files
from llmrec_core.data._roles import Corrections, check_headers
from llmrec_core.data._text_files import MAX_LISTED_REJECTS, Dialect, RawTable, Rejects
from llmrec_core.errors import DataError

_SAMPLE_ROWS = 1000
_JSON_BLOCK_ROWS = 50_000
_MAX_COLUMNS = 2000
#: Whole numbers above it are not exact as floating point.
_EXACT = 2.0**53

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
#: Layouts without a header that name themselves: file name and column count -> column names.
_LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"u\.item", ("item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES)),
    (r"u\.user", ("user_id", "age", "gender", "occupation", "zip_code")),
    (r"movies\.dat", ("item_id", "title", "genres")),
    (r"users\.dat", ("user_id", "gender", "age", "occupation", "zip_code")),
    (r"ratings\.dat|u\.data|u\d\.(base|test)", ("user_id", "item_id", "rating", "timestamp")),
)


@dataclass(frozen=True)
class Source:
    """A table that was looked at, not yet read.

    ``fast``: the whole table, or None where only the careful reader may judge. ``careful(max_rows)``: with the line of
    every row; for Parquet the "line" is the row number, for a JSON array the line where the element begins.
    ``batches(max_rows)``: what ``careful`` gives, block by block in bounded memory; a block's ``rejects`` hold the
    refused lines of that block alone, all of them listed. None: there is no such reader; use ``careful``.

    ``name``: what a person reads: "ratings.csv", "export.zip/ratings.csv", "shop.xlsx/Sheet2", "shop.sqlite/orders".
    ``path``: the file on disk, which for a member of an archive lies in the scratch folder.
    """

    path: Path
    format: str
    columns: tuple[str, ...]
    fast: Callable[[], RawTable | None]
    careful: Callable[[int | None], RawTable]
    encoding: str | None = None
    separator: str | None = None
    header: bool = True
    notes: tuple[str, ...] = ()
    name: str = ""
    batches: Callable[[int | None], Iterator[RawTable]] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path.name)

    def sample(self) -> pa.Table:
        """The first rows as text."""
        return self.careful(_SAMPLE_ROWS).table


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def open_sources(place: str | Path, corrections: Corrections, scratch: Path | None = None) -> list[Source]:
    """Looks at everything that lies in one place: one Source a table.

    Args:
        place: a file, or the URL of a PostgreSQL database.
        scratch: a folder for what has to be unpacked; the caller removes it when the sources are read.

    Raises:
        DataError: something there cannot be read, or is of a kind that holds no table.
    """
    scheme = _URL.match(place) if isinstance(place, str) else None
    if scheme and scheme[1].lower() in ("postgresql", "postgres"):
        from llmrec_core.data._databases import database_sources

        return database_sources(place, corrections)
    if scheme:
        raise DataError(f"addresses of kind {scheme[1][:20]!r} are not read.", fix="Give a file.")
    path = Path(place)
    head = _head(path)
    if head.startswith(b"SQLite format 3") or head[8:12] == b"DUCK":
        from llmrec_core.data._databases import database_sources

        return database_sources(path, corrections)
    if head.startswith(b"PAR1"):
        return [open_source(path, corrections)]
    if head.startswith(b"\xd0\xcf\x11\xe0") or (head.startswith(b"PK") and path.suffix.lower() in _WORKBOOKS):
        from llmrec_core.data._excel import excel_sources

        return excel_sources(path, corrections)
    return [open_source(path, corrections)]


_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods")


def _head(path: Path) -> bytes:
    """The first bytes of a file; b"" for a folder or what cannot be read (opening it says why)."""
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except OSError:
        return b""


def open_source(path: Path, corrections: Corrections) -> Source:
    """Looks at a file's first bytes and rows.

    Raises:
        DataError: it cannot be read, is empty, damaged, or of a kind that holds no table.
    """
    if path.is_dir():
        raise DataError("this is a folder.", where=str(path), fix="Choose files.")
    text_files.refuse_binary(path)
    with path.open("rb") as stream:
        head = stream.read(4096)
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if suffix in (".parquet", ".pq"):
        raise DataError("this is not a Parquet file.", where=path.name, fix="Export it again.")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix not in (".csv", ".tsv") and start in (b"{", b"[")):
        return _json(path, corrections, array=start == b"[")
    return _delimited(path, corrections)


def _delimited(path: Path, corrections: Corrections) -> Source:
    header = corrections.option("header", path.name)
    dialect = text_files.sniff(
        path,
        corrections.option("encoding", path.name),
        corrections.option("separator", path.name),
        None if header is None else header.lower() == "yes",
    )
    notes = dialect.notes
    merge: tuple[str, ...] = ()
    if not dialect.header_line:
        names = _known_layout(path, dialect)
        if names:
            notes = (*notes, f"no header: columns taken as {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
            dialect = text_files.with_columns(dialect, names)
            merge = _GENRES if len(names) == 24 else ()

    def finish(raw: RawTable | None) -> RawTable | None:
        return _merge_flags(raw, merge) if raw is not None and merge else raw

    def careful(max_rows: int | None) -> RawTable:
        raw = text_files.read_careful(path, dialect, max_rows)
        return _merge_flags(raw, merge) if merge else raw

    columns = tuple(c for c in dialect.columns if c not in merge) + (("genres",) if merge else ())
    return Source(
        path, "text", columns, lambda: finish(text_files.read_fast(path, dialect)), careful,
        dialect.encoding, dialect.separator, bool(dialect.header_line), notes,
    )  # fmt: skip


def _known_layout(path: Path, dialect: Dialect) -> tuple[str, ...] | None:
    """Column names of a file without a header, where name or content leave no doubt."""
    width = len(dialect.columns)
    for pattern, names in _LAYOUTS:
        if re.fullmatch(pattern, path.name, re.IGNORECASE) and len(names) == width:
            return names
    if width != 4:
        return None
    table = text_files.read_careful(path, dialect, _SAMPLE_ROWS).table
    cells = [table.column(i).to_pylist() for i in range(4)]
    try:
        ratings, times = ([float(c) for c in cells[i]] for i in (2, 3))
    except ValueError:
        return None
    if ratings and min(ratings) >= 0 and max(ratings) <= 10 and min(times) >= 1e8:
        return ("user_id", "item_id", "rating", "timestamp")
    return None


def _merge_flags(raw: RawTable, flags: Sequence[str]) -> RawTable:
    """0/1 columns, one a genre, become one column of text: "Action, Comedy"."""
    matrix = np.column_stack([np.asarray(raw.table.column(f).to_pylist(), object) == "1" for f in flags])
    names = np.asarray(flags, object)
    genres = pa.array([", ".join(names[row]) for row in matrix], pa.large_string())
    table = raw.table.select([c for c in raw.table.column_names if c not in flags]).append_column("genres", genres)
    return RawTable(table, raw.lines, raw.rejects)


# ------------------------------------------------------------------------------------------------ Parquet


def _parquet(path: Path) -> Source:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None
    check_headers([name.strip() for name in schema.names], path.name)

    def read(max_rows: int | None) -> RawTable:
        try:
            if max_rows is None:
                table = pq.read_table(path)
            else:
                batches = pq.ParquetFile(path).iter_batches(batch_size=max_rows)
                first = next(batches, None)
                table = pa.Table.from_batches([] if first is None else [first], schema)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from None
        columns = {name.strip(): _arrow_text(table.column(name), name, path) for name in schema.names}
        return RawTable(pa.table(columns), np.arange(1, len(table) + 1, dtype=np.int64), Rejects(path.name))

    return Source(path, "parquet", tuple(name.strip() for name in schema.names), lambda: read(None), read)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the Parquet file is damaged ({str(error).splitlines()[0][:160]}).", where=path.name, fix="Export it again."
    )


def _arrow_text(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    values = column.combine_chunks()
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    try:
        if pa.types.is_floating(kind):
            values = values.cast(pa.float64())
            large = pc.greater_equal(pc.abs(values), _EXACT)
            if name.strip().lower().endswith("id") and pc.any(large).as_py():
                raise DataError(
                    f"column {name!r} holds ids as floating point numbers that are too large to be exact.",
                    where=path.name,
                    fix="Store ids as text or whole numbers.",
                )
            whole = pc.and_(pc.equal(values, pc.floor(values)), pc.invert(large))
            whole_text = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.large_string())
            nan = pc.is_nan(values)
            text = pc.if_else(whole, whole_text, pc.if_else(nan, None, values.cast(pa.large_string())))
        elif pa.types.is_timestamp(kind):
            text = pc.strftime(pc.cast(values, pa.timestamp("us", kind.tz)), "%Y-%m-%dT%H:%M:%S")
            if kind.tz is not None:
                text = pc.strftime(pc.cast(values, pa.timestamp("us", "UTC")), "%Y-%m-%dT%H:%M:%S")
        elif pa.types.is_nested(kind):
            text = pa.array([_json_text(v) for v in values.to_pylist()], pa.large_string())
        else:
            text = values
        return pc.fill_null(text.cast(pa.large_string()), "")
    except pa.ArrowException as error:
        raise DataError(
            f"column {name!r} of type {kind} cannot be read as text ({str(error).splitlines()[0][:100]}).",
            where=path.name,
            fix="Store it as text or numbers.",
        ) from None


# ------------------------------------------------------------------------------------------------ JSON


def _json(path: Path, corrections: Corrections, *, array: bool) -> Source:
    codec, lenient, notes = text_files.detect_encoding(path, corrections.option("encoding", path.name))
    pairs = _array_elements if array else _object_lines

    def careful(max_rows: int | None, columns: Sequence[str] | None = None) -> RawTable:
        return _read_objects(pairs(path, codec, lenient), path, max_rows, columns)

    columns = careful(_SAMPLE_ROWS).table.column_names
    if not array and codec == "utf-8" and not lenient:
        columns = _all_keys(path) or careful(None).table.column_names
    elif array:
        columns = careful(None).table.column_names
    check_headers(columns, path.name)

    def fast() -> RawTable | None:
        return None if array or codec != "utf-8" or lenient else _read_json_fast(path, columns)

    return Source(
        path,
        "json" if array else "jsonl",
        tuple(columns),
        fast,
        lambda n: careful(n, columns),
        codec,
        notes=tuple(notes),
    )


def _duck(path: Path, query: str) -> Any:
    """Runs one query over a local file in a database of its own that may reach nothing else."""
    with duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": "2"}) as database:
        return database.sql(query, params={"path": str(path)}).to_arrow_table()


def _all_keys(path: Path) -> list[str]:
    """Keys of all objects in order of first appearance; [] where DuckDB will not take the file."""
    query = (
        "SELECT key, min(row) AS first FROM (SELECT row_number() OVER () AS row, unnest(json_keys(json)) AS key "
        "FROM read_ndjson_objects($path)) GROUP BY key ORDER BY first, key"
    )
    try:
        return [str(key) for key in _duck(path, query).column("key").to_pylist()]
    except duckdb.Error:
        return []


def _read_json_fast(path: Path, columns: Sequence[str]) -> RawTable | None:
    fields = ", ".join(f"{_quote(c)}: 'VARCHAR'" for c in columns)
    query = f"SELECT * FROM read_json($path, format='newline_delimited', columns={{{fields}}})"
    try:
        table = _duck(path, query)
    except duckdb.Error:
        return None
    if table.column_names != list(columns):
        return None
    texts = {}
    for name in columns:
        text = pc.fill_null(table.column(name).combine_chunks().cast(pa.large_string()), "")
        if pc.any(pc.match_substring_regex(text, r"^\s*[\[{]|^-?(NaN|Infinity)$")).as_py():
            # Lists, objects and numbers that JSON does not know: the careful reader takes each as what it is.
            return None
        texts[name] = text
    return RawTable(pa.table(texts), None, Rejects(path.name))


def _quote(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _object_lines(path: Path, codec: str, lenient: bool) -> Iterator[tuple[int, Any]]:
    decoder = _decoder()
    for number, line in enumerate(text_files.open_lines(path, codec, lenient), start=1):
        if line.strip():
            yield number, _decoded(decoder, line)


def _array_elements(path: Path, codec: str, lenient: bool) -> Iterator[tuple[int, Any]]:
    text = "\n".join(text_files.open_lines(path, codec, lenient))
    decoder, space = _decoder(), re.compile(r"[\s,]*")
    position = text.index("[") + 1
    line, counted = 1, 0
    while True:
        position = space.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        if position >= len(text):
            yield line, "the list is not closed"
            return
        if text[position] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, f"not valid JSON from here on ({_short(error)})"
            return
        yield line, value


def _decoder() -> json.JSONDecoder:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    # Numbers stay the text they are, so that ids keep every digit.
    return json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=refuse)


def _decoded(decoder: json.JSONDecoder, line: str) -> Any:
    try:
        return decoder.decode(line.strip())
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({_short(error)})"


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def _read_objects(
    pairs: Iterator[tuple[int, Any]], path: Path, max_rows: int | None, columns: Sequence[str] | None
) -> RawTable:
    rejects = Rejects(path.name)
    cells: dict[str, list[str]] = {name: [] for name in columns or ()}
    lines: list[int] = []
    for number, value in pairs:
        if not isinstance(value, dict):
            rejects.add(number, value if isinstance(value, str) else "not an object with fields")
            continue
        try:
            row = {key.strip(): _json_text(item) for key, item in value.items()}
            "".join(row.values()).encode("utf-8")
        except (RecursionError, UnicodeEncodeError):
            rejects.add(number, "nested too deeply, or not valid text")
            continue
        for key in row:
            if key not in cells:
                if len(cells) >= _MAX_COLUMNS:
                    raise DataError(f"more than {_MAX_COLUMNS} different fields.", where=f"{path.name}, line {number}")
                cells[key] = [""] * len(lines)
        for key, column in cells.items():
            column.append(row.get(key, ""))
        lines.append(number)
        if max_rows is not None and len(lines) >= max_rows:
            break
    if not cells:
        listed = "; ".join(f"line {line}: {reason}" for line, reason in rejects.listed[:3])
        raise DataError(f"no row could be read. {listed}".strip(), where=path.name, fix="Write one JSON object a line.")
    table = pa.table({name: pa.array(column, pa.large_string()) for name, column in cells.items()})
    return RawTable(table, np.array(lines, np.int64), rejects)


def _json_text(value: Any) -> str:
    """A cell as text: lists joined by commas, objects as JSON, null as ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
        return ", ".join(_json_text(v) for v in value if v is not None)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


__all__ = ["MAX_LISTED_REJECTS", "Source", "open_source"]
