"""The Splits tab and the split of the Fine-tune form: every protocol drawn and checked, and carried over by a link."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

import pandas as pd
import pytest
from page_helpers import open_page, texts

from llmrec_core.data import PROTOCOLS, Dataset, DatasetStore
from llmrec_core.specs import SplitSpec
from llmrec_core.workspace import Workspace
from pages._studio.splits import used_fields

FIELDS = set(SplitSpec.model_fields) - {"protocol"}


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
        unused = FIELDS - set(used_fields(protocol))
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
    said = app.error[0].value.replace("\\", "")
    assert "cannot be used" in said
    assert "JSON" not in said
    # The form stands there with the preset's own split.
    assert any("protocol: auto" in str(block.value) for block in app.code)


def test_every_field_of_a_split_is_used_by_a_protocol():
    assert {name for protocol in PROTOCOLS for name in used_fields(protocol)} == FIELDS


def link_to_data(app) -> dict[str, str]:
    """Parameters of the form's link to the Splits tab."""
    (link,) = [link.proto for link in app.get("page_link") if "drawn on Data" in link.proto.label]
    return dict(parse_qsl(link.query_string))


def test_the_form_carries_its_split_to_the_picture_and_names_it(two_datasets, monkeypatch):
    app = open_page("finetune", two_datasets, monkeypatch, dataset="plain")
    (key,) = [box.key for box in app.selectbox if box.key and box.key.endswith("split.protocol")]
    app.selectbox(key=key).select("cold-user").run()
    app.number_input(key=key.replace("protocol", "known_interactions")).set_value(3).run()
    app.number_input(key=key.replace("protocol", "min_item_interactions")).set_value(2).run()
    assert any(box.label == "Split: new users" for box in app.expander)
    link = link_to_data(app)
    assert (link["dataset"], link["tab"]) == ("plain", "Splits")
    split = json.loads(link["split"])
    assert (split["protocol"], split["known_interactions"], split["min_item_interactions"]) == ("cold-user", 3, 2)
    drawn = open_page("data", two_datasets, monkeypatch, **link)
    assert not drawn.exception
    assert not drawn.error
    assert "Exactly their first 3 interactions are known" in texts(drawn)
    assert "items with at least 2 interactions" in texts(drawn)
    other = json.dumps({"protocol": "random", "seed": 5})
    drawn = open_page("data", two_datasets, monkeypatch, dataset="plain", tab="Splits", split=other)
    assert "drawn with seed 5" in texts(drawn)
