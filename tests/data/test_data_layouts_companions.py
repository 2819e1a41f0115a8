"""Public layouts, and what stands beside interactions: items of every shape, facts, links, vectors, tags, events."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_core.data import Dataset, DatasetStore, ImportReport, guess_roles, import_files
from llmrec_core.data._layouts import PlannedTable, expand
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import open_sources
from llmrec_core.data.companions import (
    INVERSE,
    Companions,
    item_categories,
    item_facts,
    item_image,
    item_price,
    item_vector,
    item_vectors,
)
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

LOG = "user_id,item_id,rating\nu1,a,5\nu1,b,3\nu2,a,1\n"


def put(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def imported(tmp_path: Path, files: dict[str, str | bytes], *mapping: str) -> tuple[ImportReport, Dataset]:
    shutil.rmtree(tmp_path / "ws", ignore_errors=True)
    workspace = Workspace.open(tmp_path / "ws")
    report = import_files(workspace, [put(tmp_path, name, content) for name, content in files.items()], "d", mapping)
    return report, DatasetStore(workspace).load("d")


def plan(path: Path, *mapping: str) -> list[PlannedTable]:
    corrections = parse_mapping(mapping)
    return [planned for source in open_sources(path, corrections) for planned in expand(source, corrections)]


def triples(dataset: Dataset) -> list[tuple[str, str, float]]:
    table = dataset.interactions
    return list(zip(table["user_id"], table["item_id"], table["rating"].tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ RecBole, MovieLens


def test_atomic_files_with_a_knowledge_graph(tmp_path: Path) -> None:
    report, dataset = imported(
        tmp_path,
        {
            "toy.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            "1\t10\t3\t881250949\n2\t11\t5\t881250950\n",
            "toy.item": "item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tThe Long Road\tAction Comedy\n"
            "11\tRain\tDrama\n12\tSnow\t\n",
            "toy.user": "user_id:token\tage:token\n1\t24\n2\t53\n",
            "toy.kg": "head_id:token\trelation_id:token\ttail_id:token\n"
            "m.1\tfilm.genre\tm.90\nm.80\tfilm.producer\tm.1\nm.3\tfilm.genre\tm.91\n",
            "toy.link": "item_id:token\tentity_id:token\n10\tm.1\n11\tm.2\n",
        },
    )
    assert triples(dataset) == [("1", "10", 3.0), ("2", "11", 5.0)]
    assert dataset.items["title"].tolist() == ["The Long Road", "Rain", "Snow"]
    assert dataset.items["category"].tolist() == ["Action, Comedy", "Drama", ""]
    assert dataset.profile("1") == {"age": "24"}
    assert set(dataset.meta.extras) == {"knowledge", "links"}
    assert item_facts(dataset, dataset.item_idx("10")) == [("film.genre", "m.90"), (INVERSE + "film.producer", "m.80")]
    assert item_facts(dataset, dataset.item_idx("11")) == []
    assert item_facts(dataset, dataset.item_idx("12")) == []
    assert item_categories(dataset, 0) == ["Action", "Comedy"]
    assert "1 of 3 items have facts (3 facts in all)" in report.warnings
    assert "2 of 3 items are linked to an entity" in report.warnings


def test_facts_about_items_without_links(tmp_path: Path) -> None:
    facts = "a\tmade.by\tx\nb\tmade.by\tx\na\tset.in\ty\n"
    report, dataset = imported(tmp_path, {"log.csv": LOG, "facts.tsv": facts})
    assert item_facts(dataset, dataset.item_idx("a")) == [("made.by", "x"), ("set.in", "y")]
    assert "2 of 2 items have facts (3 facts in all)" in report.warnings
    assert Companions(imported(tmp_path, {"log.csv": LOG})[1]).facts(0) == []


@pytest.mark.parametrize("header", ["subject,predicate,object", "head,relation,tail", "h,r,t"])
def test_names_of_facts(tmp_path: Path, header: str) -> None:
    (planned,) = plan(put(tmp_path, "d.csv", f"{header}\na,likes,b\nb,likes,c\n"))
    assert (planned.layout, planned.kind) == ("knowledge", "knowledge")
    assert list(planned.roles) == ["head", "relation", "tail"]


def test_facts_can_be_told_and_are_not_guessed_from_a_log(tmp_path: Path) -> None:
    path = put(tmp_path, "d.tsv", "u1\tview\ti1\nu2\tbuy\ti2\nu1\tview\ti2\nu3\tview\ti1\n")
    assert plan(path)[0].layout == "rows"
    assert plan(path, "layout:d.tsv=knowledge")[0].roles == {
        "head": "column_1",
        "relation": "column_2",
        "tail": "column_3",
    }


def test_movielens_latest(tmp_path: Path) -> None:
    report, dataset = imported(
        tmp_path,
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.0,1500000000\n2,11,3.5,1500000001\n"
            "2,10,5.0,1500000002\n",
            "movies.csv": "movieId,title,genres\n10,The Long Road (1999),Action|Comedy\n11,Rain,(no genres listed)\n",
            "tags.csv": "userId,movieId,tag,timestamp\n1,10,slow,1500000000\n2,10,dark,1500000001\n"
            "3,10,dark,1500000001\n2,12,quiet,1500000001\n",
            "links.csv": "movieId,imdbId,tmdbId\n10,0000101,1\n11,0000102,\n",
        },
    )
    assert triples(dataset) == [("1", "10", 4.0), ("2", "11", 3.5), ("2", "10", 5.0)]
    assert dataset.items[["item_id", "title", "tags"]].to_numpy().tolist() == [
        ["10", "The Long Road (1999)", "dark, slow"], ["11", "Rain", ""], ["12", "12", "quiet"],
    ]  # fmt: skip
    links = dataset.extra("links")
    assert links is not None
    assert links["entity"].tolist() == ["0000101", "0000102"]
    assert any("tags of people become the field" in warning for warning in report.warnings)
    assert report.rejects == []


def test_tags_can_be_taken_as_interactions(tmp_path: Path) -> None:
    path = put(tmp_path, "tags.csv", "userId,movieId,tag,timestamp\n1,10,slow,1500000000\n2,10,dark,1500000001\n")
    assert [(p.layout, p.kind) for p in plan(path)] == [("tags", "items")]
    assert [(p.layout, p.kind) for p in plan(path, "kind:tags.csv=interactions")] == [("rows", "interactions")]


def test_parts_of_movielens_100k_say_so(tmp_path: Path) -> None:
    (planned,) = plan(put(tmp_path, "u1.base", "1\t10\t3\t881250949\n2\t11\t5\t881250950\n"))
    assert planned.roles == {r: r for r in ("user_id", "item_id", "rating", "timestamp")}
    assert any("part:u1.base=train" in note for note in planned.notes)
    (planned,) = plan(tmp_path / "u1.base", "part:u1.base=train")
    assert not any("part:" in note for note in planned.notes)


# ------------------------------------------------------------------------------------------------ Amazon


def test_amazon_reviews_and_metadata_of_today(tmp_path: Path) -> None:
    reviews = jsonl(
        {
            "rating": 5.0, "title": "Glad", "text": "Fits, and warm.", "images": [], "asin": "B000000011",
            "parent_asin": "B000000001", "user_id": "AEABCDEFGHIJKLMNOPQRSTUVWXYZ", "timestamp": 1588687728923,
            "helpful_vote": 0, "verified_purchase": True,
        },
        {
            "rating": 2.0, "title": "Thin", "text": "No.", "images": [{"small_image_url": "https://example.org/s"}],
            "asin": "B000000002", "parent_asin": "B000000002", "user_id": "AEABCDEFGHIJKLMNOPQRSTUVWXY2",
            "timestamp": 1588687728924, "helpful_vote": 3, "verified_purchase": False,
        },
    )  # fmt: skip
    meta = jsonl(
        {
            "main_category": "Fashion", "title": "Wool hat", "features": ["Warm", "Soft"],
            "description": ["One.", "Two."], "price": "$1,012.99",
            "categories": ["Clothing, Shoes", "Hats"], "parent_asin": "B000000001",
            "images": [{"thumb": "https://example.org/t", "large": "https://example.org/l", "variant": "MAIN"}],
            "details": {"Brand": "Sheep"},
        },
        {
            "main_category": "Fashion", "title": "Cap", "features": [], "description": [], "price": None,
            "categories": ["Clothing, Shoes"], "parent_asin": "B000000002", "images": [], "details": {"Brand": "Goat"},
        },
    )  # fmt: skip
    report, dataset = imported(tmp_path, {"Fashion.jsonl": reviews, "meta_Fashion.jsonl": meta})
    assert [item for _, item, _ in triples(dataset)] == ["B000000001", "B000000002"]
    assert dataset.interactions["timestamp"].tolist()[0] == pytest.approx(1588687728.923)
    assert dataset.items["title"].tolist() == ["Wool hat", "Cap"]
    assert dataset.items["description"].tolist() == ["One. Two.", ""]
    assert dataset.items["features"].tolist() == ["Warm, Soft", ""]
    assert item_categories(dataset, 0) == ["Clothing, Shoes", "Hats"]
    assert item_categories(dataset, 1) == ["Clothing, Shoes"]
    assert (item_price(dataset, 0), item_price(dataset, 1)) == (1012.99, None)
    assert dataset.items["price"].tolist() == ["$1,012.99", ""]
    assert (item_image(dataset, 0), item_image(dataset, 1)) == ("https://example.org/l", "")
    assert any("could also be 'asin'" in warning for warning in report.warnings)
    assert any("that of the review" in warning for warning in report.warnings)


def test_amazon_reviews_and_metadata_of_old(tmp_path: Path) -> None:
    reviews = jsonl(
        {
            "reviewerID": "A1B2C3D4E5F6G7", "asin": "0000000001", "reviewerName": "Ann", "helpful": [0, 0],
            "overall": 5.0, "reviewText": "Good.", "summary": "Good", "unixReviewTime": 1252800000,
            "reviewTime": "09 13, 2009",
        }
    )  # fmt: skip
    meta = (
        "{'asin': '0000000001', 'title': \"Ann's book\", 'categories': [['Books', 'Rain'], ['Books']], 'price': 3.5}\n"
    )
    _, dataset = imported(tmp_path, {"reviews.json": reviews, "meta_Books.json": meta})
    assert triples(dataset) == [("A1B2C3D4E5F6G7", "0000000001", 5.0)]
    assert dataset.interactions["timestamp"].tolist() == [1252800000.0]
    assert dataset.interactions["summary"].tolist() == ["Good"]
    assert dataset.items["title"].tolist() == ["Ann's book"]
    assert item_categories(dataset, 0) == ["Books", "Rain"]
    assert item_price(dataset, 0) == 3.5


@pytest.mark.parametrize("item_first", [True, False])
def test_amazon_ratings_without_header_in_either_order(tmp_path: Path, item_first: bool) -> None:
    pairs = [("A1B2C3D4E5F6G7", "B000000001"), ("A1B2C3D4E5F6G8", "B000000002"), ("A1B2C3D4E5F6G7", "0000000003")]
    content = "".join(
        ",".join([*(reversed(pair) if item_first else pair), "4.0", str(1400000000 + n)]) + "\n"
        for n, pair in enumerate(pairs)
    )
    report, dataset = imported(tmp_path, {"ratings_Books.csv": content})
    assert [(user, item) for user, item, _ in triples(dataset)] == pairs
    assert any("no header: columns taken as" in warning for warning in report.warnings)


# ------------------------------------------------------------------------------------------------ items


def test_vectors_in_a_list_in_columns_and_in_a_file(tmp_path: Path) -> None:
    numbers = {"a": [n / 8 for n in range(8)], "b": [-n / 4 for n in range(8)]}
    listed = jsonl(*({"item_id": item, "title": item.upper(), "embedding": vector} for item, vector in numbers.items()))
    wide = "item_id,title," + ",".join(f"v{n}" for n in range(8)) + "\n"
    wide += "".join(f"{item},{item.upper()},{','.join(map(str, vector))}\n" for item, vector in numbers.items())
    apart = "".join(f"{item} {' '.join(map(str, vector))}\n" for item, vector in numbers.items())
    headed = "item_id,title\na,A\nb,B\n"
    expected = np.array([numbers["a"], numbers["b"]], np.float32)
    for files in ({"items.jsonl": listed}, {"items.csv": wide}, {"items.csv": headed, "item_emb.txt": apart}):
        report, dataset = imported(tmp_path, {"log.csv": LOG, **files})
        assert dataset.items["title"].tolist() == ["A", "B"], files
        assert not [c for c in dataset.items.columns if c.startswith(("v", "emb"))]
        vectors = item_vectors(dataset)
        assert vectors is not None
        assert vectors.tolist() == expected.tolist()
        assert "2 of 2 items have a vector" in report.warnings
        vector = item_vector(dataset, 1)
        assert vector is not None
        assert vector.tolist() == expected[1].tolist()


def test_a_short_list_of_numbers_is_a_vector_only_where_it_is_called_one(tmp_path: Path) -> None:
    log = {"log.csv": LOG}
    called = imported(
        tmp_path, {**log, "items.csv": 'item_id,emb,sizes\na,"[0.5, 1]","[3, 4]"\nb,"[2, 0.25]","[5, 6]"\n'}
    )[1]
    vectors = item_vectors(called)
    assert vectors is not None
    assert vectors.tolist() == [[0.5, 1.0], [2.0, 0.25]]
    assert called.items["sizes"].tolist() == ["3, 4", "5, 6"]


def test_a_vector_of_another_size_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [f"i{n},{' '.join(['0.5'] * 8)}" for n in range(1200)]
    rows[1100] = "i1100," + " ".join(["0.5"] * 7)
    log = "user_id,item_id\nu1,i0\nu1,other\n"
    report, dataset = imported(tmp_path, {"log.csv": log, "vec.csv": "item_id,vector\n" + "\n".join(rows) + "\n"})
    assert [(r["file"], r["line"]) for r in report.rejects] == [("vec.csv", 1102)]
    assert item_vector(dataset, dataset.item_idx("other")) is None
    assert item_vector(dataset, dataset.item_idx("i0")) is not None
    assert item_vectors(imported(tmp_path, {"log.csv": LOG})[1]) is None


def test_nested_parquet_items(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["a", "b"],
            "genres": [["Drama", "Crime"], []],
            "image": [[{"large": "https://example.org/a.jpg"}], None],
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    content = (tmp_path / "items.parquet").read_bytes()
    _, dataset = imported(tmp_path, {"log.csv": LOG, "items.parquet": content})
    assert dataset.items["category"].tolist() == ["Drama, Crime", ""]
    assert item_image(dataset, 0) == "https://example.org/a.jpg"
    with pytest.raises(InputError, match="no field"):
        item_categories(dataset, 0, "colour")


def test_items_in_several_files_are_set_side_by_side(tmp_path: Path) -> None:
    files = {
        "log.csv": LOG,
        "names.csv": "item_id,title\na,A\nb,B\n",
        "prices.csv": "item_id,price\nb,3 EUR\nc,4 EUR\n",
    }
    report, dataset = imported(tmp_path, files)
    assert dataset.items[["item_id", "title", "price"]].to_numpy().tolist() == [
        ["a", "A", ""], ["b", "B", "3 EUR"], ["c", "c", "4 EUR"],
    ]  # fmt: skip
    assert report.rejects == []
    assert [item_price(dataset, n) for n in range(3)] == [None, 3.0, 4.0]
    again = {**files, "more.csv": "item_id,title\nb,Other\nd,D\n"}
    report, dataset = imported(tmp_path, again)
    assert [(r["file"], r["line"]) for r in report.rejects] == [("more.csv", 2)]
    assert dataset.items["title"].tolist() == ["A", "B", "c", "D"]


def test_prices_and_images_are_known_by_their_values(tmp_path: Path) -> None:
    guess = guess_roles(put(tmp_path, "items.csv", "item_id,price,img\na,$3.50,pics/a.jpg\nb,$12,pics/b.png\n"))
    assert guess.roles == {"item_id": "item_id", "price": "price", "image": "img"}
    guess = guess_roles(put(tmp_path, "odd.csv", "item_id,price,cover\na,cheap,hard\nb,dear,soft\n"))
    assert guess.roles == {"item_id": "item_id"}


# ------------------------------------------------------------------------------------------------ events


EVENTS = (
    "uid,sku,event_type,ts\nu1,a,view,1600000000\nu1,a,Cart,1600000001\nu2,b,view,1600000002\nu2,a,buy,1600000003\n"
)


def test_events_without_ratings(tmp_path: Path) -> None:
    report, dataset = imported(tmp_path, {"log.csv": EVENTS})
    assert dataset.interactions["event"].tolist() == ["view", "Cart", "view", "buy"]
    assert dataset.rating_scale is None
    note = next(warning for warning in report.warnings if "whatever its event" in warning)
    assert "view (2)" in note
    assert "event_weight:" in note


def test_events_weigh_only_when_asked(tmp_path: Path) -> None:
    report, dataset = imported(tmp_path, {"log.csv": EVENTS}, "event_weight:cart=3", "event_weight:buy=5.5")
    assert dataset.interactions["rating"].tolist() == [1.0, 3.0, 1.0, 5.5]
    assert dataset.interactions["event"].tolist() == ["view", "Cart", "view", "buy"]
    assert any("weights of events" in warning for warning in report.warnings)
    with pytest.raises(InputError, match="not a weight"):
        imported(tmp_path, {"log.csv": EVENTS}, "event_weight:cart=much")
    with pytest.raises(DataError, match="no column holds events"):
        imported(tmp_path, {"log.csv": "user_id,item_id\nu1,a\n"}, "event_weight:cart=3")
    with pytest.raises(DataError, match="holds ratings"):
        imported(tmp_path, {"log.csv": "user_id,item_id,event,rating\nu1,a,buy,3\n"}, "event_weight:buy=3")
