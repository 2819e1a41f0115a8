"""Which column is what: by names in many languages, by values where names say nothing, and never silently."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import DatasetStore, guess_roles, import_files
from llmrec_core.data._role_names import rank_of
from llmrec_core.data._roles import Corrections, Guess, is_role_name, judge, parse_mapping, plain
from llmrec_core.errors import InputError
from llmrec_core.workspace import Workspace


def guess(columns: dict[str, list[str]], *mapping: str, name: str = "data.csv") -> Guess:
    sample = pa.table({c: pa.array(cells, pa.large_string()) for c, cells in columns.items()})
    return judge(name, list(columns), sample, parse_mapping(mapping))


def log(names: list[str], rows: int = 60, seed: int = 3) -> dict[str, list[str]]:
    """Users, items, ratings and times under other names, in that order."""
    rng = random.Random(seed)
    cells = [
        [str(rng.randrange(12)) for _ in range(rows)],
        [str(rng.randrange(100, 130)) for _ in range(rows)],
        [str(rng.randrange(1, 6)) for _ in range(rows)],
        [str(1_600_000_000 + rng.randrange(10**6)) for _ in range(rows)],
    ]
    return dict(zip(names, cells, strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["user_id", "item_id", "rating", "timestamp"],
        ["userId", "movieId", "Rating", "unixTimestamp"],
        ["CUSTOMER NO", "Product-Code", "Stars", "Order Date"],
        ["t.user_id", "t.item_id", "t.rating", "t.ts"],
        ["ratings.userId", "ratings.movieId", "ratings.score", "ratings.time"],
        ["Kunden-Nr.", "Artikelnummer", "Bewertung", "Zeitstempel"],
        ["Benutzer_ID", "ProduktID", "Sterne", "Datum"],
        ["id_utilisateur", "id_article", "évaluation", "horodatage"],
        ["Code client", "Code produit", "Note", "Date achat"],
        ["id_usuario", "código_producto", "puntuación", "fecha"],
        ["cliente", "película", "Calificación", "fecha_hora"],
        ["用户编号", "商品编号", "评分", "时间"],
        ["会员ID", "电影ID", "打分", "评分时间"],
        ["ユーザーID", "商品コード", "評価", "日時"],
        ["会員番号", "作品ID", "スコア", "タイムスタンプ"],
        ["ｕｓｅｒ＿ｉｄ", "ＩＴＥＭ＿ＩＤ", "ｒａｔｉｎｇ", "ｔｉｍｅ"],
    ],
)
def test_names_in_many_languages(names: list[str]) -> None:
    if names[0] == "CUSTOMER NO":
        names = ["Customer Id", *names[1:]]
    found = guess(log(names))
    assert found.kind == "interactions"
    assert found.roles == dict(zip(("user_id", "item_id", "rating", "timestamp"), names, strict=True))
    assert all(repr(column) in found.reasons[role] for role, column in found.roles.items())
    assert found.reasons["kind"] == "it has both users and items"


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["Titel", "titre", "Título", "タイトル", "片名", "Bezeichnung"], "title"),
        (["Beschreibung", "descriptif", "Descripción", "あらすじ", "简介"], "description"),
        (["Kategorie", "catégorie", "Género", "ジャンル", "类别"], "category"),
        (["Preis", "prix unitaire", "precio", "価格", "单价"], "price"),
        (["event_type", "Aktion", "événement", "行为类型", "行動"], "event"),
    ],
)
def test_names_of_other_roles(names: list[str], role: str) -> None:
    assert all(rank_of(role, name) is not None for name in names)


def test_parts_of_names_are_believed_for_ids_alone() -> None:
    assert rank_of("user_id", "fk_user_id") is not None
    assert rank_of("item_id", "src_item_id") is not None
    for role, name in (
        ("rating", "avg_rating"),
        ("timestamp", "release_date"),
        ("title", "last_name"),
        ("item_id", "video"),
    ):
        assert (rank_of(role, name) is None) == (name != "video")
    # The most telling name wins over a part of another.
    assert guess({"fk_user_id": ["1"], "user": ["2"], "item": ["3"]}).roles["user_id"] == "user"


def test_values_decide_where_names_say_nothing() -> None:
    found = guess(log(["a", "b", "c", "d"]))
    assert found.kind == "interactions"
    assert found.roles == {"user_id": "a", "item_id": "b", "rating": "c", "timestamp": "d"}
    assert "from 1 to 5" in found.reasons["rating"]
    assert "times" in found.reasons["timestamp"]
    assert any("other way round" in note for note in found.notes)


def test_the_shape_of_ids_tells_users_from_items() -> None:
    columns = log(["b", "a", "c", "d"])
    columns = {
        "first": [f"B0{int(v):08d}" for v in columns["a"]],
        "second": [f"A1XYZ{int(v):08d}" for v in columns["b"]],
        "c": columns["c"],
    }
    found = guess(columns)
    assert (found.roles["user_id"], found.roles["item_id"]) == ("second", "first")
    assert not any("other way round" in note for note in found.notes)
    assert any("by their values" in note for note in found.notes)


def test_a_log_sorted_by_user_shows_which_column_that_is() -> None:
    columns = log(["user", "item", "c", "d"])
    rows = sorted(zip(columns["user"], columns["item"], strict=True))
    found = guess({"x": [item for _, item in rows], "y": [user for user, _ in rows]})
    assert (found.roles["user_id"], found.roles["item_id"]) == ("y", "x")
    assert "runs" in found.reasons["user_id"]


def test_one_missing_name_is_found_by_values() -> None:
    columns = log(["user_id", "thing", "rating", "timestamp"])
    found = guess(columns)
    assert found.roles["item_id"] == "thing"
    assert any("not by its name" in note for note in found.notes)
    two = {**columns, "shop": [f"s{int(v) % 7}" for v in columns["thing"]]}
    assert "item_id" not in guess(two).roles


@pytest.mark.parametrize(
    "columns",
    [
        {"foo": ["x", "p"], "bar": ["y", "q"], "baz": ["z", "r"]},
        {"a": [str(n) for n in range(20)], "b": [str(n) for n in range(20, 40)]},
        {"item_id": [str(n % 5) for n in range(20)], "rating": [str(n % 4) for n in range(20)]},
        {"user_id": [str(n) for n in range(20)], "age": ["30"] * 20, "city": ["X", "Y"] * 10},
        {c: [str((n * k) % 9) for n in range(30)] for k, c in enumerate("abcd", start=1)},
    ],
)
def test_too_little_is_no_guess(columns: dict[str, list[str]]) -> None:
    found = guess(columns)
    assert not {"user_id", "item_id"} <= found.roles.keys()


def test_what_could_also_be_is_said() -> None:
    columns = {**log(["user_id", "parent_asin", "rating", "timestamp"]), "asin": ["x"] * 60, "score": ["3"] * 60}
    notes = guess(columns).notes
    assert any(note.startswith("item_id:") and "'asin'" in note for note in notes)
    assert any(note.startswith("rating:") and "'score'" in note for note in notes)


def test_labels_of_clicks_are_ratings_and_said() -> None:
    base = {"user_id": ["u1", "u1", "u2"], "item_id": ["a", "b", "a"]}
    found = guess({**base, "clicked": ["1", "0", "1"]})
    assert found.roles["rating"] == "clicked"
    assert any("what was chosen and what was not" in note for note in found.notes)
    assert "rating" not in guess({**base, "clicked": ["1", "1", "1"]}).roles
    assert "rating" not in guess({**base, "clicked": ["1", "0", "1"]}, "rating=").roles


def test_what_was_overlooked_is_said() -> None:
    columns = log(["user_id", "item_id", "how", "then"])
    found = guess(columns)
    assert found.roles.keys() == {"user_id", "item_id"}
    assert any("rating=how" in note for note in found.notes)
    assert any("timestamp=then" in note for note in found.notes)
    assert not any("rating=" in note for note in guess(columns, "rating=").notes)


def test_values_refuse_a_name() -> None:
    columns = {"user": ["u1", "u2"], "item": ["a", "b"], "note": ["so so", "rainy"], "event": ["a long tale", "x" * 90]}
    assert guess(columns).roles == {"user_id": "user", "item_id": "item"}
    assert guess({**columns, "note": ["9007199254740993", "9007199254740994"]}).roles.keys() == {"user_id", "item_id"}
    assert guess({**columns, "note": ["3", "4"]}).roles["rating"] == "note"
    assert guess({**columns, "note": ["NA", ""]}).roles["rating"] == "note"


def test_titles_of_reviews_are_not_those_of_items() -> None:
    base = {"user_id": ["u1"], "asin": ["a"], "rating": ["5"]}
    review = {**base, "title": ["Great"], "text": ["I like it"], "helpful_vote": ["0"]}
    assert "title" not in guess(review).roles
    assert guess({**base, "title": ["A Film"]}).roles["title"] == "title"
    assert guess(review, "title=title").roles["title"] == "title"


def test_corrections_win_and_say_so() -> None:
    found = guess(log(["a", "b", "c", "d"]), "user_id=b", "item_id=a", "rating=")
    assert (found.roles["user_id"], found.roles["item_id"]) == ("b", "a")
    assert "rating" not in found.roles
    assert found.reasons["user_id"] == "you said so"
    told = guess({"item_id": ["a"], "x": ["b"]}, "kind:data.csv=users", "user_id:data.csv=x")
    assert (told.kind, told.roles) == ("users", {"user_id": "x"})
    assert told.reasons["kind"] == "you said so"


def test_corrections_name_files_by_name_pattern_and_archive() -> None:
    said = parse_mapping(
        ["layout:*.csv=rows", "layout:b.csv=matrix", "encoding:all.zip=gbk", "missing:all.zip/b.csv=99"]
    )
    assert said.option("layout", "all.zip/b.csv") == "matrix"
    assert said.option("layout", "all.zip/a.csv") == "rows"
    assert said.option("encoding", "all.zip/b.csv") == "gbk"
    assert said.option("missing", "all.zip/b.csv") == "99"
    assert said.option("missing", "b.csv") is None
    assert Corrections().option("layout", "b.csv") is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("layout:d.csv=spiral", "unknown layout"),
        ("kind:d.csv=things", "unknown kind"),
        ("event_weight:buy=", "not a weight"),
        ("event_weight:buy=nan", "not a weight"),
        ("items:history=x", "no role"),
        ("shape=x", "unknown role"),
    ],
)
def test_wrong_corrections_name_what_is_known(entry: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_mapping([entry])
    assert caught.value.fix


def test_weights_are_read_without_case() -> None:
    assert parse_mapping(["event_weight:Add to cart=2", "event_weight:BUY=5"]).event_weights() == {
        "add to cart": "2", "buy": "5",
    }  # fmt: skip


def test_first_lines_that_are_headers() -> None:
    for name in (
        "user_id",
        "Kundennummer",
        "用户",
        "history",
        "history_labels",
        "candidates",
        "relation_id",
        "embedding",
    ):
        assert is_role_name(name), name
    for word in ("cart", "clicked", "u1", "view", "2020", "orders"):
        assert not is_role_name(word), word


@settings(max_examples=60)
@given(st.text(max_size=12))
def test_plain_names_stay_plain(name: str) -> None:
    assert plain(plain(name)) == plain(name)
    assert plain(f"  {name.upper()} _") == plain(name.upper())


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 50))
def test_order_of_columns_does_not_matter_for_named_ones(order: list[int], seed: int) -> None:
    names = ["userId", "bookId", "rating", "date"]
    columns = log(names, seed=seed)
    found = guess({names[i]: columns[names[i]] for i in order})
    assert found.roles == {"user_id": "userId", "item_id": "bookId", "rating": "rating", "timestamp": "date"}


def test_every_role_of_a_table_in_a_folder_is_judged_by_its_bare_name(tmp_path: Path) -> None:
    assert guess({"id": ["1"], "age": ["2"]}, name="shop.zip/people.csv").kind == "users"
    assert guess({"id": ["1"], "label": ["2"]}, name="users.zip/films.csv").kind == "items"


def test_the_id_of_an_order_is_no_item_and_a_customers_name_no_title() -> None:
    orders = [str(n) for n in range(30)]
    columns = {
        "order_id": orders,
        "customer.id": [f"c{n % 7}" for n in range(30)],
        "customer.name": ["Ann Lee"] * 30,
        "placed_at": [f"2024-01-{n % 28 + 1:02d}" for n in range(30)],
    }
    found = guess(columns)
    assert "item_id" not in found.roles
    things = guess(columns | {"sku": [f"s{n % 5}" for n in range(30)]})
    assert things.roles == {"user_id": "customer.id", "item_id": "sku", "timestamp": "placed_at"}
    assert guess(columns | {"sku": ["a"] * 30, "product.name": ["Pan"] * 30}).roles["title"] == "product.name"


def test_a_column_that_is_called_a_rating_or_a_time_and_is_none_is_told() -> None:
    columns = log(["user", "item", "rating", "ts"])
    columns["rating"] = ["B+", "A", "C"] * 20
    columns["ts"] = ["in spring", "", "later"] * 20
    found = guess(columns)
    assert found.roles == {"user_id": "user", "item_id": "item"}
    assert "'rating' is called like a rating, but its cells are no numbers ('B+')" in found.notes
    assert "'ts' is called like a timestamp, but its cells are no times ('in spring')" in found.notes
    assert not [note for note in guess(columns, "rating=", "timestamp=").notes if "called like" in note]


def test_of_two_columns_of_times_the_one_with_values_is_taken() -> None:
    columns = log(["user", "item", "rating", "date_added"])
    blank = [""] * 60
    assert guess(columns | {"timestamp": blank}).roles["timestamp"] == "date_added"
    assert guess({**columns, "timestamp": columns["date_added"], "date_added": blank}).roles["timestamp"] == "timestamp"


@pytest.mark.parametrize("column", ["weight", "play_count", "plays", "times", "ListenCount", "播放次数", "clicks"])
def test_a_column_that_counts_is_taken_as_counts(tmp_path: Path, column: str) -> None:
    lines = [f"u{n % 7},i{n % 11},{n * n % 23 + 1}" for n in range(60)]
    path = tmp_path / "plays.csv"
    path.write_text(f"user_id,artist_id,{column}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    guess = guess_roles(path)
    assert guess.roles["rating"] == column
    assert any("taken as counts" in note for note in guess.notes)
    assert guess.questions == ()
    workspace = Workspace.open(tmp_path / "ws")
    import_files(workspace, [path], "d")
    meta = DatasetStore(workspace).meta("d")
    assert (meta.rating_kind, meta.rating_scale) == ("counts", None)
    assert "rating" not in guess_roles(path, ["rating="]).roles


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("user_id,item_id,weight", "1.25 0.5 3"),
        ("user_id,item_id,times", "10:15 11:20 12:00"),
        ("user_id,item_id,count", "-1 2 3"),
        ("user_id,item_id,weight", "1700000000 1700000001 1700000002"),
        ("user_id,item_id,quantity", "1 2 3"),
    ],
)
def test_a_column_that_may_count_something_else_stays_text(tmp_path: Path, header: str, cells: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(header + "\n" + "".join(f"u{n},i{n},{cell}\n" for n, cell in enumerate(cells.split())))
    assert "rating" not in guess_roles(path).roles


def test_ratings_come_before_counts(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("user_id,item_id,plays,rating\nu1,i1,7,4\nu2,i2,9,5\n")
    assert guess_roles(path).roles["rating"] == "rating"


@pytest.mark.parametrize(
    ("header", "row", "roles"),
    [
        (
            "respondent_id;brand;NPS;submitted_at",
            "{n};Acme{n};{n};2024-01-3{n}T10:00:00",
            {"user_id": "respondent_id", "item_id": "brand", "rating": "NPS", "timestamp": "submitted_at"},
        ),
        (
            "customer_unique_id;product_id;review_score;review_creation_date",
            "c{n};p{n};{n};2018-01-1{n} 00:00:00",
            {
                "user_id": "customer_unique_id",
                "item_id": "product_id",
                "rating": "review_score",
                "timestamp": "review_creation_date",
            },
        ),
        (
            "reviewer_name;product;stars;review_date",
            "Ann{n};Mug{n};{n}.0 out of 5 stars;Reviewed in the United States on March {n}, 2021",
            {"user_id": "reviewer_name", "item_id": "product", "rating": "stars", "timestamp": "review_date"},
        ),
        (
            "ts;username;ms_played;master_metadata_track_name;spotify_track_uri",
            "2023-01-0{n}T10:00:00Z;ann;183000;Song {n};spotify:track:{n}a",
            {
                "user_id": "username",
                "item_id": "spotify_track_uri",
                "timestamp": "ts",
                "title": "master_metadata_track_name",
            },
        ),
        (
            "learner_id;course_slug;progress;last_activity",
            "L{n};ml{n};yes;2024-01-0{n}",
            {"user_id": "learner_id", "item_id": "course_slug", "timestamp": "last_activity"},
        ),
        (
            "member_no;title_no;borrowed_on;returned_on",
            "{n};7{n};2024-01-0{n};2024-02-0{n}",
            {"user_id": "member_no", "item_id": "title_no", "timestamp": "borrowed_on"},
        ),
    ],
)
def test_exports_of_shops_surveys_and_services(tmp_path: Path, header: str, row: str, roles: dict[str, str]) -> None:
    path = tmp_path / "export.csv"
    path.write_text("\n".join([header, *(row.format(n=n) for n in (1, 2, 1, 3))]) + "\n", encoding="utf-8")
    assert guess_roles(path).roles == roles


def test_numbers_that_are_called_ids_are_no_ratings() -> None:
    cells = {"case_id": ["1", "2", "3", "1", "2", "3"], "what": ["a", "b", "a", "c", "b", "b"], "mark": list("545312")}
    assert "case_id" not in (guess(cells).roles.get("rating"), guess(cells).roles.get("timestamp"))


def test_the_name_of_a_person_is_no_title() -> None:
    cells = {"actor.mbox": ["a", "b"], "actor.name": ["Ann", "Bob"], "object.id": ["x", "y"], "object.name": ["X", "Y"]}
    said = ("user_id=actor.mbox", "item_id=object.id")
    found = guess(cells, *said, "rating=")
    assert found.roles == {"user_id": "actor.mbox", "item_id": "object.id"}
    del cells["actor.name"]
    assert guess(cells, *said).roles["title"] == "object.name"


@pytest.mark.parametrize(
    ("name", "cells", "role"),
    [
        ("Tag", ["31.01.2024", "01.02.2024", "03.02.2024"], "timestamp"),
        ("day", ["2024-01-31", "2024-02-01", "2024-02-03"], "timestamp"),
        ("Jour", ["31/01/2024", "01/02/2024", ""], "timestamp"),
        ("日", ["2024年1月31日", "2024年2月1日", "2024年2月3日"], "timestamp"),
        ("tag", ["funny", "sad", "2012"], None),
        ("day", ["1", "2", "31"], None),
        ("day", ["20240131", "20240201", "20240203"], None),
        ("day", ["Monday", "Friday", "Sunday"], None),
    ],
)
def test_a_day_is_a_time_where_its_cells_are_dates(name: str, cells: list[str], role: str | None) -> None:
    found = guess({"Kunde": ["k1", "k2", "k1"], "Artikel": ["a1", "a2", "a3"], name: cells})
    assert found.roles.get("timestamp") == (name if role else None)
    # A column that is named outright goes first.
    beside = guess({"Kunde": ["k1", "k2"], "Artikel": ["a1", "a2"], name: cells[:2], "Zeit": ["1704067200"] * 2})
    assert beside.roles["timestamp"] == "Zeit"
