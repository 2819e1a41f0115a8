"""Split picture and ranking tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless

from llmrec_core.figures import ranking_table, side_by_side, split_figure

PARTS = {"train": np.arange(0, 8), "valid": np.array([8]), "test": np.array([9])}


def test_every_row_is_counted_in_its_part():
    figure = split_figure(np.linspace(0, 86400 * 100, 10), PARTS)
    assert [int(np.sum(trace.y)) for trace in figure.data] == [8, 1, 1]
    # All training rows lie before the validation row, that one before the test row.
    last = [np.flatnonzero(np.asarray(trace.y)).max() for trace in figure.data]
    assert last == sorted(last)
    assert figure.layout.annotations[0].text == "training: 8 rows (80.0%)"
    assert_harmless(figure)


def test_without_times_rows_stand_in_file_order():
    figure = split_figure(np.full(10, np.nan), PARTS)
    assert [int(np.sum(trace.y)) for trace in figure.data] == [8, 1, 1]
    assert "no times" in figure.layout.xaxis3.title.text


@pytest.mark.parametrize("timestamps", [np.zeros(10), np.full(10, 1e9)])
def test_rows_that_all_share_one_time(timestamps):
    assert [int(np.sum(trace.y)) for trace in split_figure(timestamps, PARTS).data] == [8, 1, 1]


@pytest.mark.parametrize("parts", [{}, {"train": [], "valid": [], "test": []}])
def test_split_without_rows(parts):
    assert not split_figure(np.arange(3.0), parts).data
    assert not split_figure([], parts).data


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
