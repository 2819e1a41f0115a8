"""Events: whole lines, running numbers, and reading what was torn."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.runs.events import EventWriter, json_safe, read_events


def test_events_come_back_in_order_with_their_numbers(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "e.jsonl")
    writer.write("stage", stage="data")
    writer.write("train", step=1, loss=float("nan"), memory_bytes=np.int64(7), curve=np.array([1.0, np.inf]))
    writer.close()
    first, second = read_events(tmp_path / "e.jsonl")
    assert (first["n"], first["type"], first["stage"]) == (1, "stage", "data")
    assert (second["n"], second["loss"], second["memory_bytes"], second["curve"]) == (2, None, 7, [1.0, None])
    assert read_events(tmp_path / "e.jsonl", after=1) == [second]
    assert read_events(tmp_path / "e.jsonl", after=2) == []
    assert read_events(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    EventWriter(path).write("log", level="info", message="one")
    with open(path, "ab") as stream:
        stream.write(b'{"n": 2, "t": 1.0, "type": "lo')
        stream.flush()
        assert [e["n"] for e in read_events(path)] == [1]
        stream.write(b'g", "level": "info", "message": "two"}\n')
    assert [e["message"] for e in read_events(path)] == ["one", "two"]


def test_an_unreadable_line_is_told_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    EventWriter(path).write("log", level="info", message="one")
    with open(path, "ab") as stream:
        stream.write(b'{"n": 2, "t": 1.0, "ty')
    # The next writer ends the torn line first.
    EventWriter(path).write("log", level="info", message="three")
    events = read_events(path)
    assert [e["n"] for e in events] == [1, 2, 3]
    assert events[1]["level"] == "warning"
    assert "line 2" in events[1]["message"]
    assert events[2]["message"] == "three"


@pytest.mark.parametrize(
    "line", [b"[]", b"7", b'{"type": "log"}', b'{"type": "pwn", "t": 1}', b"\xff\xfe", b"[" * 9000]
)
def test_foreign_lines_become_warnings(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(line + b"\n")
    (event,) = read_events(path)
    assert (event["type"], event["level"], event["n"]) == ("log", "warning", 1)


def test_unknown_types_and_reserved_names_are_refused(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "e.jsonl")
    with pytest.raises(ValueError, match="unknown event type 'trian'"):
        writer.write("trian", step=1)
    with pytest.raises(ValueError, match="may not use n"):
        writer.write("log", n=3)
    assert read_events(tmp_path / "e.jsonl") == []


def test_threads_never_mix_their_lines(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "e.jsonl")
    threads = [
        threading.Thread(target=lambda: [writer.write("log", level="info", message="x" * 500) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raw = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [e["n"] for e in raw] == list(range(1, 201))


def test_a_line_cut_by_a_full_disk_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EventWriter(tmp_path / "e.jsonl")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    with pytest.raises(OSError) as caught:
        writer.write("log", level="info", message="lost")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "write", real)
    writer.write("log", level="info", message="kept")
    assert [(e["n"], e["level"]) for e in read_events(tmp_path / "e.jsonl")] == [(1, "warning"), (2, "info")]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_like)
def test_whatever_is_emitted_is_strict_json(value: object) -> None:
    safe = json_safe(value)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe


def test_odd_values_become_text() -> None:
    assert json_safe({1: Path("a/b"), "s": {3}, "t": (np.float32("nan"), np.bool_(True))}) == {
        "1": "a/b",
        "s": [3],
        "t": [None, True],
    }
