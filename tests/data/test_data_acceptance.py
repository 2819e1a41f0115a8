"""Faults and bad inputs from the outside: whole imports in Python and on the command line (cases 10, 11 and 13 to 16).

A refusal names the place, ends with exit code 2 and leaves the workspace byte for byte as it was.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from typer.testing import CliRunner

from llmrec_core.cli import app
from llmrec_core.data import Dataset, DatasetStore, import_files, make_split
from llmrec_core.errors import DataError
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace

Row = tuple[str, str, float, float, str]

#: What every dialect has to give back: user, item, rating, seconds, note.
ROWS: list[Row] = [
    ("u1", "a", 5.0, 1704067200.0, "plain"),
    ("007", "b", 3.5, 1704153600.0, "two words"),
    ("NA", "9007199254740993", 1.0, 1704240000.0, "-"),
    ("u1", "b", 2.5, 1704326400.0, ""),
]
DATES = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
HEADER = ("user_id", "item_id", "rating", "timestamp", "note")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace.open(tmp_path / "ws")
    # Shelves are put up when they are first looked for; what is looked at here is what stands on them.
    assert opened.datasets.is_dir()
    return opened


def put(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tree(workspace: Workspace) -> dict[str, bytes]:
    """Every file and folder of the workspace with its content."""
    return {
        path.relative_to(workspace.root).as_posix(): path.read_bytes() if path.is_file() else b"/"
        for path in sorted(workspace.root.rglob("*"))
    }


def rows_of(dataset: Dataset) -> list[Row]:
    table = dataset.interactions
    notes = table["note"] if "note" in table else [""] * len(table)
    columns = (table["user_id"].astype(str), table["item_id"].astype(str), table["rating"].tolist())
    return list(zip(*columns, table["timestamp"].tolist(), notes, strict=True))


def imported(workspace: Workspace, path: Path, *said: str) -> list[Row]:
    report = import_files(workspace, [path], "d", said)
    assert report.rows_rejected == 0
    return rows_of(DatasetStore(workspace).load("d"))


def llmrec(workspace: Workspace, *args: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line; an exception that nobody caught fails the test."""
    found = CliRunner().invoke(app, [str(a) for a in args], env={"LLMREC_WORKSPACE": str(workspace.root)})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def refused(workspace: Workspace, path: Path, *said: str) -> str:
    """The words of a refusal, the same in Python and on the command line, after which nothing has changed."""
    before = tree(workspace)
    with pytest.raises(DataError) as caught:
        import_files(workspace, [path], "d", said)
    maps = [part for entry in said for part in ("--map", entry)]
    code, shown, told = llmrec(workspace, "data", "import", path, "--name", "d", *maps)
    assert code == 2
    assert shown == ""
    assert caught.value.what[:40] in " ".join(told.split())
    assert caught.value.fix
    assert tree(workspace) == before
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ 11: dialects


def write(separator: str, comma: bool, dates: str, quoting: int, line_end: str) -> str:
    lines = []
    for row, day in zip(ROWS, DATES, strict=True):
        rating = f"{row[2]:g}".replace(".", ",") if comma else f"{row[2]:g}"
        year, month, date = day.split("-")
        when = {"iso": day, "s": f"{row[3]:.0f}", "ms": f"{row[3] * 1000:.0f}", "cn": f"{year}年{month}月{date}日"}
        when |= {"dotted": f"{date}.{month}.{year}", "zone": f"{day}T01:00:00+01:00"}
        lines.append([row[0], row[1], rating, when[dates], row[4]])
    if len(separator) > 1:
        return line_end.join(separator.join(cells) for cells in [list(HEADER), *lines]) + line_end
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, quoting=quoting, lineterminator=line_end)  # type: ignore[arg-type]
    writer.writerows([HEADER, *lines])
    return stream.getvalue()


