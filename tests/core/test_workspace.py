"""Names never leave the workspace; files are replaced whole."""

import json

import pytest

from llmrec_core.errors import InputError
from llmrec_core.workspace import Workspace, check_name, write_json_atomic, write_text_atomic


@pytest.mark.parametrize("name", ["a", "ml-100k", "Run_1.v2", "007", "x" * 64])
def test_plain_names_pass(name):
    assert check_name(name, "dataset") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "C:\\x",
        "\\\\server\\share",
        "%252e%252e",
        "a\0b",
        "-rf",
        ".hidden",
        "x" * 65,
        "a b",
        "a\n",
        "CON",
        "nul.txt",
        "dot.",
        "电影",
        "x; touch pwned",
    ],
)
def test_names_that_could_be_paths_are_refused(name):
    with pytest.raises(InputError) as caught:
        check_name(name, "dataset")
    assert caught.value.exit_code == 2


def test_workspace_order_of_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_WORKSPACE", str(tmp_path / "env"))
    assert Workspace.open().root == tmp_path / "env"
    assert Workspace.open(tmp_path / "own").root == tmp_path / "own"


def test_a_file_is_no_workspace(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="workspace cannot be made"):
        Workspace.open(file / "below")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json_atomic(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
