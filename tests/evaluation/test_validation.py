"""Quick metrics while fitting: values by hand, and agreement with the full ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.errors import SpecError
from llmrec_core.evaluation import is_better, ndcg_of_scores, validation_metric
from llmrec_core.evaluation.metrics import Hits

USERS = ["a", "a", "a", "b", "b", "c"]
LABELS = [1, 0, 0, 0, 1, 0]
SCORES = [0.5, 0.9, 0.1, 0.2, 0.3, 0.8]


def test_by_hand():
    assert validation_metric("auc", LABELS, SCORES, USERS) == (2 + 2) / 8
    assert validation_metric("gauc", LABELS, SCORES, USERS) == (0.5 + 1) / 2
    # User a finds its item at place 2, user b at place 1, user c has none and is left out.
    assert validation_metric("mrr@2", LABELS, SCORES, USERS) == 0.75
    assert validation_metric("hit_rate@1", LABELS, SCORES, USERS) == 0.5
    assert validation_metric("ndcg@10", LABELS, SCORES, USERS) == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert validation_metric("rmse", [3.0, math.nan], [1.0, 9.0], ["a", "b"]) == 2.0
    assert validation_metric("mae", [3.0, 4.0], [1.0, 4.0], ["a", "b"]) == 1.0


def test_equal_scores_do_not_look_like_a_good_order():
    assert validation_metric("hit_rate@1", [1, 0], [0.5, 0.5], ["a", "a"]) == 0.0
    assert validation_metric("auc", [1, 0], [0.5, 0.5], ["a", "a"]) == 0.5


def test_undefined_is_nan():
    assert math.isnan(validation_metric("auc", [1, 1], [1, 2], ["a", "b"]))
    assert math.isnan(validation_metric("ndcg@5", [0, 0], [1, 2], ["a", "b"]))
    assert math.isnan(validation_metric("ndcg@5", [], [], []))


@pytest.mark.parametrize("name", ["accuracy", "ndcg", "ndcg@0", "auc@3", "coverage@10", "novelty@10", ""])
def test_names_it_cannot_compute_are_refused(name):
    with pytest.raises(SpecError):
        validation_metric(name, LABELS, SCORES, USERS)


def test_which_way_is_better():
    assert is_better("auc", 0.6, 0.5)
    assert not is_better("auc", 0.5, 0.5)
    assert is_better("rmse", 0.5, 0.6)
    assert not is_better("mae", 0.7, 0.6)
    assert is_better("ndcg@10", 0.1, math.nan)
    assert not is_better("ndcg@10", math.nan, 0.1)


@settings(deadline=None)
@given(st.data())
def test_ndcg_of_many_matrices_equals_ranking_each(data):
    n_queries, n_candidates, k = 3, 6, data.draw(st.integers(1, 8))
    cells = st.lists(st.integers(-2, 2), min_size=18, max_size=18)
    stack = np.array([data.draw(cells), data.draw(cells)], float).reshape(2, n_queries, n_candidates)
    relevant = np.array(data.draw(st.lists(st.booleans(), min_size=18, max_size=18))).reshape(n_queries, n_candidates)
    missed = np.array(data.draw(st.lists(st.integers(0, 2), min_size=3, max_size=3)))
    n_targets = relevant.sum(axis=1) + missed
    found = ndcg_of_scores(stack, relevant, n_targets, k)
    assert found.shape == (2, n_queries)
    for layer, scores in enumerate(stack):
        ranked = np.array([sorted(range(n_candidates), key=lambda c, row=row: (-row[c], c)) for row in scores])
        targets = [
            np.append(np.flatnonzero(line), 100 + np.arange(more)) for line, more in zip(relevant, missed, strict=True)
        ]
        np.testing.assert_allclose(found[layer], Hits.of(ranked, targets).ndcg(k))