def dialects() -> list[tuple[str, bool, str, int, str, str]]:
    """Each separator with each way to end lines, and the other choices dealt out in turn."""
    rng = random.Random(7)
    found = []
    encodings = itertools.cycle(("utf-8", "utf-16", "gb18030", "utf-8-sig"))
    dates = itertools.cycle(("iso", "s", "cn", "ms", "dotted", "zone", "iso"))
    for separator in (",", ";", "\t", "|", "::"):
        for line_end in ("\n", "\r\n", "\r"):
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
                comma = separator != "," and rng.random() < 0.5
                found.append((separator, comma, next(dates), quoting, line_end, next(encodings)))
    return found


def test_every_dialect_gives_the_same_rows_or_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    for number, (separator, comma, dates, quoting, line_end, encoding) in enumerate(dialects()):
        text = write(separator, comma, dates, quoting, line_end)
        path = put(tmp_path, f"d{number}.csv", text.encode(encoding))
        assert imported(workspace, path) == ROWS, (separator, comma, dates, quoting, line_end, encoding)


@pytest.mark.parametrize(
    ("encoding", "word"), [("latin-1", "Déjà vu à la plage"), ("gbk", "霸王别姬"), ("cp1252", "naïve – café")]
)
def test_words_of_old_encodings(workspace: Workspace, tmp_path: Path, encoding: str, word: str) -> None:
    text = "user_id,item_id,note\n" + "".join(f"u{i},i{i},{word}\n" for i in range(6))
    import_files(workspace, [put(tmp_path, "d.csv", text.encode(encoding))], "d")
    assert set(DatasetStore(workspace).load("d").interactions["note"]) == {word}


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "gb18030", "cp949"])
def test_a_broken_byte_costs_its_line_and_not_the_encoding(workspace: Workspace, tmp_path: Path, encoding: str) -> None:
    word = "영화 제목" if encoding == "cp949" else "霸王别姬"
    lines = [f"u{i},i{i},{word} {i}".encode(encoding) for i in range(30)]
    lines[11] = lines[11][:8] + b"\xff" + lines[11][9:]
    report = import_files(workspace, [put(tmp_path, "d.csv", b"user_id,item_id,note\n" + b"\n".join(lines))], "d")
    assert [r["line"] for r in report.rejects] == [13]
    expected = [f"{word} {i}" for i in range(30) if i != 11]
    assert DatasetStore(workspace).load("d").interactions["note"].tolist() == expected


def test_ragged_rows_and_quoted_lines(workspace: Workspace, tmp_path: Path) -> None:
    text = 'user_id,item_id,note\nu1,a,"one\ntwo, ""three"""\nu2,b\nu3,c,x,y\nu4,d,"last"\n'
    report = import_files(workspace, [put(tmp_path, "d.csv", text)], "d")
    assert [(r["line"], r["reason"]) for r in report.rejects] == [
        (4, "2 cells instead of 3"),
        (5, "4 cells instead of 3"),
    ]
    table = DatasetStore(workspace).load("d").interactions
    assert table["note"].tolist() == ['one\ntwo, "three"', "last"]


@pytest.mark.parametrize("seed", range(40))
def test_one_damaged_line_harms_no_other(workspace: Workspace, tmp_path: Path, seed: int) -> None:
    """Whatever one line becomes, every other line comes in exactly as it is, or the file is refused as a whole."""
    rng = random.Random(seed)
    separator = rng.choice(",;\t|")
    lines = [
        separator.join((f"u{i % 7}", f"i{i}", str(i % 5 + 1), str(1704067200 + i), f"note {i}")) for i in range(60)
    ]
    place = rng.randrange(len(lines))
    cut = rng.randrange(len(lines[place]))
    junk = rng.choice(
        ['"', '""', '"x', separator, separator * 3, "\r", "\\", "'", "\u2028", "\x0b", "\x1b", "é", "\ufeff"]
    )
    damaged = lines[place][:cut] + junk + lines[place][cut + rng.randrange(3) :]
    text = "\n".join([separator.join(HEADER), *lines[:place], damaged, *lines[place + 1 :]]) + "\n"
    try:
        report = import_files(workspace, [put(tmp_path, "d.csv", text)], "d")
    except DataError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "d.csv" in said
        assert not list(workspace.datasets.iterdir())
        return
    table = DatasetStore(workspace).load("d").interactions
    found = {item: (user, rating, note) for user, item, rating, note in
             zip(table["user_id"], table["item_id"], table["rating"], table["note"], strict=True)}  # fmt: skip
    for i in range(60):
        if i != place:
            assert found.pop(f"i{i}") == (f"u{i % 7}", i % 5 + 1, f"note {i}"), (damaged, i)
    assert len(found) + report.rows_rejected >= 1
    assert len(found) <= 2


