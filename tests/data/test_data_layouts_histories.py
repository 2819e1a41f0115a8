"""One row per user with what came after: lists in a cell, lists in lines, one item a column, growing prefixes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, import_files
from llmrec_core.data._layouts import PlannedTable, expand
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

PAIRS = [("u1", "i1"), ("u1", "i2"), ("u1", "i3"), ("u2", "i4"), ("u3", "i2"), ("u3", "i5")]


def put(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def plan(path: Path, *mapping: str) -> list[PlannedTable]:
    corrections = parse_mapping(mapping)
    return [planned for source in open_sources(path, corrections) for planned in expand(source, corrections)]


def rows(planned: PlannedTable) -> list[tuple[str, ...]]:
    table = planned.source.careful(None).table
    return list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))


def lines(planned: PlannedTable) -> list[int]:
    found = planned.source.careful(None).lines
    assert found is not None
    return [int(line) for line in found]


@pytest.mark.parametrize("separator", [" ", "|", "#", ";", ",", " | ", ", "])
@pytest.mark.parametrize("header", ["user_id\thistory", "uid\titem_ids", "Kunde\tmovies", "user\titem_id_list"])
def test_lists_in_a_cell(tmp_path: Path, separator: str, header: str) -> None:
    content = "\n".join([header, *("\t".join([u, separator.join(i)]) for u, i in LISTS)]) + "\n"
    (planned,) = plan(put(tmp_path, "h.tsv", content))
    assert (planned.layout, planned.kind) == ("histories", "interactions")
    assert planned.roles == {"user_id": "user_id", "item_id": "item_id"}
    assert rows(planned) == PAIRS
    assert lines(planned) == [2, 2, 2, 3, 4, 4]
    assert planned.reasons["layout"]
    assert any("lists" in note for note in planned.notes)


LISTS = [("u1", ["i1", "i2", "i3"]), ("u2", ["i4"]), ("u3", ["i2", "i5"])]


@pytest.mark.parametrize("style", ["json", "python", "numpy"])
def test_arrays_in_a_cell(tmp_path: Path, style: str) -> None:
    written = {
        "json": json.dumps,
        "python": str,
        "numpy": lambda items: "[" + " ".join(f"'{item}'" for item in items) + "]",
    }[style]
    content = "user_id\thistory\n" + "".join(f"{u}\t{written(i)}\n" for u, i in LISTS)
    (planned,) = plan(put(tmp_path, "h.tsv", content))
    assert rows(planned) == PAIRS


def test_json_lines_and_parquet_with_nested_lists(tmp_path: Path) -> None:
    objects = [{"user_id": u, "items": i} for u, i in LISTS]
    path = put(tmp_path, "h.jsonl", "".join(json.dumps(value) + "\n" for value in objects))
    assert rows(plan(path)[0]) == PAIRS
    parquet = tmp_path / "h.parquet"
    pq.write_table(pa.table({"user_id": [u for u, _ in LISTS], "items": [i for _, i in LISTS]}), parquet)
    assert rows(plan(parquet)[0]) == PAIRS


def test_lists_of_objects(tmp_path: Path) -> None:
    history = [{"itemId": "a1", "stars": 5, "ts": 1600000000}, {"itemId": "b2", "stars": 2, "ts": 1600000009}]
    path = put(tmp_path, "h.jsonl", json.dumps({"user": "u1", "orders": history}) + "\n")
    (planned,) = plan(path)
    assert rows(planned) == [("u1", "a1", "5", "1600000000"), ("u1", "b2", "2", "1600000009")]


def test_parallel_lists_and_one_that_does_not_fit(tmp_path: Path) -> None:
    content = "user_id,items,ratings,times\nu1,i1|i2,5|3,1600000000|1600000005\nu2,i4,1,1600000009\nu3,i2|i5,1,1|2\n"
    path = put(tmp_path, "h.csv", content)
    (planned,) = plan(path)
    assert rows(planned) == [
        ("u1", "i1", "5", "1600000000"), ("u1", "i2", "3", "1600000005"), ("u2", "i4", "1", "1600000009"),
    ]  # fmt: skip
    report = import_files(Workspace.open(tmp_path / "ws"), [path], "d")
    assert [(r["line"], r["reason"]) for r in report.rejects] == [(4, "1 ratings or labels for 2 items in the history")]
    dataset = DatasetStore(Workspace.open(tmp_path / "ws")).load("d")
    assert dataset.interactions["rating"].tolist() == [5.0, 3.0, 1.0]
    assert dataset.meta.has_timestamps


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_lines_of_different_lengths(tmp_path: Path, separator: str) -> None:
    content = "".join(separator.join([u, *i]) + "\n" for u, i in LISTS)
    (planned,) = plan(put(tmp_path, "seq.txt", content))
    assert planned.layout == "histories"
    assert rows(planned) == PAIRS
    assert lines(planned) == [1, 1, 1, 2, 3, 3]
    assert any("different lengths" in note for note in planned.source.notes)


def test_numbers_in_lines_of_different_lengths(tmp_path: Path) -> None:
    (planned,) = plan(put(tmp_path, "train.txt", "0 10 11 12\n1 10 13\n2 11\n3 14 15 16 17 18\n"))
    assert rows(planned)[:4] == [("0", "10"), ("0", "11"), ("0", "12"), ("1", "10")]
    assert len(rows(planned)) == 11


def test_prose_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one column"):
        plan(put(tmp_path, "text.txt", "It was a dark night.\nNobody came to see us at all.\n"))


@pytest.mark.parametrize("header", ["", "user,item_1,item_2,item_3\n"])
def test_one_item_a_column(tmp_path: Path, header: str) -> None:
    content = header + "".join(",".join([u, *i, *[""] * (3 - len(i))]) + "\n" for u, i in LISTS)
    (planned,) = plan(put(tmp_path, "wide.csv", content))
    assert (planned.layout, rows(planned)) == ("histories", PAIRS)


def test_a_growing_history_with_its_next_item(tmp_path: Path) -> None:
    """Prefixes of one sequence, each with the item that came next: every item is one interaction."""
    content = (
        "session_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
        "s1\ti1\ti2\t1600000000\ns1\ti1 i2\ti3\t1600000005\ns2\ti9\ti1\t1600000001\n"
    )
    (planned,) = plan(put(tmp_path, "d.inter", content))
    assert [row[:2] for row in rows(planned)] == [("s1", "i1"), ("s1", "i2"), ("s1", "i3"), ("s2", "i9"), ("s2", "i1")]
    assert [row[2] for row in rows(planned)] == ["1600000000", "1600000000", "1600000005", "1600000001", "1600000001"]


def test_a_judged_item_beside_a_history_was_shown(tmp_path: Path) -> None:
    """With a label the further item is a candidate; the row with 0 gives no interaction with it."""
    content = "user_id\thistory\titem_id\tlabel\nu1\ti1 i2\ti3\t1\nu1\ti1 i2\ti4\t0\nu2\ti5 i6\ti1\t1\n"
    found, shown = plan(put(tmp_path, "d.tsv", content))
    assert rows(found) == [("u1", "i1"), ("u1", "i2"), ("u1", "i3"), ("u2", "i5"), ("u2", "i6"), ("u2", "i1")]
    assert [row[2:4] for row in rows(shown)] == [("i3", "1"), ("i4", "0"), ("i1", "1")]


def test_a_blank_user_beside_others_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "h.csv", "user_id,history\nu1,a1 a2\n,b1 b2\nu3,\n")
    report = import_files(Workspace.open(tmp_path / "ws"), [path], "d")
    assert [(r["line"], r["reason"]) for r in report.rejects] == [
        (3, "user_id is empty"), (4, "the row tells no item"),
    ]  # fmt: skip


def test_refused_rows_are_kept_as_they_stood(tmp_path: Path) -> None:
    path = put(tmp_path, "h.csv", "user_id,history\nu1,a1 a2\nu2,a1,a2\nu3,\n")
    (planned,) = plan(path)
    rejects = planned.source.careful(None).rejects
    assert rejects.count == 2
    assert rejects.texts == {3: "u2,a1,a2", 4: "u3,"}


def test_growing_histories_and_baskets_are_told_apart(tmp_path: Path) -> None:
    (growing,) = plan(put(tmp_path, "g.csv", "user_id,history\nu1,i1 i2\nu2,i7\nu1,i1 i2 i3\n"))
    assert rows(growing) == [("u1", "i1"), ("u1", "i2"), ("u2", "i7"), ("u1", "i3")]
    (baskets,) = plan(put(tmp_path, "b.csv", "user_id,basket\nu1,i1 i2\nu2,i7\nu1,i1 i9\n"))
    assert rows(baskets) == [("u1", "i1"), ("u1", "i2"), ("u2", "i7"), ("u1", "i1"), ("u1", "i9")]
    assert any("baskets" in note for note in baskets.notes)


def test_the_id_of_a_basket_is_none_of_its_items(tmp_path: Path) -> None:
    content = "basket_id,customer_id,items\n" + "".join(f'{n},u{n % 3},"i{n},i{n % 2}"\n' for n in range(4, 16))
    (baskets,) = plan(put(tmp_path, "b.csv", content))
    assert rows(baskets) == [(f"u{n % 3}", item) for n in range(4, 16) for item in (f"i{n}", f"i{n % 2}")]


@pytest.mark.parametrize("separator", [",", "|", " "])
def test_users_and_lists_without_a_header(tmp_path: Path, separator: str) -> None:
    told = {f"u{n}": [f"p{k}" for k in range(n, n + n % 3 + 1)] for n in range(8, 20)}
    content = "".join(f"{user}\t{separator.join(items)}\n" for user, items in told.items())
    (planned,) = plan(put(tmp_path, "h.tsv", content))
    assert rows(planned) == [(user, item) for user, items in told.items() for item in items]
    assert lines(planned)[0] == 1


def test_lines_of_mostly_one_length_are_histories_where_somebody_says_so(tmp_path: Path) -> None:
    path = put(tmp_path, "h.txt", "u1 i0\n" + "".join(f"u{n} i0 i1 i2\n" for n in range(2, 7)))
    (planned,) = plan(path, "layout:h.txt=histories")
    assert rows(planned)[:4] == [("u1", "i0"), ("u2", "i0"), ("u2", "i1"), ("u2", "i2")]


def test_orders_with_lines(tmp_path: Path) -> None:
    """What a shop's interface answers: orders, each with its customer and its lines."""
    orders = [
        {
            "order_id": f"o{n}",
            "customer": {"id": f"u{n % 3}", "name": "X Y"},
            "lines": [{"sku": f"p{n}", "qty": 2}, {"sku": f"p{n % 2}", "qty": 1}],
            "placed_at": f"2024-01-{n + 1:02d}",
        }
        for n in range(12)
    ]
    (planned,) = plan(put(tmp_path, "orders.json", json.dumps({"count": 12, "results": orders})))
    assert rows(planned) == [
        (f"u{n % 3}", item, f"2024-01-{n + 1:02d}") for n in range(12) for item in (f"p{n}", f"p{n % 2}")
    ]
    assert any("'qty' are left out" in note for note in planned.notes)


