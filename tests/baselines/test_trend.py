"""Trend: shares by hand, nothing from later than the query, and what stands without times."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmrec_core.baselines import TrendRecommender
from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import DataError
from llmrec_core.specs import SplitSpec, TrendSpec

DAY = 86_400.0


def split_of(rows: list[tuple[str, str, float]]) -> Split:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return make_split(Dataset.from_frames("w", frame), SplitSpec(protocol="temporal"))


def rows() -> list[tuple[str, str, float]]:
    """a is met on days 0 to 9, b on days 10 to 19, one row a day; then held-out rows of c."""
    days = [(f"u{day % 5}", "a" if day < 10 else "b", day * DAY) for day in range(20)]
    return days + [(f"u{n}", "c", (30 + n) * DAY) for n in range(4)]


def fitted(**fields: float) -> tuple[TrendRecommender, Split]:
    split = split_of(rows())
    assert sorted(split.dataset.interactions["timestamp"].to_numpy()[split.train] / DAY) == list(range(20))
    model = TrendRecommender(TrendSpec(**fields))
    model.fit(split, FitContext())
    return model, split


def at(day: float) -> Query:
    return Query("u", (HistoryItem("a", None, day * DAY),))


def expected(day: int, half_life: float, smoothing: float) -> list[float]:
    met = ["a" if d < 10 else "b" for d in range(day + 1)]
    weights = [0.5 ** ((day - d) / half_life) for d in range(day + 1)]
    found = []
    for item in "abc":
        recent = sum(w for m, w in zip(met, weights, strict=True) if m == item) / sum(weights)
        past = met.count(item) / len(met)
        found.append(np.log(recent + smoothing / 3) - np.log(past + smoothing / 3))
    return found


@pytest.mark.parametrize("day", [3, 12, 19])
def test_shares_by_hand(day: int):
    model, _ = fitted(half_life_days=4.0, smoothing=0.2)
    # Moments lie three hours apart here, so those of whole days are among them.
    scores = model.score([at(day + 0.01)], np.arange(3))[0]
    np.testing.assert_allclose(scores, expected(day, 4.0, 0.2), atol=0.01)


def test_what_rises_leads_and_what_fell_ends():
    model, _ = fitted(half_life_days=3.0)
    assert model.top_k([at(19.5)], 3)[0].items.tolist() == [1, 2, 0]


def test_later_rows_change_nothing():
    model, _ = fitted(half_life_days=4.0)
    other = split_of([(u, "a" if i == "b" and t > 14 * DAY else i, t) for u, i, t in rows()])
    changed = TrendRecommender(model.spec)
    changed.fit(other, FitContext())
    np.testing.assert_array_equal(model.score([at(13.0)], np.arange(3)), changed.score([at(13.0)], np.arange(3)))
    assert not np.allclose(model.score([at(19.0)], np.arange(3)), changed.score([at(19.0)], np.arange(3)))


def test_before_all_rows_nothing_is_known_and_without_a_time_the_end_answers():
    model, _ = fitted()
    assert model.score([at(-1.0)], np.arange(3)).tolist() == [[0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(model.score([Query("u")], np.arange(3)), model.score([at(400.0)], np.arange(3)))


def test_data_without_times_is_refused():
    frame = pd.DataFrame({"user_id": list("aabb"), "item_id": list("xyxy")})
    split = make_split(Dataset.from_frames("w", frame), SplitSpec(protocol="random"))
    with pytest.raises(DataError, match="needs timestamps"):
        TrendRecommender().fit(split, FitContext())
