"""The portrait of real frames drawn; empty and hostile values."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless, shown_texts

from llmrec_core.data import Dataset
from llmrec_core.data.portrait import portrait
from llmrec_core.figures import portrait_figures

NAMES = ["tail", "months", "ratings", "history_lengths", "coverage", "top_items"]


def _dataset(**columns):
    rows = {"user_id": ["a", "a", "b", "c"], "item_id": ["x", "y", "x", "x"], **columns}
    items = pd.DataFrame({"item_id": ["x", "y", "z"], "title": [HOSTILE, "Y", "Z"], HOSTILE: ["text", "", ""]})
    return Dataset.from_frames("d", pd.DataFrame(rows), items, pd.DataFrame({"user_id": ["a"], "age": ["24"]}))


def _full():
    return portrait(_dataset(rating=[1.0, 5.0, 5.0, 3.0], timestamp=[0.0, 86400.0 * 40, 86400.0 * 80, 1.0]))


def test_every_figure_shows_its_numbers():
    figures = portrait_figures(_full())
    assert list(figures) == NAMES
    assert list(figures["top_items"].data[0].x) == [3, 1, 0]
    assert list(figures["ratings"].data[0].y) == [1, 1, 2]
    assert list(figures["months"].data[0].y) == [2, 1, 1]
    assert list(figures["months"].layout.xaxis.ticktext) == ["1970-01", "1970-02", "1970-03"]
    assert sum(figures["history_lengths"].data[0].y) == 3
    assert figures["tail"].data[0].y[-1] == pytest.approx(100)
    assert "Ratings, mean 3.5" in shown_texts(figures["ratings"])
    shares = dict(zip(figures["coverage"].layout.yaxis.ticktext, figures["coverage"].data[0].x, strict=True))
    assert shares["user: age"] == pytest.approx(100 / 3)


def test_names_are_shown_literally():
    for figure in portrait_figures(_full()).values():
        assert_harmless(figure)


def test_its_json_draws_the_same():
    found = _full()
    from_json = portrait_figures(json.loads(json.dumps(found.as_json())))
    assert {name: figure.to_json() for name, figure in from_json.items()} == {
        name: figure.to_json() for name, figure in portrait_figures(found).items()
    }


def test_without_ratings_and_times():
    figures = portrait_figures(portrait(_dataset()))
    assert "no times" in figures["months"].layout.annotations[0].text
    assert "No ratings" in figures["ratings"].layout.annotations[0].text


def test_nothing_at_all():
    empty = {"labels": [], "counts": []}
    figures = portrait_figures(
        {
            "tail": [],
            "top_items": [],
            "months": empty,
            "ratings": empty,
            "history_lengths": empty,
            "item_coverage": [],
            "user_coverage": [],
        }
    )
    assert all(not figure.data and figure.layout.annotations for figure in figures.values())
