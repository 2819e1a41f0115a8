"""The portrait of real frames drawn; empty and hostile values."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from figures.figure_helpers import HOSTILE, assert_harmless, shown_texts

from llmrec_core.data import Dataset, Drift
from llmrec_core.data.portrait import portrait
from llmrec_core.figures import drift_figure, portrait_figures

NAMES = [
    "tail", "history_lengths", "cold", "shares", "months", "week_hours", "sessions", "gaps", "ratings", "text_lengths",
    "coverage", "top_items",
]  # fmt: skip
MONDAY = 1704067200.0


def _dataset(**columns):
    rows = {"user_id": ["a", "a", "b", "c"], "item_id": ["x", "y", "x", "x"], **columns}
    items = pd.DataFrame({"item_id": ["x", "y", "z"], "title": [HOSTILE, "Y", "Z"], HOSTILE: ["text", "", ""]})
    return Dataset.from_frames("d", pd.DataFrame(rows), items, pd.DataFrame({"user_id": ["a"], "age": ["24"]}))


def _full():
    return portrait(_dataset(rating=[1.0, 5.0, 5.0, 3.0], timestamp=[0.0, 86400.0 * 40, 86400.0 * 80, 1.0]))


def said(figure):
    return " ".join(shown_texts(figure)).replace("<br>", " ")


def test_every_figure_shows_its_numbers():
    figures = portrait_figures(_full())
    assert list(figures) == NAMES
    assert list(figures["top_items"].data[0].x) == [3, 1, 0]
    assert list(figures["ratings"].data[0].y) == [1, 1, 2]
    assert list(figures["months"].data[0].y) == [2, 1, 1]
    assert list(figures["months"].layout.xaxis.ticktext) == ["1970-01", "1970-02", "1970-03"]
    assert sum(figures["history_lengths"].data[0].y) == 3
    assert figures["tail"].data[0].y[-1] == pytest.approx(100)
    # 3, 1 and 0 interactions: 2 * (1 * 2 + 3 * 3) / (3 * 4) - 4 / 3.
    assert "Gini 0.5" in said(figures["tail"])
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


def test_times_with_hours_are_drawn_as_sessions_and_weeks():
    times = [MONDAY, MONDAY + 600, MONDAY + 86_400 + 7200, MONDAY + 60]
    figures = portrait_figures(portrait(_dataset(timestamp=times)))
    assert list(figures["sessions"].data[0].y) == [2, 1]
    assert "1.33 interactions in 3.33 minutes" in said(figures["sessions"])
    week = figures["week_hours"].data[0]
    assert (week.z[0][0], week.z[1][2], sum(map(sum, week.z))) == (3, 1, 4)
    assert list(figures["gaps"].data[0].y) == [0, 1, 0, 0, 0, 0]
    days = portrait_figures(portrait(_dataset(timestamp=[MONDAY] * 4)))
    for name in ("sessions", "week_hours"):
        assert "days without an hour" in days[name].layout.annotations[0].text


def test_cold_ends_and_shares_are_drawn():
    figures = portrait_figures(_full())
    cold = {bar.name: list(bar.x) for bar in figures["cold"].data}
    # Items x, y and z with 3, 1 and no interactions; users with 2, 1 and 1.
    assert cold == {"none": [pytest.approx(100 / 3), 0], "1 to 4": [pytest.approx(200 / 3), 100], "5 or more": [0, 0]}
    shares = dict(zip(figures["shares"].layout.yaxis.ticktext, figures["shares"].data[0].x, strict=True))
    assert shares == {
        "user and item met": pytest.approx(400 / 9), "items share a user": 100, "rows repeat a pair": 0,
        "rows repeat exactly": 0,
    }  # fmt: skip
    assert not figures["shares"].data[0].error_x.visible
    document = {
        **_full().as_json(),
        "co_visits": {"density": 0.4, "low": 0.3, "high": 0.6, "n_items": 9, "n_sampled": 7},
    }
    estimated = portrait_figures(document)["shares"]
    assert estimated.data[0].error_x.array[1] == pytest.approx(20)
    assert "estimated from 7 random pairs" in said(estimated)


def test_text_lengths_are_drawn():
    figure = portrait_figures(_full())["text_lengths"]
    assert "words and marks" in said(figure)
    bare = Dataset.from_frames("d", pd.DataFrame({"user_id": ["a"], "item_id": ["x"]}))
    assert "No item has text" in portrait_figures(portrait(bare))["text_lengths"].layout.annotations[0].text


def test_drift_is_drawn_from_the_object_and_from_json():
    found = Drift(100, 10, 0.2, 0.05, 0.3, [(2, 0.6, 0.5), (9, 0.4, 0.5)], None, None, None, 0.1, 0.2, ["said"])
    figure = drift_figure(found)
    assert [list(bar.y) for bar in figure.data] == [[60, 40], [50, 50]]
    assert list(figure.layout.xaxis.ticktext) == ["2", "9"]
    assert "0.2 bits from training to test, 4 times chance" in said(figure)
    assert drift_figure(found.as_json()).to_json() == figure.to_json()
    assert "No item" in drift_figure({**found.as_json(), "groups": []}).layout.annotations[0].text
    assert_harmless(figure)


def test_nothing_at_all():
    empty = {"labels": [], "counts": []}
    figures = portrait_figures(
        {
            "clock": "none",
            "tail": [],
            "week_hours": [],
            "sessions": None,
            "gaps": empty,
            "item_text": None,
            "co_visits": None,
            **dict.fromkeys(("n_interactions", "n_items", "n_users", "n_cold_items", "n_cold_users"), 0),
            **dict.fromkeys(("n_few_items", "n_few_users", "n_repeats", "n_exact_repeats", "density"), 0),
            "top_items": [],
            "months": empty,
            "ratings": empty,
            "history_lengths": empty,
            "item_coverage": [],
            "user_coverage": [],
        }
    )
    for name in ("cold", "shares"):
        assert not any(any(bar.x) for bar in figures.pop(name).data)
    assert all(not figure.data and figure.layout.annotations for figure in figures.values())
