"""The import engine: the same rows and refusals on every path, bounded blocks, policies, and all or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from llmrec_core.data import Dataset, DatasetStore, ImportReport, guessing, import_files
from llmrec_core.data import _blocks as blocks
from llmrec_core.data import _rules as rules
from llmrec_core.data._engine import IdPool
from llmrec_core.data._raw import RawTable, Rejects
from llmrec_core.data._sources import Source, open_sources
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

HEADER = "user_id,item_id,rating,timestamp"
#: A failing example is a whole import; shrinking it would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def put(tmp_path: Path, name: str, lines: Sequence[str]) -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return path


def load(workspace: Workspace, report: ImportReport) -> Dataset:
    return DatasetStore(workspace).load(report.dataset, report.version)


def rows(dataset: Dataset) -> list[tuple[object, ...]]:
    table = dataset.interactions.drop(columns=["user_idx", "item_idx"])
    return [tuple(None if value != value else value for value in row) for row in table.astype(object).to_numpy()]


# ------------------------------------------------------------------------------------------------ one truth


def slowly(source: Source) -> Source:
    """The source with nothing but its careful reader."""
    return replace(source, batches=None, fast=lambda: None)


CELL = st.sampled_from(["a", "b", " a", "007", "NA", "", " ", "x" * 600, "tab\there", 'q"uote', "é霸"])
RATING = st.sampled_from(["5", "4.5", "0", "", "five", "inf", "-1", "1e40", " 3 "])
TIME = st.sampled_from(["2024-01-01", "2024-02-03 04:05:06", "2024-02-30", "soon", "", "2024-01-01T00:00:00Z"])
EXTRA = st.sampled_from(["", ",too many", ",", None])


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(CELL, CELL, RATING, TIME, EXTRA), min_size=1, max_size=25), quoted=st.booleans())
@example(
    cells=[
        ("", "tab\there", "4.5", "", ""),
        ("tab\there", " a", "", "2024-02-30", None),
        (" a", 'q"uote', "4.5", "2024-01-01", ",too many"),
        ("tab\there", "007", "", "2024-01-01", None),
    ],
    quoted=True,
)
@example(cells=[("a", "b", "5", "", "")] * 12 + [("b", "a", "5", "2024-01-01", "")], quoted=False)
def test_every_path_accepts_and_refuses_the_same(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str, str, str, str | None]], quoted: bool
) -> None:
    """Fast blocks, line by line, and blocks of five rows: the same table, and the same refusals at the same lines."""
    folder = tmp_path_factory.mktemp("paths")
    lines = [HEADER, "u,i,3,2024-01-01"]
    for user, item, rating, moment, more in cells:
        wrap = '"{}"'.format if quoted and '"' not in user else str
        lines.append(
            ",".join([wrap(user), item, rating]) if more is None else f"{wrap(user)},{item},{rating},{moment}{more}"
        )
        if more == "":
            lines.append("")
    path = put(folder, "d.csv", lines)
    found = []
    for way in ("fast", "careful", "small"):
        space = Workspace.open(folder / way)
        with pytest.MonkeyPatch.context() as patch:
            if way == "careful":
                patch.setattr(
                    guessing, "open_sources", lambda *given, **named: [slowly(s) for s in open_sources(*given, **named)]
                )
            if way == "small":
                patch.setattr(blocks, "BLOCK_ROWS", 5)
            report = import_files(space, [path], "d", ["zero=rating", "missing:d.csv=none"])
        kept = DatasetStore(space).rejects("d")
        assert len(kept) == report.rows_rejected == report.rows_read - report.rows_accepted
        told = kept[["line", "column", "reason"]].to_numpy().tolist()
        found.append((report.fingerprint, rows(load(space, report)), told, sorted(report.warnings)))
    assert found[0] == found[1]
    # Notes tell of the first block, which is smaller here.
    assert found[0][:3] == found[2][:3]
    lines_refused = [line for line, _, _ in found[0][2]]
    assert lines_refused == sorted(lines_refused)


def test_rules_say_what_breaks_them() -> None:
    ids = pa.array(["ok", "", "a\x07b", "y" * 513, "z" * 512], pa.large_string())
    said = {words: list(at) for words, at in rules.broken(rules.id_rules("user_id"), ids).items()}
    assert said == {
        "user_id is empty": [1],
        "user_id holds control characters": [2],
        "user_id is too long: {cell}": [3],
    }
    assert rules.broken(rules.id_rules("user_id"), ids[:1]) == {}
    ratings = np.array([1.0, np.nan, 2e30, -2e30])
    assert [list(at) for at in rules.broken(rules.rating_rules(), ratings).values()] == [[2, 3]]
    times = np.array([0.0, np.nan, 9e9])
    assert {w: list(at) for w, at in rules.broken(rules.time_rules(needed=True), times).items()} == {
        "the time is empty": [1],
        "time {cell} cannot be read": [2],
    }
    assert list(rules.broken(rules.time_rules(needed=False), times)) == ["time {cell} cannot be read"]
    long = pa.array(["a" * 100_001, "b" * 100_000], pa.large_string())
    assert [list(at) for at in rules.broken(rules.text_rules("note"), long).values()] == [[0]]


def test_a_person_known_from_refused_rows_alone_is_unknown(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01", "ghost,a,bad,2024-01-01", "u1,phantom,5,never"])
    dataset = load(workspace, import_files(workspace, [path], "d"))
    assert dataset.user_ids.tolist() == ["u1"]
    assert dataset.item_ids.tolist() == ["a"]


def test_an_id_pool_joins_blocks_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.data._engine._MAX_WAITING_IDS", 3)
    pool, told = IdPool(), [["b", "a"], ["a", "c", "d"], ["d"], ["e", "b"]]
    for words in told:
        pool.add(pa.array(words, pa.large_string()))
    ids, places = pool.ids()
    assert ids.to_pylist() == ["b", "a", "c", "d", "e"]
    assert [[ids[int(p)].as_py() for p in places_of] for places_of in places] == told


# ------------------------------------------------------------------------------------------------ size


def test_few_blocks_are_alive_at_any_time() -> None:
    """Reading ahead, looking and writing hold a handful of blocks, however long the file is."""
    alive: weakref.WeakSet[RawTable] = weakref.WeakSet()
    most = 0

    class Tracked(RawTable):
        __hash__ = object.__hash__

    def made() -> Iterator[RawTable]:
        for number in range(60):
            block = Tracked(pa.table({"c": [str(number)] * 10}), np.arange(10), Rejects("f"))
            alive.add(block)
            yield block

    seen = []
    for block in blocks.mapped(lambda block: block, blocks.prefetched(made())):
        seen.append(block.table["c"][0].as_py())
        most = max(most, len(alive))
    assert seen == [str(number) for number in range(60)]
    assert most <= 9


def test_a_reader_that_fails_ahead_fails_here_and_ends() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise DataError("torn")

    taken = blocks.prefetched(broken())
    assert next(taken) == 1
    with pytest.raises(DataError, match="torn"):
        next(taken)

    def endless() -> Iterator[int]:
        while True:
            yield 0

    unfinished = blocks.prefetched(endless())
    next(unfinished)
    unfinished.close()


def test_five_percent_bad_rows_are_all_kept_and_few_are_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 10_000)
    lines = [HEADER]
    for i in range(60_000):
        lines.append(f"u{i % 700},i{i % 90},{'bad' if i % 20 == 7 else 4},{1_600_000_000 + i}")
    report = import_files(workspace, [put(tmp_path, "d.csv", lines)], "d")
    assert (report.rows_read, report.rows_accepted, report.rows_rejected) == (60_000, 57_000, 3000)
    assert len(report.rejects) == 1000
    kept = DatasetStore(workspace).rejects("d")
    assert kept["line"].tolist() == [i + 2 for i in range(60_000) if i % 20 == 7]
    assert kept["text"][0] == "u7,i7,bad,1600000007"
    dataset = load(workspace, report)
    assert dataset.interactions["timestamp"].tolist() == [1_600_000_000 + i for i in range(60_000) if i % 20 != 7]
    assert dataset.folder is not None
    assert pq.read_metadata(dataset.folder / "interactions.parquet").num_rows == 57_000
    # Codes, not strings: ten million rows must not need gigabytes.
    assert dataset.interactions.memory_usage(deep=True).sum() < 57_000 * 45 + 200_000


def test_nothing_is_read_before_it_is_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    dataset = load(workspace, import_files(workspace, [put(tmp_path, "d.csv", [HEADER, "u,a,5,2024-01-01"])], "d"))
    assert dataset.folder is not None
    (dataset.folder / "interactions.parquet").unlink()
    assert (dataset.n_users, dataset.items["item_id"].tolist()) == (1, ["a"])
    with pytest.raises(DataError, match=r"interactions\.parquet"):
        _ = dataset.interactions


# ------------------------------------------------------------------------------------------------ what is said


REPEATED = [
    HEADER,
    "u1,a,1,2024-01-03",  # the latest of u1, a
    "u1,b,2,2024-01-01",
    "u1,a,5,2024-01-01",
    "u2,a,,2024-01-01",
    "u2,a,4,2024-01-01",  # as late as the row before: the last in the file
    "u1,a,3,2024-01-02",
]


@pytest.mark.parametrize(
    ("policy", "expected", "merged"),
    [
        (
            "keep",
            [("u1", "a", 1), ("u1", "b", 2), ("u1", "a", 5), ("u2", "a", None), ("u2", "a", 4), ("u1", "a", 3)],
            0,
        ),
        ("last", [("u1", "a", 1), ("u1", "b", 2), ("u2", "a", 4)], 3),
        ("mean", [("u1", "a", 3), ("u1", "b", 2), ("u2", "a", 4)], 3),
        ("count", [("u1", "a", 3), ("u1", "b", 1), ("u2", "a", 2)], 3),
    ],
)
def test_duplicates_by_policy(
    workspace: Workspace, tmp_path: Path, policy: str, expected: list[tuple[object, ...]], merged: int
) -> None:
    report = import_files(workspace, [put(tmp_path, "d.csv", REPEATED)], "d", [f"duplicates={policy}"])
    dataset = load(workspace, report)
    assert [row[:3] for row in rows(dataset)] == expected
    assert (report.rows_read, report.rows_accepted, report.rows_merged) == (6, 6, merged)
    assert dataset.meta.rows_merged == merged
    assert any(f"duplicates={policy}" in note for note in report.warnings) == (merged > 0)
    assert dataset.meta.mapping == (f"duplicates={policy}",)
    assert (dataset.rating_scale is None) == (policy == "count")


def test_exact_repeats_are_kept_and_counted(workspace: Workspace, tmp_path: Path) -> None:
    lines = [HEADER, *["u1,a,5,2024-01-01"] * 3, "u1,a,4,2024-01-01", "u1,b,5,2024-01-01"]
    report = import_files(workspace, [put(tmp_path, "d.csv", lines)], "d")
    assert report.rows_accepted == 5
    assert any(note.startswith("2 interactions repeat an earlier row exactly") for note in report.warnings)


def test_parts_stay_with_their_rows(workspace: Workspace, tmp_path: Path) -> None:
    train = put(tmp_path, "a.csv", [HEADER, "u1,a,5,2024-01-01", "u1,b,4,2024-01-02"])
    test = put(tmp_path, "b.csv", [HEADER, "u1,a,1,2024-01-03"])
    valid = put(tmp_path, "c.csv", [HEADER, "u2,a,3,2024-01-04"])
    items = put(tmp_path, "items.csv", ["item_id,title", "a,Apple", "b,Pear"])
    report = import_files(
        workspace, [items], "d", ["duplicates=last"], parts={"test": [test], "valid": [valid], "train": [train]}
    )
    table = load(workspace, report).interactions
    assert table["part"].tolist() == ["train", "train", "valid", "test"]
    assert table["item_id"].tolist() == ["a", "b", "a", "a"], "a repeat in another part is no repeat"
    assert {r.file: r.part for r in report.files} == {
        "a.csv": "train",
        "c.csv": "valid",
        "b.csv": "test",
        "items.csv": None,
    }
    said = import_files(workspace, [train, test], "e", ["part:a.csv=train", "part:b.csv=test"])
    assert load(workspace, said).interactions["part"].tolist() == ["train", "train", "test"]
    with pytest.raises(DataError, match="unknown part"):
        import_files(workspace, [], "f", parts={"tset": [test]})
    with pytest.raises(DataError, match="given twice"):
        import_files(workspace, [train], "f", parts={"test": [train]})


def test_further_tables_come_with_the_dataset(workspace: Workspace, tmp_path: Path) -> None:
    inter = put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01"])
    triples = put(tmp_path, "kg.csv", ["head,relation,tail", "m1,directed_by,p1", "m1,,p2", "m2,starring,p1"])
    links = put(tmp_path, "link.csv", ["item_id,entity", "a,m1", "b,m2"])
    report = import_files(workspace, [inter, triples, links], "d", ["kind:kg.csv=knowledge", "kind:link.csv=links"])
    dataset = load(workspace, report)
    assert dataset.meta.extras == ("knowledge", "links")
    knowledge = dataset.extra("knowledge")
    assert knowledge is not None
    assert knowledge.to_numpy().tolist() == [["m1", "directed_by", "p1"], ["m2", "starring", "p1"]]
    assert [(r["file"], r["line"], r["column"]) for r in report.rejects] == [("kg.csv", 3, "relation")]
    assert dataset.extra("impressions") is None
    with pytest.raises(InputError, match="no table 'films'"):
        dataset.extra("films")
    put(tmp_path, "link.csv", ["item_id,entity", "a,m1", "b,m3"])
    again = import_files(workspace, [inter, triples, links], "d", ["kind:kg.csv=knowledge", "kind:link.csv=links"])
    assert (again.version, again.unchanged) == (2, False), "a changed companion is a change"


def test_a_table_that_is_read_again_forgets_what_it_refused_before(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stars in the third block make the column a richer one, and all of it is read anew."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 3)
    said: list[str] = []
    lines = ["user_id,item_id,rating", "u1,a,5", ",a,5", "u1,b,4", "u2,a,bad", "u2,b,3", "u2,c,2", "u3,a,4 out of 5"]
    report = import_files(workspace, [put(tmp_path, "d.csv", lines)], "d", progress=said.append)
    assert any("again" in line for line in said)
    assert [(r["line"], r["column"]) for r in report.rejects] == [(3, "user_id"), (5, "rating")]
    assert DatasetStore(workspace).rejects("d")["line"].tolist() == [3, 5]
    assert load(workspace, report).interactions["rating"].tolist() == [5.0, 4.0, 3.0, 2.0, 4.0]


def test_times_missing_here_and_there(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-02", "u1,b,5,", "u1,c,5,2024-01-01"])
    refused = import_files(workspace, [path], "refuse")
    assert [(r["line"], r["reason"]) for r in refused.rejects] == [(3, "the time is empty")]
    carried = load(workspace, import_files(workspace, [path], "carry", ["missing_time=keep-order"]))
    assert carried.interactions["timestamp"].tolist() == [1704153600.0, 1704153600.0, 1704067200.0]
    report = import_files(workspace, [path], "drop", ["missing_time=drop-all"])
    dropped = load(workspace, report)
    assert dropped.interactions["timestamp"].isna().all()
    assert not dropped.meta.has_timestamps
    assert any("some rows have no time" in note for note in report.warnings)


def test_a_file_without_times_beside_one_with_times_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    timed = put(tmp_path, "a.csv", [HEADER, "u1,a,5,2024-01-02"])
    bare = put(tmp_path, "b.csv", ["user_id,item_id,rating", "u1,b,5"])
    with pytest.raises(DataError, match=r"b\.csv.*no common order"):
        import_files(workspace, [timed, bare], "d")
    report = import_files(workspace, [timed, bare], "d", ["missing_time=drop-all"])
    assert not load(workspace, report).meta.has_timestamps


def test_zero_is_asked_for_and_told(workspace: Workspace, tmp_path: Path) -> None:
    lines = ["user_id,item_id,rating", *(f"u{i},a,{r}" for i, r in enumerate([0, 0, 0, 5, 4, 3, 0, 1, 2, 0]))]
    path = put(tmp_path, "d.csv", lines)
    with pytest.raises(DataError, match=r"zero.*zero=unrated"):
        import_files(workspace, [path], "d")
    assert DatasetStore(workspace).versions("d") == []
    unrated = load(workspace, import_files(workspace, [path], "d", ["zero=unrated"]))
    assert unrated.interactions["rating"].isna().sum() == 5
    assert unrated.rating_scale == (1.0, 5.0)
    rated = load(workspace, import_files(workspace, [path], "e", ["zero=rating"]))
    assert (rated.interactions["rating"] == 0).sum() == 5
    assert rated.rating_scale == (0.0, 5.0)


def test_one_file_of_several_is_corrected(workspace: Workspace, tmp_path: Path) -> None:
    inter = put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01", "u1,b,5,2024-01-01"])
    first = put(tmp_path, "items1.csv", ["item_id,title,label", "a,no,Apple"])
    second = put(tmp_path, "items2.csv", ["item_id,title,label", "b,Pear,no"])
    report = import_files(workspace, [inter, first, second], "d", ["title:items1.csv=label"])
    assert load(workspace, report).items["title"].tolist() == ["Apple", "Pear"]


# ------------------------------------------------------------------------------------------------ privacy


def test_no_user_id_is_left_under_pseudonyms(workspace: Workspace, tmp_path: Path) -> None:
    secret = "anna.secret@example.org"
    inter = put(
        tmp_path, "d.csv", [HEADER, f"{secret},a,5,2024-01-01", f"{secret},b,bad,2024-01-01", "u2,a,4,2024-01-02"]
    )
    users = put(tmp_path, "users.csv", ["user_id,city", f"{secret},Vell", f"{secret},Again"])
    report = import_files(workspace, [inter, users], "d", ["pseudonymise=yes"])
    dataset = load(workspace, report)
    assert dataset.n_users == 2
    assert all(user.startswith("u_") for user in dataset.user_ids)
    person = dataset.interactions["user_id"][0]
    assert dataset.profile(person) == {"city": "Vell"}
    assert report.rows_rejected == 1
    again = load(workspace, import_files(workspace, [inter], "other", ["pseudonymise=yes"]))
    assert again.interactions["user_id"][0] == person
    for path in workspace.datasets.rglob("*"):
        if path.suffix == ".parquet":
            assert secret not in pq.read_table(path).to_pandas().to_csv()
        elif path.is_file():
            assert secret not in path.read_text(encoding="utf-8")
    assert not any(secret in str(reject) for reject in report.rejects)


def test_text_columns_are_masked(workspace: Workspace, tmp_path: Path) -> None:
    lines = ["user_id,item_id,review", "u1,a,write to bob@example.org today", "u2,a,fine"]
    path = put(tmp_path, "d.csv", lines)
    dataset = load(workspace, import_files(workspace, [path], "d", ["mask:review=email"]))
    assert "bob@example.org" not in dataset.interactions["review"][0]
    assert dataset.interactions["review"].tolist()[1] == "fine"
    with pytest.raises(DataError, match="no text column 'nothing'"):
        import_files(workspace, [path], "e", ["mask:nothing=email"])


# ------------------------------------------------------------------------------------------------ all or nothing


KILLED = """
import os, signal, sys
from llmrec_core.data import _importing, importers
from llmrec_core.data import _engine, store
from llmrec_core.workspace import Workspace

