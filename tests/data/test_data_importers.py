"""Files of every dialect: the right rows, or a refusal that says where; never silently wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data import (
    Dataset,
    DatasetStore,
    ImportReport,
    UnansweredError,
    guess_files,
    guess_roles,
    import_files,
)
from llmrec_core.data._text_files import read_careful, read_fast, sniff
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

ROWS = "user_id,item_id,rating,timestamp\nu1,a,5,2024-01-01\nu1,b,3,2024-01-02\nu2,a,1,2024-01-03\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def put(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(workspace: Workspace, report: ImportReport) -> Dataset:
    return DatasetStore(workspace).load(report.dataset)


def triples(dataset: Dataset) -> list[tuple[str, str, float]]:
    table = dataset.interactions
    return list(zip(table["user_id"], table["item_id"], table["rating"].tolist(), strict=True))


def nothing_written(workspace: Workspace) -> bool:
    return not [path for path in workspace.datasets.rglob("*") if path.is_file()]


EPOCH = ROWS.replace("2024-01-01", "1704067200").replace("2024-01-02", "1704153600").replace("2024-01-03", "1704240000")
BODY = EPOCH.partition("\n")[2]
CHINESE = ROWS.replace("user_id,item_id,rating,timestamp", "用户编号,商品编号,评分,时间")
OBJECTS = [dict(zip(ROWS.split()[0].split(","), line.split(","), strict=True)) for line in ROWS.split()[1:]]
NUMBERED = [{**row, "rating": int(row["rating"])} for row in OBJECTS]
EXPECTED = [("u1", "a", 5.0), ("u1", "b", 3.0), ("u2", "a", 1.0)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comma.csv", ROWS),
        ("semicolon.csv", ROWS.replace(",", ";")),
        ("tab.tsv", ROWS.replace(",", "\t")),
        ("bar.csv", ROWS.replace(",", "|")),
        ("double_colon.dat", ROWS.replace(",", "::")),
        ("bom.csv", b"\xef\xbb\xbf" + ROWS.encode()),
        ("crlf.csv", ROWS.replace("\n", "\r\n")),
        ("cr_only.csv", ROWS.replace("\n", "\r")),
        ("utf16.csv", ROWS.encode("utf-16")),
        ("utf16_no_bom.csv", ROWS.encode("utf-16-le")),
        ("quoted.csv", "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in ROWS.splitlines())),
        ("no_last_newline.csv", ROWS.rstrip("\n")),
        ("blank_lines.csv", "\n" + ROWS.replace("\n", "\n\n")),
        ("trailing_separator.csv", ROWS.replace("\n", ",\n")),
        ("typed.inter", ("user_id:token,item_id:token,rating:float,timestamp:float\n" + BODY).replace(",", "\t")),
        ("chinese.csv", CHINESE),
        ("chinese_gbk.csv", CHINESE.encode("gbk")),
        ("movielens.csv", "userId,movieId,rating,timestamp\n" + BODY),
        ("milliseconds.csv", "uid,asin,score,ts\n" + BODY.replace("00\n", "00000\n")),
        ("slashes.csv", ROWS.replace("2024-01-0", "2024/01/0")),
        ("day_first.csv", ROWS.replace("2024-01-01", "01/01/2024").replace("2024-01-02", "02/01/2024")
         .replace("2024-01-03", "03/01/2024") + "u3,c,1,31/01/2024\n"),
        ("rows.jsonl", "\n".join(json.dumps(row) for row in NUMBERED)),
        ("rows.json", json.dumps(NUMBERED, indent=1)),
    ],
)  # fmt: skip
def test_every_dialect_gives_the_same_rows(
    workspace: Workspace, tmp_path: Path, name: str, content: str | bytes
) -> None:
    report = import_files(workspace, [put(tmp_path, name, content)], "d")
    dataset = load(workspace, report)
    assert triples(dataset)[:3] == EXPECTED
    assert report.rows_rejected == 0
    assert dataset.interactions["timestamp"].tolist()[:3] == [1704067200.0, 1704153600.0, 1704240000.0]


def test_u_data_without_header_is_recognised(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n")
    dataset = load(workspace, import_files(workspace, [path], "d"))
    assert triples(dataset) == [("196", "242", 3.0), ("186", "302", 3.0), ("22", "377", 1.0)]


def test_the_original_movielens_files_together(workspace: Workspace, tmp_path: Path) -> None:
    flags = ["0"] * 19
    flags[1] = flags[5] = "1"
    item = "242|Kolya é (1996)|24-Jan-1997||http://x|" + "|".join(flags) + "\n"
    files = [
        put(tmp_path, "u.data", "196\t242\t3\t881250949\n186\t242\t5\t891717742\n"),
        put(tmp_path, "u.item", item.encode("latin-1")),
        put(tmp_path, "u.user", "196|49|M|writer|55105\n186|39|F|executive|00000\n"),
    ]
    dataset = load(workspace, import_files(workspace, files, "d"))
    assert dataset.item_text(0, "title") == "Kolya é (1996)"
    assert dataset.item_text(0, "category") == "Action, Comedy"
    assert dataset.profile("186") == {"age": "39", "gender": "F", "occupation": "executive", "zip_code": "00000"}


def test_dat_files_of_movielens(workspace: Workspace, tmp_path: Path) -> None:
    files = [
        put(tmp_path, "ratings.dat", "1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n"),
        put(tmp_path, "movies.dat", "10::Alien: Part II (1986)::Action|Sci-Fi\n20::Café::Comedy\n".encode("latin-1")),
    ]
    dataset = load(workspace, import_files(workspace, files, "d"))
    assert dataset.items["title"].tolist() == ["Alien: Part II (1986)", "Café"]
    assert dataset.items["category"].tolist() == ["Action, Sci-Fi", "Comedy"]
    assert len(dataset.interactions) == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_stay_the_same_strings(workspace: Workspace, tmp_path: Path, suffix: str) -> None:
    ids = ["007", "NA", "9007199254740993", "null", "1e5", "0x1F", "nan", "True", "-0", "1.0"]
    frame = pd.DataFrame({"user_id": ids, "item_id": ids[::-1], "note": [""] + ["9007199254740993"] * 9})
    path = tmp_path / f"d.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    dataset = load(workspace, import_files(workspace, [path], "d"))
    assert dataset.interactions["user_id"].tolist() == ids
    assert dataset.interactions["item_id"].tolist() == ids[::-1]
    assert dataset.user_ids.tolist() == sorted(ids)
    assert dataset.interactions["note"].tolist() == frame["note"].tolist()


def test_numbers_in_json_keep_every_digit(workspace: Workspace, tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "d.jsonl",
        '{"user_id": 9007199254740993, "item_id": 7}\n'
        '{"user_id": 12, "item_id": null}\n{"user_id": 12, "item_id": "007"}\n',
    )
    report = import_files(workspace, [path], "d")
    table = load(workspace, report).interactions
    assert table["user_id"].tolist() == ["9007199254740993", "12"]
    assert table["item_id"].tolist() == ["7", "007"]
    assert report.rejects == [{"file": "d.jsonl", "line": 2, "column": "item_id", "reason": "item_id is empty"}]


def test_bad_rows_are_listed_with_their_lines(workspace: Workspace, tmp_path: Path) -> None:
    content = (
        "user_id,item_id,rating,timestamp,note\n"  # 1
        "u1,a,5,2024-01-01,fine\n"  # 2
        'u1,b,4,2024-01-02,"two\nlines, quoted"\n'  # 3-4
        "\n"  # 5
        ",c,4,2024-01-02,no user\n"  # 6
        "u2,,4,2024-01-02,no item\n"  # 7
        "u2,c,four,2024-01-02,word\n"  # 8
        "u2,c,4,soon,time\n"  # 9
        "u2,c,4\n"  # 10
        "u2,c,4,,blank time\n"  # 11
        "u2,c,inf,2024-01-02,infinite\n"  # 12
        'u3,"c,4,2024-01-02,open\n'  # 13
        "u4,d,2,2024-01-05,fine\n"  # 14
    )
    report = import_files(workspace, [put(tmp_path, "d.csv", content)], "d")
    assert [r["line"] for r in report.rejects] == [6, 7, 8, 9, 10, 11, 12, 13]
    assert {r["file"] for r in report.rejects} == {"d.csv"}
    reasons = {r["line"]: r["reason"] for r in report.rejects}
    assert reasons[6] == "user_id is empty"
    assert reasons[7] == "item_id is empty"
    assert "'four'" in reasons[8]
    assert "'soon'" in reasons[9]
    assert reasons[10] == "3 cells instead of 5"
    assert reasons[11] == "the time is empty"
    assert "'inf'" in reasons[12]
    assert "quote" in reasons[13]
    assert (report.rows_read, report.rows_accepted, report.rows_rejected) == (11, 3, 8)
    dataset = load(workspace, report)
    assert dataset.interactions["note"].tolist() == ["fine", "two\nlines, quoted", "fine"]
    assert dataset.folder is not None
    kept = DatasetStore(workspace).rejects("d")
    assert kept["line"].tolist() == [6, 7, 8, 9, 10, 11, 12, 13]
    assert kept["column"].tolist() == ["user_id", "item_id", "rating", "timestamp", "", "timestamp", "rating", ""]
    assert kept["text"][2] == "u2,c,four,2024-01-02,word"
    assert kept["reason"].tolist() == [r["reason"] for r in report.rejects]


def test_a_stray_quote_does_not_eat_the_rows_below(workspace: Workspace, tmp_path: Path) -> None:
    content = 'user_id\titem_id\ttitle\nu1\ta\t"Weird" Al\nu1\tb\t12" disk\nu2\ta\t"open\nu2\tc\tplain\nu3\tc\tplain\n'
    report = import_files(workspace, [put(tmp_path, "d.tsv", content)], "d")
    dataset = load(workspace, report)
    assert [r["line"] for r in report.rejects] == [4]
    assert dataset.item_text(dataset.item_idx("a"), "title") == '"Weird" Al'
    assert dataset.item_text(dataset.item_idx("b"), "title") == '12" disk'
    assert len(dataset.interactions) == 4


@pytest.mark.parametrize(
    ("cell", "kept", "refused"),
    [('"Weird" Al', '"Weird" Al', []), ('12" disk', '12" disk', []), ('"open', None, [3]), ('open"', 'open"', [])],
)
def test_one_odd_quote_in_a_clean_file(
    workspace: Workspace, tmp_path: Path, cell: str, kept: str | None, refused: list[int]
) -> None:
    path = put(tmp_path, "d.csv", f"user_id,item_id,note\nu1,a,x\nu2,b,{cell}\nu3,c,y\nu4,d,z\n")
    report = import_files(workspace, [path], "d")
    assert [r["line"] for r in report.rejects] == refused
    assert load(workspace, report).interactions["note"].tolist() == ["x", *([] if kept is None else [kept]), "y", "z"]


def test_a_decimal_comma_is_read_and_a_mixed_column_refuses_it(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "user_id;item_id;rating\nu1;a;3,5\nu1;b;4\nu2;a;0,5\n")
    assert load(workspace, import_files(workspace, [path], "d")).interactions["rating"].tolist() == [3.5, 4.0, 0.5]
    path = put(tmp_path, "mixed.csv", "user_id;item_id;rating\nu1;a;3,5\nu1;b;4.5\nu2;a;5\n")
    report = import_files(workspace, [path], "mixed")
    reason = "rating '3,5' is not a number (the decimal mark of this column is a point)"
    assert [(r["line"], r["reason"]) for r in report.rejects] == [(2, reason)]


def test_a_few_broken_characters_cost_only_their_lines(workspace: Workspace, tmp_path: Path) -> None:
    lines = [f"u{i},i{i},Café {i}".encode() for i in range(20)]
    lines[7] = b"u7,i7,Caf\xe9 7"
    path = put(tmp_path, "d.csv", b"user_id,item_id,title\n" + b"\n".join(lines) + b"\n")
    report = import_files(workspace, [path], "d")
    assert [(r["line"], r["reason"]) for r in report.rejects] == [(9, "the line is not valid utf-8")]
    assert load(workspace, report).item_text(0, "title") == "Café 0"


@pytest.mark.parametrize(
    ("encoding", "title"), [("cp1252", "Amélie à la crème"), ("gbk", "霸王别姬"), ("utf-16", "霸王别姬")]
)
def test_old_encodings(workspace: Workspace, tmp_path: Path, encoding: str, title: str) -> None:
    content = "user_id,item_id,title\n" + "".join(f"u{i},i{i},{title}\n" for i in range(5))
    report = import_files(workspace, [put(tmp_path, "d.csv", content.encode(encoding))], "d")
    assert set(load(workspace, report).items["title"]) == {title}
    forced = import_files(workspace, [tmp_path / "d.csv"], "d", [f"encoding:d.csv={encoding}"])
    assert set(load(workspace, forced).items["title"]) == {title}


def test_ambiguous_dates_are_refused_with_a_fix(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "user,item,date\nu1,a,03/04/2024\nu1,b,05/06/2024\n")
    with pytest.raises(DataError, match=r"day/month or month/day.*YYYY-MM-DD"):
        import_files(workspace, [path], "d")
    assert nothing_written(workspace)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "empty"),
        ("blank.csv", b"\n \n\n", "no rows"),
        ("header_only.csv", b"user_id,item_id\n", "no row of interactions"),
        ("program.csv", b"\x7fELF\x02\x01\x01" + bytes(100), "a program"),
        ("windows.csv", b"MZ\x90\x00" + bytes(100), "a program"),
        ("zip.csv", b"PK\x03\x04" + bytes(100), "zip"),
        ("cut.csv", b"\x1f\x8b\x08\x00", "cut short"),
        ("pickle.csv", b"\x80\x04\x95\x10\x00", "pickle"),
        ("zeros.csv", b"user_id,item_id\nu1,a\x00b\n", "zero bytes"),
        ("damaged.parquet", b"PAR1" + bytes(50), "damaged"),
        ("not.parquet", b"user_id,item_id\n", "not a Parquet"),
        ("no_user.csv", b"item_id,rating\na,5\nb,3\n", "no file holds interactions"),
        ("no_item.csv", b"user_id,rating\nu1,5\nu2,3\n", "no item column"),
        ("unknown.csv", b"foo,bar,baz\nx,y,z\np,q,r\n", "no user column"),
        ("no_header.csv", b"1,2,3\n4,5,6\n", "no user column"),
        ("twice.csv", b"user_id,item_id,user_id\nu1,a,u2\n", "stands there twice"),
        ("nameless.csv", b"user_id,,item_id\nu1,x,a\n", "column 2 has no name"),
        ("one_column.csv", b"user_id\nu1\nu2\n", "one column"),
        ("names.jsonl", b"{user_id: 'u1', item_id: 'a'}\n", "no row could be read"),
        ("all_bad.csv", b"user_id,item_id\n,a\nu1,\n", "line 2: user_id is empty"),
    ],
)
def test_refusals_name_the_file_and_write_nothing(
    workspace: Workspace, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        import_files(workspace, [put(tmp_path, name, content)], "d")
    assert name in str(caught.value)
    assert caught.value.fix
    assert nothing_written(workspace)


def test_a_refused_import_leaves_the_old_version(workspace: Workspace, tmp_path: Path) -> None:
    import_files(workspace, [put(tmp_path, "d.csv", ROWS)], "d")
    with pytest.raises(DataError):
        import_files(workspace, [put(tmp_path, "bad.csv", b"")], "d")
    assert DatasetStore(workspace).versions("d") == [1]
    put(tmp_path, "d.csv", ROWS + "u3,a,2,2024-01-04\n")
    assert load(workspace, import_files(workspace, [tmp_path / "d.csv"], "d")).version == 2


def test_an_equal_import_makes_no_version_and_says_so(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", ROWS)
    first = import_files(workspace, [path], "d")
    again = import_files(workspace, [path], "d")
    assert (first.version, first.unchanged) == (1, False)
    assert (again.version, again.unchanged, again.fingerprint) == (1, True, first.fingerprint)
    assert "the data equals version 1, which stays as it is" in again.warnings
    other = import_files(workspace, [path], "d", ["rating="])
    assert (other.version, other.unchanged) == (2, False)
    back = import_files(workspace, [path], "d")
    assert (back.version, back.unchanged) == (3, False)
    assert DatasetStore(workspace).versions("d") == [1, 2, 3]
    assert [path.name for path in (workspace.datasets / "d").iterdir() if path.name.startswith(".")] == []


def test_jsonl_faults_are_line_numbered(workspace: Workspace, tmp_path: Path) -> None:
    lines = [
        '{"user_id": "u1", "item_id": "a", "rating": 4}',
        '{"user_id": "u1", "item_id": "b", "rating": NaN}',
        "[" * 100_000,
        '["u1", "a"]',
        '{"user_id": "u2", "item_id": "a", "rating": "five"}',
        '{"user_id": "u2", "item_id": "b", "extras": ["x", "y"]}',
        '{"user_id": "u2", "item_id": "c"',
    ]
    report = import_files(workspace, [put(tmp_path, "d.jsonl", "\n".join(lines))], "d")
    assert [r["line"] for r in report.rejects] == [2, 3, 4, 5, 7]
    table = load(workspace, report).interactions
    assert table["item_id"].tolist() == ["a", "b"]
    assert table["extras"].tolist() == ["", "x, y"]
    assert np.isnan(table["rating"].tolist()[1])


def test_roles_can_be_corrected(workspace: Workspace, tmp_path: Path) -> None:
    inter = put(tmp_path, "log.csv", "who,what,when\nu1,a,2024-01-01\nu2,b,2024-01-02\n")
    things = put(tmp_path, "things.csv", "what,label,name\na,Apple,x\nb,Pear,y\nc,Plum,z\n")
    mapping = ["interactions:user_id=who", "interactions:item_id=what", "timestamp=when", "items:item_id=what"]
    mapping += ["items:title=label", "kind:things.csv=items"]
    report = import_files(workspace, [inter, things], "d", mapping)
    dataset = load(workspace, report)
    assert dataset.items["title"].tolist() == ["Apple", "Pear", "Plum"]
    assert dataset.items["name"].tolist() == ["x", "y", "z"]
    assert report.roles == {"user_id": "who", "item_id": "what", "timestamp": "when", "title": "label"}
    assert report.n_items == 3


def test_a_dict_of_corrections_and_taking_a_role_away(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "customer,product,stars\nu1,a,5\nu1,b,1\n")
    dataset = load(workspace, import_files(workspace, [path], "d", {"rating": ""}))
    assert dataset.rating_scale is None
    assert dataset.interactions["stars"].tolist() == ["5", "1"]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (["title"], "not of the form"),
        (["colour=x"], "unknown role"),
        (["users:rating=rating"], "no role"),
        (["rating=nowhere"], "no file has a column 'nowhere'"),
        (["kind:other.csv=items"], "no such file"),
        (["kind:d.csv=films"], "unknown kind"),
        (["encoding:d.csv=klingon"], "unknown encoding"),
        (["encoding:d.csv=rot13"], "unknown encoding"),
        (["encoding:d.csv=utf-16"], "not valid utf-16"),
        (['separator:d.csv="'], "cannot separate"),
        (["header:d.csv=maybe"], "yes or no"),
    ],
)
def test_wrong_corrections_are_refused(workspace: Workspace, tmp_path: Path, mapping: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        import_files(workspace, [put(tmp_path, "d.csv", ROWS)], "d", mapping)
    assert nothing_written(workspace)


@pytest.mark.parametrize(
    "name", ["../x", "..", "a/b", "C:\\x", "%2e%2e", "%252e", "nul", "x\0y", "", "\\\\host\\share"]
)
def test_hostile_names_touch_nothing(workspace: Workspace, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    path = put(tmp_path, "d.csv", ROWS)
    with pytest.raises(InputError):
        import_files(workspace, [path], name)
    assert sorted(tmp_path.rglob("*")) in (sorted([*before, path]), sorted([*before, path, workspace.datasets]))


def test_a_link_that_is_called_like_a_dataset_leads_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (workspace.datasets / "linked").symlink_to(outside)
    path = put(tmp_path, "d.csv", ROWS)
    with pytest.raises(InputError):
        import_files(workspace, [path], "linked")
    assert list(outside.iterdir()) == []
    assert [meta.name for meta in DatasetStore(workspace).list()] == []


def test_guess_shows_what_was_taken(tmp_path: Path) -> None:
    guess = guess_roles(
        put(tmp_path, "movies.csv", "movieId,title,genres\n1,Alien (1979),Horror|Sci-Fi\n2,Heat,Crime\n")
    )
    assert (guess.kind, guess.encoding, guess.separator, guess.header) == ("items", "utf-8", ",", True)
    assert guess.roles == {"item_id": "movieId", "title": "title", "category": "genres"}
    assert guess.preview["title"].tolist() == ["Alien (1979)", "Heat"]
    assert json.loads(json.dumps(guess.as_json()))["preview"][1]["movieId"] == "2"
    assert guess_roles(put(tmp_path, "users.csv", "id,age,city\n1,20,X\n2,30,Y\n")).roles == {"user_id": "id"}


def test_a_film_rating_that_is_no_number_is_not_the_rating(tmp_path: Path) -> None:
    guess = guess_roles(put(tmp_path, "d.csv", "user_id,item_id,rating,stars\nu1,a,PG-13,4\nu2,b,R,5\n"))
    assert guess.roles["rating"] == "stars"


def test_what_describes_the_event_stays_with_it(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", "user,item,type,name\nu1,a,view,Ann\nu1,b,buy,Ann\n")
    dataset = load(workspace, import_files(workspace, [path], "d"))
    assert dataset.interactions["type"].tolist() == ["view", "buy"]
    assert dataset.items["title"].tolist() == ["a", "b"]
    told = load(workspace, import_files(workspace, [path], "told", ["category=type"]))
    assert told.items["category"].tolist() == ["view", "buy"]


def test_an_average_rating_of_items_keeps_its_name(workspace: Workspace, tmp_path: Path) -> None:
    items = put(tmp_path, "items.csv", "item_id,title,rating,date\na,A,4.1,1999\n")
    dataset = load(workspace, import_files(workspace, [put(tmp_path, "d.csv", ROWS), items], "d"))
    assert dataset.items["rating"].tolist() == ["4.1", ""]
    assert dataset.items["date"].tolist() == ["1999", ""]


def test_a_missing_file_and_a_folder_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        import_files(workspace, [tmp_path / "nowhere.csv"], "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no table in it"):
        import_files(workspace, [tmp_path / "empty"], "d")
    with pytest.raises(DataError, match="no file"):
        import_files(workspace, [], "d")


def test_layout_can_be_told(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "a=b.csv", "u1^a^5\nu1^b^3\n")
    mapping = ["separator:a=b.csv=^", "header:a=b.csv=no", "user_id=column_1", "item_id=column_2", "rating=column_3"]
    assert triples(load(workspace, import_files(workspace, [path], "d", mapping))) == EXPECTED[:2]


def test_titles_inside_interactions_become_items(workspace: Workspace, tmp_path: Path) -> None:
    content = "user,item,title,genre,rating\nu1,a,Apple,Fruit,5\nu2,a,Apple,Fruit,4\nu2,b,,Tree,3\n"
    dataset = load(workspace, import_files(workspace, [put(tmp_path, "d.csv", content)], "d"))
    assert dataset.items["title"].tolist() == ["Apple", "b"]
    assert dataset.items["category"].tolist() == ["Fruit", "Tree"]
    content = "user,item,title,rating\nu1,a,Loved it,5\nu2,a,Hated it,1\nu2,b,Fine,3\nu3,b,So so,3\n"
    report = import_files(workspace, [put(tmp_path, "reviews.csv", content)], "reviews")
    dataset = load(workspace, report)
    assert dataset.items["title"].tolist() == ["a", "b"]
    assert dataset.interactions["interaction_title"].tolist() == ["Loved it", "Hated it", "Fine", "So so"]
    assert any("differs within one item" in warning for warning in report.warnings)


def test_column_names_become_identifiers_and_collisions_are_said(workspace: Workspace, tmp_path: Path) -> None:
    items = put(
        tmp_path, "items.csv", "item_id,title,Release Year,release-year,2nd name,for,keys,__init__\na,A,1,2,3,4,5,6\n"
    )
    report = import_files(workspace, [put(tmp_path, "d.csv", ROWS), items], "d")
    dataset = load(workspace, report)
    names = list(dataset.items.columns)
    assert names[2:] == ["release_year", "release_year_2", "field_2nd_name", "for_", "keys_", "init"]
    assert all(name.isidentifier() for name in names)
    assert any("'release_year_2'" in warning for warning in report.warnings)


def test_repeated_items_are_refused_and_counted(workspace: Workspace, tmp_path: Path) -> None:
    items = put(tmp_path, "items.csv", "item_id,title\na,First\nb,B\na,Second\n")
    report = import_files(workspace, [put(tmp_path, "d.csv", ROWS), items], "d")
    refused = {"file": "items.csv", "line": 4, "column": "item_id", "reason": "item_id 'a' came before"}
    assert report.rejects == [refused]
    assert report.rows_rejected == 0
    assert report.files[1].rows_rejected == 1
    assert load(workspace, report).item_text(0, "title") == "First"


def test_parquet_types(workspace: Workspace, tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([1, 2], pa.int64()),
            "item_id": pa.array([10.0, 20.0]),
            "rating": pa.array([4.5, None]),
            "timestamp": pa.array([1704067200, 1704153600], pa.timestamp("s")),
            "extras": pa.array([["x", "y"], None]),
            "kind": pa.array(["p", "q"]).dictionary_encode(),
        }
    )
    path = tmp_path / "d.parquet"
    pq.write_table(table, path)
    frame = load(workspace, import_files(workspace, [path], "d")).interactions
    assert frame["user_id"].tolist() == ["1", "2"]
    assert frame["item_id"].tolist() == ["10", "20"]
    assert frame["timestamp"].tolist() == [1704067200.0, 1704153600.0]
    assert frame["extras"].tolist() == ["x, y", ""]
    assert frame["rating"].tolist()[0] == 4.5
    pq.write_table(pa.table({"user_id": [9007199254740992.0], "item_id": ["a"]}), path)
    with pytest.raises(DataError, match="too large to be exact"):
        import_files(workspace, [path], "e")


def test_many_bad_rows_are_all_counted_and_some_listed(workspace: Workspace, tmp_path: Path) -> None:
    rows = ["u1,a,x" if i % 2 else f"u{i},a,4" for i in range(6000)]
    report = import_files(workspace, [put(tmp_path, "d.csv", "user_id,item_id,rating\n" + "\n".join(rows))], "d")
    assert (report.rows_read, report.rows_accepted, report.rows_rejected) == (6000, 3000, 3000)
    assert len(report.rejects) == 1000
    assert report.rejects[-1]["line"] == 2001
    assert any("3,000 rows were refused" in warning for warning in report.warnings)


def test_report_has_the_fixed_keys(workspace: Workspace, tmp_path: Path) -> None:
    document = import_files(workspace, [put(tmp_path, "d.csv", ROWS)], "d").as_json()
    assert list(document) == [
        "dataset", "rows_read", "rows_accepted", "rows_rejected", "rejects", "n_users", "n_items", "roles", "warnings",
    ]  # fmt: skip
    json.dumps(document, allow_nan=False)


CELLS = st.text(st.sampled_from(list("ab01 ,;\"\t|:'é霸\n")), max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), separator=st.sampled_from(",;\t|"))
def test_what_a_csv_writer_wrote_is_what_is_read(tmp_path: Path, rows: list[tuple[str, str]], separator: str) -> None:
    """Round trip through pandas' writer; where the fast reader dares, it agrees with the careful one."""
    frame = pd.DataFrame([("id", *row) for row in rows], columns=["user_id", "left", "right"])
    path = tmp_path / "d.csv"
    frame.to_csv(path, index=False, sep=separator, encoding="utf-8", lineterminator="\n")
    dialect = sniff(path, separator=separator)
    careful = read_careful(path, dialect)
    assert careful.rejects.count == 0
    assert careful.table.to_pylist() == frame.to_dict(orient="records")
    fast = read_fast(path, dialect)
    assert fast is None or fast.table.to_pylist() == careful.table.to_pylist()


