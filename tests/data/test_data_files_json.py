"""JSON in every form: streamed, each row with its line, every digit kept; what is wrong is refused where it stands."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data import _json_files, _json_window
from llmrec_core.data._raw import RawTable, whole
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"user_id": "u1", "item_id": 7, "rating": 4.5},
    {"user_id": "u2", "item_id": 8, "rating": 3},
]
CELLS = [["u1", "7", "4.5"], ["u2", "8", "3"]]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def opened(path: Path) -> Source:
    (source,) = open_sources(path, parse_mapping(()))
    return source


def rows_of(raw: RawTable) -> list[list[str]]:
    columns = [raw.table.column(i).to_pylist() for i in range(raw.table.num_columns)]
    return [list(row) for row in zip(*columns, strict=True)]


def everything(source: Source) -> tuple[list[list[str]], list[int], list[tuple[int, str]]]:
    assert source.batches is not None
    raw = whole(source.batches(None), source.columns, source.name)
    assert rows_of(raw) == rows_of(source.careful(None))
    assert raw.lines is not None
    return rows_of(raw), raw.lines.tolist(), raw.rejects.listed


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("d.jsonl", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("d.ndjson", "\n\n" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n", [3, 5]),
        ("d.json", json.dumps(ROWS), [1, 1]),
        ("d.json", json.dumps(ROWS, indent=2), [2, 7]),
        ("d.json", json.dumps(ROWS, indent=2).replace("\n", "\r\n"), [2, 7]),
        ("d.json", "\ufeff" + json.dumps(ROWS, indent=2), [2, 7]),
        ("d.json", json.dumps(ROWS, indent=2).encode("utf-16"), [2, 7]),
        ("d.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 6]),
        ("d.json", json.dumps({"made": [1, 2], "count": 2, "ratings": ROWS}), [1, 1]),
        ("d.json", json.dumps({"made": {"by": "x"}, "ratings": ROWS}, indent=1), [6, 11]),
        ("no_suffix", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("python.json", "\n".join(map(repr, ROWS)), [1, 2]),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, content: str | bytes, lines: list[int]) -> None:
    source = opened(put(tmp_path, name, content))
    assert source.columns == ("user_id", "item_id", "rating")
    assert everything(source) == (CELLS, lines, [])


BARE = [["u1", 7, 4.5], ["u2", 8, 3]]
NAMED = [["user_id", "item_id", "rating"], *BARE]


@pytest.mark.parametrize(
    ("content", "named", "lines"),
    [
        (json.dumps(BARE), False, [1, 1]),
        (json.dumps(NAMED), True, [1, 1]),
        (json.dumps(NAMED, indent=1), True, [7, 12]),
        ("\n".join(map(json.dumps, BARE)), False, [1, 2]),
        ("\n" + "\r\n".join(map(json.dumps, NAMED)), True, [3, 4]),
    ],
)
def test_bare_lists_are_rows(tmp_path: Path, content: str, named: bool, lines: list[int]) -> None:
    source = opened(put(tmp_path, "d.json", content))
    assert source.columns == (("user_id", "item_id", "rating") if named else ("column_1", "column_2", "column_3"))
    assert source.header is named
    assert everything(source) == (CELLS, lines, [])
    assert "bare lists of cells" in source.notes[0]


def test_bare_lists_that_do_not_fit_are_refused_with_their_line(tmp_path: Path) -> None:
    rows = ['["u1", 7, 4.5]', '["u1", 7]', '{"user_id": "u1"}', '"word"', "[1, 2, NaN]", '["u2", 8, 3]']
    cells, lines, listed = everything(opened(put(tmp_path, "d.jsonl", "\n".join(rows))))
    assert (cells, lines) == (CELLS, [1, 6])
    assert [line for line, _ in listed] == [2, 3, 4, 5]
    assert listed[0][1] == "2 cells instead of 3"
    cells, lines, listed = everything(opened(put(tmp_path, "d.json", "[" + ",\n".join(rows[:2] + rows[5:]) + ", [1")))
    assert (cells, [line for line, _ in listed]) == (CELLS, [2, 3])
    assert "not valid JSON from here on" in listed[1][1]
    with pytest.raises(DataError, match="stands there twice"):
        opened(put(tmp_path, "twice.json", '[["user_id", "item_id", "user_id"], [1, 2, 3]]'))


def test_several_lists_in_one_object_are_several_tables(tmp_path: Path) -> None:
    content = json.dumps({"ratings": ROWS, "items": [{"item_id": "7", "title": "Alien"}], "tags": ["a"]})
    sources = open_sources(put(tmp_path, "shop.json", content), parse_mapping(()))
    assert [source.name for source in sources] == ["shop.json/ratings", "shop.json/items"]
    assert everything(sources[1])[0] == [["7", "Alien"]]
    assert "ratings, items" in sources[0].notes[0]


def test_lists_and_objects_keep_all_they_hold(tmp_path: Path) -> None:
    rows = [
        {"user": {"id": "u1", "age": 30}, "tags": ["a, b", "c"], "more": {"x": {"y": 1}}, "none": None},
        {"user": {"id": "u2"}, "tags": [], "more": {"x": 5}, "none": None, "deep": [{"k": [1, 2]}]},
    ]
    source = opened(put(tmp_path, "d.jsonl", "\n".join(map(json.dumps, rows))))
    assert source.columns == ("user.id", "user.age", "tags", "more.x", "none", "deep")
    first, second = everything(source)[0]
    assert first == ["u1", "30", '["a, b", "c"]', '{"y": "1"}', "", ""]
    assert second == ["u2", "", "[]", "5", "", '[{"k": ["1", "2"]}]']


def test_objects_that_are_mappings_stay_whole(tmp_path: Path) -> None:
    rows = [{"item_id": i, "rank": {f"key {i}": i}} for i in range(40)]
    source = opened(put(tmp_path, "d.jsonl", "\n".join(map(json.dumps, rows))))
    assert source.columns == ("item_id", "rank")
    assert everything(source)[0][3] == ["3", '{"key 3": "3"}']


def test_a_field_that_is_only_sometimes_an_object_stays_whole(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.jsonl", '{"a": {"b": 1}, "x": 1}\n{"a": "word", "x": 2}\n'))
    assert source.columns == ("a", "x")
    assert everything(source)[0] == [['{"b": "1"}', "1"], ["word", "2"]]


def test_fields_of_late_rows_are_columns_in_order(tmp_path: Path) -> None:
    lines = ['{"z": 1, "a": 2}'] * 3000 + ['{"z": 1, "late": 3, "a": 2}']
    source = opened(put(tmp_path, "d.jsonl", "\n".join(lines)))
    assert source.columns == ("z", "a", "late")
    assert everything(source)[0][-1] == ["1", "2", "3"]
    (tmp_path / "odd[1]*.jsonl").write_text('{"only": 1}\n')
    assert opened(tmp_path / "odd[1]*.jsonl").columns == ("only",)


BAD_LINES = [
    ('{"user_id": "u3", "rating": NaN}', "NaN is not a JSON number"),
    ('{"user_id": "u3", "rating": -Infinity}', "Infinity is not a JSON number"),
    ('{"user_id": ' + "[" * 100_000, "nested too deeply"),
    ('{"user_id": "u3", "rating": ' + '{"a":' * 100_000, "nested too deeply"),
    ('{"user_id": "u3", "rat', "not valid JSON"),
    ("{'user_id': 'u3'}", "not valid JSON"),
    ('["u3", 5]', "not an object"),
    ("17", "not an object"),
    ('"word"', "not an object"),
    ("null", "not an object"),
    ('{"user_id": "u3", "user_id": "u4"}', "twice"),
    ('{"user_id": "\\ud800", "rating": 1}', "not valid text"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, bad: str, reason: str) -> None:
    text = '{"user_id": "u1", "rating": 1}\n\n' + bad + '\n{"user_id": "u2", "rating": 2}\n'
    rows, lines, refused = everything(opened(put(tmp_path, "d.jsonl", text)))
    assert rows == [["u1", "1"], ["u2", "2"]]
    assert lines == [1, 4]
    assert [line for line, _ in refused] == [3]
    assert reason in refused[0][1]


def test_what_stood_in_a_refused_line_is_kept(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "d.jsonl", '{"a": 1}\n{"a": oops}\n' + '"' + "x" * 900))
    texts = source.careful(None).rejects.texts
    assert texts == {2: '{"a": oops}', 3: '"' + "x" * 499}


def test_broken_bytes_are_refused_with_their_line(tmp_path: Path) -> None:
    lines = [json.dumps({"user_id": f"é{n}"}, ensure_ascii=False).encode() for n in range(20)]
    lines[5] = b'{"user_id": "\xe9"}'
    rows, _, refused = everything(opened(put(tmp_path, "d.jsonl", b"\n".join(lines))))
    assert len(rows) == 19
    assert refused == [(6, "the line is not valid utf-8")]


@pytest.mark.parametrize(
    ("text", "rows", "refused"),
    [
        ('[\n{"a": 1},\n{"a": 2}\n', [["1"], ["2"]], (4, "not closed")),
        ('[\n{"a": 1},\n{"a": tru\n]', [["1"]], (3, "not valid JSON from here on")),
        ('[\n{"a": 1},\n{"a": NaN},\n{"a": 2}]', [["1"]], (3, "not valid JSON from here on")),
        ('[\n{"a": 1},\n[2],\n{"a": 3}\n]', [["1"], ["3"]], (3, "not an object")),
        ('[\n{"a": 1},\n12,\n{"a": 3}\n]', [["1"], ["3"]], (3, "not an object")),
        ('[\n{"a": 1},\n{"a": 1, "a": 2},\n{"a": 3}\n]', [["1"], ["3"]], (3, "twice")),
        ('[\n{"a": 1},\n' + "[" * 100_000, [["1"]], (3, "nested too deeply")),
    ],
)
def test_a_damaged_list_is_refused_where_the_damage_is(
    tmp_path: Path, text: str, rows: list[list[str]], refused: tuple[int, str]
) -> None:
    found, _, listed = everything(opened(put(tmp_path, "d.json", text)))
    assert found == rows
    assert len(listed) == 1
    assert listed[0][0] == refused[0]
    assert refused[1] in listed[0][1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.json", "[]"),
        ("d.json", "[1, 2]"),
        ("d.json", "{"),
        ("d.jsonl", "null\n"),
        ("d.json", "{}"),
        ("d.json", "[" * 10**6),
    ],
)
def test_what_holds_no_row_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no row could be read"):
        opened(put(tmp_path, name, text))


def test_too_many_fields_are_refused(tmp_path: Path) -> None:
    text = json.dumps({f"f{n}": n for n in range(2001)})
    with pytest.raises(DataError, match="more than 2000 different fields"):
        opened(put(tmp_path, "d.jsonl", text + "\n" + text))


@pytest.mark.parametrize("empty", ["", " "])
def test_a_field_without_a_name_is_refused(tmp_path: Path, empty: str) -> None:
    with pytest.raises(DataError, match="has no name"):
        opened(put(tmp_path, "d.jsonl", json.dumps({"user_id": "u", empty: 1})))


# ------------------------------------------------------------------------------------------------ Python dicts


def test_python_dicts_are_literals_and_nothing_else(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    lines = [
        "{'asin': '007', 'price': 5.0, 'tags': [['A', 'B'], ('c',)], 'ok': True, 'no': None, 'u': u'x'}",
        f"{{'asin': __import__('pathlib').Path({str(canary)!r}).write_text('x')}}",
        "{'asin': " + "(" * 5000,
        "{'asin': " + "[" * 80 + "]" * 80 + "}",
        "{'asin': 1e999}",
        "['asin']",
        "{'asin': 9007199254740993}",
        '{"asin": "json", "price": 1}',
        "{'asin': b'bytes'}",
    ]
    source = opened(put(tmp_path, "meta.json", "\n".join(lines)))
    assert any("Python dicts" in note for note in source.notes)
    rows, numbers, refused = everything(source)
    assert [row[0] for row in rows] == ["007", "9007199254740993", "json"]
    assert dict(zip(source.columns, rows[0], strict=True)) == {
        "asin": "007", "price": "5.0", "tags": '[["A", "B"], ["c"]]', "ok": "true", "no": "", "u": "x",
    }  # fmt: skip
    assert numbers == [1, 7, 8]
    assert [line for line, _ in refused] == [2, 3, 4, 5, 6, 9]
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize("form", ["lines", "list"])
def test_memory_stays_bounded(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("llmrec_core.data._json_files._BLOCK_CHARS", 1 << 18)
    rows = [json.dumps({"user_id": f"u{n}", "text": "x" * 500}) for n in range(12_000)]
    path = put(tmp_path, "d.json", "\n".join(rows) if form == "lines" else "[" + ",".join(rows) + "]")
    source = opened(path)
    assert source.batches is not None
    tracemalloc.start()
    n_rows = sum(len(block.table) for block in source.batches(None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 12_000
    assert peak < 0.5 * path.stat().st_size


def test_values_cut_by_the_reading_window_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._encodings._HEAD_BYTES", 7)
    monkeypatch.setattr("llmrec_core.data._encodings._BLOCK_BYTES", 5)
    rows = [{"id": n * 12345, "name": "é霸" * n, "list": [n, {"k": 1.5}]} for n in range(9)]
    text = json.dumps([*rows, 123456789], ensure_ascii=False, indent=1)
    found, _, refused = everything(opened(put(tmp_path, "d.json", text)))
    assert [row[:2] for row in found] == [[str(row["id"]), row["name"]] for row in rows]
    assert len(refused) == 1


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
SCALARS = st.one_of(TEXTS, st.integers(-(10**20), 10**20), st.booleans(), st.none())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAMES.filter(lambda name: name == name.strip()), min_size=1, max_size=4, unique=True),
    values=st.lists(st.lists(SCALARS, min_size=4, max_size=4), min_size=1, max_size=6),
    form=st.sampled_from(["lines", "list", "pretty", "inside", "stream"]),
    ascii_only=st.booleans(),
)
def test_random_tables_come_back_equal(
    tmp_path: Path, names: list[str], values: list[list[Any]], form: str, ascii_only: bool
) -> None:
    rows = [dict(zip(names, row, strict=False)) for row in values]
    if form in ("lines", "stream"):
        indent = 1 if form == "stream" else None
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_only, indent=indent) for row in rows)
    else:
        inside = {"rows": rows} if form == "inside" else rows
        text = json.dumps(inside, ensure_ascii=ascii_only, indent=1 if form == "pretty" else None)
    source = opened(put(tmp_path, "d.json", text))
    said = {None: "", True: "true", False: "false"}
    expected = [[said[v] if v is None or isinstance(v, bool) else str(v) for v in row.values()] for row in rows]
    assert list(source.columns) == names
    assert everything(source)[0] == expected


@pytest.mark.parametrize(
    "value",
    [
        {"user_id": ["u1", "u2"], "item_id": [7, 8], "rating": [4.5, 3]},
        {"user_id": {"0": "u1", "1": "u2"}, "item_id": {"0": 7, "1": 8}, "rating": {"0": 4.5, "1": 3}},
        {"columns": ["user_id", "item_id", "rating"], "index": [0, 1], "data": [["u1", 7, 4.5], ["u2", 8, 3]]},
        {"u1": {"7": 4.5}, "u2": {"8": 3}},
        {"schema": {"fields": [{"name": "user_id"}]}, "data": ROWS},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_that_is_a_table(tmp_path: Path, value: Any, indent: int | None) -> None:
    source = opened(put(tmp_path, "t.json", json.dumps(value, indent=indent)))
    assert source.columns == ("user_id", "item_id", "rating")
    rows, lines, refused = everything(source)
    assert (rows, refused) == (CELLS, [])
    assert "schema" in value or lines == [1, 2]
    assert any("one object" in note for note in source.notes)


def test_rows_by_keys_keep_their_keys(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "t.json", json.dumps({"a": ROWS[0], "b": ROWS[1]})))
    assert source.columns == ("key", "user_id", "item_id", "rating")
    assert everything(source)[0] == [["a", *CELLS[0]], ["b", *CELLS[1]]]


def test_lists_by_user_are_histories(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "t.json", json.dumps({"7": ["a", "b"], "8": ["c"], "9": []})))
    assert source.columns == ("user_id", "history")
    assert everything(source)[0] == [["7", '["a", "b"]'], ["8", '["c"]'], ["9", "[]"]]
    one = opened(put(tmp_path, "one.json", json.dumps({"history": ["a", "b"], "candidates": ["c"]})))
    assert one.columns == ("history", "candidates")


def test_a_row_of_a_split_table_with_too_few_cells_is_refused(tmp_path: Path) -> None:
    value = {"columns": ["user_id", "item_id"], "data": [["u1", "a"], ["u2"], ["u3", "c"]]}
    rows, lines, refused = everything(opened(put(tmp_path, "t.json", json.dumps(value))))
    assert (rows, lines) == ([["u1", "a"], ["u3", "c"]], [1, 3])
    assert refused == [(2, "1 cells for 2 columns")]


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ({"user_id": "u1", "history": ["a", "b"], "labels": [1, 0]}, ("user_id", "history", "labels")),
        ({"user": {"id": 1}, "item": {"id": 2}, "rating": 4}, ("user.id", "item.id", "rating")),
    ],
)
def test_one_row_stays_a_row(tmp_path: Path, value: Any, columns: tuple[str, ...]) -> None:
    source = opened(put(tmp_path, "t.json", json.dumps(value)))
    assert source.columns == columns
    assert len(everything(source)[0]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"user": {"id": 1, "name": "Ann"}, "item": {"id": 2, "name": "Alien"}}, "are objects: no rows"),
        ({"a": {"x": "soon", "y": "late"}, "b": {"x": "never"}}, "are objects: no rows"),
        ({"history": ["a", "b"], "history_labels": [1, 0]}, "a single record or a table by columns"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_that_can_be_several_things_is_refused(
    tmp_path: Path, value: Any, words: str, indent: int | None
) -> None:
    with pytest.raises(DataError, match=words):
        opened(put(tmp_path, "t.json", json.dumps(value, indent=indent)))


def test_a_table_by_columns_is_held_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_json_window, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(_json_files, "MAX_LINE_BYTES", 1000)
    numbers = [str(n) for n in range(1, 2001)]
    path = put(tmp_path, "t.json", json.dumps({"user_id": numbers, "item_id": numbers}))
    assert everything(opened(path))[0] == [[n, n] for n in numbers]
    long_row = put(tmp_path, "rows.json", json.dumps({"user_id": ["x" * 2000]}) + "\n" + json.dumps(ROWS[0]))
    assert everything(opened(long_row))[2] == [(1, "the line is longer than 1,000 bytes")]
    monkeypatch.setattr(_json_files, "_MAX_WHOLE_BYTES", 10_000)
    with pytest.raises(DataError, match=r"at most 0 MB are read.*orient='records'"):
        opened(path)
