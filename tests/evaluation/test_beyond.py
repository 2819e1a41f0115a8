"""Metrics beyond accuracy on lists worked out by hand, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import Dataset, make_split
from llmrec_core.data.item_features import Categories, ItemFeatures, kl_divergence
from llmrec_core.evaluation import beyond
from llmrec_core.evaluation.intervals import GiniStatistic
from llmrec_core.evaluation.metrics import Hits
from llmrec_core.specs import SplitSpec

ITEMS = pd.DataFrame(
    {
        "item_id": list("abcde"),
        "category": ["Drama", "Drama; Comedy", "Comedy", "", "Horror"],
        "maker": ["X", "X", "", "Y", "X"],
    }
)
# Users with a: 4, b: 2, c: 1, d: 1, e: nobody in training.
ROWS = pd.DataFrame(
    [
        (u, i, float(t))
        for u, own in {"u": "abc", "v": "abd", "w": "aff", "x": "agg"}.items()
        for t, i in enumerate(own)
    ],
    columns=["user_id", "item_id", "timestamp"],
)


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_frames("small", ROWS, pd.concat([ITEMS, pd.DataFrame({"item_id": ["f", "g"]})]).fillna(""))


def made(dataset, item_users=(8, 4, 2, 1, 0, 1, 1)):
    return ItemFeatures(np.array(item_users), 16, Categories.of(dataset))


def test_categories_share_one_evenly(dataset):
    categories = Categories.of(dataset)
    assert categories.names == ("Comedy", "Drama", "Horror")
    assert categories.shares.toarray()[:5].tolist() == [[0, 1, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert categories.known.tolist() == [True, True, True, False, True, False, False]
    # d has no category and does not count; -1 is padding.
    mix = categories.mix([np.array([0, 1, 3, -1]), np.array([3]), np.array([], np.int64)])
    assert mix.tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 0]]
    both = Categories.of(dataset, ["category", "maker"])
    assert set(both.names) == {"category: Drama", "category: Comedy", "category: Horror", "maker: X", "maker: Y"}


def test_training_rows_alone_are_counted(dataset):
    found = ItemFeatures.of(make_split(dataset, SplitSpec()))
    # Leave-one-out keeps one row of each user for training: all four have a.
    assert found.item_users.tolist() == [4, 0, 0, 0, 0, 0, 0]
    assert found.n_users == 4
    assert found.surprise.tolist() == [0, 2, 2, 2, 2, 2, 2]


def test_tail_and_charts(dataset):
    features = made(dataset)
    # 17 users in all; a and b hold 12, less than 80 % (13.6), so c is the last of the head.
    assert features.tail.tolist() == [False, False, False, True, True, True, True]
    assert features.chart_places.tolist() == [1, 2, 3, 4, 0, 4, 4]


def test_popularity_of_lists_by_hand(dataset):
    features = made(dataset)
    ranked = np.array([[0, 3, -1], [4, 5, 6], [-1, -1, -1]])
    assert beyond.arp(ranked, features, 3)[:2].tolist() == [4.5, pytest.approx(2 / 3)]
    assert beyond.arp(ranked, features, 1)[:2].tolist() == [8, 0]
    assert beyond.aplt(ranked, features, 3)[:2].tolist() == [0.5, 1.0]
    assert np.isnan(beyond.arp(ranked, features, 3)[2])


def test_serendipity_by_hand(dataset):
    features = made(dataset)
    ranked = np.array([[1, 2, -1], [4, 0, 3], [0, 1, 2]])
    hits = Hits.of(ranked, [np.array([2]), np.array([4, 0]), np.array([], np.int64)])
    # A catalogue of 7. u: c at place 2 (6/7), third in the charts (5/7), over two listed items. v: e at place 1 (7/7),
    # in nobody's history (0); a at place 2 (6/7) leads the charts (7/7), which is no surprise; over three.
    assert beyond.serendipity(ranked, hits, features, 7, 3)[:2] == pytest.approx([1 / 7 / 2, 1 / 3])
    assert np.isnan(beyond.serendipity(ranked, hits, features, 7, 3)[2])


def test_intra_list_diversity_by_hand(dataset):
    categories = Categories.of(dataset)
    # a and b share Drama: cosine 1 / sqrt 2. a and c share nothing, b and c 1 / sqrt 2. d has no category.
    half = 1 - 1 / math.sqrt(2)
    ranked = np.array([[0, 1, -1, -1], [0, 1, 2, -1], [0, 3, 4, -1], [0, 3, -1, -1], [0, 0, -1, -1]])
    found = beyond.intra_list_diversity(ranked, categories, 4)
    assert found[[0, 1, 2, 4]] == pytest.approx([half, (2 * half + 1) / 3, 1.0, 0.0], abs=1e-12)
    assert np.isnan(found[3])
    assert beyond.intra_list_diversity(ranked, categories, 2)[1] == pytest.approx(half)


def test_miscalibration_by_hand(dataset):
    categories = Categories.of(dataset)
    wanted = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0]])
    ranked = np.array([[1, -1], [0, -1], [0, 1], [3, -1]])
    found = beyond.miscalibration(ranked, wanted, categories, 2)
    # b is both in equal parts: nothing is missing. a is Drama alone: .5 ln(.5 / .005) + .5 ln(.5 / .995).
    assert found[:2] == pytest.approx([0.0, 0.5 * math.log(100) + 0.5 * math.log(0.5 / 0.995)])
    assert np.isnan(found[2:]).all()


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_divergence_is_zero_for_the_same_and_never_below(one, other):
    p, q = (np.array(x) / max(1, sum(x)) for x in (one, other))
    if p.any():
        assert kl_divergence(p, p) == pytest.approx(0)
        assert kl_divergence(p, q) >= -1e-12


def test_gini_by_hand():
    assert beyond.gini([3, 3, 3], 3) == pytest.approx(0)
    assert beyond.gini([9], 4) == pytest.approx(1)
    # 0 1 3 over three items: (-2 * 0 + 0 * 1 + 2 * 3) / (2 * 4).
    assert beyond.gini([3, 1], 3) == pytest.approx(6 / 8)
    assert np.isnan(beyond.gini([0, 0], 3))
    assert np.isnan(beyond.gini([2], 1))


def test_gini_is_resampled_by_user_around_its_value():
    ranked = np.array([[0, 1], [0, 2], [0, 3], [-1, -1]])
    statistic = GiniStatistic(ranked, 5, 2)
    # 0 1 1 1 3 over five items: ((-4) 0 + (-2) 1 + 0 + 2 * 1 + 4 * 3) / (4 * 6).
    assert statistic.point == pytest.approx(12 / 24)
    # Twice the first user, the second not: items 0 (3 times), 1 (twice), 3.
    drawn = statistic.weighted(np.array([[2.0, 0, 1, 1]]))
    assert drawn == pytest.approx([float(beyond.gini([3, 2, 1], 5))])
