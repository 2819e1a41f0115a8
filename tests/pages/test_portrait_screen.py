"""The Portrait tab: every figure and its reading, drift where data can be cut, and the portrait that is kept."""

from __future__ import annotations

import pandas as pd
from page_helpers import open_page, texts

from llmrec_core.data import Dataset, DatasetStore, import_sample, portrait
from llmrec_core.workspace import Workspace
from pages._studio import portrait as screen

FIGURES = {
    "tail", "history_lengths", "cold", "shares", "months", "week_hours", "sessions", "gaps", "ratings", "text_lengths",
    "coverage", "top_items", "drift",
}  # fmt: skip


def test_a_portrait_is_drawn_read_and_kept(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path)
    import_sample(workspace)
    app = open_page("data", tmp_path, monkeypatch, dataset="sample")
    assert not app.exception
    assert {chart.key.removeprefix("portrait_") for chart in app.get("plotly_chart")} == FIGURES
    shown = texts(app)
    for words in ("Half of all interactions go to", "25 items have no interaction", "times what chance alone gives"):
        assert words in shown.replace("\\", ""), words
    folder = DatasetStore(workspace).load("sample").folder
    assert folder is not None
    assert (folder / "portrait.json").is_file()


def test_what_cannot_be_cut_has_no_drift_and_large_data_waits_to_be_asked(tmp_path, monkeypatch):
    rows = pd.DataFrame({"user_id": ["u", "v"], "item_id": ["<b>a</b>", "b"]})
    DatasetStore(Workspace.open(tmp_path)).save(Dataset.from_frames("tiny", rows))
    app = open_page("data", tmp_path, monkeypatch, dataset="tiny")
    assert not app.exception
    assert "There is no drift to measure" in texts(app)
    # No empty boxes: what needs times or ratings is left out, with one sentence each.
    drawn = {chart.key.removeprefix("portrait_") for chart in app.get("plotly_chart")}
    assert drawn == {"tail", "history_lengths", "cold", "shares", "coverage", "top_items"}
    assert texts(app).count("The interactions have no times") == 1
    monkeypatch.setattr(screen, "_DRIFT_AT_ONCE", 1)
    app.run()
    assert "There is no drift" not in texts(app)
    app.toggle(key="portrait_drift_wanted").set_value(True).run()
    assert "There is no drift to measure" in texts(app)


def test_days_without_hours_have_no_week_and_no_sessions():
    days = [86_400.0 * (18_000 + n) for n in range(4)]
    rows = pd.DataFrame({"user_id": list("uvuv"), "item_id": list("abcd"), "timestamp": days})
    missing = screen._missing(portrait(Dataset.from_frames("days", rows)))
    assert {"week_hours", "sessions"} <= set(missing)
    assert "months" not in missing
    assert "gaps" not in missing
    assert len({missing["week_hours"], missing["sessions"]}) == 1
    assert "whole days" in missing["sessions"]
