"""Kept tokens of prompts hold the histories of users: they go when somebody is forgotten, and with the data."""

import shutil

import pytest
from privacy.forget_cases import DATASET, PERSON

from llmrec_core.data import DatasetStore
from llmrec_core.errors import InputError
from llmrec_core.forgetting import forget_user
from llmrec_core.workspace import Workspace


@pytest.fixture
def workspace(template, tmp_path):
    root = tmp_path / "ws"
    shutil.copytree(template.workspace.root, root)
    found = Workspace.open(root)
    for dataset, name in ((DATASET, "0f.arrow"), (DATASET, ".tokens.half"), ("other", "0f.arrow")):
        found.token_cache(dataset).mkdir(parents=True, exist_ok=True)
        (found.token_cache(dataset) / name).write_bytes(b"tokens of somebody")
    return found


def kept(workspace):
    return sorted(path.relative_to(workspace.root).as_posix() for path in (workspace.root / "cache").rglob("*.*"))


def test_whoever_is_forgotten_is_in_no_kept_tokens(workspace):
    before = kept(workspace)
    seen = forget_user(workspace, DATASET, PERSON, dry_run=True)
    assert (seen.tokens, kept(workspace)) == (2, before)
    assert "tokens of prompts: 2 kept files, cleared" in seen.lines()
    report = forget_user(workspace, DATASET, PERSON)
    assert report.as_json()["counts"]["tokens"] == 2
    assert kept(workspace) == ["cache/tokens/other/0f.arrow"], "another dataset is of other people"
    assert report.other_files == seen.other_files == ["serving.log"]


def test_a_deleted_dataset_takes_its_tokens_along(workspace):
    DatasetStore(workspace).delete(DATASET)
    assert kept(workspace) == ["cache/tokens/other/0f.arrow"]


def test_names_cannot_lead_elsewhere(workspace):
    with pytest.raises(InputError):
        workspace.token_cache("../runs")
