"""Datasets in memory and on disk: aligned tables, versions, all or nothing, equal fingerprints for equal content."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.data.store import is_abandoned
from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.workspace import Workspace

INTERACTIONS = pd.DataFrame(
    {
        "user_id": ["u2", "u1", "u1", "007"],
        "item_id": ["b", "b", "NA", "x"],
        "rating": [5.0, 1.0, np.nan, 4.0],
        "timestamp": [10.0, 20.0, 30.0, 5.0],
        "device": ["tv", "", "phone", "tv"],
    }
)
ITEMS = pd.DataFrame({"item_id": ["b", "a"], "title": ["Banana", ""], "year": [1999.0, np.nan]})
USERS = pd.DataFrame({"user_id": ["u1"], "city": ["Vell"]})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_frames("d", INTERACTIONS, ITEMS, USERS)


def test_tables_are_aligned_and_complete(dataset: Dataset) -> None:
    assert dataset.item_ids.tolist() == ["NA", "a", "b", "x"]
    assert dataset.user_ids.tolist() == ["007", "u1", "u2"]
    assert dataset.items["title"].tolist() == ["NA", "a", "Banana", "x"]
    assert dataset.items["year"].tolist() == ["", "", "1999", ""]
    assert dataset.users["city"].tolist() == ["", "Vell", ""]
    table = dataset.interactions
    assert table["user_id"].tolist() == INTERACTIONS["user_id"].tolist()
    assert table["item_idx"].tolist() == [2, 2, 0, 3]
    assert table["user_idx"].tolist() == [2, 1, 1, 0]
    assert (table["rating"].dtype, table["timestamp"].dtype) == (np.float32, np.float64)
    assert table["device"].tolist() == ["tv", "", "phone", "tv"]


def test_look_ups(dataset: Dataset) -> None:
    assert dataset.item_idx("x") == 3
    assert dataset.user_idx("007") == 0
    assert dataset.profile("u1") == {"city": "Vell"}
    assert dataset.profile("u2") == {}
    assert dataset.profile("stranger") == {}
    assert dataset.item_text(2, "year") == "1999"
    for call in (lambda: dataset.item_idx("7"), lambda: dataset.user_idx("7"), lambda: dataset.item_text(0, "colour")):
        with pytest.raises(InputError):
            call()


def test_rating_scale_and_like_threshold(dataset: Dataset) -> None:
    assert dataset.rating_scale == (1.0, 5.0)
    assert dataset.like_threshold == 3.0
    same = Dataset.from_frames("d", INTERACTIONS.assign(rating=1.0))
    none = Dataset.from_frames("d", INTERACTIONS.drop(columns="rating"))
    for other in (same, none):
        assert other.rating_scale is None
        assert other.like_threshold is None


def test_category_field_is_the_default_category(dataset: Dataset) -> None:
    assert dataset.category_fields == ()
    named = Dataset.from_frames("d", INTERACTIONS, ITEMS.assign(category="Fruit"))
    assert named.category_fields == ("category",)


@pytest.mark.parametrize(
    ("interactions", "items", "words"),
    [
        (INTERACTIONS.drop(columns="user_id"), None, "no column 'user_id'"),
        (INTERACTIONS.head(0), None, "no interactions"),
        (INTERACTIONS.assign(user_id=["", "a", "b", "c"]), None, "empty user_id"),
        (INTERACTIONS.assign(timestamp=[1.0, np.nan, 2.0, 3.0]), None, "1 of 4 interactions have no timestamp"),
        (INTERACTIONS.assign(rating=[np.inf, 1.0, 2.0, 3.0]), None, "finite"),
        (INTERACTIONS, pd.DataFrame({"item_id": ["a", "a"]}), "more than once"),
    ],
)
def test_impossible_frames_are_refused(interactions: pd.DataFrame, items: pd.DataFrame | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Dataset.from_frames("d", interactions, items)


def test_what_is_stored_is_what_is_loaded(workspace: Workspace, dataset: Dataset) -> None:
    store = DatasetStore(workspace)
    stored = store.save(dataset)
    loaded = store.load("d")
    assert stored.folder == loaded.folder == workspace.datasets / "d" / "v1"
    for table in ("interactions", "items", "users"):
        pd.testing.assert_frame_equal(getattr(loaded, table), getattr(dataset, table))
    assert loaded.meta == stored.meta
    assert json.loads((loaded.folder / "meta.json").read_text())["fingerprint"] == dataset.fingerprint


def test_fingerprint_depends_on_content_alone(dataset: Dataset) -> None:
    again = Dataset.from_frames("other", INTERACTIONS, ITEMS.iloc[::-1], USERS, version=7)
    assert again.fingerprint == dataset.fingerprint
    changed = [
        Dataset.from_frames("d", INTERACTIONS.assign(rating=[5.0, 1.0, 0.0, 4.0]), ITEMS, USERS),
        Dataset.from_frames("d", INTERACTIONS.iloc[::-1], ITEMS, USERS),
        Dataset.from_frames("d", INTERACTIONS, ITEMS.assign(title=["Banan", "a"]), USERS),
        Dataset.from_frames("d", INTERACTIONS, ITEMS.rename(columns={"year": "years"}), USERS),
        # The same characters, cut elsewhere between two cells.
        Dataset.from_frames("d", INTERACTIONS.assign(device=["t", "v", "phone", "tv"]), ITEMS, USERS),
    ]
    assert len({dataset.fingerprint, *(other.fingerprint for other in changed)}) == 6


def test_the_fingerprint_is_that_of_these_bytes() -> None:
    """Pinned: a change would make every stored run look as if its data had changed."""
    tiny = Dataset.from_frames(
        "d", pd.DataFrame({"user_id": ["u"], "item_id": ["i"], "rating": [2.5], "timestamp": [7.0]})
    )
    assert tiny.fingerprint == "732ca36ab812daf6d2006164725e00654cda2b2926b33010193545e2149e3ecd"


def test_versions_list_and_delete(workspace: Workspace, dataset: Dataset) -> None:
    store = DatasetStore(workspace)
    store.save(dataset)
    store.save(Dataset.from_frames("d", INTERACTIONS.head(2)))
    store.save(Dataset.from_frames("a", INTERACTIONS))
    assert store.versions("d") == [1, 2]
    assert [(meta.name, meta.version, meta.n_interactions) for meta in store.list()] == [("a", 1, 4), ("d", 2, 2)]
    assert len(store.load("d", 1).interactions) == 4
    store.delete("d")
    assert store.versions("d") == []
    assert [path.name for path in workspace.datasets.iterdir()] == ["a"]
    for call in (lambda: store.load("d"), lambda: store.load("a", 2), lambda: store.delete("d")):
        with pytest.raises(NotFoundError):
            call()


def test_damaged_files_are_named(workspace: Workspace, dataset: Dataset) -> None:
    store = DatasetStore(workspace)
    folder = store.save(dataset).folder
    assert folder is not None
    items = (folder / "items.parquet").read_bytes()
    (folder / "items.parquet").write_bytes(items[: len(items) // 2])
    with pytest.raises(DataError, match=r"items\.parquet"):
        store.load("d")
    (folder / "items.parquet").write_bytes((folder / "users.parquet").read_bytes())
    with pytest.raises(DataError, match="row counts"):
        store.load("d")
    (folder / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json"):
        store.load("d")
    assert store.list() == []


def test_a_linked_folder_is_refused(workspace: Workspace, dataset: Dataset, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (workspace.datasets / "d").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InputError, match="not a dataset folder"):
        DatasetStore(workspace).save(dataset)
    assert list(outside.iterdir()) == []


def test_a_failed_save_leaves_nothing(workspace: Workspace, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DatasetStore(workspace)
    store.save(dataset)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec_core.data.store.write_json_atomic", full)
    with pytest.raises(OSError, match="No space"):
        store.save(dataset)
    assert [path.name for path in (workspace.datasets / "d").iterdir()] == ["v1"]


def test_a_kill_while_saving_leaves_the_old_version_whole(workspace: Workspace, dataset: Dataset) -> None:
    """The child saves over and over and is killed at some moment; what is there afterwards loads."""
    store = DatasetStore(workspace)
    store.save(dataset)
    code = (
        "import sys\nfrom llmrec_core.data import DatasetStore\nfrom llmrec_core.workspace import Workspace\n"
        "store = DatasetStore(Workspace.open(sys.argv[1]))\nd = store.load('d')\nprint('ready', flush=True)\n"
        "while True:\n    store.save(d)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.15)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    versions = store.versions("d")
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        assert store.load("d", version).fingerprint == dataset.fingerprint
    assert not list((workspace.datasets / "d").glob("v*/.*"))
    for left in (workspace.datasets / "d").glob(".build-*"):
        if not is_abandoned(left):
            # Killed before it said that it builds there, or when it was done: nobody can tell, so it goes with age.
            os.utime(left, (0, 0))
    store.save(dataset)
    assert not list((workspace.datasets / "d").glob(".build-*"))


def test_what_a_killed_process_left_goes_at_once_and_what_somebody_builds_stays(
    workspace: Workspace, dataset: Dataset
) -> None:
    store, place = DatasetStore(workspace), workspace.datasets / "d"
    code = (
        "import sys, time\nfrom llmrec_core.data import DatasetStore\nfrom llmrec_core.workspace import Workspace\n"
        "with DatasetStore(Workspace.open(sys.argv[1])).building('d') as build:\n"
        "    print(build.folder, flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    theirs = Path(child.stdout.readline().strip())
    # Nothing tells of these: a version of this program that locked nothing may still build there.
    unknown, old = place / ".build-unknown", place / ".build-old"
    for folder in (unknown, old):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    with store.building("d") as ours:
        assert theirs.is_dir()
        assert not old.exists()
        store.save(dataset)
        assert ours.folder.is_dir()
    child.kill()
    child.wait()
    child.stdout.close()
    assert theirs.is_dir()
    store.save(dataset)
    assert not theirs.exists()
    assert unknown.is_dir()
    assert sorted(path.name for path in (place / "v1").iterdir()) == sorted(
        path.name for path in (place / "v2").iterdir()
    )
    assert not (place / "v1" / ".builder").exists()


def test_imports_at_once_all_get_a_version(workspace: Workspace, dataset: Dataset) -> None:
    store, found = DatasetStore(workspace), []
    threads = [threading.Thread(target=lambda: found.append(store.save(dataset).version)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == store.versions("d") == [1, 2, 3, 4, 5, 6]
    for version in found:
        assert store.meta("d", version).version == version


def test_the_room_is_light() -> None:
    heavy = "('torch', 'transformers', 'streamlit', 'shap')"
    code = f"import sys, llmrec_core.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_written_with_ids_in_every_row_still_load(workspace: Workspace, dataset: Dataset) -> None:
    """Earlier versions of the Studio kept the ids as text beside 64-bit indices."""
    store = DatasetStore(workspace)
    folder = store.save(dataset).folder
    assert folder is not None
    frame = dataset.interactions.astype({"user_id": str, "item_id": str})
    frame.to_parquet(folder / "interactions.parquet")
    pd.testing.assert_frame_equal(store.load("d").interactions, dataset.interactions)


def test_an_index_that_names_nobody_is_damage(workspace: Workspace, dataset: Dataset) -> None:
    store = DatasetStore(workspace)
    folder = store.save(dataset).folder
    assert folder is not None
    frame = dataset.interactions.drop(columns=["user_id", "item_id"]).assign(user_idx=99)
    frame.to_parquet(folder / "interactions.parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet"):
        _ = store.load("d").interactions
