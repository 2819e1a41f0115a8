"""Texts about items from a finished run: on the command line, through the serving action, and on the screen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from conformance.families import FAMILIES, VARIANTS, tiny_split

from llmrec_core.baselines import PopularityRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.errors import InputError
from llmrec_core.serving.actions import LoadedRun, Server
from llmrec_core.workspace import Workspace
from tests.cli.conftest import Llmrec


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Server:
    """Answers for three runs: "writes" has a tiny random decoder, "ranks" one that re-ranks, "counts" a baseline."""
    models = tmp_path_factory.mktemp("models")
    split = tiny_split()
    context = FitContext(workspace_models=models, device="cpu")
    counts = PopularityRecommender()
    counts.fit(split, context)
    runs = {}
    writers = {"writes": FAMILIES["generative"], "ranks": VARIANTS["pipeline, generative"]}
    made = {name: make(split, context) for name, make in writers.items()}
    for run_id, recommender in {**made, "counts": counts}.items():
        run = SimpleNamespace(run_id=run_id, folder=models, warning=None)
        runs[run_id] = LoadedRun(run, split.dataset, split, context, {"model": recommender})  # type: ignore[arg-type]
    server = Server(Workspace.open(tmp_path_factory.mktemp("workspace")))
    server.load = runs.__getitem__  # type: ignore[method-assign]
    return server


def test_the_command_says_what_the_action_does(server, monkeypatch):
    monkeypatch.setattr("llmrec_core.cli.ask._server", lambda workspace: server)
    llmrec = Llmrec(server.workspace.root)
    answer = llmrec("say", "writes", "--user", "u3", "--item", "i05", "--json").json
    assert answer == server.say("writes", "u3", "i05")
    assert (answer["item_id"], answer["title"], answer["seed"]) == ("i05", "film 5 of the night", 0)
    assert answer["text"]
    assert all(claim["backed_by"] for claim in answer["claims"])
    assert "category: drama" in answer["prompt"]
    shown = llmrec("say", "writes", "--user", "u3", "--item", "i05")
    assert answer["text"] in shown.stdout.replace("\n", " ")
    for claim in answer["claims"]:
        assert claim["text"] in shown.stdout


def test_what_cannot_be_said_is_refused(server):
    with pytest.raises(InputError, match="no user"):
        server.say("writes", "nobody", "i05")
    with pytest.raises(InputError, match="none"):
        server.say("writes", "u3", "none")
    with pytest.raises(InputError, match="writes no texts"):
        server.say("counts", "u3", "i05")
    ranks = server.say("ranks", "u3", "i05")
    assert ranks["text"]
    assert "category: drama" in ranks["prompt"]
    stranger = server.say("writes", "nobody", "i05", history=[{"item_id": "i01", "rating": 5}])
    assert "film 1 of the night" in stranger["prompt"]


def answered(**changes: Any) -> dict[str, Any]:
    claim = {"kind": "title", "start": 0, "end": 4, "text": "Heat", "backed_by": ["title"]}
    wrong = {"kind": "number", "start": 3, "end": 4, "text": "9", "backed_by": []}
    return {
        "text": "Heat <b>is</b> one.",
        "source": "model",
        "claims": [claim],
        "rejected": [{"text": "of *9*", "unbacked": [wrong]}, {"text": "", "unbacked": []}],
        "prompt": "title: Heat",
        "seed": 0,
        **changes,
    }


def shown(answer: dict[str, Any]) -> Any:
    from streamlit.testing.v1 import AppTest

    def script(answer):  # type: ignore[no-untyped-def]
        from pages._studio.written import show_written

        show_written(answer)

    app = AppTest.from_function(script, default_timeout=60, args=(answer,)).run()
    assert not app.exception
    return app


def test_the_screen_shows_what_backs_the_text():
    app = shown(answered())
    assert app.dataframe[0].value.to_dict("records") == [{"says": "Heat", "kind": "title", "backed by": "title"}]
    captions = " ".join(caption.value for caption in app.caption)
    assert "Nothing backs: 9" in captions
    assert "Nothing was written" in captions
    assert "are checked against" in captions
    assert "\\*9\\*" in app.markdown[0].value, "what a model wrote is shown as text"
    assert app.code[0].value == "title: Heat"
    html = next(element.proto.body for element in app.main.children.values() if element.type == "html")
    assert "<b>" not in html
    assert 'title="candidate: title"' in html


def test_the_screen_says_when_the_fields_stand_in():
    app = shown(answered(source="fields", rejected=[], claims=[]))
    assert "plain sentence" in app.caption[0].value
    assert not app.dataframe


def test_the_page_asks_only_runs_that_write(monkeypatch):
    from pages._studio import written

    monkeypatch.setattr(written, "ask", lambda *a, **k: pytest.fail("asked"))
    run = SimpleNamespace(spec=SimpleNamespace(recommender=SimpleNamespace(family="item-knn")))
    written.written_part(run, "u", "i")  # type: ignore[arg-type]