def test_histories_without_users(tmp_path: Path) -> None:
    (planned,) = plan(
        put(tmp_path, "h.csv", "prev_items,locale,next_item\ni1 i2,DE,i3\ni4 i5,FR,i6\n"), "history=prev_items"
    )
    assert rows(planned)[:3] == [("h.csv:2", "i1"), ("h.csv:2", "i2"), ("h.csv:2", "i3")]
    assert any("user of its own" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movies.csv", "movieId,title,genres\n1,Toy Story,Animation|Comedy\n2,Heat,Crime\n"),
        ("users.csv", "user_id,interests\nu1,Drama|Comedy\nu2,Crime|Action\n"),
        ("log.csv", "user_id,item_id,comment\nu1,a,so so\nu2,b,very good 5 of 5\n"),
        ("orders.csv", "user_id,item_id,orders\nu1,a,2\nu2,b,3\n"),
    ],
)
def test_other_tables_hold_no_histories(tmp_path: Path, name: str, content: str) -> None:
    assert plan(put(tmp_path, name, content))[0].layout == "rows"


def test_layout_and_columns_can_be_told(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "who,what\nann,Heat/Alien\nben,Heat\n")
    (planned,) = plan(path, "layout:d.csv=histories", "user_id=who", "history=what")
    assert rows(planned) == [("ann", "Heat/Alien"), ("ben", "Heat")]
    report = import_files(Workspace.open(tmp_path / "ws"), [path], "d", ["user_id=who", "history:d.csv=what"])
    assert report.rows_accepted == 2
    with pytest.raises(DataError, match="cannot be read as instructions"):
        plan(path, "layout:d.csv=instructions")


