"""SQLite, DuckDB and a running PostgreSQL: every table right, exact and in order; hostile databases refused by name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest
from postgres_server import PASSWORD, postgres, server_url

from llmrec_core.data import DatasetStore, import_files
from llmrec_core.data import _databases as databases
from llmrec_core.data._corrections import parse_mapping
from llmrec_core.data._databases import database_sources
from llmrec_core.data._postgres import shown_url
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

NONE = parse_mapping([])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def rows(source: Source) -> list[dict[str, str]]:
    return source.careful(None).table.to_pylist()


def read_all(path: Path) -> None:
    for source in database_sources(path, NONE):
        source.careful(5)


def by_name(sources: list[Source]) -> dict[str, Source]:
    return {source.name.rpartition("/")[2]: source for source in sources}


# ------------------------------------------------------------------------------------------------ SQLite


def sqlite_file(path: Path, script: str) -> Path:
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()
    return path


SHOP = """
CREATE TABLE orders(user_id INTEGER, item_id TEXT, rating REAL, at TEXT, photo BLOB);
INSERT INTO orders VALUES (9007199254740993, '007', 4.0, '2024-01-01', x'ffd8ff'),
  (7, 'NA', 3.5, '2024-01-02', x'ffd8ff'), (8, 'it''s "é"', 0.1, NULL, NULL);
