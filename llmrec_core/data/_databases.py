"""SQLite and DuckDB files -> one Source a table, opened so that a hostile file can neither write, reach out nor run on.

Of a database file nothing but SELECT is asked. Views may hold any query that somebody wrote, so each has a limit in
time and size. PostgreSQL lives in ``_postgres.py``.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from llmrec_core.data._arrow_text import flat_columns, flat_names, text_block
from llmrec_core.data._parquet import joined
from llmrec_core.data._roles import Corrections, check_headers
from llmrec_core.data._sources import Source
from llmrec_core.data._tables import binary_columns, choose, offered, row_blocks
from llmrec_core.data._text_files import RawTable
from llmrec_core.errors import DataError

_MAX_TABLES = 1000
_PROBE_ROWS = 1000
#: Without a block of rows for so long, a query is given up: while looking, and while reading.
_LOOK_S, _BLOCK_S = 20.0, 300.0
_MAX_CELL_BYTES, _MAX_VIEW_CELL_BYTES = 16_000_000, 1_000_000
#: A query over a small file that gives more than both is no table that anybody kept.
_MAX_RATIO, _RATIO_FREE_BYTES = 1000, 1 << 30

Reader = Callable[[int | None], Iterator[RawTable]]


def database_sources(place: str | Path, corrections: Corrections, name: str = "") -> list[Source]:
    """One Source for each table or view that can be interactions, items or users.

    Args:
        place: an SQLite or DuckDB file, or a ``postgresql://`` URL. A table is chosen with ``place#table``, the
            option ``table:FILE=orders``, or ``?table=schema.orders`` in a URL.
        name: what a person reads as the place; the file name unless told.

    Raises:
        DataError: no database, damaged, encrypted, no table of that name, or none that could be used.
    """
    text = str(place)
    if url := re.match(r"(?i)(postgres(?:ql)?):/+(.*)", text, re.DOTALL):
        from llmrec_core.data._postgres import postgres_sources

        return postgres_sources(f"{url[1].lower()}://{url[2]}", corrections)
    path, told = split_table(Path(place))
    name = name or path.name
    told = told or corrections.option("table", name)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise DataError(f"the file cannot be read ({error.strerror}).", where=name, fix="Check the path.") from None
    looks: dict[str, Callable[[], Source]]
    if head.startswith(b"SQLite format 3\0"):
        kinds = _sqlite_tables(path, name)
        views = {table for table, kind in kinds.items() if kind == "view"}
        looks = {table: partial(_sqlite_source, path, name, table, kind) for table, kind in kinds.items()}
    elif head[8:12] == b"DUCK":
        places, views = _duck_tables(path, name)
        looks = {table: partial(_duck_source, path, name, table, where) for table, where in places.items()}
    else:
        raise DataError("this is neither an SQLite nor a DuckDB database.", where=name, fix="Export the table as CSV.")
    if len(looks) > _MAX_TABLES:
        raise DataError(f"more than {_MAX_TABLES:,} tables.", where=name, fix="Export those that matter as CSV.")
    chosen = {table: looks[table] for table in choose(list(looks), told, name, "table")}
    return offered(chosen, told is not None, corrections, name, "table", views)


def shown_place(place: str | Path) -> str:
    """A place as it may be printed: a URL without its password."""
    return re.sub(r"(://[^/@:\s]*):.*@", r"\1@", str(place))


def split_table(path: Path) -> tuple[Path, str | None]:
    """``shop.sqlite#orders`` -> (shop.sqlite, "orders"); a file whose name has a # is itself."""
    left, mark, table = path.name.rpartition("#")
    if not mark or not left or not table or path.exists():
        return path, None
    return path.with_name(left), table


