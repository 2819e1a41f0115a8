"""Popularity counts training rows, and nothing else."""

import numpy as np
import pandas as pd
import pytest

from llmrec_core.baselines import PopularityRecommender
from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, make_split
from llmrec_core.errors import InputError
from llmrec_core.specs import SplitSpec


def test_counts_of_training_rows():
    # The last two rows of each user are held out: c and d in user 1, d and a in user 2.
    rows = [("1", item, t) for t, item in enumerate("abcd")] + [("2", item, t) for t, item in enumerate("bcda")]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": ["a", "b", "c", "d", "never"]})
    split = make_split(Dataset.from_frames("toy", frame, items), SplitSpec())
    popularity = PopularityRecommender()
    popularity.fit(split, FitContext())
    queries = [Query("1"), Query("x", (HistoryItem("a"),))]
    assert popularity.score(queries, np.arange(5)).tolist() == [[1, 2, 1, 0, 0]] * 2
    best = popularity.top_k(queries[:1], 5, [np.array([1])])[0]
    assert best.items.tolist() == [0, 2, 3, 4], "ties by item_idx, cold items last"


def test_ratings_are_mean_plus_damped_offsets(tmp_path):
    # Leave-one-out trains on each user's first row: a rated 5 and b rated 3, so the mean is 4.
    rows = [("1", "a", 5.0, 0), ("1", "b", 4.0, 1), ("1", "c", 2.0, 2), ("2", "b", 3.0, 0), ("2", "c", 1.0, 1)]
    rows += [("2", "a", 1.0, 2)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    dataset = Dataset.from_frames("toy", frame)
    popularity = PopularityRecommender()
    popularity.fit(make_split(dataset, SplitSpec()), FitContext())
    nobody, fan = Query("x"), Query("y", (HistoryItem("a", 5.0), HistoryItem("b"), HistoryItem("unknown", 1.0)))
    # Offsets: a +1/6, b -1/6, c 0. The fan's one rating lies 5 - 4 - 1/6 above what was expected, over 1 + 5.
    found = popularity.predict_ratings([nobody, fan], np.array([0, 1, 2, -1]))
    offsets = np.array([1 / 6, -1 / 6, 0.0])
    assert found is not None
    np.testing.assert_allclose(found[0, :3], 4 + offsets, rtol=1e-6)
    np.testing.assert_allclose(found[1, :3], 4 + offsets + (5 / 6) / 6, rtol=1e-6)
    assert np.isneginf(found[:, 3]).all()
    popularity.save(tmp_path)
    again = PopularityRecommender.load(tmp_path, dataset, FitContext())
    np.testing.assert_array_equal(again.predict_ratings([nobody, fan], np.arange(3)), found[:, :3])


def test_without_ratings_none_are_predicted():
    frame = pd.DataFrame([("1", i, t) for t, i in enumerate("abc")], columns=["user_id", "item_id", "timestamp"])
    popularity = PopularityRecommender()
    popularity.fit(make_split(Dataset.from_frames("toy", frame), SplitSpec()), FitContext())
    assert popularity.predict_ratings([Query("1")], np.arange(3)) is None


def test_unfitted_is_refused(tmp_path):
    unfitted = PopularityRecommender()
    with pytest.raises(InputError, match="not fitted"):
        unfitted.score([Query("1")], np.array([0]))
    with pytest.raises(InputError, match="not fitted"):
        unfitted.save(tmp_path)
    assert not list(tmp_path.iterdir())
