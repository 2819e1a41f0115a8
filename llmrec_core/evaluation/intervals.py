"""Bootstrap intervals over users.

A metric is kept as a :class:`Statistic`: a number that can be computed again when each user counts ``w`` times. The
bootstrap draws such weights once (users with replacement), in blocks, and hands the same weights to every statistic
of every model. Differences between two models are therefore paired for free: subtract their resampled values.

Rows of one user are never torn apart: AUC, RMSE and MAE are resampled by user too, as rows of one user are alike.
Intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.contracts import IntArray
from llmrec_core.evaluation.beyond import gini
from llmrec_core.evaluation.metrics import Values, auc

Key = TypeVar("Key", bound=Hashable)

#: Cells of the largest array of one block (float64: 16 MB).
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class PairedDifference:
    """Model minus floor on the same users. ``n``: users behind it. The ends are NaN where nothing is defined."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


class Statistic(ABC):
    """A number computed from users.

    ``point``: its value with every user counted once, NaN if undefined. ``n``: users it rests on. ``n_excluded``:
    users for whom it is not defined. ``width``: array cells that one resample needs.
    """

    point: float
    n: int
    n_excluded: int
    width: int

    @abstractmethod
    def weighted(self, weights: npt.NDArray[np.float64]) -> Values:
        """The value for each row of ``weights`` [n_resamples, n_users]; NaN where it is not defined."""

    def centred(self, resampled: Values) -> Values:
        """Resampled values as the interval is to read them; a hook for statistics that resampling biases."""
        return resampled


class MeanStatistic(Statistic):
    """Mean of ``values`` [n_users] over users whose value is not NaN."""

    def __init__(self, values: Values) -> None:
        self.values = np.asarray(values, np.float64)
        self._defined = ~np.isnan(self.values)
        self._filled = np.where(self._defined, self.values, 0.0)
        self.n = int(self._defined.sum())
        self.n_excluded = len(self.values) - self.n
        self.width = len(self.values)
        self.point = float(self._filled.sum() / self.n) if self.n else float("nan")

    def weighted(self, weights: npt.NDArray[np.float64]) -> Values:
        return _divide(weights @ self._filled, weights @ self._defined)


class RowMeanStatistic(Statistic):
    """Mean over rows of non-negative ``errors``, rows resampled with their user; ``root`` takes the square root.

    Args:
        errors: [n_rows], squared errors for RMSE, absolute ones for MAE.
        users: position of each row's user, 0 to n_users - 1, [n_rows].
    """

    def __init__(self, errors: Values, users: IntArray, n_users: int, *, root: bool = False) -> None:
        self._root = root
        self._sums: Values = np.bincount(users, weights=errors, minlength=n_users).astype(np.float64)
        self._counts = np.bincount(users, minlength=n_users).astype(np.float64)
        self.n = int((self._counts > 0).sum())
        self.n_excluded = n_users - self.n
        self.width = n_users
        self.point = float(self._finish(_divide(self._sums.sum()[None], self._counts.sum()[None]))[0])

    def per_user(self) -> Values:
        """The same formula inside each user, [n_users]; NaN without rows."""
        return self._finish(_divide(self._sums, self._counts))

    def weighted(self, weights: npt.NDArray[np.float64]) -> Values:
        return self._finish(_divide(weights @ self._sums, weights @ self._counts))

    def _finish(self, means: Values) -> Values:
        return np.sqrt(means) if self._root else means


class AucStatistic(Statistic):
    """AUC over all rows together, rows resampled with their user.

    Args:
        labels, scores: [n_rows]. users: position of each row's user, 0 to n_users - 1, [n_rows].
    """

    def __init__(self, labels: npt.ArrayLike, scores: npt.ArrayLike, users: IntArray, n_users: int) -> None:
        score, user, positive = np.asarray(scores, np.float64), np.asarray(users, np.int64), np.asarray(labels) > 0
        order = np.argsort(score[~positive], kind="stable")
        negatives = score[~positive][order]
        self._negative_users, self._positive_users = user[~positive][order], user[positive]
        # How many negatives score below each positive, and how many below or the same: ties count half.
        self._below = np.searchsorted(negatives, score[positive], side="left")
        self._upto = np.searchsorted(negatives, score[positive], side="right")
        self.n = len(np.unique(user))
        self.n_excluded = n_users - self.n
        self.width = max(n_users, 2 * len(score))
        self.point = auc(labels, scores)

    def weighted(self, weights: npt.NDArray[np.float64]) -> Values:
        # Weights are counts: all sums here are whole numbers and halves, and exact in any order.
        negative = np.zeros((len(weights), len(self._negative_users) + 1))
        np.cumsum(weights[:, self._negative_users], axis=1, out=negative[:, 1:])
        positive = weights[:, self._positive_users]
        above = (positive * (negative[:, self._below] + negative[:, self._upto])).sum(axis=1) / 2
        return _divide(above, positive.sum(axis=1) * negative[:, -1])


