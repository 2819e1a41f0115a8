"""The Splits tab and the split of the Fine-tune form: every protocol drawn and checked, and carried over by a link."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from page_helpers import open_page, texts

from llmrec_core.data import PROTOCOLS, Dataset, DatasetStore
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace
from pages._studio.splits import TITLES, used_fields


@pytest.fixture(scope="module")
def two_datasets(tmp_path_factory):
    """(workspace): "plain" without parts, "parted" that came split; users have a region of hostile name."""
    root = tmp_path_factory.mktemp("splits")
    rows = [
        (f"u{u:02d}", f"i{(u + 3 * n) % 25:02d}", float(100 * n + u), 1.0 + n % 5) for u in range(20) for n in range(8)
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    users = pd.DataFrame({"user_id": table["user_id"].unique()}).assign(region=["<b>north</b>", "south"] * 10)
    store = DatasetStore(Workspace.open(root))
    store.save(Dataset.from_frames("plain", table, users=users))
    parts = ["train"] * 5 + ["valid", "test", "test"]
    store.save(Dataset.from_frames("parted", table.assign(part=parts * 20)))
    return root


def splits_tab(root, monkeypatch, dataset: str):
    app = open_page("data", root, monkeypatch, dataset=dataset)
    app.session_state["data_tab"] = "Splits"
    return app.run()


def results(app) -> list[str]:
    """First column of the leakage table."""
    (table,) = [one.value for one in app.table]
    return [str(value) for value in table.index]


def test_every_protocol_is_drawn_and_checked(two_datasets, monkeypatch):
    app = splits_tab(two_datasets, monkeypatch, "plain")
    for protocol in PROTOCOLS:
        if protocol == "given":
            continue
        app.selectbox(key="split_protocol").select(protocol).run()
        assert not app.exception, protocol
        assert not app.error, [error.value for error in app.error]
        shown = texts(app)
        assert "No leak: all" in shown
        assert all("passed" in result or "to know" in result for result in results(app))
        keys = {element.key for kind in (app.number_input, app.selectbox, app.text_input) for element in kind}
        assert {f"split_{name}" for name in used_fields(protocol)} <= keys
        unused = set(TITLES) - set(used_fields(protocol))
        assert not {f"split_{name}" for name in unused} & keys
        figures = {"lines", "shares", "time"}
        figures |= {"rolling-temporal": {"folds"}, "group-stratified": {"groups"}}.get(protocol, set())
        assert len(app.get("plotly_chart")) == len(figures)


def test_data_that_came_split_offers_its_parts_and_takes_them(two_datasets, monkeypatch):
    app = splits_tab(two_datasets, monkeypatch, "parted")
    assert "As given" in app.selectbox(key="split_protocol").options
    assert "Given: every row is in the part that came with the data" in texts(app).replace("\\", "")
    plain = splits_tab(two_datasets, monkeypatch, "plain")
    assert "As given" not in plain.selectbox(key="split_protocol").options


def test_fields_that_do_not_fit_are_said_in_words(two_datasets, monkeypatch):
    app = splits_tab(two_datasets, monkeypatch, "plain")
    app.selectbox(key="split_protocol").select("rolling-temporal").run()
    app.number_input(key="split_fold").set_value(9).run()
    assert not app.exception
    assert "no fold 9" in app.error[0].value.replace("\\", "")
    app.number_input(key="split_fold").set_value(2).run()
    assert not app.error
    app.text_input(key="split_time_from").input("soon").run()
    assert "no ISO date" in app.error[0].value.replace("\\", "")


def test_filters_that_leave_nothing_are_said_in_words(two_datasets, monkeypatch):
    app = splits_tab(two_datasets, monkeypatch, "plain")
    app.number_input(key="split_min_user_interactions").set_value(50).run()
    assert not app.exception
    assert "no interaction is left" in app.error[0].value


def test_groups_are_those_of_the_data(two_datasets, monkeypatch):
    app = splits_tab(two_datasets, monkeypatch, "plain")
    app.selectbox(key="split_protocol").select("group-stratified").run()
    assert "Users by region" in app.selectbox(key="split_group_by").options
    app.selectbox(key="split_group_by").select("user:region").run()
    assert not app.exception
    assert "2 groups have rows" in texts(app)
    assert "<b>north</b>" not in json.dumps([chart.proto.spec for chart in app.get("plotly_chart")])


def test_a_link_carries_the_split_to_the_form(two_datasets, monkeypatch):
    linked = json.dumps({"protocol": "cold-user", "known_interactions": 3})
    app = open_page("finetune", two_datasets, monkeypatch, dataset="plain", split=linked)
    assert not app.exception
    assert "The split comes from the Data screen" in texts(app)
    (key,) = [box.key for box in app.selectbox if box.key and box.key.endswith("split.protocol")]
    assert app.selectbox(key=key).value == "cold-user"
    (code,) = [block.value for block in app.code if "protocol: cold-user" in str(block.value)]
    assert "known_interactions: 3" in code
    app.button(key="split_drop").click().run()
    assert not app.exception
    assert any("protocol: auto" in str(block.value) for block in app.code)


def test_the_form_shows_the_fields_of_the_protocol(two_datasets, monkeypatch):
    app = open_page("finetune", two_datasets, monkeypatch, dataset="plain")
    (key,) = [box.key for box in app.selectbox if box.key and box.key.endswith("split.protocol")]
    app.selectbox(key=key).select("cold-item").run()
    assert not app.exception
    keys = {
        element.key for kind in (app.number_input, app.selectbox, app.text_input) for element in kind if element.key
    }
    mine = {name.rpartition("split.")[2] for name in keys if "split." in name}
    assert mine == {"protocol", *used_fields("cold-item")}
    assert any("protocol: cold-item" in str(block.value) for block in app.code)


@pytest.mark.parametrize("text", ["{", '{"protocol": "none"}', '{"sed": 1}', "[]"])
def test_a_link_that_is_no_split_is_refused_in_words(two_datasets, monkeypatch, text):
    app = open_page("finetune", two_datasets, monkeypatch, dataset="plain", split=text)
    assert not app.exception
    assert "cannot be used" in app.error[0].value.replace("\\", "")


def test_every_field_of_a_split_has_words():
    assert set(TITLES) == set(SplitSpec.model_fields) - {"protocol"}
    assert {name for protocol in PROTOCOLS for name in used_fields(protocol)} == set(TITLES)
