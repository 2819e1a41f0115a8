"""The Data screen before, during and after an import: every control changes what is guessed or what comes in."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable

import openpyxl
import pandas as pd
import psycopg
import pytest
from page_helpers import open_page, texts
from postgres_server import PASSWORD, postgres, server_url
from streamlit.testing.v1 import AppTest

from llmrec_core.data import DatasetStore
from llmrec_core.data.mapping import load_mapping
from llmrec_core.runs import RunStore
from llmrec_core.specs import parse_run_spec
from llmrec_core.workspace import Workspace

VOTES = "who;what;mark\n" + "".join(f"u{i % 7};i{i % 11};{i % 5 + 1}\n" for i in range(80))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def screen(tmp_path, monkeypatch) -> Callable[[], AppTest]:
    """Opens the Data screen on an empty workspace."""
    return lambda: open_page("data", tmp_path / "workspace", monkeypatch)


def drop(app: AppTest, *files: tuple[str, str | bytes]) -> AppTest:
    packed = [
        (name, text.encode() if isinstance(text, str) else text, "application/octet-stream") for name, text in files
    ]
    app.file_uploader[0].set_value(packed).run()
    assert not app.exception
    return app


def widget(kind: list, start: str):
    """The first widget whose key begins so."""
    return next(w for w in kind if w.key and w.key.startswith(start))


def has(kind: list, start: str) -> bool:
    return any(w.key and w.key.startswith(start) for w in kind)


def preview(app: AppTest) -> list[str]:
    return list(app.dataframe[0].value.columns)


def look_at_it(app: AppTest) -> None:
    next(button for button in app.button if button.label == "Look at it").click().run()
    assert not app.exception


def press_import(app: AppTest, name: str | None = None) -> AppTest:
    if name:
        app.text_input(key="import_name").set_value(name).run()
    app.button(key="import_button").click().run()
    assert not app.exception
    return app


def zipped(**members: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return target.getvalue()


def test_roles_are_corrected_and_refused_rows_are_shown(screen, workspace):
    app = drop(screen(), ("votes.csv", VOTES + ";i1;3\nu1;i1;bad\n"))
    for role, column in (("user_id", "who"), ("item_id", "what"), ("rating", "mark")):
        widget(app.selectbox, f"role_{role}").select(column).run()
        assert widget(app.selectbox, f"role_{role}").value == column
    press_import(app, "votes")
    assert not app.error
    assert "80 of 82 rows taken" in texts(app)
    reasons = next(d.value for d in app.dataframe if "reason" in d.value and "rows" in d.value)
    assert reasons["rows"].sum() == 2
    rows = next(d.value for d in app.dataframe if "reason" in d.value and "line" in d.value)
    assert rows["line"].tolist() == [82, 83]
    assert app.selectbox(key="data_dataset").value == "votes"
    assert DatasetStore(workspace).load("votes").n_users == 7
    app.button(key="report_close").click().run()
    assert "rows taken" not in texts(app)


def test_a_file_without_users_is_refused_and_nothing_is_imported(screen, workspace):
    app = drop(screen(), ("odd.csv", "colour,size\nred,1\nblue,2\n"))
    assert app.button(key="import_button").disabled
    assert "which column of odd.csv is the user" in texts(app).replace("\\", "")
    widget(app.selectbox, "role_user_id").select("colour").run()
    widget(app.selectbox, "role_item_id").select("size").run()
    assert not app.button(key="import_button").disabled
    press_import(app, "no/name")
    # Beside the status, which folds itself: a person has to see why.
    assert "no/name" in app.error[0].value.replace("\\", "")
    assert not app.status[0].error
    assert DatasetStore(workspace).list() == []


def test_other_datasets_step_aside_while_files_come_in(screen, workspace):
    app = press_import(drop(screen(), ("votes.csv", "user_id,item_id\nu1,a\nu2,b\n")), "votes")
    assert has(app.selectbox, "data_dataset")
    drop(app, ("more.csv", "user_id,item_id\nann@example.org,a\nbob@example.org,b\n"))
    assert not has(app.selectbox, "data_dataset")
    assert "The user ids tell who people are" in texts(app)


def test_notes_speak_of_the_screen_not_of_the_command_line(screen):
    csv = "user_id,item_id,score\n" + "".join(f"u{i % 30},i{i % 70},{i % 101}\n" for i in range(800))
    app = drop(screen(), ("marks.csv", csv))
    assert "zero is taken as the lowest rating of a scale from 0 to 100" in texts(app)
    assert "zero=unrated" not in texts(app)
    app.selectbox(key="set_zero").select("unrated").run()
    assert "lowest rating of a scale" not in texts(app)


def test_a_number_far_from_the_ratings_is_asked_about(screen, workspace):
    csv = "user_id,item_id,rating\n" + "".join(f"u{i % 9},i{i},{99 if i % 10 == 3 else i % 5 + 1}\n" for i in range(60))
    app = drop(screen(), ("stars.csv", csv))
    assert app.button(key="import_button").disabled
    assert "whether a number far from the other ratings is one" in texts(app)
    radio = app.radio(key="ask_missing:stars.csv")
    assert "holds 99 in 6 rows" in radio.label.replace("\\", "")
    assert radio.options == ["99 says that there is no rating", "it is a rating"]
    radio.set_value("99").run()
    assert app.radio(key="ask_missing:stars.csv").value == "99"
    press_import(app, "stars")
    assert DatasetStore(workspace).load("stars").rating_scale == (1, 5)


def test_pairs_in_lists_can_be_taken_whole(screen):
    app = drop(screen(), ("h.csv", "user_id,history\nu1,p1:4|p2:5\nu2,p3:3\nu3,p2:1|p1:2\n"))
    assert preview(app) == ["user_id", "item_id", "rating"]
    widget(app.selectbox, "pairs").select("no").run()
    assert preview(app) == ["user_id", "item_id"]


def test_every_control_of_the_reading_changes_the_preview(screen):
    app = drop(screen(), ("votes.csv", VOTES))
    assert preview(app) == ["who", "what", "mark"]
    widget(app.selectbox, "header").select("no").run()
    assert "who" not in preview(app)
    assert len(preview(app)) == 3
    widget(app.selectbox, "header").select("yes").run()
    widget(app.selectbox, "separator").select("|").run()
    assert len(preview(app)) == 1
    widget(app.selectbox, "separator").select(";").run()
    assert preview(app) == ["who", "what", "mark"]
    app = drop(screen(), ("stadt.csv", "user_id,item_id,ort\nu1,a,Köln\nu2,b,Bonn\n".encode()))
    widget(app.selectbox, "encoding").select("latin-1").run()
    assert app.dataframe[0].value["ort"][0] == "KÃ¶ln"


def test_the_kind_decides_which_roles_are_asked(screen):
    app = drop(screen(), ("things.csv", "item_id,title\na,A\nb,B\n"))
    assert widget(app.selectbox, "kind").value == "items"
    assert not has(app.selectbox, "role_user_id")
    assert not has(app.button, "import_undo")
    widget(app.selectbox, "kind").select("interactions").run()
    assert has(app.selectbox, "role_user_id")
    app.button(key="import_undo").click().run()
    assert widget(app.selectbox, "kind").value == "items"


def test_a_mapping_is_kept_and_remembered(screen, workspace):
    app = drop(screen(), ("votes.csv", VOTES))
    # The other way round than anybody would guess, so that only a mapping can know it.
    for role, column in (("user_id", "what"), ("item_id", "who"), ("rating", "mark")):
        widget(app.selectbox, f"role_{role}").select(column).run()
    press_import(app, "votes")
    kept = load_mapping(DatasetStore(workspace).folder("votes") / "mapping.yaml")
    assert kept.files["votes.csv"].roles == {"user_id": "what", "item_id": "who", "rating": "mark"}
    # The same columns under another name: read as last time, and a new version of the same dataset.
    app = drop(screen(), ("votes-june.csv", VOTES + "u99;i99;5\n"))
    assert app.toggle(key="import_use_remembered").value
    assert app.text_input(key="import_name").value == "votes-june"
    assert "the mapping says so" in texts(app)
    assert widget(app.selectbox, "role_user_id").value == "what"
    app.toggle(key="import_use_remembered").set_value(False).run()
    assert widget(app.selectbox, "role_user_id").value == "who"
    app.toggle(key="import_use_remembered").set_value(True).run()
    press_import(app, "votes")
    assert "version 2" in texts(app)
    app.session_state["data_tab"] = "Versions"
    app.run()
    versions = next(d.value for d in app.dataframe if "changed" in d.value)
    assert versions["changed"].tolist() == ["+1 rows, +1 users, +1 items", "first version"]


def test_a_mapping_file_is_taken(screen, workspace):
    app = drop(screen(), ("votes.csv", VOTES))
    text = "files:\n  votes.csv:\n    roles: {user_id: what, item_id: who}\n  other.csv: {kind: items}\n"
    app.file_uploader[1].set_value(("m.yaml", text.encode(), "application/yaml")).run()
    assert widget(app.selectbox, "role_user_id").value == "what"
    assert "other" in texts(app)
    app.file_uploader[1].set_value(("m.yaml", b"fils: {}", "application/yaml")).run()
    assert "Did you mean 'files'" in texts(app).replace("\\", "")


def test_tables_are_left_out_and_come_back(screen, workspace):
    app = drop(
        screen(), ("export.zip", zipped(votes__csv="user_id,item_id\nu1,a\nu2,b\n", notes__csv="x,y\n1,2\n3,4\n"))
    )
    assert "export.zip/notes.csv" in texts(app).replace("\\", "")
    leave = next(t for t in app.toggle if t.key and "notes" in t.key)
    leave.set_value(True).run()
    assert "is left out" in texts(app)
    next(t for t in app.toggle if t.key and "notes" in t.key).set_value(False).run()
    assert "is left out" not in texts(app)
    next(t for t in app.toggle if t.key and "notes" in t.key).set_value(True).run()
    press_import(app, "export")
    assert DatasetStore(workspace).meta("export").n_interactions == 2


def test_parts_are_offered_and_kept(screen, workspace):
    rows = ["user_id,item_id,rating\nu1,a,5\nu2,b,3\n", "user_id,item_id,rating\nu1,c,4\n"]
    app = drop(screen(), ("train.csv", rows[0]), ("test.csv", rows[1]))
    assert app.text_input(key="import_name").value == "my-data"
    assert app.toggle(key="import_parts").value
    assert [widget(app.selectbox, f"part_{i}").value for i in (0, 1)] == ["train", "test"]
    app.toggle(key="import_parts").set_value(False).run()
    assert not has(app.selectbox, "part_")
    app.toggle(key="import_parts").set_value(True).run()
    widget(app.selectbox, "part_1").select("").run()
    assert "which part of the split test.csv is" in texts(app).replace("\\", "")
    assert app.button(key="import_button").disabled
    widget(app.selectbox, "part_1").select("valid").run()
    widget(app.selectbox, "part_1").select("test").run()
    press_import(app, "split")
    parts = DatasetStore(workspace).load("split").interactions["part"].tolist()
    assert parts == ["train", "train", "test"]


def test_what_zero_means_is_asked_before_the_import(screen, workspace):
    csv = "user_id,item_id,rating\n" + "".join(f"u{i % 9},i{i},{0 if i % 3 else i % 5 + 1}\n" for i in range(90))
    app = drop(screen(), ("books.csv", csv))
    assert app.button(key="import_button").disabled
    assert "what a rating of 0 means" in texts(app)
    app.radio(key="ask_zero").set_value("unrated").run()
    assert not app.button(key="import_button").disabled
    press_import(app, "books")
    ratings = DatasetStore(workspace).load("books").interactions["rating"]
    assert ratings.isna().sum() == 60


def test_the_duplicates_policy_is_asked(screen, workspace):
    app = drop(screen(), ("a.csv", "user_id,item_id,rating\nu1,a,1\nu1,a,5\nu2,b,3\n"))
    assert app.radio(key="ask_duplicates").value == "keep"
    app.radio(key="ask_duplicates").set_value("last").run()
    press_import(app, "last")
    assert DatasetStore(workspace).load("last").interactions["rating"].tolist() == [5.0, 3.0]


def test_personal_data_is_found_and_hidden_on_request(screen, workspace):
    csv = "user_id,item_id,comment\nann,a,write to ann@example.org\nbob,b,fine\n"
    app = drop(screen(), ("notes.csv", csv))
    assert "mail addresses in 1 cell" in texts(app)
    app.toggle(key="import_pseudonymise").set_value(True).run()
    widget(app.toggle, "mask_comment").set_value(True).run()
    press_import(app, "hidden")
    dataset = DatasetStore(workspace).load("hidden")
    assert "ann" not in dataset.user_ids.tolist()
    assert "ann@example.org" not in dataset.interactions.to_csv()
    assert "[e-mail]" in dataset.interactions.to_csv()


def test_a_path_on_this_machine_and_what_is_no_address(screen, workspace, tmp_path):
    path = tmp_path / "local.csv"
    path.write_text("user_id,item_id\nu1,a\nu2,b\n")
    app = screen()
    app.segmented_control(key="import_way").set_value("path").run()
    app.text_input(key="import_path").set_value(str(tmp_path / "nowhere.csv")).run()
    assert "no such file" in texts(app)
    app.text_input(key="import_path").set_value(str(path)).run()
    press_import(app, "local")
    assert DatasetStore(workspace).meta("local").n_interactions == 2
    assert path.exists()
    app = screen()
    app.segmented_control(key="import_way").set_value("address").run()
    app.text_input(key="import_address").set_value("file:///etc/passwd")
    look_at_it(app)
    assert "not an address" in texts(app)
    app.text_input(key="import_address").set_value("http://127.0.0.1:9/ratings.csv")
    look_at_it(app)
    assert "private network" in texts(app)


def test_a_studio_that_others_reach_reads_no_paths(screen, monkeypatch):
    import streamlit as st

    monkeypatch.setattr(st, "get_option", lambda name: "0.0.0.0" if name == "server.address" else None)
    app = screen()
    assert "path" not in str(app.segmented_control(key="import_way").options)


def test_a_damaged_file_says_so_and_the_screen_lives(screen, workspace):
    good = ("good.csv", "user_id,item_id\nu1,a\n")
    app = drop(screen(), ("bad.parquet", b"PAR1 and nothing"), good)
    assert "bad.parquet" in app.error[0].value.replace("\\", "")
    assert not has(app.selectbox, "repair_")
    # The other file is there, but nothing comes in before the broken one is gone.
    assert preview(app) == ["user_id", "item_id"]
    assert app.button(key="import_button").disabled
    drop(app, good)
    assert not app.error
    assert not app.button(key="import_button").disabled


def test_an_empty_file_offers_nothing_to_repair(screen):
    app = drop(screen(), ("none.csv", ""), ("good.csv", "user_id,item_id\nu1,a\n"))
    assert "the file is empty" in texts(app)
    assert not has(app.selectbox, "repair_")
    assert "take it away above" in texts(app)


def test_a_table_without_rows_offers_no_import(screen):
    app = drop(screen(), ("head.csv", "user_id,item_id\n"))
    assert "there is no row of interactions" in texts(app)
    assert app.button(key="import_button").disabled
    # Beside one with rows it does no harm.
    drop(app, ("head.csv", "user_id,item_id\n"), ("good.csv", "user_id,item_id\nu1,a\n"))
    assert not app.button(key="import_button").disabled


def test_a_table_that_was_misread_is_repaired(screen):
    app = drop(screen(), ("one.csv", "user_id,item_id\nu1,a\nu2,b\n"))
    widget(app.selectbox, "encoding").select("utf-16").run()
    assert "not valid utf-16" in texts(app).replace("\\", "")
    assert not has(app.button, "import_button")
    widget(app.selectbox, "repair_encoding").select("").run()
    assert not app.error
    assert preview(app) == ["user_id", "item_id"]
    widget(app.selectbox, "layout").select("knowledge").run()
    assert app.error
    assert app.button(key="import_button").disabled
    widget(app.selectbox, "repair_layout").select("rows").run()
    assert not app.error
    widget(app.selectbox, "separator").select("|").run()
    assert preview(app) == ["user_id,item_id"]


def test_hostile_names_are_text(screen):
    app = drop(screen(), ("<script>alert(1)</script>.csv", "user_id,item_id,<b>x</b>\nu1,a,<i>1</i>\n"))
    assert not app.exception
    assert "<script>" not in texts(app)


def test_the_mapping_to_download_repeats_the_import(screen, workspace):
    app = drop(screen(), ("votes.csv", VOTES))
    widget(app.selectbox, "role_user_id").select("what").run()
    download = app.get("download_button")[0]
    assert download.proto.label == "Download the mapping"


def test_a_file_is_fetched_from_an_address(screen, workspace, monkeypatch):
    """The fetching itself is tested beside it; here a file arrives, once."""
    asked = []

    def fetch(url, folder, *, progress):
        asked.append(url)
        progress("asking example.org")
        path = folder / "far.csv"
        path.write_text("user_id,item_id\nu1,a\nu2,b\n")
        return path

    monkeypatch.setattr("pages._studio.places.download", fetch)
    app = screen()
    app.segmented_control(key="import_way").set_value("address").run()
    app.text_input(key="import_address").set_value("https://example.org/far.csv")
    look_at_it(app)
    assert preview(app) == ["user_id", "item_id"]
    press_import(app)
    assert DatasetStore(workspace).meta("far").n_interactions == 2
    assert asked == ["https://example.org/far.csv"]


def test_every_table_shows_its_first_rows(screen, workspace):
    rows = "".join(
        f"U{k % 7}\t11/1{k % 5}/2019 9:0{k % 9}:00 AM\tN{k} N{k + 1}\tN{k + 2}-0 N{k + 3}-1\n" for k in range(30)
    )
    behaviors = "".join(f"{number}\t{row}\n" for number, row in enumerate(rows.splitlines()))
    app = drop(screen(), ("behaviors.tsv", behaviors))
    assert widget(app.selectbox, "layout").value == "impressions"
    assert widget(app.selectbox, "role_candidates").value == "impressions"
    assert "also give" in str([e.label for e in app.expander])
    press_import(app, "news")
    app.session_state["data_tab"] = "Tables"
    app.run()
    table = next(d.value for d in app.dataframe if "timestamp" in d.value)
    assert table.columns[:2].tolist() == ["user_id", "item_id"]
    assert str(table["timestamp"][0]).startswith("2019-11-1")
    app.segmented_control(key="data_table").set_value("impressions").run()
    assert not app.exception
    table = next(d.value for d in app.dataframe if "candidate" in str(list(d.value)) or "label" in d.value)
    assert len(table) > 30
    app.segmented_control(key="data_table").set_value("users").run()
    assert any(list(d.value) == ["user_id"] for d in app.dataframe)


def test_settings_of_values_reach_the_import(screen, workspace):
    csv = "user_id,item_id,rating,date\n" + "".join(
        f'u{i % 5},i{i},"{i % 4},5",2024-01-0{i % 8 + 1} 00:00\n' for i in range(40)
    )
    app = drop(screen(), ("v.csv", csv + 'u1,i99,"1,5",\n'))
    app.selectbox(key="set_decimal").select("comma").run()
    app.selectbox(key="set_timezone").select("Asia/Tokyo").run()
    app.text_input(key="set_scale").set_value("0..10").run()
    app.radio(key="ask_missing_time").set_value("keep-order").run()
    press_import(app, "values")
    dataset = DatasetStore(workspace).load("values")
    assert dataset.meta.n_interactions == 41
    assert dataset.rating_scale == (0.0, 10.0)
    assert sorted(set(dataset.interactions["rating"])) == [0.5, 1.5, 2.5, 3.5]
    # Midnight of 1 January in Tokyo is three in the afternoon before in UTC.
    assert str(pd.to_datetime(dataset.interactions["timestamp"].min(), unit="s")) == "2023-12-31 15:00:00"


def test_the_unit_of_times_and_the_weight_of_events(screen, workspace):
    csv = "user_id,item_id,event,time\n" + "".join(
        f"u{i % 5},i{i},{'buy' if i % 3 else 'view'},{19000 + i}\n" for i in range(40)
    )
    app = drop(screen(), ("e.csv", csv))
    app.number_input(key="weight_buy").set_value(3.0).run()
    app.number_input(key="weight_view").set_value(1.0).run()
    app.selectbox(key="set_time_unit").select("excel").run()
    press_import(app, "events")
    rows = DatasetStore(workspace).load("events").interactions
    assert sorted(set(rows["rating"])) == [1.0, 3.0]
    assert pd.to_datetime(rows["timestamp"].min(), unit="s").year == 1952


def test_sheets_and_rows_of_names_are_chosen(screen):
    book, target = openpyxl.Workbook(), io.BytesIO()
    first, second = book.active, book.create_sheet("June")
    for sheet, item in ((first, "a"), (second, "z")):
        for row in (["Export"], ["user_id", "item_id"], ["u1", item], ["u2", item]):
            sheet.append(row)
    book.save(target)
    app = drop(screen(), ("book.xlsx", target.getvalue()))
    assert has(app.text_input, "table_1")
    widget(app.text_input, "table_0").set_value("June").run()
    assert not has(app.text_input, "table_1")
    assert app.dataframe[0].value["item_id"].tolist() == ["z", "z"]
    widget(app.text_input, "header_row").set_value("3").run()
    assert preview(app) == ["u1", "z"]
    widget(app.text_input, "header_row").set_value("").run()
    assert preview(app) == ["user_id", "item_id"]


def test_the_layout_and_the_mark_of_empty_cells(screen):
    csv = "user,i1,i2,i3,i4\n" + "".join(f"u{k},{k % 5 + 1},99,{(k + 1) % 5 + 1},3\n" for k in range(30))
    app = drop(screen(), ("m.csv", csv))
    assert widget(app.selectbox, "layout").value == "matrix"
    assert "99" not in app.dataframe[0].value["rating"].tolist()
    widget(app.text_input, "missing").set_value("none").run()
    assert "99" in app.dataframe[0].value["rating"].tolist()
    widget(app.selectbox, "layout").select("rows").run()
    assert preview(app) == ["user", "i1", "i2", "i3", "i4"]


def test_what_only_later_rows_bring_up_is_asked_then(screen, workspace):
    rows = [f"u{i % 50},i{i},{i % 3 + 3}" for i in range(1500)] + [f"u{i % 50},j{i},0" for i in range(600)]
    app = drop(screen(), ("late.csv", "user_id,item_id,rating\n" + "\n".join(rows) + "\n"))
    assert not has(app.radio, "ask_zero")
    press_import(app)
    assert DatasetStore(workspace).list() == []
    assert "what a rating of 0 means" in texts(app)
    app.radio(key="ask_zero").set_value("rating").run()
    press_import(app)
    assert DatasetStore(workspace).load("late").interactions["rating"].min() == 0


def test_what_was_said_about_a_table_that_is_left_out_does_no_harm(screen, workspace):
    app = drop(screen(), ("votes.csv", "user_id,item_id\nu1,a\nu2,b\n"), ("other.csv", "user_id,item_id\nu9,z\n"))
    widget(app.selectbox, "kind_1").select("users").run()
    next(t for t in app.toggle if t.key and t.key.startswith("leave_1")).set_value(True).run()
    press_import(app, "votes")
    assert not app.error
    assert DatasetStore(workspace).load("votes").n_users == 2


def test_a_database_by_its_address(screen, workspace):
    with postgres() as port:
        with psycopg.connect(server_url(port)) as connection:
            connection.execute("CREATE TABLE orders (customer text, item_id text, mark int)")
            connection.execute("INSERT INTO orders VALUES ('u1', 'a', 5), ('u2', 'b', 3)")
            connection.execute("CREATE TABLE goods (item_id text, title text)")
            connection.execute("INSERT INTO goods VALUES ('a', 'Apple')")
        app = screen()
        app.segmented_control(key="import_way").set_value("address").run()
        app.text_input(key="import_address").set_value(server_url(port))
        look_at_it(app)
        orders = next(box.key for box in app.selectbox if box.key and re.match(r"role_rating_.*orders", box.key))
        app.selectbox(key=orders).select("mark").run()
        press_import(app, "orders")
    assert not app.error
    dataset = DatasetStore(workspace).load("orders")
    assert dataset.interactions["rating"].tolist() == [5.0, 3.0]
    assert dataset.item_text(dataset.item_idx("a"), "title") == "Apple"
    assert PASSWORD not in (dataset.folder / "mapping.yaml").read_text() + (dataset.folder / "meta.json").read_text()
    assert PASSWORD not in texts(app)
    # The mapping knows the tables again, whatever the port of the server was.
    kept = load_mapping(dataset.folder / "mapping.yaml")
    assert sorted(file.kind for file in kept.files.values()) == ["interactions", "items"]


def test_versions_tell_their_runs_and_a_dataset_in_use_stays(screen, workspace):
    app = drop(
        screen(), ("votes.csv", "user_id,item_id,rating\n" + "".join(f"u{i % 9},i{i},{i % 5 + 1}\n" for i in range(60)))
    )
    press_import(app, "votes")
    spec = {"name": "my run", "dataset": {"name": "votes"}, "recommender": {"family": "item-knn"}}
    run_id = RunStore(workspace).submit(parse_run_spec(spec))
    app.session_state["data_tab"] = "Versions"
    app.run()
    versions = next(d.value for d in app.dataframe if "used by runs" in d.value)
    assert "my run" in versions["used by runs"][0]
    app.button(key="dataset_delete").click().run()
    assert "in use" in app.error[0].value
    assert DatasetStore(workspace).versions("votes") == [1]
    RunStore(workspace).cancel(run_id)
    app.run()
    assert "1 run used it" in texts(app)
    app.button(key="dataset_delete").click().run()
    assert DatasetStore(workspace).list() == []


def test_many_tables_keep_the_screen_small(screen, workspace):
    members = {f"part-{n:03d}.csv": "user_id,item_id\nu1,a\n" for n in range(30)}
    app = drop(screen(), ("parts.zip", zipped(**members)))
    assert "There are 30 tables" in texts(app)
    assert len([b for b in app.selectbox if b.key and b.key.startswith("kind_")]) == 24
    press_import(app, "many")
    assert DatasetStore(workspace).meta("many").n_interactions == 30
    assert len(load_mapping(DatasetStore(workspace).folder("many") / "mapping.yaml").files) == 30
