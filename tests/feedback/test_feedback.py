"""Verdicts are kept in order, survive a torn line, and never leave their folder."""

import pytest

from llmrec_core.errors import InputError
from llmrec_core.feedback import FeedbackStore
from llmrec_core.workspace import Workspace


def _add(store: FeedbackStore, item: str, verdict: str, user: str = "u1") -> None:
    store.add("d", run_id="r", model="model", user_id=user, item_id=item, rank=1, verdict=verdict)  # type: ignore[arg-type]


def test_the_last_verdict_of_an_item_counts(tmp_path):
    store = FeedbackStore(Workspace.open(tmp_path))
    _add(store, "007", "up")
    _add(store, "007", "down")
    _add(store, "NA", "up")
    _add(store, "007", "up", user="u2")
    assert store.latest("d", "u1") == {"007": "down", "NA": "up"}
    assert [f.item_id for f in store.list("d")] == ["007", "007", "NA", "007"]


def test_a_torn_line_is_left_out(tmp_path):
    store = FeedbackStore(Workspace.open(tmp_path))
    _add(store, "a", "up")
    with open(tmp_path / "feedback" / "d.jsonl", "a") as stream:
        stream.write('{"dataset": "d", "run')
    assert [f.item_id for f in store.list("d")] == ["a"]
    _add(store, "b", "down")
    assert [f.item_id for f in store.list("d")] == ["a", "b"]


def test_unsafe_dataset_names_are_refused(tmp_path):
    store = FeedbackStore(Workspace.open(tmp_path / "w"))
    with pytest.raises(InputError):
        store.add("../x", run_id="r", model="m", user_id="u", item_id="i", rank=1, verdict="up")
    assert not (tmp_path / "w" / "feedback").exists()
    assert store.list("nothing") == []