def test_a_day_and_a_time_of_day_in_two_columns_are_one_moment(workspace: Workspace, tmp_path: Path) -> None:
    lines = [f"u{n % 3},i{n},{n % 28 + 1:02d}.01.2024,{n % 24}:30" for n in range(20)]
    path = put(tmp_path, "shop.csv", "customer,sku,date,time\n" + "\n".join([*lines, "u1,i2,13.02.2024,"]) + "\n")
    report = import_files(workspace, [path], "shop")
    assert report.roles["timestamp"] == "date time"
    moments = load(workspace, report).interactions["timestamp"].to_list()
    assert moments[:-1] == [1704067200 + (n % 28) * 86400 + (n % 24) * 3600 + 1800 for n in range(20)]
    assert moments[-1] == 1707782400, "a day without a time of day is its beginning"
    assert any("timestamp=date takes the days alone" in note for note in report.warnings)
    alone = import_files(workspace, [path], "days", ["timestamp=date"])
    assert load(workspace, alone).interactions["timestamp"][0] == 1704067200


def test_a_number_that_says_not_rated_in_rows_is_asked_about(workspace: Workspace, tmp_path: Path) -> None:
    lines = [f"u{n % 4},i{n},{-1 if n % 5 == 0 else n % 9 + 1}" for n in range(40)]
    path = put(tmp_path, "anime.csv", "user_id,anime_id,rating\n" + "\n".join(lines) + "\n")
    with pytest.raises(UnansweredError, match=r"holds -1 in 8 rows.*--map missing:anime.csv=-1 or --map missing") as e:
        import_files(workspace, [path], "anime")
    (question,) = guess_roles(path).questions
    assert e.value.question == question
    for answer in question.options:
        # What was answered can be seen, and changed.
        assert guess_roles(path, [f"{question.id}={answer}"]).questions == (question,)
    kept = load(workspace, import_files(workspace, [path], "kept", ["missing:anime.csv=none"]))
    assert kept.interactions["rating"].min() == -1
    left = load(workspace, import_files(workspace, [path], "left", ["missing:anime.csv=-1"]))
    assert len(left.interactions) == 40
    assert left.interactions["rating"].isna().sum() == 8
    assert left.interactions["rating"].min() == 1