def _source(
    path: Path, kind: str, name: str, columns: Sequence[str], read: Reader, notes: Sequence[str], size: int
) -> Source:
    check_headers(columns, name)

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        unfolded = 0
        for block in read(max_rows):
            unfolded += block.table.nbytes
            if unfolded > _RATIO_FREE_BYTES and unfolded > _MAX_RATIO * size:
                raise DataError(
                    f"it gives more than {unfolded:,} bytes out of a file of {size:,}: this is refused.",
                    where=name,
                    fix="Export the rows that matter.",
                )
            yield block

    def careful(max_rows: int | None) -> RawTable:
        return joined(list(batches(max_rows)), columns, name)

    return Source(
        path, kind, tuple(columns), lambda: careful(None), careful, notes=tuple(notes), name=name, batches=batches
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unreadable(name: str, error: Exception, kind: str) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return DataError(f"{kind} cannot read it ({reason}).", where=name, fix="Export the table as CSV or Parquet.")


# ------------------------------------------------------------------------------------------------ SQLite

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class _Clock:
    """Ends a query of SQLite that gives no row for too long."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        self._until = time.monotonic() + self._limit_s

    def __call__(self) -> bool:
        return time.monotonic() > self._until


@contextmanager
def _sqlite(path: Path, name: str, limit_s: float, cell_bytes: int) -> Iterator[tuple[sqlite3.Connection, _Clock]]:
    """A connection that reads this one file as it lies there and does nothing else."""
    clock = _Clock(limit_s)
    try:
        # immutable: neither locks nor a journal are touched beside a file that is not ours.
        uri = f"file:{urllib.parse.quote(str(path.resolve()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)) as connection:
            connection.text_factory = bytes
            for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}")
            for limit, value in (
                (sqlite3.SQLITE_LIMIT_LENGTH, cell_bytes),
                (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
                (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
                (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
            ):
                connection.setlimit(limit, value)
            connection.set_progress_handler(clock, 10_000)
            yield connection, clock
    except sqlite3.Error as error:
        if "interrupted" in str(error):
            raise DataError(
                f"the query gave no rows for {limit_s:.0f} seconds.", where=name, fix="Export its rows as CSV."
            ) from None
        raise _unreadable(name, error, "SQLite") from None


def _only_select(action: int, first: str | None, second: str | None, *rest: object) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in ("load_extension", "fts3_tokenizer"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _sqlite_tables(path: Path, name: str) -> dict[str, str]:
    """name -> "table" or "view"; neither SQLite's own tables nor the inside of search indexes."""
    with _sqlite(path, name, _LOOK_S, _MAX_CELL_BYTES) as (connection, _):
        rows = connection.execute("SELECT name, type, rootpage FROM sqlite_master").fetchall()
    found = {}
    for raw, kind, root in rows:
        try:
            table = bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            continue
        if kind == b"view" or (kind == b"table" and root and not table.lower().startswith("sqlite_")):
            found[table] = bytes(kind).decode()
    return dict(sorted(found.items()))


def _sqlite_source(path: Path, place: str, table: str, kind: str) -> Source:
    name = f"{place}/{table}"
    cell_bytes = _MAX_VIEW_CELL_BYTES if kind == "view" else _MAX_CELL_BYTES
    with _sqlite(path, name, _LOOK_S, cell_bytes) as (connection, _):
        connection.set_authorizer(_only_select)
        cursor = connection.execute(f"SELECT * FROM {_quoted(table)} LIMIT {_PROBE_ROWS}")
        columns = [str(entry[0]) for entry in cursor.description]
        kept, notes = binary_columns(cursor.fetchall() if kind == "table" else cursor.fetchmany(50), columns)
    if path.with_name(f"{path.name}-wal").exists():
        notes.append("a write-ahead log lies beside the database: what is only there is not read")
    names = [columns[i].strip() for i in kept]
    # A view may make long cells out of nothing, so few of its rows are held at once.
    chunk_rows = 16 if kind == "view" else 2048
    selected = ", ".join(_quoted(columns[i]) for i in kept)

    def rows(max_rows: int | None) -> Iterator[tuple[object, ...]]:
        with _sqlite(path, name, _BLOCK_S if max_rows is None else _LOOK_S, cell_bytes) as (connection, clock):
            connection.set_authorizer(_only_select)
            cursor = connection.execute(f"SELECT {selected} FROM {_quoted(table)} LIMIT ?", (_limit(max_rows),))
            while fetched := cursor.fetchmany(chunk_rows):
                clock.restart()
                yield from fetched

    return _source(
        path, "sqlite", name, names, lambda n: row_blocks(rows(n), names, name, chunk_rows), notes, path.stat().st_size
    )  # fmt: skip


def _limit(max_rows: int | None) -> int:
    return -1 if max_rows is None else max_rows


# ------------------------------------------------------------------------------------------------ DuckDB

_ARROW_ROWS = 16_384
#: Types that Arrow has no exact form for: DuckDB itself writes them as text.
_AS_TEXT = ("HUGEINT", "BIGNUM", "VARINT", "BIT", "INTERVAL", "UUID", "TIME", "UNION", "GEOMETRY", "VARIANT")


@contextmanager
def _duck(path: Path, name: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to one file, read-only, that can reach no other file, no network and no extension."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "memory_limit": "1GB",
        "temp_directory": "",
        "threads": "2",
    }
    try:
        with duckdb.connect(config=config) as connection:
            quoted = str(path.resolve()).replace("'", "''")
            connection.execute(f"ATTACH '{quoted}' AS source (READ_ONLY)")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET lock_configuration = true")
            yield connection
    except duckdb.Error as error:
        raise _unreadable(name, error, "DuckDB") from None


@contextmanager
def _within(connection: duckdb.DuckDBPyConnection, limit_s: float, name: str) -> Iterator[None]:
    """Interrupts the query when it takes too long."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        connection.interrupt()

    timer = threading.Timer(limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.Error:
        if late.is_set():
            raise DataError(
                f"the query gave no rows for {limit_s:.0f} seconds.", where=name, fix="Export its rows as Parquet."
            ) from None
        raise
    finally:
        timer.cancel()


def _duck_tables(path: Path, name: str) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """(shown name -> (schema, table), shown names of views); the main schema goes without saying."""
    with _duck(path, name) as connection, _within(connection, _LOOK_S, name):
        rows = connection.execute(
            "SELECT schema_name, table_name, false FROM duckdb_tables() "
            "WHERE database_name = 'source' AND NOT internal "
            "UNION ALL SELECT schema_name, view_name, true FROM duckdb_views() "
            "WHERE database_name = 'source' AND NOT internal ORDER BY ALL"
        ).fetchall()
    shown = [table if schema == "main" else f"{schema}.{table}" for schema, table, _ in rows]
    places = {name: (schema, table) for name, (schema, table, _) in zip(shown, rows, strict=True)}
    return places, {name for name, (_, _, is_view) in zip(shown, rows, strict=True) if is_view}


def _duck_source(path: Path, place: str, shown: str, where: tuple[str, str]) -> Source:
    name = f"{place}/{shown}"
    table = f"source.{_quoted(where[0])}.{_quoted(where[1])}"
    with _duck(path, name) as connection, _within(connection, _LOOK_S, name):
        described = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        types = [(str(row[0]), str(row[1]).upper()) for row in described]
        kept = [(column, kind) for column, kind in types if not kind.startswith("BLOB")]
        schema = connection.sql(f"SELECT {_selected(kept)} FROM {table} LIMIT 0").to_arrow_table().schema
    notes = [f"column {column[:60]!r} holds bytes: it is left out" for column, kind in types if kind.startswith("BLOB")]
    columns = flat_names(schema)

    def read(max_rows: int | None) -> Iterator[RawTable]:
        limit_s = _BLOCK_S if max_rows is None else _LOOK_S
        before = 0
        with _duck(path, name) as connection:
            with _within(connection, limit_s, name):
                limit = "" if max_rows is None else f" LIMIT {max_rows}"
                query = f"SELECT {_selected(kept)} FROM {table}{limit}"
                reader: pa.RecordBatchReader | None = connection.sql(query).to_arrow_reader(_ARROW_ROWS)
            while reader is not None:
                with _within(connection, limit_s, name):
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                    except pa.ArrowException as error:
                        raise duckdb.Error(str(error)) from None
                yield text_block(flat_columns(batch), columns, name, before)
                before += len(batch)

    return _source(path, "duckdb", name, columns, read, notes, path.stat().st_size)


def _selected(types: Sequence[tuple[str, str]]) -> str:
    parts = []
    for column, kind in types:
        quoted = _quoted(column)
        if (kind.startswith(_AS_TEXT) and not kind.startswith("TIMESTAMP")) or "HUGEINT" in kind or "BIGNUM" in kind:
            parts.append(f"CAST({quoted} AS VARCHAR) AS {quoted}")
        elif kind == "VARCHAR":
            # Repeated long texts are stored once; here they would unfold.
            message = f"a cell of column {column[:60]} is too long".replace("'", "''")
            long = f"strlen({quoted}) > {_MAX_VIEW_CELL_BYTES}"
            parts.append(f"CASE WHEN {long} THEN error('{message}') ELSE {quoted} END AS {quoted}")
        else:
            parts.append(quoted)
    return ", ".join(parts)
