"""What changed between two versions, on tables small enough to count by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.data.versions import VersionChange, compare_versions
from llmrec_core.errors import DataError, NotFoundError
from llmrec_core.workspace import Workspace


@pytest.fixture
def store(tmp_path) -> DatasetStore:
    store = DatasetStore(Workspace.open(tmp_path))
    first = [("u1", "a", 5.0), ("u1", "b", 3.0), ("u2", "a", 1.0), ("u2", "a", 1.0)]
    # u2 is gone with one repeated row; u0 and item c are new, which moves every code; one rating changed.
    second = [("u1", "a", 4.0), ("u1", "b", 3.0), ("u0", "c", 2.0), ("u2", "a", 1.0)]
    third = [("u1", "b", 3.0)]
    for rows in (first, second, third):
        store.save(Dataset.from_frames("d", pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])))
    return store


def test_rows_and_ids_that_came_and_went(store):
    change = compare_versions(store, "d", 1, 2)
    # Added: u1-a-4, u0-c. Removed: u1-a-5 and one of the two equal rows of u2.
    assert change == VersionChange(2, 2, 1, 0, 1, 0)
    assert change.sentence == "+2 −2 rows, +1 users, +1 items"
    assert compare_versions(store, "d", 2, 1) == VersionChange(2, 2, 0, 1, 0, 1)
    assert compare_versions(store, "d", 2, 3).as_json() == {
        "rows_added": 0,
        "rows_removed": 3,
        "users_added": 0,
        "users_removed": 2,
        "items_added": 0,
        "items_removed": 2,
    }


def test_the_same_data_is_no_change(store):
    store.save(store.load("d", 3))
    assert compare_versions(store, "d", 3, 4) == VersionChange()
    assert VersionChange().sentence == "the same rows, users and items"


def test_missing_and_damaged_versions_are_told(store):
    with pytest.raises(NotFoundError):
        compare_versions(store, "d", 1, 9)
    (store.folder("d", 2) / "users.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be compared"):
        compare_versions(store, "d", 1, 2)
