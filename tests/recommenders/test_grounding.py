"""Claims in texts about items, by hand: what is named, and what backs it."""

from __future__ import annotations

import pandas as pd
import pytest

from llmrec_core.data import Dataset
from llmrec_core.recommenders.grounding import HISTORY, Grounding, names

TITLES = ["Harbour Lights (1995)", "Postman, The", "Heat", "Heat Wave", "我喜欢的电影", "usb cable"]
CATEGORIES = ["Drama", "Comedy", "Science Fiction, Drama", "Horror", "", ""]


@pytest.fixture(scope="module")
def grounding() -> Grounding:
    items = pd.DataFrame({"item_id": list("abcdef"), "title": TITLES, "category": CATEGORIES})
    rows = pd.DataFrame({"user_id": ["1", "1"], "item_id": ["a", "b"]})
    return Grounding(Dataset.from_frames("films", rows, items))


SOURCES = {
    "title": ["Harbour Lights (1995)"],
    "category": ["Drama"],
    "release_year": ["1995"],
    "fact: directed by": ["Ann Lee"],
    HISTORY: ["Postman, The"],
}


def found(grounding: Grounding, text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(c.kind, c.text, c.backed_by) for c in grounding.claims(text, SOURCES)]


def test_what_is_backed_and_by_what(grounding):
    text = "Harbour Lights is a drama of 1995 by Ann Lee, good after The Postman."
    assert found(grounding, text) == [
        ("title", "Harbour Lights", ("title",)),
        ("category", "drama", ("category",)),
        ("number", "1995", ("title", "release_year")),
        ("name", "Ann Lee", ("fact: directed by",)),
        ("title", "The Postman", ("history",)),
    ]
    for claim in grounding.claims(text, SOURCES):
        assert text[claim.start : claim.end] == claim.text


def test_a_title_ends_with_the_bracket_that_it_opens(grounding):
    told = [claim[1] for claim in found(grounding, "Like Harbour Lights (1995), and Heat (which is hot).")]
    assert told == ["Harbour Lights (1995)", "Heat"]
    assert found(grounding, "(the film Heat)")[0][1] == "Heat"


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("It is like Heat Wave.", ("title", "Heat Wave")),
        ("A scare for lovers of horror.", ("category", "horror")),
        ("Plain science fiction.", ("category", "science fiction")),
        ("It won 11 prizes.", ("number", "11")),
        ("The best of 1996.", ("number", "1996")),
        ("With the great Tom Stone in it.", ("name", "Tom Stone")),
        ("你会看我喜欢的电影吗", ("title", "我喜欢的电影")),
        ("It comes with a USB cable.", ("title", "USB cable")),
    ],
)
def test_what_nothing_backs(grounding, text, claim):
    assert [(c.kind, c.text) for c in grounding.claims(text, SOURCES) if not c.backed_by] == [claim]


@pytest.mark.parametrize(
    "text",
    [
        "A story that I like, gripping to the end.",
        "The heat of the day is in every scene.",
        "Heat fills every scene.",
        "It has harbour lights in it.",
        "",
    ],
)
def test_common_words_are_no_titles(grounding, text):
    assert [claim for claim in grounding.claims(text, SOURCES) if not claim.backed_by] == []


def test_an_item_is_named_in_several_ways():
    assert names("harbour lights is good", "Harbour Lights (1995)")
    assert names("See The Postman.", "Postman, The")
    assert names("Heat!", "Heat")
    assert not names("The heater is on.", "Heat")
    assert not names("", "Heat")


def test_the_longest_title_counts_and_numbers_are_compared_as_numbers(grounding):
    sources = {"title": ["Heat Wave"], "price": ["1,000.50"], "length": ["90.0"]}
    named = grounding.claims("We show Heat Wave for 1000.5, 90 minutes long.", sources)
    assert [(c.kind, c.text, c.backed_by) for c in named] == [
        ("title", "Heat Wave", ("title",)),
        ("number", "1000.5", ("price",)),
        ("number", "90", ("length",)),
    ]
    assert [c.text for c in grounding.claims("And Heat too.", sources) if not c.backed_by] == []
    assert [c.text for c in grounding.claims("And Heat too.", SOURCES) if not c.backed_by] == ["Heat"]
