"""The audit: append-only lines, each chained to the one before."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec_core.data.privacy import append_audit, read_audit
from llmrec_core.data.privacy.audit import exclusive
from llmrec_core.data.privacy.removals import (
    Removal,
    begin_removal,
    count_removal,
    end_removal,
    forgotten_among,
    pending_removals,
    removal_count,
)
from llmrec_core.errors import DataError, LLMRecError
from llmrec_core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace.open(tmp_path / "ws")
    for n in range(3):
        append_audit(workspace, "forget", dataset=f"d{n}", person=f"{n:032x}", counts={"interactions": n}, note="ü")
    return workspace


def lines_of(workspace):
    return (workspace.root / "privacy" / "audit.jsonl").read_text().splitlines()


def test_lines_are_numbered_and_read_back(workspace):
    audit = read_audit(workspace)
    assert audit.broken_at is None
    assert [(line.n, line.dataset, line.counts["interactions"]) for line in audit.lines] == [
        (1, "d0", 0),
        (2, "d1", 1),
        (3, "d2", 2),
    ]
    assert audit.as_json()["intact"] is True
    if os.name != "nt":
        assert stat.S_IMODE((workspace.root / "privacy" / "audit.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "broken_at"),
    [
        (lambda lines: [lines[0], lines[1].replace('"interactions":1', '"interactions":9'), lines[2]], 2),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [*lines, "torn {"], 4),
        (lambda lines: [*lines, json.dumps({"n": 4})], 4),
        (lambda lines: [*lines, "[" * 5000], 4),
    ],
)
def test_a_changed_missing_or_added_line_breaks_the_chain_there_and_nothing_is_appended(workspace, change, broken_at):
    path = workspace.root / "privacy" / "audit.jsonl"
    path.write_text("\n".join(change(lines_of(workspace))) + "\n")
    assert read_audit(workspace).broken_at == broken_at
    with pytest.raises(DataError, match=f"line {broken_at} of the audit"):
        append_audit(workspace, "forget")


def test_lines_of_processes_that_write_at_once_are_one_chain(workspace):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from llmrec_core.data.privacy.audit import append_audit; from llmrec_core.workspace import Workspace;"
        "place = Workspace.open(sys.argv[1]); [append_audit(place, 'test', note=sys.argv[3]) for _ in range(5)]"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(workspace.root), str(ROOT), str(n)]) for n in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    audit = read_audit(workspace)
    assert audit.broken_at is None
    assert len(audit.lines) == 13


def test_a_lock_is_held_against_others_and_goes_with_its_holder(workspace):
    with exclusive(workspace, "removal"):
        with pytest.raises(LLMRecError, match="another process is at work"), exclusive(workspace, "removal"):
            pass
        with exclusive(workspace, "other"):
            pass
    with exclusive(workspace, "removal"):
        pass


def test_removals_are_noted_counted_and_struck_off(workspace):
    removal = Removal("films", "ab" * 16, 5.0, ("run-1",))
    begin_removal(workspace, removal)
    assert pending_removals(workspace, "films") == [removal]
    assert pending_removals(workspace, "other") == []
    end_removal(workspace, removal)
    end_removal(workspace, removal)
    assert pending_removals(workspace) == []
    assert removal_count(workspace) == 0
    count_removal(workspace)
    assert removal_count(workspace) == 1


def test_who_was_removed_is_known_again_by_the_key_alone(workspace):
    from llmrec_core.data.privacy import person_hash, pseudonym, workspace_key

    assert forgotten_among(workspace, "films", ["anna"]) == []
    key = workspace_key(workspace)
    append_audit(workspace, "forget", dataset="films", person=person_hash(key, "anna"))
    assert forgotten_among(workspace, "films", ["bob", "anna", ""]) == ["anna"]
    hidden = pseudonym("user", "anna", key)
    assert forgotten_among(workspace, "films", [hidden]) == [hidden]
    assert forgotten_among(workspace, "books", ["anna"]) == []
