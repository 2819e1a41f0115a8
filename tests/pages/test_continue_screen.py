"""Going on with newer data over histories and towers: the button, the form that it opens, and what comes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from page_helpers import open_page, texts

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.runs import RunStore
from llmrec_core.specs import parse_run_spec
from llmrec_core.specs.continuing import SEQUENTIAL_SHAPE, TWO_TOWER_SHAPE
from llmrec_core.workspace import Workspace

FIRST = {"dataset": {"name": "films", "version": 1}, "recommender": {"family": "sequential"}, "name": "one"}
VALUE = {"mean": 0.25, "ci_low": 0.2, "ci_high": 0.3, "n": 9, "n_excluded": 0}
PART = {
    "title": "What came since", "n_users": 9, "n_targets": 40, "n_unknown_targets": 12,
    "metrics": {"ndcg@10": {"before": VALUE, "after": VALUE, "difference": {**VALUE, "mean": 0.125}}},
}  # fmt: skip
RESULT = {"verdict": "It is.", "continual": {"parts": {"old": None, "new": PART}, "sentence": "Better than before."}}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the finished run "first" in a workspace with so many versions of its data; a worker is not needed."""

    def open_with(versions: int, **spec: object):
        workspace = Workspace.open(tmp_path / "w")
        for share in range(versions):
            rows = {"user_id": ["u1", "u2"] * (4 + share), "item_id": [f"i{n}" for n in range(8 + 2 * share)]}
            frame = pd.DataFrame({**rows, "timestamp": range(8 + 2 * share)})
            DatasetStore(workspace).save(Dataset.from_frames("films", frame))
        run = SimpleNamespace(
            run_id="first", spec=parse_run_spec({**FIRST, **spec}), warning=None, created_at=None, folder=tmp_path,
            status=SimpleNamespace(state="done", error=None, stage=None, step=0, total=0),
        )  # fmt: skip
        for name, found in {"get": run, "result": RESULT, "events": [], "log": "", "list": []}.items():
            monkeypatch.setattr(RunStore, name, lambda *_, _found=found, **__: _found)
        return open_page("finetune", tmp_path / "w", monkeypatch, run="first")

    return open_with


def test_the_button_opens_a_form_on_the_newest_version(opened):
    app = opened(2)
    assert not app.exception
    assert "12 of the 40 new answers" in texts(app)
    table = app.dataframe[0].value
    assert table.iloc[0].tolist() == ["What came since", "NDCG@10", 9, 0.25, 0.25, "+0.1250 (+0.2000 to +0.3000)"]
    assert not [b for b in app.button if b.key == "run_second_stage"], "histories have no second stage"
    app.button(key="run_continue").click().run()
    assert not app.exception
    assert "It has 2 more interactions, 2 more items than version 1" in app.info[0].value.replace("\\", "")
    assert not [box for box in app.selectbox if (box.key or "").endswith("-model")], "its weights are taken over"
    spec = next(yaml.safe_load(c.value) for c in app.code if c.language == "yaml")
    assert spec["name"] == "one, on version 2"
    assert (spec["dataset"], spec["continue_from"]) == ({"name": "films", "version": 2}, "first")
    keys = [widget.key or "" for widget in (*app.number_input, *app.text_input, *app.toggle)]
    assert not [k for k in keys for name in SEQUENTIAL_SHAPE if k.endswith(f"-recommender.{name}")]
    replay = next(w for w in app.number_input if (w.key or "").endswith("continual.replay"))
    replay.set_value(0.5).run()
    command = next(c.value for c in app.code if c.value.startswith("llmrec train"))
    assert command.startswith("llmrec train --continue first ")
    assert "--set continual.replay=0.5" in command
    assert "--set recommender" not in command
    assert "--set dataset" not in command


def test_without_a_newer_version_the_way_to_one_is_shown(opened):
    app = opened(1)
    app.button(key="run_continue").click().run()
    assert not app.exception
    assert any("there is no newer one" in warning.value for warning in app.warning)
    assert not [b for b in app.button if b.key == "ft_submit"]


def test_what_has_no_weights_to_go_on_from_has_no_button(opened):
    keys = {b.key for b in opened(1, recommender={"family": "ease"}).button}
    assert "run_clone" in keys
    assert "run_continue" not in keys


LORA = {"tuning_steps": 9, "tuning": {"method": "lora"}}


@pytest.mark.parametrize("tuned", [{}, LORA])
def test_two_towers_go_on_in_the_shape_of_the_first_run(opened, tuned):
    app = opened(2, recommender={"family": "two-tower", **tuned})
    app.button(key="run_continue").click().run()
    assert not app.exception
    keys = [w.key or "" for w in (*app.number_input, *app.text_input, *app.toggle, *app.selectbox, *app.button_group)]
    assert not [k for k in keys for name in TWO_TOWER_SHAPE if k.endswith(f"-recommender.{name}")]
    assert not [k for k in keys if "recommender.tuning." in k or k.endswith("-method")]
    assert ("The first run tuned the language model so: its weights are tuned further" in texts(app)) == bool(tuned)
    steps = next(w for w in app.number_input if (w.key or "").endswith("recommender.tuning_steps"))
    steps.set_value(0 if tuned else 5).run()
    assert not app.exception
    command = next(c.value for c in app.code if c.value.startswith("llmrec train"))
    assert command.startswith("llmrec train --continue first ")
    assert f"--set recommender.tuning_steps={0 if tuned else 5}" in command
    assert "--set recommender.tuning." not in command, "what was tuned stays as it is"
    assert ("its weights stay as that run left them" in texts(app)) == bool(tuned)
    methods = [w.key for w in app.button_group if (w.key or "").endswith("-method")]
    assert bool(methods) == (not tuned), "what is as it came can be tuned in any way"
