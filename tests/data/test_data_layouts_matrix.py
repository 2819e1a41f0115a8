"""User x item matrices of every spelling become the ratings that they hold, and nothing else."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, guess_roles, import_files
from llmrec_core.data._layouts import PlannedTable, expand
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

RATED = [
    ("u1", "i1", "5"),
    ("u1", "i3", "3"),
    ("u2", "i2", "4"),
    ("u2", "i4", "1"),
    ("u3", "i1", "2"),
    ("u3", "i2", "2"),
]


def plan(tmp_path: Path, name: str, content: str, *mapping: str) -> list[PlannedTable]:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    corrections = parse_mapping(mapping)
    return [planned for source in open_sources(path, corrections) for planned in expand(source, corrections)]


def rows(planned: PlannedTable) -> list[tuple[str, ...]]:
    table = planned.source.careful(None).table
    return list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))


def matrix(marker: str, corner: str = "user") -> str:
    cells = [["5", marker, "3", marker], [marker, "4", marker, "1"], ["2", "2", marker, marker]]
    lines = [",".join([corner, "i1", "i2", "i3", "i4"])]
    lines += [",".join([f"u{n}", *row]) for n, row in enumerate(cells, start=1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("marker", ["", "99", "NaN", "NA", "-", "-1", "0", "null"])
@pytest.mark.parametrize("corner", ["user", "", "who"])
def test_every_marker_of_a_missing_rating(tmp_path: Path, marker: str, corner: str) -> None:
    (planned,) = plan(tmp_path, "m.csv", matrix(marker, corner))
    assert (planned.layout, planned.kind) == ("matrix", "interactions")
    assert rows(planned) == RATED
    raw = planned.source.careful(None)
    assert raw.lines is not None
    assert raw.lines.tolist() == [2, 2, 3, 3, 4, 4]
    assert planned.reasons["layout"]
    assert planned.reasons["rating"]
    if marker in ("99", "-1", "0"):
        assert any(f"{marker} is taken to mean not rated" in note for note in planned.notes)


def test_item_ids_that_are_numbers(tmp_path: Path) -> None:
    content = matrix("").replace("user,i1,i2,i3,i4", ",10,20,30,40")
    (planned,) = plan(tmp_path, "pivot.csv", content)
    assert rows(planned)[:2] == [("u1", "10", "5"), ("u1", "30", "3")]


def test_a_matrix_whose_first_column_counts_the_ratings(tmp_path: Path) -> None:
    """No header, no users, a count in front, 99 for missing, continuous ratings from -10 to 10."""
    (planned,) = plan(tmp_path, "jokes.csv", "2,7.82,99,-3.50,99\n3,-1.5,8.2,99,0.5\n1,99,99,99,-4.1\n")
    assert rows(planned) == [
        ("1", "1", "7.82"), ("1", "3", "-3.50"), ("2", "1", "-1.5"), ("2", "2", "8.2"), ("2", "4", "0.5"),
        ("3", "4", "-4.1"),
    ]  # fmt: skip
    assert any("counts the ratings" in note for note in planned.notes)
    assert any("each row is a user" in note for note in planned.notes)


def test_a_matrix_without_header_or_users(tmp_path: Path) -> None:
    (planned,) = plan(tmp_path, "plain.csv", "5,,3,1,2\n,4,,1,3\n2,2,,5,5\n")
    assert rows(planned)[:3] == [("1", "1", "5"), ("1", "3", "3"), ("1", "4", "1")]
    assert len(rows(planned)) == 11


def test_users_without_a_header(tmp_path: Path) -> None:
    (planned,) = plan(tmp_path, "plain.csv", "u1,5,,3,1\nu2,,4,,1\nu3,2,2,,5\n")
    assert rows(planned)[:2] == [("u1", "1", "5"), ("u1", "3", "3")]


def test_the_marker_can_be_told(tmp_path: Path) -> None:
    content = "user,i1,i2,i3,i4\nu1,5,7,3,7\nu2,7,4,7,1\nu3,2,2,7,7\n"
    assert len(rows(plan(tmp_path, "m.csv", content, "layout:m.csv=matrix")[0])) == 12
    assert rows(plan(tmp_path, "m.csv", content, "missing:m.csv=7")[0]) == RATED
    zeros = matrix("0")
    assert len(rows(plan(tmp_path, "z.csv", zeros, "missing:z.csv=none")[0])) == 12
    with pytest.raises(DataError, match="is no number"):
        plan(tmp_path, "z.csv", zeros, "missing:z.csv=never")


def test_few_zeros_are_ratings_and_said(tmp_path: Path) -> None:
    content = "user,i1,i2,i3,i4,i5\nu1,5,0,3,4,2\nu2,3,4,2,1,1\nu3,2,2,1,0,4\n"
    (planned,) = plan(tmp_path, "m.csv", content)
    assert len(rows(planned)) == 15
    assert any("missing:FILE=0" in note for note in planned.notes)


def test_rows_can_be_items(tmp_path: Path) -> None:
    content = "movieId,ann,ben,cem,dia\nm1,5,,3,\nm2,,4,,1\n"
    (planned,) = plan(tmp_path, "m.csv", content, "layout:m.csv=matrix")
    assert rows(planned)[0] == ("ann", "m1", "5")
    assert any("rows are taken as items" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("users.csv", "user_id,age,gender,city,income\nu1,20,f,X,5\nu2,30,m,Y,\n"),
        ("items.csv", "item_id,i1,i2,i3,i4\na,1,0,1,0\nb,0,0,1,1\n"),
        ("long.csv", "user_id,item_id,rating,timestamp\nu1,a,5,1600000000\nu1,b,,1600000001\n"),
        ("bought.csv", "user,region,zone,shop,floor\nu1,1,2,3,4\nu1,2,,3,4\n"),
    ],
)
def test_other_tables_are_no_matrix(tmp_path: Path, name: str, content: str) -> None:
    assert plan(tmp_path, name, content)[0].layout == "rows"


def test_a_doubtful_table_says_that_it_may_be_one(tmp_path: Path) -> None:
    header = ",".join(["user_id", *(f"q{n}" for n in range(12))])
    content = header + "".join(f"\nu{u},{','.join(str((u * n) % 30 + 0.5) for n in range(12))}" for u in range(8))
    planned = plan(tmp_path, "answers.csv", content)[0]
    assert planned.layout == "rows"
    assert any("layout:FILE=matrix" in note for note in planned.notes)


def test_a_user_who_comes_twice_makes_a_matrix_doubtful(tmp_path: Path) -> None:
    content = matrix("").replace("u2", "u1")
    planned = plan(tmp_path, "m.csv", content)[0]
    assert planned.layout == "rows"
    assert any("layout:FILE=matrix" in note for note in planned.notes)
    assert len(rows(plan(tmp_path, "m.csv", content, "layout:m.csv=matrix")[0])) == 6


def test_decimal_commas_are_no_lists(tmp_path: Path) -> None:
    (planned,) = plan(tmp_path, "m.csv", "user;i1;i2;i3;i4\nu1;4,5;;3,5;\nu2;;4;;1,5\nu3;2;2;;\n")
    assert planned.layout == "matrix"
    assert rows(planned)[:2] == [("u1", "i1", "4,5"), ("u1", "i3", "3,5")]


def test_bad_cells_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    lines = [",".join([f"u{n}", "4", "", "3", "1"]) for n in range(60)]
    lines[7] = "u7,4,,great,1"
    path.write_text("user,i1,i2,i3,i4\n" + "\n".join(lines) + "\nu60,1,2\n", encoding="utf-8")
    workspace = Workspace.open(tmp_path / "ws")
    report = import_files(workspace, [path], "d")
    assert [(r["line"], "great" in r["reason"]) for r in report.rejects] == [(9, True), (62, False)]
    assert report.rows_accepted == 60 * 3 - 1
    assert len(DatasetStore(workspace).load("d").interactions) == 179


def test_the_screen_sees_layout_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(matrix("99"), encoding="utf-8")
    guess = guess_roles(path)
    assert guess.layout == "matrix"
    assert guess.reasons["layout"]
    assert guess_roles(path, ["layout:m.csv=rows", "kind:m.csv=users"]).layout == "rows"


def test_one_and_all_readers_agree(tmp_path: Path) -> None:
    (planned,) = plan(tmp_path, "m.csv", matrix("99"))
    source = planned.source
    assert source.batches is not None
    blocks = [row for raw in source.batches(None) for row in raw.table.to_pylist()]
    assert blocks == source.careful(None).table.to_pylist()
    assert source.careful(4).table.to_pylist() == blocks[:4]


ids = st.text("abcdefgh0123", min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.dictionaries(
        st.tuples(st.integers(0, 6), st.integers(0, 5)),
        st.sampled_from(["1", "2", "3.5", "5"]),
        min_size=4,
        max_size=25,
    ),
    marker=st.sampled_from(["", "99", "NaN"]),
)
def test_long_to_matrix_and_back(tmp_path: Path, cells: dict[tuple[int, int], str], marker: str) -> None:
    n_users, n_items = 7, 6
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["user_id", *(f"item{i}" for i in range(n_items))])
    for user in range(n_users):
        writer.writerow([f"user{user}", *(cells.get((user, item), marker) for item in range(n_items))])
    (planned,) = plan(tmp_path, "m.csv", buffer.getvalue(), "layout:m.csv=matrix", f"missing:m.csv={marker or 'none'}")
    assert rows(planned) == [(f"user{u}", f"item{i}", cells[u, i]) for u, i in sorted(cells)]


def test_a_matrix_of_items_by_users_is_refused_with_the_word_that_reads_it(tmp_path: Path) -> None:
    cells = [[f"m{i}", *(str((u * i) % 5 + 1) if (u + i) % 3 else "" for u in range(12))] for i in range(30)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(",".join(row) for row in [["movie", *(f"u{u}" for u in range(12))], *cells]) + "\n")
    workspace = Workspace.open(tmp_path / "ws")
    with pytest.raises(DataError, match="layout:FILE=matrix"):
        import_files(workspace, [path], "d")
    report = import_files(workspace, [path], "d", ["layout:m.csv=matrix"])
    assert (report.n_users, report.n_items) == (12, 30)
