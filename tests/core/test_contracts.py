"""Ranking one row of scores, the one algorithm every family shares."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmrec_core.contracts import rank_row


def test_ties_go_to_the_lower_index_also_at_the_border():
    ranking = rank_row(np.array([1, 3, 2, 3, 2, 2], np.float32), 4, None)
    assert ranking.items.tolist() == [1, 3, 2, 4]
    assert ranking.scores.tolist() == [3, 3, 2, 2]


def test_excluded_and_impossible_items_never_appear():
    scores = np.array([5, -np.inf, 4, 3], np.float32)
    assert rank_row(scores, 10, np.array([0])).items.tolist() == [2, 3]
    assert rank_row(scores, 10, np.array([0, 2, 3])).items.tolist() == []
    assert scores[0] == 5, "the caller's scores are not touched"


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, -np.inf])),
    st.integers(1, 50),
)
def test_equals_a_full_sort(scores, k):
    order = sorted((i for i in range(len(scores)) if np.isfinite(scores[i])), key=lambda i: (-scores[i], i))
    assert rank_row(scores, k, None).items.tolist() == order[:k]
