"""Parquet of every type and nesting as exact text, in blocks; damaged, encrypted and bomb-like files refused."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, import_files
from llmrec_core.data import _parquet as parquet
from llmrec_core.data._arrow_text import arrow_text, nested_text
from llmrec_core.data._corrections import parse_mapping
from llmrec_core.data._parquet import parquet_source
from llmrec_core.data._sources import open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

NONE = parse_mapping([])


def put(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def cells(path: Path, column: str) -> list[str]:
    return parquet_source(path, NONE).careful(None).table.column(column).to_pylist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**53 + 1, None, -7], pa.int64()), ["9007199254740993", "", "-7"]),
        (pa.array([2**64 - 1, 0, 1], pa.uint64()), ["18446744073709551615", "0", "1"]),
        (pa.array([0.1, 5.0, float("nan")], pa.float32()), ["0.1", "5", ""]),
        (pa.array([0.1, -3.0, None]), ["0.1", "-3", ""]),
        (pa.array([decimal.Decimal("5.00"), decimal.Decimal("1.50"), None], pa.decimal128(20, 2)), ["5", "1.5", ""]),
        (pa.array([decimal.Decimal(10**30), decimal.Decimal(100), None], pa.decimal128(38, 0)),
         ["1" + "0" * 30, "100", ""]),
        (pa.array([True, None, False]), ["true", "", "false"]),
        (pa.array(["007", "NA", ""]), ["007", "NA", ""]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", "", "x"]),
        (pa.array([b"abc", "中".encode(), None]), ["abc", "中", ""]),
        (pa.array([dt.date(2024, 2, 29), None, dt.date(1969, 12, 31)]), ["2024-02-29", "", "1969-12-31"]),
        (pa.array([dt.datetime(2024, 1, 2, 3, 4, 5)] * 3, pa.timestamp("s")), ["2024-01-02T03:04:05"] * 3),
        (pa.array([1704067200 * 10**6, None, None], pa.timestamp("us", "Asia/Shanghai")),
         ["2024-01-01T00:00:00Z", "", ""]),
        (pa.array([0, 1_500_000_001, None], pa.timestamp("ns")),
         ["1970-01-01T00:00:00.000000", "1970-01-01T00:00:01.500000", ""]),
        (pa.array([["a", 'b"c'], None, []]), ['["a", "b\\"c"]', "", "[]"]),
        (pa.array([["a", "b"], None, []]), ['["a", "b"]', "", "[]"]),
        (pa.array([[1, 2], [None], None], pa.list_(pa.int64())), ["[1, 2]", "[null]", ""]),
        (pa.array([[0.5, 2.0], [float("nan")], None], pa.list_(pa.float32())), ["[0.5, 2.0]", "[null]", ""]),
        (pa.array([[1.5, 2.5], [3.0, 0.1], None], pa.list_(pa.float64(), 2)), ["[1.5, 2.5]", "[3, 0.1]", ""]),
        (pa.array([[{"a": 1, "b": "x"}], [], None]), ['[{"a": 1, "b": "x"}]', "[]", ""]),
        (pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())), ['{"k": 1}', "{}", ""]),
        (pa.nulls(3), ["", "", ""]),
    ],
)  # fmt: skip
def test_values_of_every_type_are_exact_text(tmp_path: Path, values: pa.Array, expected: list[str]) -> None:
    path = put(tmp_path / "t.parquet", {"column": values, "user_id": ["a", "b", "c"]})
    assert cells(path, "column") == expected


def test_fields_of_structs_are_columns(tmp_path: Path) -> None:
    value = [{"id": "007", "in": {"t": 1.5, "l": [1, 2]}}, None, {"id": "8", "in": None}]
    path = put(tmp_path / "t.parquet", {"item": pa.array(value), "user_id": ["a", "b", "c"]})
    source = parquet_source(path, NONE)
    assert source.columns == ("item.id", "item.in.t", "item.in.l", "user_id")
    assert source.careful(None).table.to_pylist()[0] == {
        "item.id": "007", "item.in.t": "1.5", "item.in.l": "[1, 2]", "user_id": "a",
    }  # fmt: skip
    assert source.careful(None).table.to_pylist()[1] == {
        "item.id": "", "item.in.t": "", "item.in.l": "", "user_id": "b",
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.lists(st.text(max_size=4), max_size=3), min_size=1, max_size=8))
def test_lists_of_text_are_the_json_of_the_list(values: list[list[str] | None]) -> None:
    text = nested_text(pa.array(values, pa.list_(pa.string())))
    assert [None if t is None else json.loads(t) for t in text.to_pylist()] == values


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(0), min_size=1, max_size=8))
def test_whole_numbers_keep_every_digit(values: list[int | None]) -> None:
    text = arrow_text(pa.array(values, pa.int64()), "user_id", "t", lambda rows, reason: None)
    assert text.to_pylist() == ["" if v is None else str(v) for v in values]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(allow_infinity=False), min_size=1, max_size=8))
def test_numbers_come_back_as_they_were(values: list[float | None]) -> None:
    text = arrow_text(pa.array(values, pa.float64()), "price", "t", lambda rows, reason: None).to_pylist()
    for value, cell in zip(values, text, strict=True):
        assert cell == "" if value is None or value != value else float(cell) == value


@pytest.mark.parametrize(("kind", "limit"), [(pa.float64(), 2.0**53), (pa.float32(), 2.0**24)])
def test_ids_that_are_no_longer_exact_are_refused_by_row(tmp_path: Path, kind: pa.DataType, limit: float) -> None:
    path = put(tmp_path / "t.parquet", {"user_id": pa.array([1.0, limit, 7.0], kind), "n": pa.array([limit] * 3)})
    raw = parquet_source(path, NONE).careful(None)
    assert raw.table.column("user_id").to_pylist() == ["1", "7"]
    assert raw.lines is not None
    assert raw.lines.tolist() == [1, 3]
    assert raw.rejects.listed[0][0] == 2
    assert "too large to be exact" in raw.rejects.listed[0][1]


def test_bytes_that_are_no_text_are_left_out_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = [b"\xff\xd8", b"a", b"b"]
    path = put(tmp_path / "t.parquet", {"user_id": ["a", "b", "c"], "photo": picture, "name": [b"x", b"y", b"\xff"]})
    monkeypatch.setattr(parquet, "_PROBE_ROWS", 2)
    source = parquet_source(path, NONE)
    assert source.columns == ("user_id", "name")
    assert source.notes == ("column 'photo' holds bytes that are not text: it is left out",)
    raw = source.careful(None)
    assert raw.table.column("name").to_pylist() == ["x", "y"]
    assert raw.rejects.listed == [(3, "column 'name' holds bytes that are not text")]


def test_blocks_give_the_rows_of_the_whole_with_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 64)
    path = put(tmp_path / "t.parquet", {"user_id": np.arange(1000), "x": ["y"] * 1000}, row_group_size=150)
    source = parquet_source(path, NONE)
    assert source.batches is not None
    blocks = list(source.batches(None))
    assert max(len(block.table) for block in blocks) <= 64
    assert [v for block in blocks for v in block.table.column("user_id").to_pylist()] == [str(i) for i in range(1000)]
    assert np.concatenate([block.lines for block in blocks]).tolist() == list(range(1, 1001))  # type: ignore[misc]
    for asked in (0, 1, 64, 170, 2000):
        assert sum(len(block.table) for block in source.batches(asked)) == min(asked, 1000)
    assert source.sample().num_rows == 1000


def test_long_texts_that_repeat_unfold_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BLOCK_BYTES", 100_000)
    path = put(tmp_path / "t.parquet", {"user_id": ["x" * 10_000] * 500, "tags": [["y" * 100]] * 500})
    source = parquet_source(path, NONE)
    assert source.batches is not None
    sizes = [block.table.nbytes for block in source.batches(None)]
    assert len(sizes) > 40
    assert max(sizes) < 150_000
    assert len(source.careful(None).table) == 500


def test_a_folder_of_parts_is_one_table_with_its_keys(tmp_path: Path) -> None:
    root = tmp_path / "plays"
    put(root / "day=2024-01-01" / "part-0.parquet", {"user_id": ["a", "b"], "item_id": [1, 2]})
    put(root / "day=2024-01-02" / "part-0.parquet", {"user_id": ["c"], "item_id": [3]})
    put(root / "day=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet", {"user_id": ["d"], "item_id": [4]})
    (root / "_SUCCESS").write_text("")
    (source,) = open_sources(root, NONE)
    raw = source.careful(None)
    assert source.columns == ("user_id", "item_id", "day")
    assert raw.table.column("user_id").to_pylist() == ["a", "b", "c", "d"]
    assert raw.table.column("day").to_pylist() == ["2024-01-01", "2024-01-01", "2024-01-02", ""]
    assert raw.lines is not None
    assert raw.lines.tolist() == [1, 2, 3, 4]
    assert any("3 files are one table" in note for note in source.notes)


def test_files_of_other_columns_are_not_one_table(tmp_path: Path) -> None:
    root = tmp_path / "plays"
    put(root / "a.parquet", {"user_id": ["a"], "item_id": [1]})
    put(root / "b.parquet", {"user_id": ["a"], "title": [1]})
    with pytest.raises(DataError, match=r"do not have the same columns"):
        parquet_source(root, NONE)
    assert sorted(source.name for source in open_sources(root, NONE)) == ["plays/a.parquet", "plays/b.parquet"]


def good_bytes(tmp_path: Path) -> bytes:
    rng = np.random.default_rng(0)
    table = {"user_id": rng.integers(0, 10**9, 5000), "item_id": rng.integers(0, 10**9, 5000)}
    return put(tmp_path / "good.parquet", table, compression="NONE").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:-4] + b"PARE", "encrypted"),
        (lambda data: b"PARE" + data[4:-4] + b"PARE", "encrypted"),
        (lambda data: b"XXXX" + data[4:], "not a Parquet file"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "damaged"),
        (lambda data: data[:-60] + b"\xff" * 52 + data[-8:], "damaged"),
        (lambda data: data[:4] + b"\xff" * 3000 + data[3004:], "damaged"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(damage(good_bytes(tmp_path)))  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"t\.parquet: .*{message}"):
        parquet_source(path, NONE).careful(None)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_RATIO_FREE_BYTES", 1 << 20)
    declared = put(
        tmp_path / "declared.parquet", {"user_id": ["x" * 20_000_000]}, compression="zstd", use_dictionary=False
    )
    with pytest.raises(DataError, match=r"declared\.parquet: .*unfold to more than"):
        parquet_source(declared, NONE)
    # Run lengths say a million times "the first word": nothing of that size stands in any description.
    repeated = put(tmp_path / "repeated.parquet", {"user_id": ["x" * 1000] * 100_000}, compression="zstd")
    source = parquet_source(repeated, NONE)
    with pytest.raises(DataError, match=r"repeated\.parquet: .*unfold to more than"):
        source.careful(None)
    monkeypatch.setattr(parquet, "_MAX_ROWS", 99_999)
    with pytest.raises(DataError, match=r"claims 100,000 rows"):
        parquet_source(repeated, NONE)


def test_too_many_and_repeated_columns_are_refused(tmp_path: Path) -> None:
    many = put(tmp_path / "many.parquet", {f"c{i}": [1] for i in range(2001)})
    with pytest.raises(DataError, match=r"more than 2,000 columns"):
        parquet_source(many, NONE)
    twice = put(tmp_path / "twice.parquet", {"a.b": [1], "a": pa.array([{"b": 2}])})
    with pytest.raises(DataError, match=r"'a\.b' stands there twice"):
        parquet_source(twice, NONE)


def test_nested_interactions_are_imported(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    path = put(
        tmp_path / "plays.parquet",
        {
            "user": pa.array([{"id": "007"}, {"id": "NA"}]), "item_id": [2**53 + 1, 5], "rating": [4.0, 1.0],
            "timestamp": pa.array([1704067200000] * 2, pa.timestamp("ms", "Asia/Shanghai")),
        },
    )  # fmt: skip
    import_files(workspace, [path], "plays", ["user_id=user.id", "scale=1..5"])
    dataset = DatasetStore(workspace).load("plays")
    assert dataset.interactions["user_id"].tolist() == ["007", "NA"]
    assert dataset.interactions["item_id"].tolist() == ["9007199254740993", "5"]
    assert dataset.interactions["timestamp"].tolist() == [1704067200.0] * 2
