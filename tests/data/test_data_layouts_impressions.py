"""What was shown and what was chosen: MIND's files, JSON lines with ids or titles, and instruction records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_core.data import Dataset, DatasetStore, ImportReport, import_files
from llmrec_core.data._layouts import PlannedTable, expand
from llmrec_core.data._layouts.streams import title_id
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import open_sources
from llmrec_core.errors import DataError
from llmrec_core.workspace import Workspace

BEHAVIORS = (
    "1\tU1\t11/15/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n"
    "2\tU1\t11/15/2019 10:05:58 AM\tN1 N2\tN5-0 N6-1\n"
    "3\tU2\t11/14/2019 8:00:00 PM\t\tN1-1 N4-0\n"
    "4\tU3\t11/14/2019 8:00:00 PM\tN4\tN1-0 N2-0\n"
)
NEWS = (
    "N1\tsports\tgolf\tA long shot\tWhat a day\thttps://example.org/1\t[]\t[]\n"
    'N2\tnews\tworld\tThe "quiet" town\tNobody spoke\thttps://example.org/2\t[{"Label": "X"}]\t[]\n'
    "N3\tnews\tlocal\tRain\t\thttps://example.org/3\t[]\t[]\n"
)


def put(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plan(path: Path, *mapping: str) -> dict[str, PlannedTable]:
    corrections = parse_mapping(mapping)
    tables = [planned for source in open_sources(path, corrections) for planned in expand(source, corrections)]
    return {planned.kind: planned for planned in tables}


def rows(planned: PlannedTable) -> list[tuple[str, ...]]:
    table = planned.source.careful(None).table
    return list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))


def imported(tmp_path: Path, *paths: Path, mapping: tuple[str, ...] = ()) -> tuple[ImportReport, Dataset]:
    workspace = Workspace.open(tmp_path / "ws")
    report = import_files(workspace, paths, "d", mapping)
    return report, DatasetStore(workspace).load("d")


# ------------------------------------------------------------------------------------------------ impressions


def test_mind_behaviors_and_news(tmp_path: Path) -> None:
    report, dataset = imported(tmp_path, put(tmp_path, "behaviors.tsv", BEHAVIORS), put(tmp_path, "news.tsv", NEWS))
    table = dataset.interactions
    assert list(zip(table["user_id"], table["item_id"], strict=True)) == [
        ("U1", "N1"), ("U1", "N2"), ("U1", "N3"), ("U1", "N6"), ("U2", "N1"), ("U3", "N4"),
    ]  # fmt: skip
    # 15 November 2019, 9:05:58 UTC; the history carries the user's first time, an hour later comes the next click.
    assert table["timestamp"].tolist()[:4] == [1573808758.0] * 3 + [1573812358.0]
    assert report.rejects == []
    assert dataset.items.set_index("item_id").loc["N2", ["title", "description", "category"]].tolist() == [
        'The "quiet" town', "Nobody spoke", "news",
    ]  # fmt: skip
    shown = dataset.extra("impressions")
    assert shown is not None
    columns = ["impression_id", "user_id", "item_id", "label", "position"]
    assert shown[columns].head(4).to_numpy().tolist() == [
        ["1", "U1", "N3", "1", "1"],
        ["1", "U1", "N4", "0", "2"],
        ["2", "U1", "N5", "0", "1"],
        ["2", "U1", "N6", "1", "2"],
    ]  # fmt: skip
    assert len(shown) == 8


def test_lines_are_kept_and_clicks_come_after_what_was_before(tmp_path: Path) -> None:
    late_first = BEHAVIORS.splitlines()
    tables = plan(put(tmp_path, "behaviors.tsv", "\n".join([late_first[1], late_first[0], *late_first[2:]]) + "\n"))
    found = rows(tables["interactions"])
    assert found[:3] == [
        ("U1", "N1", "11/15/2019 9:05:58 AM"), ("U1", "N2", "11/15/2019 9:05:58 AM"),
        ("U1", "N6", "11/15/2019 10:05:58 AM"),
    ]  # fmt: skip
    lines = tables["interactions"].source.careful(None).lines
    assert lines is not None
    assert lines.tolist() == [1, 1, 1, 2, 3, 4]


def test_first_times_follow_the_order_of_day_and_month_that_was_told(tmp_path: Path) -> None:
    content = "1\tU1\t02/01/2024 10:00\tN1\tN3-1\n2\tU1\t01/03/2024 10:00\tN1\tN4-1\n"
    path = put(tmp_path, "behaviors.tsv", content)
    first = {told: rows(plan(path, f"day_first={told}")["interactions"])[0][2] for told in ("yes", "no")}
    assert first == {"yes": "02/01/2024 10:00", "no": "01/03/2024 10:00"}


def test_behaviors_are_known_by_their_cells(tmp_path: Path) -> None:
    tables = plan(put(tmp_path, "log.tsv", BEHAVIORS))
    assert tables["interactions"].layout == "impressions"
    assert len(rows(tables["impressions"])) == 8


def test_candidates_without_labels(tmp_path: Path) -> None:
    tables = plan(put(tmp_path, "behaviors.tsv", "1\tU1\t11/15/2019 9:05:58 AM\tN1 N2\tN3 N4\n"))
    assert [row[:2] for row in rows(tables["interactions"])] == [("U1", "N1"), ("U1", "N2")]
    assert any("no labels" in note for note in tables["interactions"].notes)
    assert [row[3:] for row in rows(tables["impressions"])] == [("N3", "", "1"), ("N4", "", "2")]


def test_json_lines_with_ids(tmp_path: Path) -> None:
    content = jsonl(
        {"user_id": "u1", "history": ["a1", "b2"], "candidates": ["c3", "d4"], "labels": [1, 0]},
        {"user_id": "u1", "history": ["a1", "b2", "c3"], "candidates": ["e5", "d4"], "labels": [0, 1]},
        {"user_id": "u2", "history": [], "candidates": ["a1"], "labels": [1]},
    )
    tables = plan(put(tmp_path, "shown.jsonl", content))
    assert set(tables) == {"interactions", "impressions"}
    assert rows(tables["interactions"]) == [("u1", "a1"), ("u1", "b2"), ("u1", "c3"), ("u1", "d4"), ("u2", "a1")]
    assert [row[2:] for row in rows(tables["impressions"])][2:] == [
        ("e5", "0", "1"),
        ("d4", "1", "2"),
        ("a1", "1", "1"),
    ]


def test_json_lines_with_titles_and_no_users(tmp_path: Path) -> None:
    content = jsonl(
        {"history": ["The Long Road", "Blue, Again"], "history_labels": [1, 0], "candidate": "Red Hour", "label": 1},
        {"history": ["Blue, Again"], "history_labels": [1], "candidate": "The Long Road", "label": 0},
    )
    path = put(tmp_path, "clicks.jsonl", content)
    report, dataset = imported(tmp_path, path)
    table = dataset.interactions
    titles = dict(zip(dataset.items["item_id"], dataset.items["title"], strict=True))
    assert set(titles.values()) == {"The Long Road", "Blue, Again", "Red Hour"}
    assert [(u, titles[i], r) for u, i, r in zip(table["user_id"], table["item_id"], table["rating"], strict=True)] == [
        ("clicks.jsonl:1", "The Long Road", 1.0), ("clicks.jsonl:1", "Blue, Again", 0.0),
        ("clicks.jsonl:1", "Red Hour", 1.0),
        ("clicks.jsonl:2", "Blue, Again", 1.0), ("clicks.jsonl:2", "The Long Road", 0.0),
    ]  # fmt: skip
    assert any("user of its own" in warning for warning in report.warnings)
    assert any("made from these" in warning for warning in report.warnings)
    assert dataset.extra("impressions") is not None
    # The id of a title is the same in every file, whatever spaces stand around and inside it.
    assert title_id(" The  Long Road") == title_id("The Long Road") in titles


@pytest.mark.parametrize(
    ("record", "clicked"),
    [
        ({"candidates": ["a1", "b2"], "labels": ["0", "1"]}, ["b2"]),
        ({"candidates": ["a1", "b2"], "labels": [True, False]}, ["a1"]),
        ({"candidates": ["a1", "b2"], "label": "b2"}, ["b2"]),
        ({"candidates": ["a1", "b2"], "label": 0}, ["a1"]),
        ({"candidate": "b2", "label": "Yes"}, ["b2"]),
        ({"candidate": "b2", "label": "no"}, []),
        ({"candidates": "a1-1 b2-0"}, ["a1"]),
    ],
)
def test_labels_of_every_form(tmp_path: Path, record: dict[str, Any], clicked: list[str]) -> None:
    tables = plan(put(tmp_path, "d.jsonl", jsonl({"user_id": "u1", "history": ["h1", "h2"], **record})))
    assert [row[1] for row in rows(tables["interactions"])] == ["h1", "h2", *clicked]


def test_records_that_do_not_fit_are_refused_once(tmp_path: Path) -> None:
    content = jsonl(
        {"history": ["First Film"], "history_labels": [1], "candidate": "Second Film", "label": 1},
        {"history": ["First Film"], "history_labels": [1, 0], "candidate": "Second Film", "label": 1},
        {"history": [], "history_labels": [], "candidate": None, "label": None},
    )
    report, dataset = imported(tmp_path, put(tmp_path, "d.jsonl", content + "{broken\n"))
    assert [r["line"] for r in report.rejects] == [2, 3, 4]
    assert report.rows_rejected == 3
    assert len(dataset.interactions) == 2


# ------------------------------------------------------------------------------------------------ instructions


def instruction(liked: list[str], disliked: list[str], target: str, answer: str) -> dict[str, str]:
    def quoted(titles: list[str]) -> str:
        return ", ".join(f'"{title}"' for title in titles)

    return {
        "instruction": "Tell from what the user liked whether they will like one more film. Answer Yes. or No.",
        "input": f"User Preference: {quoted(liked)}\nUser Unpreference: {quoted(disliked)}\n"
        f'Whether the user will like the target movie "{target}"?',
        "output": answer,
    }


def test_liked_and_disliked_titles_become_interactions(tmp_path: Path) -> None:
    records = [
        instruction(["North", "I Like Rain"], ["Target Practice"], "South", "Yes."),
        instruction(["South"], [], "North", "No."),
    ]
    report, dataset = imported(tmp_path, put(tmp_path, "train.json", json.dumps(records, indent=1)))
    titles = dict(zip(dataset.items["item_id"], dataset.items["title"], strict=True))
    table = dataset.interactions
    found = [(titles[i], r) for i, r in zip(table["item_id"], table["rating"], strict=True)]
    assert found == [
        ("North", 1.0), ("I Like Rain", 1.0), ("Target Practice", 0.0), ("South", 1.0), ("South", 1.0), ("North", 0.0),
    ]  # fmt: skip
    assert dataset.n_users == 2
    kept = dataset.extra("instructions")
    assert kept is not None
    assert kept["output"].tolist() == ["Yes.", "No."]
    assert any("quoted titles" in warning for warning in report.warnings)


def test_records_in_one_line_are_users_of_their_own(tmp_path: Path) -> None:
    records = [instruction(["North"], [], "South", "Yes."), instruction(["South"], [], "North", "No.")]
    tables = plan(put(tmp_path, "train.json", json.dumps(records)))
    assert [row[0] for row in rows(tables["interactions"])] == [
        "train.json:1",
        "train.json:1",
        "train.json:1.2",
        "train.json:1.2",
    ]


def test_records_of_two_files_are_never_one_user(tmp_path: Path) -> None:
    records = [instruction(["North"], [], "South", "Yes."), instruction(["South"], [], "North", "No.")]
    _, dataset = imported(
        tmp_path, put(tmp_path, "train.jsonl", jsonl(*records)), put(tmp_path, "test.jsonl", jsonl(*records))
    )
    assert dataset.user_ids.tolist() == ["test.jsonl:1", "test.jsonl:2", "train.jsonl:1", "train.jsonl:2"]
    assert dataset.interactions["user_id"].value_counts().tolist() == [2] * 4


def test_titles_that_stand_in_several_files_are_no_refused_rows(tmp_path: Path) -> None:
    first = [instruction(["North"], ["East"], "South", "Yes."), instruction(["North"], [], "West", "No.")]
    second = [instruction(["South"], [], "North", "No."), instruction(["North"], [], "Zenith", "Yes.")]
    report, dataset = imported(
        tmp_path,
        put(tmp_path, "a.jsonl", jsonl(*first) + "{broken\n"),
        put(tmp_path, "b.jsonl", jsonl(*second * 5, instruction(["North"], [], "West", "Maybe."))),
    )
    # What is truly bad is told, with its place; a title that an earlier file told is not.
    assert [(r["file"], r["line"]) for r in report.rejects] == [("a.jsonl", 3), ("b.jsonl", 11)]
    assert dataset.meta.rows_rejected == 2
    items = dataset.items
    assert sorted(items["title"]) == ["East", "North", "South", "West", "Zenith"]
    assert items["item_id"].is_unique


def test_a_record_that_asks_about_nothing_is_refused_with_its_line(tmp_path: Path) -> None:
    records = [instruction(["North"], ["East"], f"Film {n}", "Yes.") for n in range(9)]
    records.append({"instruction": "Say Yes. or No.", "input": "Nothing is known.", "output": "Yes."})
    records.append(instruction(["North"], [], "West", "Maybe."))
    report, dataset = imported(tmp_path, put(tmp_path, "d.jsonl", jsonl(*records) + "{broken\n"))
    # The broken line is told once, though three tables come from this file.
    assert [r["line"] for r in report.rejects] == [10, 11, 12]
    assert "asks about 0 quoted titles" in report.rejects[0]["reason"]
    assert "neither yes nor no" in report.rejects[1]["reason"]
    kept = dataset.extra("instructions")
    assert kept is not None
    assert len(kept) == 11


def test_texts_with_yes_and_no_can_be_trained_as_clicks(tmp_path: Path) -> None:
    records = [
        {"instruction": "Would this reader open it?", "input": "Rain in the north", "output": "Yes"},
        {"instruction": "Would this reader open it?", "input": "Old prices", "output": "No"},
    ]
    report, dataset = imported(tmp_path, put(tmp_path, "d.jsonl", jsonl(*records)))
    assert dataset.interactions["rating"].tolist() == [1.0, 0.0]
    item = str(dataset.interactions["item_id"].iloc[0])
    assert dataset.item_text(dataset.item_idx(item), "input") == "Rain in the north"
    assert dataset.item_text(dataset.item_idx(item), "instruction") == "Would this reader open it?"
    assert any("random split of rows" in warning for warning in report.warnings)


def test_titles_and_the_next_one(tmp_path: Path) -> None:
    records = [
        {"instruction": "Name the next film.", "input": 'They watched "North", "South".', "output": '"East"'},
        {"instruction": "Name the next film.", "input": 'They watched "East".', "output": "North"},
    ]
    tables = plan(put(tmp_path, "d.jsonl", jsonl(*records)))
    assert [row[1] for row in rows(tables["interactions"])] == list(
        map(title_id, ("North", "South", "East", "East", "North"))
    )


def test_plain_instructions_come_in_beside_interactions_only(tmp_path: Path) -> None:
    path = put(
        tmp_path, "chat.jsonl", jsonl({"instruction": "Tell of rain.", "input": "", "output": "It rains all day."})
    )
    with pytest.raises(DataError, match="no file holds interactions"):
        imported(tmp_path, path)
    log = put(tmp_path, "log.csv", "user_id,item_id\nu1,a\nu2,b\n")
    report, dataset = imported(tmp_path, path, log)
    kept = dataset.extra("instructions")
    assert kept is not None
    assert kept["output"].tolist() == ["It rains all day."]
    assert any("give no interactions" in warning for warning in report.warnings)


# ------------------------------------------------------------------------------------------------ round trips

shown = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sessions=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), max_size=3), shown), min_size=1, max_size=8
    ),
    form=st.sampled_from(["mind", "json"]),
)
def test_a_log_to_impressions_and_back(
    tmp_path: Path, sessions: list[tuple[int, list[int], list[tuple[int, bool]]]], form: str
) -> None:
    """Each user's whole past is the history of the next row; what comes back is each event once."""
    past: dict[int, list[int]] = {}
    expected: list[tuple[str, str]] = []
    written: list[tuple[int, list[int], list[tuple[int, bool]]]] = []
    for user, before, candidates in sessions:
        # What happened since the last row is seen for the first time in this row's history.
        expected += [(f"u{user}", f"n{item}") for item in before]
        past.setdefault(user, []).extend(before)
        written.append((user, list(past[user]), candidates))
        clicked = [item for item, chosen in candidates if chosen]
        expected += [(f"u{user}", f"n{item}") for item in clicked]
        past[user].extend(clicked)
    if form == "mind":
        content = "".join(
            f"{n}\tu{user}\t2024-01-01 00:00:{n:02d}\t{' '.join(f'n{i}' for i in history)}\t"
            f"{' '.join(f'n{i}-{int(c)}' for i, c in candidates)}\n"
            for n, (user, history, candidates) in enumerate(written)
        )
        path = put(tmp_path, "behaviors.tsv", content)
    else:
        path = put(
            tmp_path,
            "log.jsonl",
            jsonl(*(
                {
                    "user_id": f"u{user}", "history": [f"n{i}" for i in history],
                    "candidates": [f"n{i}" for i, _ in candidates], "labels": [int(c) for _, c in candidates],
                }
                for user, history, candidates in written
            )),
        )  # fmt: skip
    tables = plan(path)
    assert [row[:2] for row in rows(tables["interactions"])] == expected
    kept = [(row[1], row[-3], row[-2]) for row in rows(tables["impressions"])]
    assert kept == [(f"u{u}", f"n{i}", str(int(c))) for u, _, candidates in sessions for i, c in candidates]