names = st.text("abc", max_size=2).map(lambda text: f"i{text}{len(text)}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=st.lists(st.lists(names, min_size=1, max_size=6), min_size=2, max_size=6),
    form=st.sampled_from([" ", "|", ", ", "json", "lines", "wide"]),
)
def test_long_to_histories_and_back(tmp_path: Path, histories: list[list[str]], form: str) -> None:
    named = [(f"u{number}", items) for number, items in enumerate(histories, start=1)]
    expected = [(user, item) for user, items in named for item in items]
    mapping: list[str] = ["layout:h.tsv=histories"]
    if form == "lines":
        content = "".join(" ".join([user, *items]) + "\n" for user, items in named)
        mapping += ["separator:h.tsv= ", "header:h.tsv=no"] if len({len(i) for i in histories}) == 1 else []
    elif form == "wide":
        width = max(map(len, histories))
        content = "\t".join(["user_id", *(f"item_{n}" for n in range(max(2, width)))]) + "\n"
        content += "".join("\t".join([u, *i, *[""] * (max(2, width) - len(i))]) + "\n" for u, i in named)
    else:
        join = json.dumps if form == "json" else form.join
        content = "user_id\thistory\n" + "".join(f"{user}\t{join(items)}\n" for user, items in named)
    (planned,) = plan(put(tmp_path, "h.tsv", content), *mapping)
    assert rows(planned) == expected


def test_the_most_telling_time_is_taken_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    events = [
        {"event_date": f"2024030{n}", "event_timestamp": f"170928{n}872000000", "event_name": "view_item",
         "user_pseudo_id": f"{n}.5", "items": [{"item_id": f"s{n}", "price": 3}]} for n in (1, 2)
    ]  # fmt: skip
    (planned,) = plan(put(tmp_path, "ga.jsonl", "\n".join(map(json.dumps, events))))
    assert planned.origin == {"history": "items", "user_id": "user_pseudo_id", "timestamp": "event_timestamp"}
    assert "columns that are left out: 'event_date', 'event_name'" in planned.notes
