"""One key a workspace, whoever makes it; pseudonyms that hold over versions and tell nothing without it."""

import hmac
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.data.privacy import keyed_hash, person_hash, pseudonym, transform_ids, workspace_key
from llmrec_core.data.privacy import pseudonyms as pseudonyms_module
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(tmp_path / "ws")


def test_the_key_is_made_once_and_only_its_owner_may_read_it(workspace):
    assert workspace_key(workspace, create=False) is None
    key = workspace_key(workspace)
    assert len(key) == 32
    assert workspace_key(workspace) == key
    path = workspace.root / "privacy" / "key"
    assert path.read_bytes() == key
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # Nothing beside the key file tells the key.
    others = [p for p in workspace.root.rglob("*") if p.is_file() and p != path]
    assert not any(key in p.read_bytes() or key.hex() in p.read_text() for p in others)


def test_a_lost_a_damaged_and_a_foreign_key_are_errors_and_never_made_anew(workspace):
    key = workspace_key(workspace)
    path = workspace.root / "privacy" / "key"
    path.unlink()
    with pytest.raises(DataError, match="was made and is gone"):
        workspace_key(workspace)
    assert not path.exists()
    path.write_bytes(key[:-1])
    with pytest.raises(DataError, match="damaged"):
        workspace_key(workspace)
    path.write_bytes(bytes(32))
    with pytest.raises(DataError, match="not the key that was made"):
        workspace_key(workspace)
    path.write_bytes(key)
    assert workspace_key(workspace) == key


def test_processes_that_make_the_key_at_once_get_the_same(workspace):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]);"
        "from llmrec_core.data.privacy.keys import workspace_key; from llmrec_core.workspace import Workspace;"
        "place = Workspace.open(sys.argv[1]); print('ready', flush=True); sys.stdin.readline();"
        "print(workspace_key(place).hex())"
    )
    command = [sys.executable, "-c", code, str(workspace.root), str(ROOT)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    keys = {worker.communicate()[0].strip() for worker in workers}
    assert keys == {workspace_key(workspace).hex()}
    assert sorted(p.name for p in (workspace.root / "privacy").iterdir()) == ["key", "key.check"]


def test_a_pseudonym_is_the_hmac_of_kind_and_id():
    digest = hmac.new(KEY, b"user\x0042", "sha256").digest()
    bits = "".join(f"{byte:08b}" for byte in digest)[:100]
    letters = "".join("abcdefghijklmnopqrstuvwxyz234567"[int(bits[i : i + 5], 2)] for i in range(0, 100, 5))
    assert pseudonym("user", "42", KEY) == f"u_{letters}"
    assert pseudonym("user_id", "42", KEY) == pseudonym("user", "42", KEY)
    assert re.fullmatch("u_[a-z2-7]{20}", pseudonym("user", "42", KEY))
    different = {
        pseudonym("user", "42", KEY)[2:],
        pseudonym("item", "42", KEY)[2:],
        pseudonym("email", "42", KEY)[2:],
        pseudonym("user", "042", KEY)[2:],
        pseudonym("user", "42", bytes(32))[2:],
    }
    assert len(different) == 5
    assert pseudonym("item", "42", KEY).startswith("i_")
    assert pseudonym("email", "42", KEY).startswith("p_")
    with pytest.raises(InputError, match="empty id"):
        pseudonym("user", "", KEY)


@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=30))
def test_a_column_gets_the_pseudonyms_of_its_ids(ids):
    ids = [one if one is None else one.encode("utf-8", "ignore").decode() for one in ids]
    expected = [one if not one else pseudonym("user", one, KEY) for one in ids]
    assert transform_ids(pa.array(ids, pa.string()), "user", KEY).to_pylist() == expected
    chunked = pa.chunked_array([pa.array(ids[:5], pa.string()), pa.array(ids[5:], pa.string())])
    assert transform_ids(chunked, "user_id", KEY).to_pylist() == expected


def test_the_same_id_in_another_file_and_block_has_the_same_pseudonym(monkeypatch):
    monkeypatch.setattr(pseudonyms_module, "_BLOCK", 3)
    first = transform_ids(pa.array([f"u{i}" for i in range(10)]), "user", KEY).to_pylist()
    second = transform_ids(pa.array(["u9", "u0"]).dictionary_encode().cast(pa.string()), "user", KEY).to_pylist()
    assert second == [first[9], first[0]]
    assert len(set(first)) == 10


def test_two_ids_with_one_pseudonym_are_refused(monkeypatch):
    monkeypatch.setattr(pseudonyms_module.hmac, "digest", lambda key, message, how: bytes(32))
    with pytest.raises(DataError, match="same pseudonym"):
        transform_ids(pa.array(["a", "b"]), "user", KEY)


def test_a_person_has_one_hash_by_id_and_by_pseudonym_and_none_can_be_guessed_without_the_key():
    assert person_hash(KEY, "42") == person_hash(KEY, pseudonym("user", "42", KEY))
    assert person_hash(KEY, "42") != person_hash(bytes(32), "42")
    assert re.fullmatch("[0-9a-f]{32}", keyed_hash(KEY, "42"))
    # The audit's hash and the pseudonym do not give each other away.
    assert keyed_hash(KEY, "42")[:8] not in hmac.new(KEY, b"user\x0042", "sha256").hexdigest()
