"""Ranking rows of scores, the one algorithm every family shares, and how scores are picked out of whole rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from llmrec_core.contracts import pick_scores, rank_rows


def test_ties_go_to_the_lower_index_also_at_the_border():
    (ranking,) = rank_rows(np.array([[1, 3, 2, 3, 2, 2]], np.float32), 4)
    assert ranking.items.tolist() == [1, 3, 2, 4]
    assert ranking.scores.tolist() == [3, 3, 2, 2]


def test_excluded_and_impossible_items_never_appear():
    scores = np.array([[5, -np.inf, 4, 3], [1, 2, np.nan, 9]], np.float32)
    before = scores.copy()
    first, second = rank_rows(scores, 10, [np.array([0]), np.array([], np.int64)])
    assert first.items.tolist() == [2, 3]
    assert second.items.tolist() == [3, 1, 0], "what is no number is no score"
    assert rank_rows(scores, 10, [np.array([0, 2, 3]), np.array([3, 3])])[0].items.tolist() == []
    np.testing.assert_array_equal(scores, before)


def test_scores_that_may_not_be_written_are_ranked_too():
    scores = np.broadcast_to(np.array([3, 1, 2], np.float32), (2, 3))
    found = rank_rows(scores, 2, [np.array([0]), np.array([2])])
    assert [ranking.items.tolist() for ranking in found] == [[2, 1], [0, 1]]


def _full_sort(row, k, seen):
    kept = [i for i in range(len(row)) if np.isfinite(row[i]) and i not in seen]
    return sorted(kept, key=lambda i: (-row[i], i))[:k]


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, -np.inf, np.nan]),
    ),
    st.integers(0, 50),
    st.integers(0, 3),
)
def test_equals_a_full_sort(scores, k, n_seen):
    seen = [np.random.default_rng(row).integers(0, scores.shape[1], n_seen) for row in range(len(scores))]
    for row, ranking in enumerate(rank_rows(scores, k, seen)):
        assert ranking.items.tolist() == _full_sort(scores[row], k, set(seen[row].tolist()))
        np.testing.assert_array_equal(ranking.scores, scores[row][ranking.items])


@pytest.mark.parametrize("n_items", [1999, 2000, 5003])
def test_equals_a_full_sort_where_columns_are_grouped(n_items):
    """Long rows, with steps of equal scores, descending and clustered ones: the groups that bound them differ."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, n_items)).astype(np.float32)
    scores[1] = np.round(scores[1])
    scores[2] = np.sort(scores[2])[::-1]
    scores[3, : n_items - 7] = -np.inf
    scores[4, -1] = 100
    scores[5] = 0
    seen = [rng.choice(n_items, 60, replace=False) for _ in scores]
    for row, ranking in enumerate(rank_rows(scores, 20, seen)):
        assert ranking.items.tolist() == _full_sort(scores[row], 20, set(seen[row].tolist()))


def test_picked_scores():
    found = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert pick_scores(found, np.array([[2, -1], [0, 0]])).tolist() == [[3, -np.inf], [4, 4]]
    everything = np.broadcast_to(np.arange(3), (2, 3))
    assert pick_scores(found, everything) is found
    turned = np.broadcast_to(np.array([2, 1, 0]), (2, 3))
    assert pick_scores(found, turned).tolist() == [[3, 2, 1], [6, 5, 4]]