@pytest.mark.parametrize(
    ("column", "cells", "said", "expected"),
    [
        ("rating", ["1.234,5", "0,5", "3"], (), [1234.5, 0.5, 3]),
        ("rating", ["５", "４", "１"], (), [5, 4, 1]),
        ("rating", ["5.0 out of 5", "4.0 out of 5", "1.0 out of 5"], (), [5, 4, 1]),
        ("rating", ["★★★★★", "★★☆☆☆", "★☆☆☆☆"], (), [5, 2, 1]),
        ("rating", ["0", "4", "5"], ("zero=unrated",), [None, 4, 5]),
        ("rating", ["0", "4", "5"], ("zero=rating",), [0, 4, 5]),
        ("timestamp", ["31/01/2024", "01/02/2024", "02/03/2024"], (), ["2024-01-31", "2024-02-01", "2024-03-02"]),
        ("timestamp", ["01/02/2024", "02/03/2024"], ("day_first=no",), ["2024-01-02", "2024-02-03"]),
        ("timestamp", ["2024年3月5日", "2024年12月31日"], (), ["2024-03-05", "2024-12-31"]),
        ("timestamp", ["1704067200", "1704153600"], (), ["2024-01-01", "2024-01-02"]),
        ("timestamp", ["2024-01-01T23:00:00-02:00", "2024-01-01"], (), ["2024-01-02T01:00", "2024-01-01"]),
        (
            "timestamp",
            ["2024-01-02", "", "2024-01-01"],
            ("missing_time=keep-order",),
            ["2024-01-02", "2024-01-02", "2024-01-01"],
        ),
        ("timestamp", ["2024-01-02", "", "2024-01-01"], ("missing_time=drop-all",), [None, None, None]),
    ],
)  # fmt: skip
def test_numbers_and_dates(
    workspace: Workspace, tmp_path: Path, column: str, cells: list[str], said: tuple[str, ...], expected: list[object]
) -> None:
    text = f"user_id\titem_id\t{column}\n" + "".join(f"u{i}\ti{i}\t{cell}\n" for i, cell in enumerate(cells))
    import_files(workspace, [put(tmp_path, "d.tsv", text)], "d", said)
    found = DatasetStore(workspace).load("d").interactions[column]
    if column == "timestamp":
        expected = [np.nan if e is None else pd.Timestamp(str(e), tz="UTC").timestamp() for e in expected]
    np.testing.assert_array_equal(found.to_numpy(float), np.array(expected, float))


@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("rating", ["0", "4", "5"], "--map zero=unrated or --map zero=rating"),
        ("rating", ["1,234", "2,345"], "--map decimal=comma or --map decimal=point"),
        ("timestamp", ["03/04/2024", "05/06/2024"], "--map day_first=yes or --map day_first=no"),
        ("timestamp", ["24-01-05", "24-01-06"], "--map day_first=yes or --map day_first=no"),
    ],
)
def test_what_the_data_leaves_open_is_asked(
    workspace: Workspace, tmp_path: Path, column: str, cells: list[str], words: str
) -> None:
    text = f"user_id\titem_id\t{column}\n" + "".join(f"u{i}\ti{i}\t{cell}\n" for i, cell in enumerate(cells))
    path = put(tmp_path, "d.tsv", text)
    assert words in refused(workspace, path)
    code, shown, _ = llmrec(workspace, "data", "guess", path, "--json")
    assert code == 0
    (question,) = json.loads(shown)[0]["questions"]
    assert words.startswith(f"--map {question['id']}=")
    for option in question["options"]:
        import_files(workspace, [path], "d", [f"{question['id']}={option}"])


