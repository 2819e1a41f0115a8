"""Metrics against tables computed by hand, other implementations, and laws that must hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, ndcg_score, roc_auc_score

from llmrec_core.evaluation import metrics
from llmrec_core.evaluation.metrics import Hits

L2, L3, L4 = 1.0, 1 / math.log2(3), 0.5  # discounts of places 1 to 3

# Four users: targets at places 1 and 3; the only one at 2; none found; a short list that holds 1 of 5.
RANKED = np.array([[7, 8, 9, 1], [1, 2, 3, 4], [1, 2, 3, 4], [5, -1, -1, -1]])
TARGETS = [np.array([7, 9]), np.array([2]), np.array([9, 8]), np.array([5, 10, 11, 12, 13])]
BY_HAND = {
    ("hit_rate", 1): [1, 0, 0, 1],
    ("hit_rate", 3): [1, 1, 0, 1],
    ("precision", 1): [1, 0, 0, 1],
    ("precision", 3): [2 / 3, 1 / 3, 0, 1 / 3],
    ("recall", 1): [1 / 2, 0, 0, 1 / 5],
    ("recall", 3): [1, 1, 0, 1 / 5],
    # Precision at each found place, over all targets: (1/1 + 2/3) / 2; (1/2) / 1; 0; (1/1) / 5.
    ("map", 3): [5 / 6, 1 / 2, 0, 1 / 5],
    ("map", 1): [1 / 2, 0, 0, 1 / 5],
    ("mrr", 1): [1, 0, 0, 1],
    ("mrr", 3): [1, 1 / 2, 0, 1],
    ("ndcg", 1): [1, 0, 0, 1],
    ("ndcg", 3): [(L2 + L4) / (L2 + L3), L3, 0, L2 / (L2 + L3 + L4)],
    # Beyond the list: four places are all there is; five targets could fill five.
    ("ndcg", 10): [(L2 + L4) / (L2 + L3), L3, 0, 1 / sum(1 / math.log2(place + 1) for place in range(1, 6))],
    ("precision", 10): [2 / 10, 1 / 10, 0, 1 / 10],
}


@pytest.mark.parametrize(("metric", "k"), BY_HAND)
def test_ranking_metrics_by_hand(metric, k):
    np.testing.assert_allclose(getattr(Hits.of(RANKED, TARGETS), metric)(k), BY_HAND[metric, k])


@pytest.mark.parametrize("metric", ["hit_rate", "precision", "recall", "map", "mrr", "ndcg"])
def test_a_user_without_targets_has_no_value(metric):
    values = getattr(Hits.of(np.array([[1, 2], [1, 2]]), [np.empty(0, np.int64), np.array([1])]), metric)(2)
    assert np.isnan(values[0])
    assert values[1] > 0
    none_shown = getattr(Hits.of(np.empty((1, 0), np.int64), [np.array([1])]), metric)(2)
    assert none_shown.tolist() == [0.0]


def _by_definition(ranked, wanted, k):
    """All ranking metrics of one list, place by place."""
    found = [item >= 0 and item in wanted for item in ranked[:k]]
    gains = [1 / math.log2(place + 2) for place in range(k)]
    so_far = [sum(found[: place + 1]) / (place + 1) for place in range(len(found))]
    return {
        "hit_rate": float(any(found)),
        "precision": sum(found) / k,
        "recall": sum(found) / len(wanted),
        "map": sum(p for p, hit in zip(so_far, found, strict=True) if hit) / len(wanted),
        "mrr": max((1 / (place + 1) for place, hit in enumerate(found) if hit), default=0.0),
        "ndcg": sum(g for g, hit in zip(gains, found, strict=False) if hit) / sum(gains[: len(wanted)]),
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_lists_as_defined(data):
    """Also where the table of wanted pairs holds one user at a time, or more users than there are."""
    n_users, n_places = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ranked = np.stack([rng.permutation(12)[:n_places] for _ in range(n_users)])
    ranked[rng.random(ranked.shape) < 0.2] = -1
    targets = [rng.choice(14, rng.integers(1, 8)) for _ in range(n_users)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_TABLE_CELLS", data.draw(st.sampled_from([1, 30, 1000])))
        hits = Hits.of(ranked, targets)
    for k in (1, 3, 20):
        for user in range(n_users):
            for metric, value in _by_definition(ranked[user].tolist(), set(targets[user].tolist()), k).items():
                assert getattr(hits, metric)(k)[user] == pytest.approx(value, abs=1e-12), (metric, k)


def test_padding_is_never_a_hit_and_targets_count_once():
    hits = Hits.of(np.array([[-1, 3]]), [np.array([3, 3])])
    assert hits.at.tolist() == [[False, True]]
    assert hits.n_targets.tolist() == [1]


def test_items_of_one_user_are_not_hits_of_the_next():
    # Item 9 of user 0 and item 0 of user 1 would meet if the pair numbers were made carelessly.
    assert not Hits.of(np.array([[9], [0]]), [np.array([0]), np.array([9])]).at.any()


def test_novelty_by_hand():
    item_users = np.array([8, 4, 1, 0])
    ranked = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    # -log2 of 8/8, 4/8, 1/8; an item nobody had counts like one that a single user had.
    np.testing.assert_allclose(metrics.novelty(ranked, item_users, 8, 3), [(0 + 1 + 3) / 3, 3, np.nan])
    np.testing.assert_allclose(metrics.novelty(ranked, item_users, 8, 1), [0, 3, np.nan])


def test_coverage_by_hand():
    ranked = np.array([[0, 1, 2], [0, 3, -1]])
    assert metrics.coverage(ranked, 8, 1) == 1 / 8
    assert metrics.coverage(ranked, 8, 2) == 3 / 8
    assert metrics.coverage(ranked, 8, 10) == 4 / 8


def test_auc_by_hand():
    # Pairs (positive, negative): .8>.3, .8>.5, .5>.3, .5=.5 -> 3.5 of 4.
    assert metrics.auc([1, 0, 1, 0], [0.8, 0.3, 0.5, 0.5]) == 3.5 / 4
    assert metrics.auc([1, 0], [2.0, 2.0]) == 0.5
    assert metrics.auc([0, 1], [-np.inf, -np.inf]) == 0.5
    assert math.isnan(metrics.auc([1, 1], [0.1, 0.2]))
    assert math.isnan(metrics.auc([], []))


def test_gauc_is_the_plain_mean_over_users_with_both_classes():
    users = ["b", "b", "a", "a", "a", "c", "c"]
    labels = [1, 0, 1, 0, 0, 1, 1]
    scores = [0.9, 0.1, 0.5, 0.7, 0.2, 0.1, 0.2]
    assert metrics.gauc(labels, scores, users) == pytest.approx((1.0 + 0.5) / 2)
    assert math.isnan(metrics.gauc([1, 1], [0, 1], ["a", "b"]))
    np.testing.assert_allclose(metrics.grouped_auc(labels, scores, [1, 1, 0, 0, 0, 3, 3], 4), [0.5, 1, np.nan, np.nan])


def test_rating_errors_by_hand():
    truth, predicted = [1.0, 5.0, np.nan], [2.0, 2.0, 3.0]
    assert metrics.rmse(truth, predicted) == pytest.approx(math.sqrt((1 + 9) / 2))
    assert metrics.mae(truth, predicted) == (1 + 3) / 2
    assert math.isnan(metrics.rmse([np.nan], [1.0]))
    assert math.isnan(metrics.mae([], []))


_LABELLED = st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=60)


@given(_LABELLED)
def test_auc_equals_scikit_learn(rows):
    labels, scores, _ = (np.array(column, float) for column in zip(*rows, strict=True))
    found = metrics.auc(labels, scores)
    if 0 < labels.sum() < len(labels):
        assert found == pytest.approx(roc_auc_score(labels, scores))
        assert metrics.auc(labels, -scores) == pytest.approx(1 - found)
        assert metrics.auc(labels, np.exp(scores)) == pytest.approx(found)
    else:
        assert math.isnan(found)


@given(_LABELLED)
def test_grouped_auc_equals_one_auc_a_group(rows):
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True))
    expected = [metrics.auc(labels[users == user], scores[users == user]) for user in range(5)]
    np.testing.assert_allclose(metrics.grouped_auc(labels, scores, users, 5), expected)


@given(st.lists(st.tuples(st.floats(1, 5), st.floats(1, 5)), min_size=1, max_size=30))
def test_rating_errors_equal_scikit_learn(rows):
    truth, predicted = (np.array(column) for column in zip(*rows, strict=True))
    assert metrics.mae(truth, predicted) == pytest.approx(mean_absolute_error(truth, predicted))
    assert metrics.rmse(truth, predicted) >= metrics.mae(truth, predicted) - 1e-12


@st.composite
def _rankings(draw):
    """(ranked [n_users, n_places], targets): permutations of 12 items with short lists among them."""
    n_users, n_places = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    ranked = np.full((n_users, n_places), -1)
    targets = []
    for user in range(n_users):
        shown = draw(st.permutations(range(12)))[: draw(st.integers(0, n_places))]
        ranked[user, : len(shown)] = shown
        targets.append(np.array(sorted(draw(st.sets(st.integers(0, 11), min_size=1, max_size=6)))))
    return ranked, targets


@settings(deadline=None)
@given(_rankings(), st.integers(1, 9), st.permutations(range(12)))
def test_laws_of_ranking_metrics(drawn, k, names):
    ranked, targets = drawn
    hits = Hits.of(ranked, targets)
    values = {m: getattr(hits, m)(k) for m in ("hit_rate", "precision", "recall", "map", "mrr", "ndcg")}
    for metric, array in values.items():
        assert ((array >= 0) & (array <= 1 + 1e-12)).all(), metric
    for metric in ("hit_rate", "recall", "mrr", "map"):
        assert (getattr(hits, metric)(k + 1) >= values[metric] - 1e-12).all(), f"{metric} falls with k"
    assert ((values["hit_rate"] > 0) == (values["ndcg"] > 0)).all()
    assert (values["mrr"] <= values["hit_rate"]).all()
    np.testing.assert_allclose(values["precision"] * k, values["recall"] * hits.n_targets)
    # Other names for the items, the same numbers.
    rename = np.append(np.array(names) * 3 + 1, -1)
    renamed = Hits.of(rename[ranked], [rename[items] for items in targets])
    for metric, array in values.items():
        np.testing.assert_allclose(getattr(renamed, metric)(k), array)
    # Users in another order, their values in that order.
    turned = Hits.of(ranked[::-1], targets[::-1])
    np.testing.assert_allclose(turned.ndcg(k), values["ndcg"][::-1])


@settings(deadline=None)
@given(st.permutations(range(9)), st.sets(st.integers(0, 8), min_size=1), st.integers(1, 9))
def test_ndcg_equals_scikit_learn(order, targets, k):
    relevance, scores = np.zeros((1, 9)), np.zeros((1, 9))
    relevance[0, list(targets)] = 1
    scores[0, list(order)] = np.arange(9, 0, -1)
    found = Hits.of(np.array([order]), [np.array(list(targets))]).ndcg(k)
    assert found[0] == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_the_best_order_gets_one_everywhere():
    hits = Hits.of(np.array([[4, 5, 6]]), [np.array([6, 5, 4])])
    assert [hits.precision(3)[0], hits.recall(3)[0], hits.map(3)[0], hits.mrr(3)[0], hits.ndcg(3)[0]] == [1] * 5
