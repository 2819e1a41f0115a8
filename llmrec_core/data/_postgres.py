"""PostgreSQL by URL -> one Source a table, in a read-only transaction, block by block through COPY.

The password of a URL is used to connect and appears nowhere else: not in names, notes, reports or errors.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from llmrec_core.data._arrow_text import looks_like_id
from llmrec_core.data._parquet import joined
from llmrec_core.data._roles import Corrections, check_headers
from llmrec_core.data._sources import Source
from llmrec_core.data._tables import binary_columns, choose, offered, row_blocks
from llmrec_core.data._text_files import RawTable
from llmrec_core.errors import DataError

_MAX_TABLES = 1000
_PROBE_ROWS = 1000
_LOOK_MS, _CONNECT_S = 20_000, 10
#: What a URL may say beside where and who. Others name files, programs or server options.
_PARAMETERS = frozenset(("table", "sslmode", "connect_timeout", "host", "port", "application_name"))
_READ_ONLY = (
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "SET default_transaction_read_only = on",
    "SET TimeZone = 'UTC'",
    "SET DateStyle = 'ISO, YMD'",
    "SET IntervalStyle = 'iso_8601'",
    "SET extra_float_digits = 1",
    "SET bytea_output = 'hex'",
    # A table that nobody changed is read in the same order every time.
    "SET synchronize_seqscans = off",
    "SET max_parallel_workers_per_gather = 0",
)


@dataclass(frozen=True)
class _Place:
    """``shown``: the URL without the password, for people. ``conninfo`` is kept out of every ``repr``."""

    shown: str
    table: str | None
    conninfo: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def clean(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def shown_url(url: str) -> str:
    """``postgresql://user@host:port/database``: what may be printed and kept.

    Raises:
        DataError: the URL cannot be read (nothing of it is repeated) or asks for what is not allowed.
    """
    return _place(url).shown


def postgres_sources(url: str, corrections: Corrections) -> list[Source]:
    """One Source for each table, view or foreign table that can be interactions, items or users.

    Args:
        url: ``postgresql://user:password@host:port/database``, with ``?table=schema.table`` or ``#schema.table`` for
            one table. ``table:`` and other options name the URL as it is shown, or the database.

    Raises:
        DataError: no connection, no right to read, no table of that name, or none that could be used.
    """
    place = _place(url)
    told = place.table or corrections.option("table", place.shown)
    with _connected(place, _LOOK_MS) as connection:
        rows = connection.execute(
            "SELECT n.nspname, c.relname, c.relkind IN ('v', 'm') FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') AND NOT c.relispartition "
            "AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)' "
            "AND pg_catalog.has_table_privilege(c.oid, 'SELECT') "
            "AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') ORDER BY 1, 2 LIMIT %s",
            (_MAX_TABLES + 1,),
        ).fetchall()
    if len(rows) > _MAX_TABLES and told is None:
        raise DataError(f"more than {_MAX_TABLES:,} tables.", where=place.shown, fix="Add ?table=schema.table.")
    tables = {f"{schema}.{table}": (schema, table) for schema, table, _ in rows}
    views = {f"{schema}.{table}" for schema, table, is_view in rows if is_view}
    chosen = choose(list(tables), told, place.shown, "table")
    looks = {name: partial(_source, place, name, *tables[name]) for name in chosen}
    return offered(looks, told is not None, corrections, place.shown, "table", views)


def _place(url: str) -> _Place:
    bad = DataError(
        "this URL of a PostgreSQL database cannot be read.",
        fix="Write postgresql://user:password@host:5432/database, with odd characters as %40 and the like.",
    )
    url, _, fragment = url.strip().partition("#")
    base, _, query = url.partition("?")
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        parts = urllib.parse.urlsplit(base)
        # Not into the message: where the URL is malformed the password can stand anywhere in it.
        unknown = [key for key, _ in pairs if key not in _PARAMETERS and re.fullmatch(r"[a-z_]{1,40}", key)]
        if len(unknown) + sum(key in _PARAMETERS for key, _ in pairs) != len(pairs):
            raise bad
        if unknown:
            raise DataError(f"the URL parameter {unknown[0]!r} is not taken.", fix=f"Use {sorted(_PARAMETERS)}.")
        told = [value for key, value in pairs if key == "table"]
        rest = urllib.parse.urlencode([pair for pair in pairs if pair[0] != "table"])
        conninfo = conninfo_to_dict(f"{base}?{rest}" if rest else base)
        port = parts.port
    except (ValueError, psycopg.Error):
        raise bad from None
    database = str(conninfo.get("dbname") or conninfo.get("user") or "")
    host = str(conninfo.get("host") or parts.hostname or "localhost")
    host = "" if host.startswith("/") else f"[{host}]" if ":" in host else host
    user = f"{conninfo['user']}@" if conninfo.get("user") else ""
    shown = f"postgresql://{user}{host}{f':{port}' if port else ''}/{database}"
    password = str(conninfo.get("password") or "")
    secrets = {password, parts.password or "", urllib.parse.quote(password, safe="")} - {""}
    return _Place(
        shown,
        (told[-1] if told else None) or urllib.parse.unquote(fragment) or None,
        make_conninfo("", **{"connect_timeout": _CONNECT_S, "application_name": "llmrec", **conninfo}),
        tuple(sorted(secrets, key=len, reverse=True)),
    )


@contextmanager
def _connected(place: _Place, timeout_ms: int) -> Iterator[psycopg.Connection]:
    """A connection that can only read, and gives up a statement after ``timeout_ms`` (0: never)."""
    try:
        with psycopg.connect(place.conninfo, autocommit=True) as connection:
            for statement in (*_READ_ONLY, f"SET statement_timeout = {timeout_ms:d}"):
                connection.execute(sql.SQL(statement))
            connection.autocommit = False
            connection.read_only = True
            yield connection
            connection.rollback()
    except psycopg.Error as error:
        reason = place.clean(" ".join(str(error).split()))[:300] or type(error).__name__
        raise DataError(
            f"PostgreSQL refused ({reason}).", where=place.shown, fix="Check the URL, the password and the rights."
        ) from None


def _source(place: _Place, shown_table: str, schema: str, table: str) -> Source:
    name = f"{place.shown}/{shown_table}"
    with _connected(place, _LOOK_MS) as connection:
        described = connection.execute(
            "SELECT a.attname, t.typname, t.typcategory FROM pg_catalog.pg_attribute a "
            "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE n.nspname = %s AND c.relname = %s "
            "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            (schema, table),
        ).fetchall()
        if not described:
            raise DataError("the table has no columns.", where=name)
        probe = sql.SQL("SELECT {} FROM {} LIMIT {}").format(
            sql.SQL(", ").join(
                sql.Identifier(column) if kind == "bytea" else sql.SQL("NULL") for column, kind, _ in described
            ),
            sql.Identifier(schema, table),
            sql.Literal(_PROBE_ROWS),
        )
        found = connection.execute(probe).fetchall() if any(kind == "bytea" for _, kind, _ in described) else []
    kept, notes = binary_columns(found, [str(column) for column, _, _ in described])
    columns = [str(described[i][0]).strip() for i in kept]
    check_headers(columns, name)
    selected = sql.SQL(", ").join(_cell(*described[i]) for i in kept)

    # Ids that the server keeps as floating point numbers are judged as such, cell by cell.
    rounded = {
        at for at, i in enumerate(kept) if described[i][1] in ("float4", "float8") and looks_like_id(columns[at])
    }

    def rows(max_rows: int | None) -> Iterator[Sequence[object]]:
        limit = sql.SQL("") if max_rows is None else sql.SQL(" LIMIT {}").format(sql.Literal(max_rows))
        query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(selected, sql.Identifier(schema, table), limit)
        limit_ms = 0 if max_rows is None else _LOOK_MS
        with _connected(place, limit_ms) as connection, connection.cursor() as cursor, cursor.copy(query) as copy:
            for row in copy.rows():
                if rounded:
                    row = tuple(float(c) if i in rounded and c is not None else c for i, c in enumerate(row))
                yield row

    def batches(max_rows: int | None) -> Iterator[RawTable]:
        return row_blocks(rows(max_rows), columns, name)

    def careful(max_rows: int | None) -> RawTable:
        return joined(list(batches(max_rows)), columns, name)

    return Source(
        Path(name), "postgresql", tuple(columns), partial(careful, None), careful,
        notes=tuple(notes), name=name, batches=batches,
    )  # fmt: skip


def _cell(column: str, kind: str, category: str) -> sql.Composable:
    """How one column is asked for: always as text that the importer reads in one way."""
    at = sql.Identifier(column)
    if kind == "bool":
        return sql.SQL("CASE WHEN {0} THEN 'true' WHEN NOT {0} THEN 'false' END").format(at)
    if kind == "bytea":
        return sql.SQL("pg_catalog.convert_from({}, 'UTF8')").format(at)
    if kind == "timestamptz":
        return sql.SQL('pg_catalog.to_char({}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')').format(at)
    if kind in ("float4", "float8"):
        return sql.SQL("CASE WHEN {0}::text <> 'NaN' THEN {0}::text END").format(at)
    if kind == "numeric":
        # 5.00 and 5 are one id; a number without a point keeps its zeros.
        return sql.SQL(
            "CASE WHEN {0}::text = 'NaN' THEN NULL WHEN {0}::text LIKE '%.%' "
            "THEN rtrim(rtrim({0}::text, '0'), '.') ELSE {0}::text END"
        ).format(at)
    if category in ("A", "C") or kind in ("json", "jsonb", "hstore"):
        return sql.SQL("CASE WHEN {0} IS NOT NULL THEN pg_catalog.to_jsonb({0})::text END").format(at)
    return sql.SQL("{}::text").format(at)