@pytest.mark.parametrize(
    ("column", "cells", "expected", "refused_lines"),
    [
        ("rating", ["4", "5", "3", "3,5", "4", "2,5"], [4, 5, 3, 3.5, 4, 2.5], []),
        ("rating", ["4", "5", "3", "3,5", "4", "2.5"], [4, 5, 3, 4, 2.5], [5]),
        ("rating", ["4", "5", "3", "4/5", "2/5", "9/5"], [4, 5, 3, 4, 2], [7]),
        ("rating", ["4", "5", "3", "four", "５", "1"], [4, 5, 3, 5, 1], [5]),
        ("timestamp", ["03/04/2024"] * 3 + ["31/05/2024"], ["04-03"] * 3 + ["05-31"], []),
        ("timestamp", ["", "", "", "2024-05-31"], ["05-31"], [2, 3, 4]),
        ("timestamp", ["2024-05-31"] * 3 + ["31/05/2024", "1717113600"], ["05-31"] * 4, [6]),
    ],
)  # fmt: skip
def test_later_blocks_say_how_all_of_a_column_is_read(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    cells: list[str],
    expected: list[object],
    refused_lines: list[int],
) -> None:
    """Blocks of three rows: what the first one leaves open is settled by a later one, for the rows of all."""
    monkeypatch.setattr("llmrec_core.data._blocks.BLOCK_ROWS", 3)
    text = f"user_id;item_id;{column}\n" + "".join(f"u{i};i{i};{cell}\n" for i, cell in enumerate(cells))
    report = import_files(workspace, [put(tmp_path, "d.csv", text)], "d")
    found = DatasetStore(workspace).load("d").interactions[column]
    if column == "timestamp":
        expected = [pd.Timestamp(f"2024-{day}", tz="UTC").timestamp() for day in expected]
    assert found.tolist() == expected
    assert [r["line"] for r in report.rejects] == refused_lines


@pytest.mark.parametrize(("answer", "first"), [("yes", "2024-01-02"), ("no", "2024-01-02")])
def test_the_first_time_of_a_history_follows_the_answer(
    workspace: Workspace, tmp_path: Path, answer: str, first: str
) -> None:
    """02/01 is the second of January or the first of February; the history carries the earlier of a user's times."""
    days = ["02/01/2024 10:00", "01/02/2024 10:00"]
    text = "impression_id\tuser_id\ttime\thistory\timpressions\n"
    text += "".join(f"{i}\tu1\t{day}\tN1 N2\tN{i + 3}-1 N9-0\n" for i, day in enumerate(days))
    import_files(workspace, [put(tmp_path, "behaviors.tsv", text)], "d", [f"day_first={answer}"])
    table = DatasetStore(workspace).load("d").interactions
    times = dict(zip(table["item_id"].astype(str), table["timestamp"], strict=True))
    assert times["N1"] == times["N2"] == pd.Timestamp(f"{first}T10:00", tz="UTC").timestamp()
    assert sorted(times.values())[-1] == pd.Timestamp("2024-02-01T10:00", tz="UTC").timestamp()


# ------------------------------------------------------------------------------------------------ 10: formulas


def test_refused_rows_leave_as_cells_and_not_as_formulas(workspace: Workspace, tmp_path: Path) -> None:
    cells = ["=1+1", "+cmd", "@sum", "-3.5 stars or so", "\t=2", "-7x"]
    good = "".join(f"u;ok{i};-3.5\n" for i in range(9))
    text = f"user_id;item_id;rating\n{good}" + "".join(f"{cell};i;bad{cell}\n" for cell in cells)
    path = put(tmp_path, "d.csv", text)
    out = tmp_path / "out.csv"
    assert llmrec(workspace, "data", "import", path, "--name", "d")[0] == 0
    assert llmrec(workspace, "data", "rejects", "d", "--out", out)[0] == 0
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == len(cells) + 1
    for row in rows:
        for cell in row:
            assert not cell.lstrip(" ").startswith(("=", "+", "@", "-", "\t", "\r"))
    assert any(cell.startswith("'=1+1") for row in rows for cell in row)
    assert rows_of(DatasetStore(workspace).load("d"))[0][2] == -3.5


# ------------------------------------------------------------------------------------------------ 13: JSON lines