def test_a_marker_behind_the_first_rows_is_asked_about_too(workspace: Workspace, tmp_path: Path) -> None:
    lines = [f"u{n % 40},i{n % 97},{99 if n == 1500 else n % 5 + 1}" for n in range(2000)]
    path = put(tmp_path, "late.csv", "user_id,item_id,rating\n" + "\n".join(lines) + "\n")
    assert guess_roles(path).questions == ()
    with pytest.raises(UnansweredError, match="holds 99 in 1 rows"):
        import_files(workspace, [path], "late")
    report = import_files(workspace, [path], "late", ["missing:late.csv=99"])
    assert load(workspace, report).rating_scale == (1, 5)


def test_a_line_of_totals_does_not_change_what_a_column_is_taken_for(tmp_path: Path) -> None:
    lines = [f"u{n % 4},i{n},{n % 5 + 1},2024-01-{n % 28 + 1:02d}" for n in range(40)]
    path = put(tmp_path, "t.csv", "user,item,stars,date\n" + "\n".join([*lines, "Total,,1183,"]) + "\n")
    guess = guess_roles(path)
    assert guess.questions == ()
    assert not [note for note in guess.notes if "counts" in note]


def test_files_of_one_name_are_told_apart_by_their_folders(workspace: Workspace, tmp_path: Path) -> None:
    places = []
    for number, folder in enumerate(("x/a", "y/a", "y/b")):
        (tmp_path / folder).mkdir(parents=True)
        places.append(put(tmp_path / folder, "ratings.csv", f"user_id,item_id,rating\nu{number},i{number},4\n,i,3\n"))
    single = put(tmp_path, "more.csv", "user_id,item_id,rating\nu9,i9,1\n")
    names = ["x/a/ratings.csv", "y/a/ratings.csv", "b/ratings.csv", "more.csv"]
    assert [guess.file for guess in guess_files([*places, single])] == names
    report = import_files(workspace, [*places, single], "d", ["rating:b/ratings.csv="])
    assert [file.file for file in report.files] == names
    assert [reject["file"] for reject in report.rejects] == names[:3]
    ratings = load(workspace, report).interactions.set_index("user_id")["rating"]
    assert ratings.isna().to_dict() == {"u0": False, "u1": False, "u2": True, "u9": False}
    folders = [guess.file for guess in guess_files([tmp_path / "x" / "a", tmp_path / "y" / "a"])]
    assert folders == names[:2], "folders of one name, too"


def test_a_part_that_was_given_is_no_guess(workspace: Workspace, tmp_path: Path) -> None:
    train, test = (put(tmp_path, name, f"{n}\t{n}\t4\t881250949\n{n}\t9\t3\t881250950\n")
                   for n, name in enumerate(("u1.base", "u1.test"), start=1))  # fmt: skip
    report = import_files(workspace, [], "d", parts={"train": [train], "test": [test]})
    assert not [note for note in report.warnings if "by its name" in note]
    assert load(workspace, report).interactions["part"].tolist() == ["train", "train", "test", "test"]
    guessed = import_files(workspace, [train, test], "e")
    assert len([note for note in guessed.warnings if "part by its name" in note]) == 2
