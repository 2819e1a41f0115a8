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


def test_unfitted_is_refused(tmp_path):
    unfitted = PopularityRecommender()
    with pytest.raises(InputError, match="not fitted"):
        unfitted.score([Query("1")], np.array([0]))
    with pytest.raises(InputError, match="not fitted"):
        unfitted.save(tmp_path)
    assert not list(tmp_path.iterdir())
