"""Privacy on the screens: forgetting with a look first, the audit, flagged runs, memory dropped after a removal."""

import shutil

import pytest
from page_helpers import open_page, texts
from privacy.forget_cases import DATASET, PERSON, places_of

from llmrec_core.data import DatasetStore
from llmrec_core.data.privacy import min_group_users, read_audit, set_min_group_users
from llmrec_core.forgetting import forget_user
from llmrec_core.runs.flags import SAW
from llmrec_core.serving.client import serving_client
from llmrec_core.workspace import Workspace


@pytest.fixture
def place(template, tmp_path):
    root = tmp_path / "ws"
    shutil.copytree(template.workspace.root, root)
    workspace = Workspace.open(root)
    yield type(template)(workspace, template.run_id)
    serving_client(workspace).stop()


@pytest.fixture
def privacy_tab(place, monkeypatch):
    app = open_page("data", place.workspace.root, monkeypatch, dataset=DATASET)
    app.session_state["data_tab"] = "Privacy"
    app.run()
    assert not app.exception
    return app


def test_a_user_is_forgotten_after_a_look_and_typing_the_id_again(place, privacy_tab):
    app = privacy_tab
    assert app.button(key="forget_look").disabled
    app.text_input(key="forget_user_0").set_value(PERSON).run()
    app.button(key="forget_look").click().run()
    shown = texts(app)
    assert "version 2: 8 interactions, 1 profile" in shown.replace("\\", "")
    assert "trained on this person" in shown
    # Looking changes nothing, and a wrong confirmation does not open the way.
    assert places_of(place.workspace, PERSON)
    assert app.button(key="forget_now").disabled
    app.text_input(key="forget_again_0").set_value("zoe").run()
    assert app.button(key="forget_now").disabled
    app.text_input(key="forget_again_0").set_value(PERSON).run()
    app.button(key="forget_now").click().run()
    assert not app.exception
    shown = texts(app)
    assert "16 interactions in 2 versions" in shown
    assert place.run_id in shown.replace("\\", "")
    assert PERSON not in shown
    assert places_of(place.workspace, PERSON) == []
    assert PERSON not in repr(app.session_state)


def test_a_stranger_is_told_apart_and_nothing_can_be_pressed(place, privacy_tab):
    app = privacy_tab
    app.text_input(key="forget_user_0").set_value("nobody-99").run()
    app.button(key="forget_look").click().run()
    assert "no version" in texts(app)
    assert not [button for button in app.button if button.key == "forget_now"]


def test_personal_data_is_shown_when_asked_for(place, privacy_tab):
    app = privacy_tab
    before = len(app.dataframe)
    app.button(key="look_personal").click().run()
    assert not app.exception
    assert len(app.dataframe) == before + 1
    table = app.dataframe[-1].value
    assert set(zip(table["Column"], table["What"], strict=True)) == {("user_id", "email"), ("referred_by", "email")}
    assert PERSON not in str(table.to_dict())


def test_a_removal_by_another_process_empties_memory_and_flags_the_run(place, monkeypatch):
    app = open_page("rankings", place.workspace.root, monkeypatch, run=place.run_id, user=PERSON)
    assert not app.exception
    assert app.selectbox(key="rankings_user").value == PERSON
    assert SAW not in texts(app)
    forget_user(place.workspace, DATASET, PERSON)
    app.run()
    assert not app.exception
    assert PERSON not in app.selectbox(key="rankings_user").options
    assert SAW in texts(app)
    metrics = open_page("metrics", place.workspace.root, monkeypatch, run=place.run_id)
    assert not metrics.exception
    assert SAW in texts(metrics)


def test_settings_shows_the_audit_and_a_broken_chain(place, monkeypatch):
    app = open_page("settings", place.workspace.root, monkeypatch)
    assert "Nothing was done to personal data yet" in texts(app)
    report = forget_user(place.workspace, DATASET, PERSON)
    app = open_page("settings", place.workspace.root, monkeypatch)
    table = app.dataframe[-1].value
    assert table["Person"].tolist() == [report.person]
    assert "the record is whole" in texts(app)
    path = place.workspace.root / "privacy" / "audit.jsonl"
    path.write_text(path.read_text().replace('"interactions":16', '"interactions":15'))
    assert read_audit(place.workspace).broken_at == 1
    app = open_page("settings", place.workspace.root, monkeypatch)
    assert "Line 1 of the audit was changed" in texts(app)
    assert DatasetStore(place.workspace).versions(DATASET) == [1, 2]


def test_groups_of_users_are_shown_only_where_they_are_large_enough(place, monkeypatch):
    """Two people in "south": hidden, and "east" with six along, since the total would give "south" away."""
    app = open_page("metrics", place.workspace.root, monkeypatch, run=place.run_id)
    assert not app.exception
    app.selectbox(key="slices_by").set_value("club").run()
    assert not app.exception
    table = next(frame.value for frame in app.dataframe if "Group" in frame.value.columns).set_index("Group")
    hidden = "fewer than 5 users, or hidden with such a group"
    assert table["Users"].to_dict() == {"east": hidden, "north": "10", "south": hidden}
    assert table.iloc[:, 1]["south"] == table.iloc[:, 1]["east"] == "–"
    assert "[" in table.iloc[:, 1]["north"]
    set_min_group_users(place.workspace, 11)
    app.run()
    table = next(frame.value for frame in app.dataframe if "Group" in frame.value.columns)
    assert set(table["Users"]) == {"fewer than 11 users, or hidden with such a group"}


def test_the_smallest_group_is_set_on_settings(place, monkeypatch):
    app = open_page("settings", place.workspace.root, monkeypatch)
    assert app.number_input(key="min_group").value == 5
    app.number_input(key="min_group").set_value(8).run()
    assert not app.exception
    assert min_group_users(place.workspace) == 8