def test_faults_of_json_lines_are_numbered(workspace: Workspace, tmp_path: Path) -> None:
    lines = {
        1: '{"user_id": "u1", "item_id": "a", "rating": 4}',
        2: '{"user_id": "u1", "item_id": "b", "rating": NaN}',
        3: '{"a":' * 50_000 + "1" + "}" * 50_000,
        4: '{"user_id": "u1", "item_id": "c", "rating": "four"}',
        5: "{'user_id': 'u1', 'item_id': 'd', 'rating': 4}",
        6: '{"user_id": 7, "item_id": 9007199254740993, "rating": 5.0}',
        7: '{"user_id": "u1", "item_id": "e", "rating": Infinity}',
        8: '["u1", "f", 3]',
        9: "",
        10: '{"user_id": null, "item_id": "g"}',
        11: '{"user_id": "u1", "item_id": "h", "rating": [1, 2]}',
        12: '{"user_id": "u1", "item_id": ["j"], "rating": 4}',
        13: '{"user_id": {"id": 1}, "item_id": "k", "rating": 4}',
        14: '{"user_id": "{3F25-04E0}", "item_id": "[k]", "rating": 2}',
        15: '{"user_id": "u1", "item_id": "i", "rat',
    }
    report = import_files(workspace, [put(tmp_path, "d.jsonl", "\n".join(lines.values()))], "d")
    accepted = rows_of_json(workspace)
    bad = {r["line"] for r in report.rejects}
    assert bad == {2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 15}
    assert accepted == [("u1", "a", 4.0), ("7", "9007199254740993", 5.0), ("{3F25-04E0}", "[k]", 2.0)]
    assert all(r["file"] == "d.jsonl" and r["reason"] for r in report.rejects)


