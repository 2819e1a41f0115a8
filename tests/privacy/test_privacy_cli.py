"""``data forget``, ``audit``, ``pseudonym``, ``personal``; and flagged runs in ``runs list`` and ``show``."""

import json
import shutil

import pytest
from privacy.forget_cases import DATASET, PERSON, places_of
from typer.testing import CliRunner

from llmrec_core.cli import app
from llmrec_core.data.privacy import pseudonym, workspace_key
from llmrec_core.runs.flags import SAW
from llmrec_core.workspace import Workspace


@pytest.fixture
def llmrec(template, tmp_path):
    root = tmp_path / "ws"
    shutil.copytree(template.workspace.root, root)

    def call(*args):
        return CliRunner().invoke(app, list(args), env={"LLMREC_WORKSPACE": str(root)})

    call.workspace = Workspace.open(root)
    call.run_id = template.run_id
    return call


def test_forget_shows_first_then_removes_then_says_so(llmrec):
    dry = llmrec("data", "forget", DATASET, "--user", PERSON, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "version 2: 8 interactions, 1 profile" in dry.stdout
    assert "Nothing was changed." in dry.stdout
    assert places_of(llmrec.workspace, PERSON)

    done = llmrec("data", "forget", DATASET, "--user", PERSON, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["flagged_runs"] == [llmrec.run_id]
    assert report["counts"]["interactions"] == 16
    assert PERSON not in done.stdout + done.stderr
    assert places_of(llmrec.workspace, PERSON) == []

    again = llmrec("data", "forget", DATASET, "--user", PERSON)
    assert again.exit_code == 0
    assert "forgotten before" in again.stdout

    audit = llmrec("data", "audit", "--json")
    document = json.loads(audit.stdout)
    assert document["intact"] is True
    assert [line["person"] for line in document["lines"]] == [report["person"]]
    assert report["person"][:8] in llmrec("data", "audit").stdout.replace("\n", "")

    listed = json.loads(llmrec("runs", "list", "--json").stdout)
    assert [run["warning"] for run in listed if run["run_id"] == llmrec.run_id] == [SAW]
    assert SAW in llmrec("runs", "show", llmrec.run_id).stderr
    assert SAW in llmrec("runs", "list").stderr


def test_a_typing_mistake_is_not_found_and_an_empty_id_is_refused(llmrec):
    missing = llmrec("data", "forget", DATASET, "--user", "zoe")
    assert missing.exit_code == 3
    assert "no version, run or feedback names this user" in missing.stderr
    assert llmrec("data", "forget", DATASET, "--user", "").exit_code == 2
    assert llmrec("data", "forget", "../x", "--user", "zoe").exit_code == 2


def test_a_pseudonym_is_looked_up_with_the_key_and_nothing_is_made_by_looking(llmrec):
    refused = llmrec("data", "pseudonym", "42")
    assert refused.exit_code == 2
    assert "no key yet" in refused.stderr
    assert not (llmrec.workspace.root / "privacy" / "key").exists()
    key = workspace_key(llmrec.workspace)
    assert llmrec("data", "pseudonym", "42").stdout.strip() == pseudonym("user", "42", key)
    assert json.loads(llmrec("data", "pseudonym", "42", "--item", "--json").stdout)["pseudonym"].startswith("i_")


def test_personal_data_is_listed_by_table_and_column(llmrec):
    found = json.loads(llmrec("data", "personal", DATASET, "--json").stdout)
    assert {(one["table"], one["column"], one["kind"]) for one in found} == {
        ("users", "user_id", "email"),
        ("users", "referred_by", "email"),
    }
    assert PERSON not in json.dumps(found)
    assert "mask:COLUMN" in llmrec("data", "personal", DATASET).stderr


def test_a_pseudonymised_person_is_forgotten_by_the_raw_id(llmrec, tmp_path):
    file = tmp_path / "raw.csv"
    file.write_text("user_id,item_id\nraw-id-77,a\nraw-id-78,b\nraw-id-77,b\n")
    done = llmrec("data", "import", str(file), "--name", "hidden", "--map", "pseudonymise=yes", "--json")
    assert done.exit_code == 0, done.stderr
    name = pseudonym("user", "raw-id-77", workspace_key(llmrec.workspace))
    assert places_of(llmrec.workspace, "raw-id-77") == []
    assert places_of(llmrec.workspace, name)
    report = json.loads(llmrec("data", "forget", "hidden", "--user", "raw-id-77", "--json").stdout)
    assert report["counts"]["interactions"] == 2
    assert places_of(llmrec.workspace, name) == []
    # Called by the pseudonym, it is the same person in the audit.
    again = json.loads(llmrec("data", "forget", "hidden", "--user", name, "--json").stdout)
    assert again["already_forgotten"] is True
    assert again["person"] == report["person"]
    back = json.loads(
        llmrec("data", "import", str(file), "--name", "hidden", "--map", "pseudonymise=yes", "--json").stdout
    )
    assert any("removed" in warning or "forgotten" in warning for warning in back["warnings"])
