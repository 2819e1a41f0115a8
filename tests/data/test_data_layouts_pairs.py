"""Lists whose values tell more than the item: ratings and times beside it, in every spelling; ids that only look so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrec_core.data import DatasetStore, guess_roles, import_files
from llmrec_core.data._layouts.pairs import Pairs, find_pairs
from llmrec_core.workspace import Workspace

RATED = [("u1", "p1", 4.0), ("u1", "p2", 5.0), ("u2", "p3", 3.0), ("u3", "p2", 1.0), ("u3", "p1", 2.0)]
HISTORIES = {"u1": [("p1", 4), ("p2", 5)], "u2": [("p3", 3)], "u3": [("p2", 1), ("p1", 2)]}


def put(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def cells(mark: str, between: str) -> str:
    lists = (between.join(f"{item}{mark}{rating}" for item, rating in told) for told in HISTORIES.values())
    return "user\thistory\n" + "".join(f"{user}\t{told}\n" for user, told in zip(HISTORIES, lists, strict=True))


def objects(column: str, told: type) -> str:
    return "".join(json.dumps({"user": user, column: told(pairs)}) + "\n" for user, pairs in HISTORIES.items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("h.tsv", cells(":", between)) for between in ("|", ",", ";", " ", ", ")),
        *(("h.tsv", cells(mark, ";")) for mark in ("=", ",", " ", " : ")),
        ("h.tsv", cells(":", "|").replace("history", "ratings")),
        ("h.jsonl", objects("history", list)),
        ("h.jsonl", objects("ratings", list)),
        # Fields of an object are items: a matrix, as long as there are few of them.
        ("h.jsonl", objects("ratings", dict)),
        ("h.csv", "user,item1,item2\nu1,p1:4,p2:5\nu2,p3:3,\nu3,p2:1,p1:2\n"),
        ("h.txt", "u1 p1:4 p2:5\nu2 p3:3\nu3 p2:1 p1:2\n"),
    ],
)
def test_items_and_ratings_are_taken_apart(tmp_path: Path, name: str, content: str) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    import_files(workspace, [put(tmp_path, name, content)], "d")
    frame = DatasetStore(workspace).load("d").interactions
    found = zip(frame["user_id"].tolist(), frame["item_id"].tolist(), frame["rating"].tolist(), strict=True)
    assert sorted(found) == sorted(RATED)


def test_more_fields_than_a_table_has_are_items_too(tmp_path: Path) -> None:
    lines = [json.dumps({"user": f"u{u}", "plays": {f"s{u * 7 + n}": n for n in range(1, 9)}}) for u in range(9)]
    guess = guess_roles(put(tmp_path, "plays.jsonl", "\n".join(lines)), ["history:plays.jsonl=plays"])
    assert guess.roles == {"user_id": "user_id", "item_id": "item_id", "rating": "rating"}
    assert guess.preview.iloc[8].tolist() == ["u1", "s8", "1"]


@pytest.mark.parametrize(
    ("value", "roles"),
    [("{i}:{r}:{t}", ["rating", "timestamp"]), ("{i}:{t}:{r}", ["timestamp", "rating"]), ("{i}:{t}", ["timestamp"])],
)
def test_times_are_known_by_their_size(value: str, roles: list[str]) -> None:
    lists = [[value.format(i=f"p{n}{m}", r=n + m, t=1612137600 + n) for m in range(3)] for n in range(4)]
    assert find_pairs(lists) == Pairs(":", tuple(roles))
    days = [[v.replace("16121376", "2021-02-").replace("2021-02-0", "2021-02-1") for v in told] for told in lists]
    assert find_pairs(days) == Pairs(":", tuple(roles))


@pytest.mark.parametrize(
    "lists",
    [
        [["shop:1", "shop:2"], ["shop:3", "shop:1"]],
        [["movie:17", "show:29"], ["movie:31", "movie:53"]],
        [["12:3456", "12:3457", "13:12"], ["13:44", "12:45", "13:46"]],
        [["p1:4", "p2:new"], ["p3:old"]],
        [["Alien 3", "Jaws 2"], ["Rocky 4", "Cars 2"]],
        [["p1", "p2"], ["p3"]],
        [["p1:", "p2:"]],
        [[]],
    ],
)
def test_ids_that_hold_a_number_stay_whole(lists: list[list[str]]) -> None:
    assert find_pairs(lists) is None


def test_it_is_said_and_can_be_said_otherwise(tmp_path: Path) -> None:
    path = put(tmp_path, "h.csv", "user_id,history\nu1,p1:4|p2:5\nu2,p3:3\nu3,p2:1|p1:2\n")
    guess = guess_roles(path)
    assert any("each value as item, rating, parted by ':'" in note for note in guess.notes)
    assert any("pairs:FILE=no takes them whole" in note for note in guess.notes)
    whole = guess_roles(path, ["pairs:h.csv=no"])
    assert whole.preview["item_id"].tolist() == ["p1:4", "p2:5", "p3:3", "p2:1", "p1:2"]
    path = put(tmp_path, "ids.csv", "user_id,history\nu1,shop:1|shop:2\nu2,shop:3|shop:4\n")
    guess = guess_roles(path)
    assert guess.preview["item_id"].tolist() == ["shop:1", "shop:2", "shop:3", "shop:4"]
    assert any("pairs:FILE=rating takes the number" in note for note in guess.notes)
    assert guess_roles(path, ["pairs:ids.csv=rating"]).preview["rating"].tolist() == ["1", "2", "3", "4"]


@pytest.mark.parametrize(("name", "header", "joint"), [("h.csv", "user_id,history", "|"), ("w.csv", "user,i1,i2", ",")])
def test_a_row_with_a_value_that_is_no_pair_is_refused(tmp_path: Path, name: str, header: str, joint: str) -> None:
    lines = [f"u{n},p{n}:{n % 5 + 1}{joint}q{n}:{n % 4 + 1}" for n in range(100)]
    lines[60] = f"u60,p60{joint}q60:3"
    workspace = Workspace.open(tmp_path / "ws")
    report = import_files(workspace, [put(tmp_path, name, "\n".join([header, *lines]) + "\n")], "d")
    assert [reject["line"] for reject in report.rejects] == [62]
    assert "item, rating" in report.rejects[0]["reason"]
    rated = DatasetStore(workspace).load("d").interactions["rating"]
    assert rated.notna().all()
    assert len(rated) >= 198
