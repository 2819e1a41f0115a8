"""Bootstrap: weighted statistics equal plain ones on repeated users, and intervals cover what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.evaluation import intervals, metrics
from llmrec_core.evaluation.intervals import (
    AucStatistic,
    CoverageStatistic,
    MeanStatistic,
    RowMeanStatistic,
    bootstrap,
    paired_difference,
    percentile_interval,
)

_COUNTS = st.lists(st.integers(0, 3), min_size=4, max_size=4)


def _repeat(counts: list[int], users: np.ndarray) -> np.ndarray:
    """Positions of rows, each as often as its user is counted."""
    return np.repeat(np.arange(len(users)), np.array(counts)[users])


@settings(deadline=None)
@given(
    _COUNTS,
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=25),
)
def test_weights_mean_repeated_users(counts, rows):
    users, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    weights, again = np.array([counts], float), _repeat(counts, users)

    found = AucStatistic(labels, scores, users, 4).weighted(weights)[0]
    np.testing.assert_allclose(found, metrics.auc(labels[again], scores[again]))

    errors = scores.astype(float)
    root = RowMeanStatistic(errors**2, users, 4, root=True)
    np.testing.assert_allclose(root.weighted(weights)[0], metrics.rmse(errors[again], np.zeros(len(again))))
    np.testing.assert_allclose(root.point, metrics.rmse(errors, np.zeros(len(errors))))
    for user, value in enumerate(root.per_user()):
        np.testing.assert_allclose(value, metrics.rmse(errors[users == user], np.zeros(int((users == user).sum()))))


@given(_COUNTS)
def test_weighted_mean_and_coverage(counts):
    weights, values = np.array([counts], float), np.array([0.5, np.nan, 2.0, 1.0])
    often = np.repeat(values, counts)
    expected = np.nanmean(often) if np.isfinite(often).any() else np.nan
    np.testing.assert_allclose(MeanStatistic(values).weighted(weights)[0], expected)

    ranked = np.array([[0, 1], [1, -1], [2, 3], [3, 0]])
    lists = np.repeat(ranked, counts, axis=0)
    np.testing.assert_allclose(CoverageStatistic(ranked, 5, 2).weighted(weights)[0], metrics.coverage(lists, 5, 2))


def test_who_is_counted():
    mean = MeanStatistic(np.array([1.0, np.nan, 3.0]))
    assert (mean.point, mean.n, mean.n_excluded) == (2.0, 2, 1)
    nobody = MeanStatistic(np.array([np.nan]))
    assert math.isnan(nobody.point)
    assert nobody.n == 0
    rows = RowMeanStatistic(np.array([1.0, 3.0, 2.0]), np.array([0, 0, 2]), 4)
    assert (rows.point, rows.n, rows.n_excluded) == (2.0, 2, 2)
    np.testing.assert_allclose(rows.per_user(), [2.0, np.nan, 2.0, np.nan])
    auc = AucStatistic([1, 0, 1], [0.3, 0.2, 0.1], np.array([0, 1, 1]), 3)
    assert (auc.point, auc.n, auc.n_excluded) == (0.5, 2, 1)
    assert math.isnan(AucStatistic([], [], np.empty(0, np.int64), 2).weighted(np.ones((1, 2)))[0])


def test_the_same_seed_and_any_block_size_give_the_same_draws(monkeypatch):
    values = np.random.default_rng(1).normal(size=50)
    first = bootstrap({"a": MeanStatistic(values)}, 50, 100, seed=3)["a"]
    np.testing.assert_array_equal(bootstrap({"a": MeanStatistic(values)}, 50, 100, seed=3)["a"], first)
    assert not np.array_equal(bootstrap({"a": MeanStatistic(values)}, 50, 100, seed=4)["a"], first)
    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 350)
    np.testing.assert_allclose(bootstrap({"a": MeanStatistic(values)}, 50, 100, seed=3)["a"], first, rtol=1e-12)


def test_nobody_gives_no_interval():
    assert np.isnan(bootstrap({"a": MeanStatistic(np.empty(0))}, 0, 100, seed=0)["a"]).all()
    assert all(math.isnan(end) for end in percentile_interval(np.full(5, np.nan), 0.95))


def test_percentiles_by_hand():
    assert percentile_interval(np.append(np.arange(101.0), np.nan), 0.9) == pytest.approx((5.0, 95.0))


def test_the_spread_is_that_of_a_mean():
    """Of 400 users with variance 1 the mean has standard error 0.05, so the 95 % interval is some 4 x 0.049 wide."""
    values = np.random.default_rng(0).normal(size=400)
    low, high = percentile_interval(bootstrap({0: MeanStatistic(values)}, 400, 2000, seed=0)[0], 0.95)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def _covered(truth: float, draw, n_trials: int = 200) -> float:
    """Share of trials in which the 90 % interval holds ``truth``; ``draw(rng)`` gives (statistic, n_users)."""
    rng, inside = np.random.default_rng(7), 0
    for trial in range(n_trials):
        statistic, n_users = draw(rng)
        low, high = percentile_interval(bootstrap({0: statistic}, n_users, 200, seed=trial)[0], 0.9)
        inside += low <= truth <= high
    return inside / n_trials


def test_intervals_of_a_mean_cover():
    assert 0.83 < _covered(0.2, lambda rng: (MeanStatistic(rng.random(120) < 0.2), 120)) < 0.97


def test_intervals_of_auc_cover_when_rows_of_a_user_are_alike():
    """Positives stand one standard deviation above negatives (AUC = Phi(1 / sqrt(2 + 2)) with a shift a user).

    Taking the eight rows of a user for independent ones would make the interval much too narrow.
    """
    truth = 0.5 * (1 + math.erf(1 / math.sqrt(4) / math.sqrt(2)))

    def draw(rng):
        users = np.repeat(np.arange(60), 8)
        labels = np.repeat(rng.integers(0, 2, 60), 8)
        scores = labels + np.repeat(rng.normal(size=60), 8) + rng.normal(size=480)
        return AucStatistic(labels, scores, users, 60), 60

    assert 0.82 < _covered(truth, draw) < 0.98


def test_intervals_of_coverage_lie_around_the_point():
    """Expected coverage of 60 users with 3 random items of 200 each; a plain percentile interval would miss it."""
    n_users, n_items, k = 60, 200, 3
    truth = 1 - (1 - k / n_items) ** n_users

    def draw(rng):
        ranked = np.array([rng.choice(n_items, k, replace=False) for _ in range(n_users)])
        return CoverageStatistic(ranked, n_items, k), n_users

    assert _covered(truth, draw, 100) > 0.85
    statistic, _ = draw(np.random.default_rng(0))
    low, high = percentile_interval(bootstrap({0: statistic}, n_users, 200, seed=0)[0], 0.9)
    assert low < statistic.point < high
    assert statistic.weighted(np.random.default_rng(0).multinomial(60, [1 / 60] * 60, 50)).max() < statistic.point


def test_a_paired_difference_sees_what_two_intervals_do_not():
    """A small gain for everyone, hidden under large differences between users."""
    rng = np.random.default_rng(0)
    floor = rng.normal(0, 1, 200)
    model = floor + 0.05 + rng.normal(0, 0.01, 200)
    found = paired_difference(MeanStatistic(model), MeanStatistic(floor), 200, seed=1)
    assert found.mean == pytest.approx(0.05, abs=0.003)
    assert 0.04 < found.ci_low < found.mean < found.ci_high < 0.06
    assert found.n == 200
    same = paired_difference(MeanStatistic(floor), MeanStatistic(floor), 200)
    assert (same.mean, same.ci_low, same.ci_high) == (0, 0, 0)


def test_no_gain_is_rarely_called_one():
    rng, called = np.random.default_rng(5), 0
    for trial in range(150):
        model, floor = rng.normal(size=(2, 80))
        found = paired_difference(MeanStatistic(model), MeanStatistic(floor), 80, n_resamples=200, seed=trial)
        called += found.ci_low > 0
    assert called / 150 < 0.07
