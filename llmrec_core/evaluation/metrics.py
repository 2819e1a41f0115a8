"""The metrics, in NumPy, one value per user wherever a user has one.

Ranked lists come as one array ``ranked`` of item_idx, int64 [n_users, n_places], best first, padded with -1 where a
list is short. What counts as found is a :class:`Hits` built once and read by every ranking metric. Missing places
count as misses; users without targets get NaN and are left out of the mean (and counted as excluded).

Names and formulas follow RecTools (``rectools.metrics``) and LensKit (``lenskit.metrics``); where these two differ
the docstring says which one is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import IntArray

Values = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Hits:
    """Which places of each list hold a target.

    Attributes:
        at: bool [n_users, n_places].
        n_targets: distinct targets of each user, [n_users].
    """

    at: BoolArray
    n_targets: IntArray

    @classmethod
    def of(cls, ranked: IntArray, targets: Sequence[IntArray]) -> Hits:
        """Compares ``ranked`` [n_users, n_places] with ``targets``, one array of item_idx a user.

        A target listed twice counts once. An item ranked twice would count twice; rankings hold no doubles.
        """
        ranked = np.asarray(ranked, np.int64)
        distinct = [np.unique(np.asarray(items, np.int64)) for items in targets]
        n_targets = np.array([len(items) for items in distinct], np.int64)
        if not ranked.size:
            return cls(np.zeros(ranked.shape, bool), n_targets)
        # One number for each (user, item): a single isin over all users at once.
        width = 1 + max(int(ranked.max(initial=0)), *(int(items[-1]) for items in distinct if len(items)), 0)
        users = np.repeat(np.arange(len(distinct)), n_targets)
        wanted = users * width + np.concatenate([*distinct, np.empty(0, np.int64)])
        keys = np.arange(len(ranked))[:, None] * width + ranked
        return cls(np.isin(keys, wanted) & (ranked >= 0), n_targets)

    def _where_targets(self, values: npt.ArrayLike) -> Values:
        return np.where(self.n_targets > 0, np.asarray(values, np.float64), np.nan)

    def hit_rate(self, k: int) -> Values:
        """1 if any target is among the first k, else 0; [n_users]. (RecTools ``HitRate``, LensKit ``Hit``.)"""
        return self._where_targets(self.at[:, :k].any(axis=1).astype(np.float64))

    def precision(self, k: int) -> Values:
        """Found targets / k, also where the list is shorter than k; [n_users]. (RecTools ``Precision``.)"""
        return self._where_targets(self.at[:, :k].sum(axis=1) / k)

    def recall(self, k: int) -> Values:
        """Found targets / targets; [n_users]. (RecTools ``Recall``: not capped at k targets.)"""
        return self._where_targets(self.at[:, :k].sum(axis=1) / np.maximum(self.n_targets, 1))

    def map(self, k: int) -> Values:
        """Sum of precision at each found place / targets; [n_users]. (RecTools ``MAP``, ``divide_by_k=False``.)"""
        found = self.at[:, :k]
        precision_at = found.cumsum(axis=1) / np.arange(1, found.shape[1] + 1)
        return self._where_targets((precision_at * found).sum(axis=1) / np.maximum(self.n_targets, 1))

    def mrr(self, k: int) -> Values:
        """1 / place of the first found target, 0 if none is in the first k; [n_users]. (RecTools ``MRR``.)"""
        found = self.at[:, :k]
        return self._where_targets((found / np.arange(1, found.shape[1] + 1)).max(axis=1, initial=0.0))

    def ndcg(self, k: int) -> Values:
        """Sum of 1 / log2(place + 1) over found targets / the best such sum that min(k, targets) allow; [n_users].

        (LensKit ``NDCG``, RecTools ``NDCG`` with ``divide_by_achievable=True``; binary relevance.)
        """
        found = self.at[:, :k]
        discounts = discount(min(k, max(found.shape[1], int(self.n_targets.max(initial=0)))))
        ideal = np.concatenate([[1.0], np.cumsum(discounts)])[np.minimum(self.n_targets, k)]
        return self._where_targets((found * discounts[: found.shape[1]]).sum(axis=1) / ideal)


def discount(k: int) -> Values:
    """1 / log2(place + 1) for the places 1 to k."""
    return 1.0 / np.log2(np.arange(2, k + 2))


def novelty(ranked: IntArray, item_users: IntArray, n_users: int, k: int) -> Values:
    """Mean over the first k listed items of -log2(share of users who have the item in training); [n_users].

    An item no one has in training counts as if one user had it, so that its novelty is the largest finite one. An
    empty list gives NaN. (RecTools ``MeanInvUserFreq``.)

    Args:
        ranked: [n_users, n_places], -1 padded.
        item_users: distinct training users of each item, [n_items].
        n_users: distinct training users in all.
    """
    shown = np.asarray(ranked)[:, :k]
    listed = shown >= 0
    surprise = np.append(-np.log2(np.maximum(item_users, 1) / max(1, n_users)), 0.0)
    totals = (surprise[shown] * listed).sum(axis=1)
    return np.where(listed.any(axis=1), totals / np.maximum(listed.sum(axis=1), 1), np.nan)


def coverage(ranked: IntArray, n_items: int, k: int) -> float:
    """Share of the catalogue that appears in anyone's first k places. (RecTools ``CatalogCoverage``, as a share.)"""
    shown = np.asarray(ranked)[:, :k]
    return len(np.unique(shown[shown >= 0])) / n_items if n_items else float("nan")


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that a row with label 1 scores above a row with label 0, ties counting half; NaN with one class only.

    By mean ranks (Mann-Whitney U / (n_1 * n_0)).
    """
    return float(grouped_auc(labels, scores, np.zeros(np.size(labels), np.int64), 1)[0])


def grouped_auc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike, n_groups: int) -> Values:
    """:func:`auc` inside each group (user), [n_groups]; NaN where a group has one class only or no rows.

    Args:
        labels: 0 or 1, [n_rows]. scores: [n_rows]. groups: 0 to n_groups - 1, [n_rows], in any order.
    """
    positive, score, group = np.asarray(labels) > 0, np.asarray(scores, np.float64), np.asarray(groups, np.int64)
    order = np.lexsort((score, group))
    positive, score, group = positive[order], score[order], group[order]
    n_rows = len(score)
    rank_sum: Values = np.zeros(n_groups)
    n_positive: IntArray = np.bincount(group[positive], minlength=n_groups).astype(np.int64)
    n_negative: IntArray = np.bincount(group[~positive], minlength=n_groups).astype(np.int64)
    if n_rows:
        # Tied rows of one group share the mean of their places (1-based, counted from the group's first row).
        new = np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])]
        first = np.flatnonzero(new)
        last = np.r_[first[1:], n_rows] - 1
        start = np.searchsorted(group, np.arange(n_groups))
        rank = ((first + last) / 2)[np.cumsum(new) - 1] - start[group] + 1
        rank_sum = np.bincount(group[positive], weights=rank[positive], minlength=n_groups).astype(np.float64)
    above = rank_sum - n_positive * (n_positive + 1) / 2
    pairs = n_positive * n_negative
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def gauc(labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> float:
    """Unweighted mean of each user's AUC over users who have both classes; NaN where no user has.

    Every user counts the same (Zhu et al., KDD 2017, weight users by clicks; here they are not weighted).
    """
    names, group = np.unique(np.asarray(users), return_inverse=True)
    values = grouped_auc(labels, scores, group, len(names))
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def rmse(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Root of the mean squared error, in units of the rating scale; rows with a NaN truth are left out."""
    errors = _errors(truth, predicted)
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else float("nan")


def mae(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean absolute error, in units of the rating scale; rows with a NaN truth are left out."""
    errors = _errors(truth, predicted)
    return float(np.mean(np.abs(errors))) if len(errors) else float("nan")


def _errors(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> Values:
    difference = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    return difference[~np.isnan(np.asarray(truth, np.float64))]