class ListsStatistic(Statistic):
    """A number of all lists together, lists resampled by user: subclasses say which.

    A resample holds only some 63 % of the distinct users, so it always shows fewer items than all of them do. The
    resampled values are therefore moved so that their mean is the point: they tell the spread, not the level.
    """

    def __init__(self, ranked: IntArray, n_items: int, k: int) -> None:
        shown = np.asarray(ranked)[:, :k]
        users, places = np.nonzero(shown >= 0)
        found, column = np.unique(shown[users, places], return_inverse=True)
        self._lists = sp.csr_array((np.ones(len(users)), (users, column)), shape=(len(shown), len(found)))
        self._n_items = n_items
        self.n = len(shown)
        self.n_excluded = 0
        self.width = max(len(shown), len(found))
        self.point = float(self.weighted(np.ones((1, len(shown))))[0]) if len(shown) else float("nan")

    def weighted(self, weights: npt.NDArray[np.float64]) -> Values:
        return self._of_counts(np.asarray(weights @ self._lists))

    @abstractmethod
    def _of_counts(self, times_shown: Values) -> Values:
        """The number for each row of counts [n_resamples, n_shown_items]."""

    def centred(self, resampled: Values) -> Values:
        return np.clip(resampled - resampled.mean() + self.point, 0.0, 1.0)


class CoverageStatistic(ListsStatistic):
    """Share of the catalogue in anyone's first k places."""

    def _of_counts(self, times_shown: Values) -> Values:
        return np.count_nonzero(times_shown, axis=1) / max(1, self._n_items)


class GiniStatistic(ListsStatistic):
    """How unevenly the first k places show the catalogue; see :func:`llmrec_core.evaluation.beyond.gini`."""

    def _of_counts(self, times_shown: Values) -> Values:
        return gini(times_shown, self._n_items)


def bootstrap(
    statistics: Mapping[Key, Statistic], n_users: int, n_resamples: int, seed: int
) -> dict[Key, npt.NDArray[np.float64]]:
    """Each statistic on the same ``n_resamples`` draws of ``n_users`` users, [n_resamples] each; seeded.

    Memory stays bounded: draws are made and forgotten in blocks (the draws do not depend on the block size).
    """
    resampled = {key: np.full(n_resamples, np.nan) for key in statistics}
    if n_users == 0:
        return resampled
    rng = np.random.default_rng(seed)
    widest = max([n_users, *(statistic.width for statistic in statistics.values())])
    block = max(1, _BLOCK_CELLS // widest)
    for start in range(0, n_resamples, block):
        stop = min(start + block, n_resamples)
        rows = np.arange(stop - start)[:, None] * n_users
        drawn = rng.integers(0, n_users, size=(stop - start, n_users)) + rows
        weights = np.bincount(drawn.ravel(), minlength=(stop - start) * n_users).reshape(-1, n_users)
        as_float = weights.astype(np.float64)
        for key, statistic in statistics.items():
            resampled[key][start:stop] = statistic.weighted(as_float)
    return {key: statistics[key].centred(values) for key, values in resampled.items()}


def percentile_interval(resampled: Values, confidence: float) -> tuple[float, float]:
    """The middle ``confidence`` of the resampled values; draws on which it was undefined are left out.

    (NaN, NaN) if it was undefined on every draw.
    """
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_on_draws(
    ours: Statistic, theirs: Statistic, our_draws: Values, their_draws: Values, confidence: float
) -> PairedDifference:
    """``ours`` minus ``theirs`` on the same users, from their values on the same bootstrap draws."""
    low, high = percentile_interval(our_draws - their_draws, confidence)
    return PairedDifference(ours.point - theirs.point, low, high, min(ours.n, theirs.n))


def paired_difference(
    model: Statistic,
    floor: Statistic,
    n_users: int,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """``model`` minus ``floor``, both over the same users in the same order, with a paired bootstrap interval."""
    resampled = bootstrap({"model": model, "floor": floor}, n_users, n_resamples, seed)
    return paired_on_draws(model, floor, resampled["model"], resampled["floor"], confidence)


def _divide(above: Values, below: Values) -> Values:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