workspace, path, owner, name, when, after = sys.argv[1:]
place = {"engine": _engine, "spill": _engine.Spill, "importing": _importing, "build": store.Build, "os": os}[owner]
real, calls = getattr(place, name), []


def deadly(*given, **more):
    calls.append(1)
    last = len(calls) == int(when)
    if last and after == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = real(*given, **more)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


setattr(place, name, deadly)
importers.import_files(Workspace.open(workspace), [path], "d")
print("survived")
"""


@pytest.mark.parametrize(
    ("owner", "name", "when", "after", "versions"),
    [
        ("spill", "add", 1, "after", [1]),
        ("engine", "write_side", 1, "before", [1]),
        ("importing", "write_side", 2, "after", [1]),
        ("os", "fsync", 3, "after", [1]),
        # The first name is that of the lock of who builds, the second that of the version.
        ("os", "rename", 1, "after", [1]),
        ("os", "rename", 2, "before", [1]),
        ("os", "rename", 2, "after", [1, 2]),
    ],
)
def test_kill_9_at_any_moment_leaves_whole_versions(
    workspace: Workspace, tmp_path: Path, owner: str, name: str, when: int, after: str, versions: list[int]
) -> None:
    old = import_files(workspace, [put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01"])], "d")
    more = put(tmp_path, "more.csv", [HEADER, "u1,a,5,2024-01-01", "u2,b,4,2024-01-02", "u2,c,bad,2024-01-02"])
    if (owner, name) == ("engine", "write_side"):
        owner, name = "engine", "_settled_ids"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(workspace.root), str(more), owner, name, str(when), after],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = DatasetStore(workspace)
    assert store.versions("d") == versions
    assert store.load("d", 1).fingerprint == old.fingerprint
    assert rows(store.load("d", 1)) == [("u1", "a", 5.0, 1704067200.0)]
    assert [meta.version for meta in store.list()] == versions[-1:]
    report = import_files(workspace, [more], "d")
    assert (report.version, report.unchanged) == (2, versions == [1, 2])
    assert len(store.load("d").interactions) == 2
    assert len(store.rejects("d")) == 1
    stale = time.time() - 7200
    for left in (workspace.datasets / "d").glob(".build-*"):
        os.utime(left, (stale, stale))
    put(tmp_path, "more.csv", [HEADER, "u9,a,5,2024-01-01"])
    import_files(workspace, [more], "d")
    assert not list((workspace.datasets / "d").glob(".build-*"))


def test_a_failed_import_leaves_no_trace(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        import_files(workspace, [put(tmp_path, "bad.csv", [HEADER, ",a,5,2024-01-01"])], "d")
    assert list(workspace.datasets.iterdir()) == []


def test_a_changed_file_makes_a_version_and_the_old_one_stays(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01"])
    first = import_files(workspace, [path], "d")
    put(tmp_path, "d.csv", [HEADER, "u1,a,4,2024-01-01"])
    second = import_files(workspace, [path], "d")
    assert (first.version, second.version) == (1, 2)
    store = DatasetStore(workspace)
    assert store.load("d", 1).interactions["rating"].tolist() == [5.0]
    assert store.load("d", 2).interactions["rating"].tolist() == [4.0]
    assert store.meta("d", 1).sources[0].sha256 != store.meta("d", 2).sources[0].sha256


def test_what_is_in_use_is_not_deleted(workspace: Workspace, tmp_path: Path) -> None:
    import_files(workspace, [put(tmp_path, "d.csv", [HEADER, "u1,a,5,2024-01-01"])], "d")
    store = DatasetStore(workspace)
    with pytest.raises(InputError, match=r"in use by run-7"):
        store.delete("d", in_use=lambda name: ["run-7"] if name == "d" else [])
    assert store.versions("d") == [1]
    store.delete("d", in_use=lambda name: [])
    assert store.versions("d") == []


def test_import_and_frames_give_one_fingerprint(workspace: Workspace, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", [HEADER + ",note", "u2,b,5,2024-01-01,x", "u1,a,4,2024-01-02,"])
    items = put(tmp_path, "items.csv", ["item_id,title", "b,Pear", "c,Plum"])
    imported = load(workspace, import_files(workspace, [path, items], "d"))
    frame = pd.DataFrame(
        {
            "user_id": ["u2", "u1"], "item_id": ["b", "a"], "rating": [5.0, 4.0],
            "timestamp": [1704067200.0, 1704153600.0], "note": ["x", ""],
        }
    )  # fmt: skip
    made = Dataset.from_frames("d", frame, pd.DataFrame({"item_id": ["b", "c"], "title": ["Pear", "Plum"]}))
    assert imported.fingerprint == made.fingerprint
    pd.testing.assert_frame_equal(imported.interactions, made.interactions)
    pd.testing.assert_frame_equal(imported.items, made.items)


def test_the_table_rules_leave_the_environment_alone():
    # The library sets variables for Spark when it is imported; one makes pyarrow drop zones in the whole process.
    script = (
        "import os; from llmrec_core.data._rules import id_rules; id_rules('user_id');"
        "print('PYARROW_IGNORE_TIMEZONE' in os.environ, 'SPARK_LOCAL_IP' in os.environ)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.split() == ["False", "False"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text('ab[]{}"\x00\x1f\x7f é', max_size=6), max_size=6), st.booleans())
def test_ids_judged_by_suspicion_are_judged_as_all_are(odd: list[str], long: bool) -> None:
    words = sorted({*odd, *(["x" * 600, "é" * 300] if long else [])})
    many = pa.array([*words, *(f"plain-{n}" for n in range(1100))], pa.large_string())
    found = rules.broken_ids("user_id", many)
    wanted = rules.broken(rules.id_rules("user_id"), many)
    assert {rule: rows.tolist() for rule, rows in found.items()} == {
        rule: rows.tolist() for rule, rows in wanted.items()
    }


ODD_NUMBERS = [np.nan, np.inf, -np.inf, 0.0, 7_258_118_400.0, 7_258_118_401.0, -2_208_988_801.0, 1e30, -2e30]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(ODD_NUMBERS), max_size=4), st.booleans())
def test_ranges_judged_by_their_ends_are_judged_as_every_number_is(odd: list[float], needed: bool) -> None:
    many = np.concatenate([np.arange(1e9, 1e9 + 1100), odd])
    for schema in (rules.rating_rules(), rules.time_rules(needed=needed)):
        wanted: dict[str, list[int]] = {}
        for start in range(0, len(many), 500):
            # So few are judged one by one.
            for rule, at in rules.broken(schema, many[start : start + 500]).items():
                wanted.setdefault(rule, []).extend((at + start).tolist())
        assert {rule: at.tolist() for rule, at in rules.broken(schema, many).items()} == wanted
    assert rules.broken(rules.time_rules(needed=True), np.full(1100, np.nan))["the time is empty"].tolist() == [
        *range(1100)
    ]


def test_only_visible_letters_and_digits_without_brackets_are_plain():
    words = pa.array(["a b", "user-1", "z", "", "[x", "{x", "é", "a\x7f"], pa.large_string())
    assert [rules.is_plain(words.slice(at, 1)) for at in range(len(words))] == [
        False, True, True, True, False, False, False, False,
    ]  # fmt: skip
    assert rules.is_plain(words.slice(1, 3))
    assert rules.is_plain(words[:0])
