"""The model process behind the pages: the same answers as in this process, typed errors, and a life of its own."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from llmrec_core.data import import_files
from llmrec_core.errors import InputError, NotFoundError, RunFailedError
from llmrec_core.runs import RunStore, run_foreground
from llmrec_core.serving.client import ServingClient, serving_client
from llmrec_core.specs import parse_run_spec
from llmrec_core.workspace import Workspace
from tests.cli.conftest import write_csvs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with one finished run of item-kNN beside popularity: (workspace, run id)."""
    workspace = Workspace.open(tmp_path_factory.mktemp("workspace"))
    ratings, items = write_csvs(tmp_path_factory.mktemp("files"))
    import_files(workspace, [ratings, items], "mini", [])
    spec = parse_run_spec(
        {
            "dataset": {"name": "mini"},
            "recommender": {"family": "item-knn"},
            "baselines": [{"family": "popularity"}, {"family": "content-knn", "model": None}],
            "evaluation": {"n_bootstrap": 100},
        }
    )
    run_id = RunStore(workspace).submit(spec)
    status = run_foreground(workspace, run_id, on_event=lambda event: None)
    assert status.state == "done", status.error
    return workspace, run_id


@pytest.fixture(scope="module")
def client(place):
    client = ServingClient(place[0])
    yield client
    client.stop()


def test_the_child_answers_as_the_actions_do(place, client):
    from llmrec_core.serving.actions import Server

    workspace, run_id = place
    here = Server(workspace).recommend(run_id, "u03", k=4)
    assert client.call("recommend", run_id=run_id, user_id="u03", k=4) == here
    assert [item["rank"] for item in here["items"]] == [1, 2, 3, 4]
    assert here["held_out"]


def test_a_changed_history_changes_the_ranking_and_is_not_recommended(place, client):
    _, run_id = place
    history = [{"item_id": "001", "rating": 5}, {"item_id": "003"}]
    answer = client.call("recommend", run_id=run_id, user_id="u03", k=20, history=history)
    assert [entry["item_id"] for entry in answer["history"]] == ["001", "003"]
    shown = [item["item_id"] for item in answer["items"]]
    assert not {"001", "003"} & set(shown)
    other = client.call("recommend", run_id=run_id, user_id="u03", k=20, history=[{"item_id": "000"}])
    assert shown != [item["item_id"] for item in other["items"]]


def test_a_stranger_with_a_history_is_served(place, client):
    answer = client.call("recommend", run_id=place[1], user_id="nobody", k=3, history=[{"item_id": "002"}])
    assert len(answer["items"]) == 3
    assert answer["held_out"] == []


def test_baselines_of_the_run_are_there(place, client):
    answer = client.call("recommend", run_id=place[1], user_id="u03", k=20, model="popularity")
    counts = [item["popularity"] for item in answer["items"]]
    assert counts == sorted(counts, reverse=True)


def test_similar_items_come_with_their_cosine(place, client):
    answer = client.call("similar", run_id=place[1], item_id="003", k=4, model="content-knn")
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    assert answer["item_id"] == "003"
    assert answer["title"]
    cosines = [item["similarity"] for item in answer["items"]]
    assert cosines == sorted(cosines, reverse=True)
    assert "003" not in [item["item_id"] for item in answer["items"]]
    assert answer["warnings"] == []


def test_explanations_add_up(place, client):
    answer = client.call("explain", run_id=place[1], user_id="u03", item_id="005", method="shap")
    assert answer["base_value"] + sum(p["value"] for p in answer["players"]) == pytest.approx(
        answer["target"], abs=1e-4
    )
    assert {p["kind"] for p in answer["players"]} <= {"history", "history-group"}


@pytest.mark.parametrize(
    ("action", "args", "kind", "words"),
    [
        ("recommend", {"user_id": "stranger"}, InputError, "stranger"),
        ("recommend", {"user_id": "u03", "k": 0}, InputError, "at least 1"),
        ("recommend", {"user_id": "u03", "history": [{"item_id": "none"}]}, InputError, "none"),
        ("recommend", {"user_id": "u03", "model": "../../etc"}, InputError, "etc"),
        ("explain", {"user_id": "u03", "item_id": "none"}, InputError, "none"),
        ("explain", {"user_id": "u03", "item_id": "005", "method": "attention"}, InputError, "attention"),
        ("similar", {"item_id": "003"}, InputError, "no item vectors"),
        ("similar", {"item_id": "none", "model": "content-knn"}, InputError, "none"),
        ("similar", {"item_id": "003", "k": 0}, InputError, "at least 1"),
        ("dance", {}, NotFoundError, "dance"),
    ],
)
def test_errors_keep_their_class_and_the_child_its_life(place, client, action, args, kind, words):
    with pytest.raises(kind, match=words):
        client.call(action, run_id=place[1], **args)
    assert client.running


def test_unknown_and_unfinished_runs(place, client):
    workspace, _ = place
    with pytest.raises(NotFoundError):
        client.call("recommend", run_id="nope", user_id="u03")
    queued = RunStore(workspace).submit(parse_run_spec({"dataset": {"name": "mini"}}))
    with pytest.raises(InputError, match="queued"):
        client.call("recommend", run_id=queued, user_id="u03")


def test_wrong_arguments_are_an_answer_too(place, client):
    with pytest.raises(Exception, match="TypeError"):
        client.call("recommend", run_id=place[1], user_id="u03", colour="blue")
    assert client.running


def test_a_killed_child_is_reported_and_replaced(place, client):
    _, run_id = place
    client.call("forget", run_id=run_id)
    assert client._process is not None
    client._process.kill()
    client._process.wait()
    assert not client.running
    assert client.call("recommend", run_id=run_id, user_id="u03", k=1)["items"], "a new child answers"
    os.kill(client._process.pid, signal.SIGSTOP)
    with pytest.raises(RunFailedError, match="no answer"):
        client.call("recommend", timeout_s=0.5, run_id=run_id, user_id="u03")
    assert not client.running, "a child that hangs is ended and its memory freed"


def test_the_child_does_not_outlive_its_parent(place):
    """kill -9 of the app closes the pipe, and the child leaves by itself."""
    workspace, run_id = place
    code = (
        "import sys, time\n"
        "from llmrec_core.serving.client import serving_client\n"
        "from llmrec_core.workspace import Workspace\n"
        "client = serving_client(Workspace.open(sys.argv[1]))\n"
        "client.call('forget', run_id=sys.argv[2])\n"
        "print(client._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root), run_id], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=30)


def test_one_client_a_workspace(place, tmp_path):
    assert serving_client(place[0]) is serving_client(Workspace.open(place[0].root))
    assert serving_client(place[0]) is not serving_client(Workspace.open(tmp_path))


def test_the_client_is_light():
    code = "import sys, llmrec_core.serving.client; print('torch' in sys.modules)"
    started = time.monotonic()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False", f"after {time.monotonic() - started:.1f} s"
