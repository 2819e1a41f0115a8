"""Ranking tables."""

from __future__ import annotations

import pandas as pd
from figures.figure_helpers import HOSTILE

from llmrec_core.figures import ranking_table, side_by_side

ITEMS = [
    {"rank": 1, "item_id": "7", "title": HOSTILE, "score": 2.5, "popularity": 12, "cold": False, "hit": True},
    {"rank": 2, "item_id": "8", "title": "", "score": -1.0, "popularity": 0, "cold": True, "hit": False},
    {"rank": 3, "item_id": "9", "title": "line\nbreak", "score": -2.0},
]


def test_ranking_table_shows_titles_as_text():
    table = ranking_table(ITEMS)
    assert table["title"].tolist() == [HOSTILE, "8", "line break"]
    assert table["notes"].tolist() == ["★ held out", "no training data", ""]
    assert table["popularity"].tolist()[:2] == [12, 0]
    assert table["popularity"].isna().tolist() == [False, False, True]


def test_side_by_side_pads_shorter_lists():
    table = side_by_side({"model": ITEMS, "popularity": ITEMS[1:2]})
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["model"].tolist() == [f"★ {HOSTILE}", "8", "line break"]
    assert table["popularity"].tolist() == ["", "8", ""]


def test_empty_tables_keep_their_columns():
    assert ranking_table([]).columns.tolist() == ["rank", "title", "score", "popularity", "notes", "item_id"]
    pd.testing.assert_series_equal(side_by_side({})["rank"], pd.Series([], dtype="int64", name="rank"))
