"""What is read of an item: title, fields, facts."""

from __future__ import annotations

import pandas as pd

from llmrec_core.data import Dataset
from llmrec_core.recommenders.item_texts import item_texts, text_fields

ROWS = pd.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1.0, 2.0]})
ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Red", "我喜欢", ""],
        "category": ["war drama", "", ""],
        "release_year": ["1999", "2001", ""],
        "price": ["9.99", "1.00", ""],
    }
)
KNOWLEDGE = pd.DataFrame(
    [
        ("m.01", "film.film.directed_by", "Ann Example"),
        ("m.01", "film.film.genre", "m.0abc"),
        ("m.01", "film.film.sequel", "m.02"),
        ("m.09", "film.director.film", "m.01"),
        ("m.02", "film.film.country", "中国"),
    ],
    columns=["head", "relation", "tail"],
)
LINKS = pd.DataFrame({"item_id": ["a", "b"], "entity": ["m.01", "m.02"]})


def dataset(**extras: pd.DataFrame) -> Dataset:
    return Dataset.from_frames("d", ROWS, ITEMS, extras=extras)


def test_title_year_and_categories_unless_fields_are_chosen():
    assert text_fields(dataset()) == ("release_year", "category")
    assert item_texts(dataset()) == ["Red. 1999. war drama", "我喜欢. 2001", ""]
    assert item_texts(dataset(), ("price", "title")) == ["Red. 9.99", "我喜欢. 1.00", ""]


def test_facts_are_words_entities_are_called_by_their_titles_and_codes_say_nothing():
    known = dataset(knowledge=KNOWLEDGE, links=LINKS)
    assert item_texts(known) == item_texts(dataset()), "none are read unless asked for"
    first, second, third = item_texts(known, ("price",), facts=10)
    assert first == "Red. 9.99. directed by: Ann Example. sequel: 我喜欢"
    assert second == "我喜欢. 1.00. country: 中国. inverse of sequel: Red"
    assert third == ""
    assert item_texts(known, ("price",), facts=1)[0] == "Red. 9.99. directed by: Ann Example"
    with_codes = item_texts(known, ("price",), facts=10, codes=True)[0]
    assert "genre: m.0abc" in with_codes
    assert with_codes.endswith("inverse of film: m.09")


def test_without_links_an_item_is_its_own_entity():
    own = dataset(knowledge=pd.DataFrame({"head": ["a"], "relation": ["sequel_of"], "tail": ["b"]}))
    first, second, _ = item_texts(own, ("price",), facts=3)
    assert first == "Red. 9.99. sequel of: 我喜欢"
    assert second == "我喜欢. 1.00. inverse of sequel of: Red"