def rows_of_json(workspace: Workspace) -> list[tuple[str, str, float]]:
    table = DatasetStore(workspace).load("d").interactions
    return list(zip(table["user_id"].astype(str), table["item_id"].astype(str), table["rating"].tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ 14: ids

IDS = ["007", "NA", "9007199254740993", "null", "1e5", "0x1F", "nan", "True", "-0", "1.0", "2024-01-01", "=1+1", "٣"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "xlsx", "sqlite"])
def test_ids_are_the_same_strings_at_the_end(workspace: Workspace, tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame({"user_id": IDS, "item_id": IDS[::-1], "blank": ["", *["9007199254740993"] * (len(IDS) - 1)]})
    path = tmp_path / f"d.{form}"
    if form == "csv":
        frame.to_csv(path, index=False)
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif form == "parquet":
        frame.to_parquet(path)
    elif form == "xlsx":
        book = openpyxl.Workbook()
        for row in [list(frame.columns), *frame.to_numpy().tolist()]:
            book.active.append(row)
            for cell in book.active[book.active.max_row]:
                cell.data_type = "s"
        book.save(path)
    else:
        with sqlite3.connect(path) as database:
            frame.to_sql("events", database, index=False, dtype="TEXT")
        database.close()
    import_files(workspace, [path], "d")
    dataset = DatasetStore(workspace).load("d")
    assert dataset.interactions["user_id"].astype(str).tolist() == IDS
    assert dataset.interactions["item_id"].astype(str).tolist() == IDS[::-1]
    assert dataset.interactions["blank"].tolist() == frame["blank"].tolist()
    assert dataset.user_ids.tolist() == sorted(IDS)


# ------------------------------------------------------------------------------------------------ 15: named errors


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "empty"),
        ("spaces.csv", b" \n\t\n  \n", "no rows"),
        ("header.csv", b"user_id,item_id\n", "no row"),
        ("twice.csv", b"user_id,item_id,user_id\nu,a,v\n", "stands there twice"),
        ("nameless.csv", b"user_id,,item_id\nu,x,a\n", "has no name"),
        ("nobody.csv", b"item_id,rating\na,5\nb,3\n", "no user column|no file holds interactions"),
        ("nothing.csv", b"user_id,rating\nu,5\nv,3\n", "no item column|no file holds interactions"),
        ("bad.csv", b"user_id,item_id,rating\n,a,5\nu,,5\nu,a,x\n", "line 2"),
        ("empty.jsonl", b"\n\n", "no row|empty"),
        ("list.json", b"[]", "no row|empty"),
        ("cut.json", b'[{"user_id": "u", ', "not valid JSON|no row"),
    ],
)
def test_refusals_have_a_name_and_change_nothing(
    workspace: Workspace, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    import_files(workspace, [put(tmp_path, "good.csv", "user_id,item_id\nu,a\n")], "d")
    said = refused(workspace, put(tmp_path, name, content))
    assert name in said
    assert any(word in said for word in words.split("|"))


def test_filters_that_leave_nothing_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    import_files(workspace, [put(tmp_path, "d.csv", "user_id,item_id\nu,a\nv,b\nw,c\n")], "d")
    with pytest.raises(DataError, match=r"d.*(no|nothing|none)"):
        make_split(DatasetStore(workspace).load("d"), SplitSpec(min_user_interactions=5, min_item_interactions=5))


def test_the_command_itself_ends_with_two_and_one_sentence(workspace: Workspace, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "llmrec_core.cli", "data", "import", str(put(tmp_path, "e.csv", b"")), "--name", "d"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=120, env={**os.environ, "LLMREC_WORKSPACE": str(workspace.root)}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "e.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(workspace.datasets.iterdir())


# ------------------------------------------------------------------------------------------------ 16: large and bad

_IMPORT = """
import json, resource, sys
from llmrec_core.data import import_files
from llmrec_core.workspace import Workspace
import_files(Workspace.open(sys.argv[1] + "/first"), [sys.argv[2]], "d")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = import_files(Workspace.open(sys.argv[1] + "/second"), [sys.argv[3]], "d")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before, after, report.rows_accepted, report.rows_rejected, len(report.rejects)]))
"""


def bad_file(path: Path, n_rows: int) -> Counter[str]:
    """A CSV with 5 % bad rows of four kinds, spread over all of it."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20_000, n_rows), rng.integers(0, 5_000, n_rows)
    ratings, times = rng.integers(1, 6, n_rows), rng.integers(1_500_000_000, 1_700_000_000, n_rows)
    kinds = ["", "no user", "word", "time", "cells"]
    kind = np.array(kinds, object)[np.where(rng.random(n_rows) < 0.05, rng.integers(1, 5, n_rows), 0)]
    with path.open("w", encoding="utf-8") as stream:
        stream.write("user_id,item_id,rating,timestamp\n")
        for u, i, r, t, k in zip(users.tolist(), items.tolist(), ratings.tolist(), times.tolist(), kind, strict=True):
            if not k:
                stream.write(f"u{u},i{i},{r},{t}\n")
            elif k == "cells":
                stream.write(f"u{u},i{i},{r}\n")
            else:
                user, rating, time = "" if k == "no user" else f"u{u}", r, "soon" if k == "time" else t
                stream.write(f"{user},i{i},{'four' if k == 'word' else rating},{time}\n")
    return Counter(kind.tolist())


def test_a_million_rows_with_many_bad_ones_in_bounded_memory(workspace: Workspace, tmp_path: Path) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    bad_file(small, 300_000)
    counts = bad_file(large, 1_000_000)
    argv = [sys.executable, "-c", _IMPORT, str(workspace.root), str(small), str(large)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    before, after, accepted, rejected, listed = json.loads(done.stdout)
    assert accepted == counts[""]
    assert rejected == 1_000_000 - counts[""]
    assert listed == 1000
    # 700,000 more rows may cost what their ids and numbers take, not what their text takes.
    assert (after - before) / 1024 < 250
    rejects = DatasetStore(Workspace.open(workspace.root / "second")).rejects("d")
    assert len(rejects) == rejected
    reasons = rejects["reason"].value_counts()
    assert reasons["user_id is empty"] == counts["no user"]
    assert reasons[reasons.index.str.contains("four")].sum() == counts["word"]
    assert reasons[reasons.index.str.contains("soon")].sum() == counts["time"]
    assert reasons["3 cells instead of 4"] == counts["cells"]
    assert rejects["line"].is_monotonic_increasing