CREATE TABLE films(item_id TEXT PRIMARY KEY, title TEXT);
INSERT INTO films VALUES ('007', 'Alien'), ('NA', 'Solaris');
CREATE TABLE settings(key TEXT, value TEXT); INSERT INTO settings VALUES ('a', 'b');
CREATE VIEW mirror AS SELECT user_id, item_id FROM orders;
"""


def test_sqlite_tables_are_sources_with_exact_cells(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "shop.sqlite", SHOP)
    sources = by_name(open_sources(path, NONE))
    assert sorted(sources) == ["films", "orders"]
    orders = sources["orders"]
    assert orders.name == "shop.sqlite/orders"
    assert rows(orders) == [
        {"user_id": "9007199254740993", "item_id": "007", "rating": "4", "at": "2024-01-01"},
        {"user_id": "7", "item_id": "NA", "rating": "3.5", "at": "2024-01-02"},
        {"user_id": "8", "item_id": 'it\'s "é"', "rating": "0.1", "at": ""},
    ]
    assert orders.careful(None).lines.tolist() == [1, 2, 3]  # type: ignore[union-attr]
    said = " ".join(note for source in sources.values() for note in source.notes)
    assert "column 'photo' holds bytes that are not text: it is left out" in said
    assert "settings" in said
    assert "mirror" in said, "a view over a table would count its rows twice"


@pytest.mark.parametrize("told", ["#settings", "table:shop.sqlite=settings"])
def test_a_table_that_is_named_is_taken_whatever_it_holds(tmp_path: Path, told: str) -> None:
    path = sqlite_file(tmp_path / "shop.sqlite", SHOP)
    place, said = (f"{path}{told}", NONE) if told.startswith("#") else (path, parse_mapping([told]))
    sources = open_sources(place, said)
    assert [source.name for source in sources] == ["shop.sqlite/settings"]
    assert rows(sources[0]) == [{"key": "a", "value": "b"}]
    with pytest.raises(DataError, match=r"no table 'nope'.*films, mirror, orders, settings"):
        database_sources(f"{path}#nope", NONE)


def test_blocks_are_bounded_and_give_the_rows_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sqlite_file(tmp_path / "big.sqlite", "CREATE TABLE plays(user_id, item_id)")
    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO plays VALUES (?, ?)", [(i, f"i{i % 7}") for i in range(1000)])
    connection.close()
    monkeypatch.setattr("llmrec_core.data._tables.BLOCK_ROWS", 64)
    (source,) = open_sources(path, NONE)
    assert source.batches is not None
    blocks = list(source.batches(None))
    assert [len(block.table) for block in blocks] == [64] * 15 + [40]
    lines = [line for block in blocks for line in block.lines.tolist()]  # type: ignore[union-attr]
    assert lines == list(range(1, 1001))
    assert sum(len(block.table) for block in source.batches(100)) == 100
    assert [row["user_id"] for row in rows(source)] == [str(i) for i in range(1000)]


def test_cells_that_are_no_text_or_no_exact_id_are_refused_by_row(tmp_path: Path) -> None:
    script = "CREATE TABLE plays(user_id, item_id, note);" + "".join(
        f"INSERT INTO plays VALUES ({user}, 'a', {note});"
        for user, note in [("1", "'x'"), ("1e17", "'x'"), ("2", "CAST(x'ff' AS TEXT)"), ("3", "'y'")]
    )
    path = sqlite_file(tmp_path / "odd.sqlite", script)
    (source,) = database_sources(path, NONE)
    # Among its first rows the column has bytes that are not text, so it is left out; the id is judged by row.
    assert source.columns == ("user_id", "item_id")
    raw = source.careful(None)
    assert [row["user_id"] for row in raw.table.to_pylist()] == ["1", "2", "3"]
    assert [line for line, _ in raw.rejects.listed] == [2]
    assert "too large to be exact" in raw.rejects.listed[0][1]


HOSTILE = {
    "forever": "CREATE VIEW forever AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
    "SELECT n AS user_id, n AS item_id FROM r WHERE n < 0",
    "wide": "CREATE VIEW wide AS SELECT hex(zeroblob(900000000)) AS user_id, 1 AS item_id",
    "loads": "CREATE VIEW loads AS SELECT load_extension('x') AS user_id, 1 AS item_id",
}


@pytest.mark.parametrize("view", sorted(HOSTILE))
def test_hostile_views_of_sqlite_end_as_errors_and_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    monkeypatch.setattr(databases, "_LOOK_S", 0.4)
    path = sqlite_file(tmp_path / "evil.sqlite", HOSTILE[view])
    with pytest.raises(DataError, match=f"evil.sqlite/{view}") as caught:
        read_all(path)
    assert caught.value.fix
    beside = sqlite_file(tmp_path / "beside.sqlite", HOSTILE[view] + "; CREATE TABLE p(user_id, item_id);"
                         "INSERT INTO p VALUES (1, 2);")  # fmt: skip
    (source,) = database_sources(beside, NONE)
    assert source.name == "beside.sqlite/p"
    assert f"cannot be read: {view}" in " ".join(source.notes)


def test_reading_leaves_a_database_as_it_was(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "shop.sqlite", SHOP)
    before = path.read_bytes()
    for source in database_sources(path, NONE):
        source.careful(None)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop.sqlite"]


def test_a_log_beside_the_database_is_told(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "live.sqlite", "CREATE TABLE p(user_id, item_id); INSERT INTO p VALUES (1, 2)")
    path.with_name("live.sqlite-wal").write_bytes(b"x")
    (source,) = database_sources(path, NONE)
    assert any("write-ahead log" in note for note in source.notes)


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + b"\xff" * 4000, b"\0" * 8 + b"DUCK" + b"\xff" * 5000])
def test_damaged_databases_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.db.*cannot read it"):
        open_sources(path, NONE)


def test_a_database_without_usable_tables_names_what_there_is(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "x.sqlite", "CREATE TABLE a(p, q); CREATE TABLE b(r, s); INSERT INTO a VALUES (1, 2)")
    with pytest.raises(DataError, match=r"no table holds.*a \(p, q\).*b \(r, s\).*table:x\.sqlite=NAME"):
        database_sources(path, NONE)
    empty = sqlite_file(tmp_path / "empty.sqlite", "CREATE TABLE a(p); DROP TABLE a")
    with pytest.raises(DataError, match="no table in it"):
        database_sources(empty, NONE)


def test_an_import_from_sqlite_is_a_dataset(workspace: Workspace, tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "shop.sqlite", SHOP)
    report = import_files(workspace, [path], "shop", ["missing_time=drop-all", "scale=0..5"])
    dataset = DatasetStore(workspace).load("shop")
    assert dataset.interactions["user_id"].tolist() == ["9007199254740993", "7", "8"]
    assert dataset.interactions["item_id"].tolist() == ["007", "NA", 'it\'s "é"']
    assert dataset.item_text(dataset.item_idx("007"), "title") == "Alien"
    assert report.rows_read == 3


# ------------------------------------------------------------------------------------------------ DuckDB


def duck_file(path: Path, *statements: str) -> Path:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


def test_duckdb_types_come_as_exact_text(tmp_path: Path) -> None:
    path = duck_file(
        tmp_path / "shop.duckdb",
        """CREATE TABLE orders AS SELECT 9007199254740993 + i AS user_id, {'id': printf('%03d', i), 'tags': ['a', 'b']}
        AS item, (i + 8)::DOUBLE / 2 AS rating, TIMESTAMPTZ '2024-01-01 08:00:00+08' AS timestamp,
        170141183460469231731687303715884105727::HUGEINT AS huge, 1.50::DECIMAL(10, 2) AS price,
        DATE '2024-02-29' AS day, UUID '00000000-0000-0000-0000-00000000000a' AS code, i = 0 AS first,
        MAP {'k': i} AS m, NULL AS nothing,
        'x'::ENUM('x', 'y') AS kind, '\\xFF'::BLOB AS photo FROM range(2) t(i)""",
    )
    (source,) = open_sources(path, parse_mapping(["item_id:shop.duckdb/orders=item.id"]))
    assert source.name == "shop.duckdb/orders"
    assert rows(source) == [
        {
            "user_id": str(9007199254740993 + i), "item.id": f"00{i}", "item.tags": '["a", "b"]', "rating": rating,
            "timestamp": "2024-01-01T00:00:00Z", "huge": str(2**127 - 1), "price": "1.5", "day": "2024-02-29",
            "code": "00000000-0000-0000-0000-00000000000a", "first": first, "m": f'{{"k": {i}}}', "nothing": "",
            "kind": "x",
        }
        for i, rating, first in [(0, "4", "true"), (1, "4.5", "false")]
    ]  # fmt: skip
    assert source.careful(None).lines.tolist() == [1, 2]  # type: ignore[union-attr]
    assert any("'photo' holds bytes" in note for note in source.notes)


def test_duckdb_reads_schemas_and_views_where_no_table_serves(tmp_path: Path) -> None:
    path = duck_file(
        tmp_path / "shop.duckdb",
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.events AS SELECT i % 3 AS user_id, i AS item_id FROM range(20000) t(i)",
        "CREATE VIEW films AS SELECT DISTINCT item_id, 'T' || item_id AS title FROM sales.events ORDER BY ALL",
        "CREATE TABLE odds AS SELECT 1 AS a, 2 AS b",
    )
    sources = by_name(open_sources(path, NONE))
    assert sorted(sources) == ["films", "sales.events"]
    assert source_lines(sources["sales.events"]) == list(range(1, 20001))
    assert [row["item_id"] for row in rows(sources["sales.events"])] == [str(i) for i in range(20000)]
    (told,) = open_sources(path, parse_mapping(["table:shop.duckdb=sales.*"]))
    assert told.name == "shop.duckdb/sales.events"


def source_lines(source: Source) -> list[int]:
    assert source.batches is not None
    return [line for block in source.batches(None) for line in block.lines.tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("SELECT content AS user_id, 1 AS item_id FROM read_text('{secret}')", "disabled by configuration"),
        ("SELECT column0 AS user_id, 1 AS item_id FROM read_csv('{secret}', header = false)", "disabled by config"),
        ("SELECT repeat('x', 2000000) AS user_id, 1 AS item_id", "is too long"),
        ("SELECT a.range AS user_id, b.range AS item_id FROM range(9999999999) a, range(9999999999) b "
         "WHERE a.range + b.range < 0", "no rows for|Out of Memory"),
    ],
)  # fmt: skip
def test_hostile_views_of_duckdb_reach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str, message: str
) -> None:
    monkeypatch.setattr(databases, "_LOOK_S", 0.5)
    secret = tmp_path / "secret.txt"
    secret.write_text("geheim")
    path = duck_file(tmp_path / "evil.duckdb", f"CREATE VIEW v AS {view.format(secret=secret)}")
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "geheim" not in str(caught.value)


def test_a_view_of_duckdb_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_RATIO_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(databases, "_MAX_RATIO", 1)
    path = duck_file(tmp_path / "evil.duckdb", "CREATE VIEW v AS SELECT range AS user_id, 1 AS item_id "
                     "FROM range(99999999999)")  # fmt: skip
    (source,) = database_sources(path, NONE)
    with pytest.raises(DataError, match="more than"):
        source.careful(None)


# ------------------------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with postgres() as port, psycopg.connect(server_url(port), autocommit=True) as connection:
        connection.execute(
            r"""
            CREATE TABLE orders(user_id bigint, item_id text, rating numeric(4, 2), at timestamptz, ok boolean,
              tags text[], extra jsonb, f double precision, photo bytea, buyer_id double precision);
            INSERT INTO orders VALUES
              (9007199254740993, E'a\tb\n"x"', 4.00, '2024-01-01 08:00+08', true, ARRAY['x', 'y'], '{"a": 1}', 0.1,
               '\xffd8', 12),
              (2, 'é', 3.50, NULL, NULL, NULL, NULL, 'NaN', 'abc', NULL),
              (3, '007', 10, '2024-01-01 00:00:00.25Z', false, '{}', '[]', 1e300, NULL, 1e20);
            CREATE SCHEMA films; CREATE TABLE films.titles(item_id text PRIMARY KEY, title text);
            INSERT INTO films.titles VALUES ('007', 'Alien'), ('é', 'Été');
            CREATE TABLE logs(x integer);
            CREATE VIEW mirror AS SELECT user_id, item_id FROM orders;
            CREATE TABLE many AS SELECT i AS user_id, i % 7 AS item_id FROM generate_series(1, 60000) i;
            CREATE FUNCTION spoil() RETURNS integer LANGUAGE plpgsql AS
              'BEGIN DELETE FROM logs; RETURN 1; END';
            CREATE VIEW spoiling AS SELECT spoil() AS user_id, 1 AS item_id;
            CREATE ROLE ben LOGIN PASSWORD 'other';
            """
        )
        yield port


def test_postgres_tables_are_sources_with_exact_cells(port: int) -> None:
    sources = by_name(open_sources(f"{server_url(port)}?table=public.orders", NONE))
    source = sources["public.orders"]
    assert source.name == f"postgresql://anna@127.0.0.1:{port}/postgres/public.orders"
    raw = source.careful(None)
    assert raw.table.to_pylist() == [
        {
            "user_id": "9007199254740993", "item_id": 'a\tb\n"x"', "rating": "4", "at": "2024-01-01T00:00:00.000000Z",
            "ok": "true", "tags": '["x", "y"]', "extra": '{"a": 1}', "f": "0.1", "buyer_id": "12",
        },
        {
            "user_id": "2", "item_id": "é", "rating": "3.5", "at": "", "ok": "", "tags": "", "extra": "", "f": "",
            "buyer_id": "",
        },
    ]  # fmt: skip
    assert raw.lines is not None
    assert raw.lines.tolist() == [1, 2]
    assert [line for line, _ in raw.rejects.listed] == [3]
    assert "buyer_id" in raw.rejects.listed[0][1]
    assert any("'photo' holds bytes" in note for note in source.notes)


def test_postgres_offers_what_can_be_used_and_says_what_not(port: int) -> None:
    sources = by_name(open_sources(server_url(port), NONE))
    assert sorted(sources) == ["films.titles", "public.many", "public.orders"]
    said = " ".join(note for source in sources.values() for note in source.notes)
    assert "public.logs" in said
    assert "public.mirror" in said
    assert source_lines(sources["public.many"]) == list(range(1, 60001))
    assert [row["user_id"] for row in rows(sources["public.many"])][:3] == ["1", "2", "3"]
    assert [s.name[-12:] for s in open_sources(f"{server_url(port)}#films.titles", NONE)] == ["films.titles"]


def test_postgres_lets_nothing_be_written(port: int) -> None:
    with pytest.raises(DataError, match=r"read-only transaction"):
        database_sources(f"{server_url(port)}?table=spoiling", NONE)[0].careful(None)


def test_an_import_from_postgres_keeps_the_password_nowhere(
    workspace: Workspace, port: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server_url(port)
    said: list[str] = []
    place, mapping = f"{url}?table=public.orders", ["missing_time=drop-all", "scale=0..10"]
    report = import_files(workspace, [place], "shop", mapping, progress=said.append)
    dataset = DatasetStore(workspace).load("shop")
    assert dataset.interactions["user_id"].tolist() == ["2"], "a tab is no part of an id"
    assert dataset.meta.sources[0].name == f"postgresql://anna@127.0.0.1:{port}/postgres/public.orders"
    assert report.rows_rejected == 2
    kept = [path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()]
    output = capsys.readouterr()
    told = [str(report), str(report.as_json()), caplog.text, *said, output.out, output.err]
    for secret in (PASSWORD, url.partition("anna:")[2].partition("@")[0]):
        assert not any(secret.encode() in content for content in kept)
        assert not any(secret in text for text in told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("anna:", "bob:"), "authentication failed"),
        (("anna:", "anna:wrong"), "authentication failed"),
        (("/postgres", "/nowhere"), "does not exist"),
        (("/postgres", "/postgres?table=nope"), "no table 'nope'"),
        (("/postgres", "/postgres?options=-cwork_mem=1GB"), "'options' is not taken"),
        (("/postgres", "/postgres?passfile=/etc/passwd"), "'passfile' is not taken"),
        (("/postgres", "/postgres?%zz"), "cannot be read"),
        (("127.0.0.1:", "127.0.0.1:x"), "cannot be read"),
    ],
)
def test_errors_of_postgres_say_what_is_wrong_without_the_password(
    port: int, change: tuple[str, str], message: str
) -> None:
    url = server_url(port).replace(*change)
    with pytest.raises(DataError, match=message) as caught:
        database_sources(url, NONE)
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert "geheim" not in shown
    assert caught.value.fix


def test_a_url_is_shown_without_its_password() -> None:
    assert shown_url("postgresql://u:s@h:5433/db?sslmode=require&table=x") == "postgresql://u@h:5433/db"
    assert shown_url("postgres://u@h/db#t") == "postgresql://u@h/db"
    assert shown_url("postgresql:///db?host=/var/run/pg") == "postgresql:///db"
    for bad in ("postgresql://u:geheim@h:port/db", "postgresql://u:ge%zzheim@h/db"):
        with pytest.raises(DataError) as caught:
            shown_url(bad)
        assert "heim" not in str(caught.value)


def test_a_place_given_twice_is_refused_without_its_password(workspace: Workspace) -> None:
    url = "postgresql://u:geheim@127.0.0.1:1/db"
    with pytest.raises(DataError, match=r"postgresql://u@127\.0\.0\.1:1/db: a file was given twice") as caught:
        import_files(workspace, [url, url], "shop")
    assert "geheim" not in str(caught.value)
