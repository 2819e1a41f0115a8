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
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import IntArray

Values = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Cells of the table of wanted (user, item) pairs held at once: 8 MB.
_TABLE_CELLS = 8_000_000


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
        sizes = np.fromiter((len(items) for items in targets), np.int64, len(targets))
        items = np.concatenate([*targets, np.empty(0, np.int64)]).astype(np.int64)
        width = 1 + max(int(ranked.max(initial=0)), int(items.max(initial=0)))
        # One number for each (user, item), each once.
        pairs = np.sort(np.repeat(np.arange(len(sizes)) * width, sizes) + items)
        user, wanted = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], width)
        n_targets = np.bincount(user, minlength=len(sizes)).astype(np.int64)
        if not ranked.size:
            return cls(np.zeros(ranked.shape, bool), n_targets)
        # Looked up in a table of flags, some users at a time: no ranking is ever sorted.
        ends = np.concatenate([[0], np.cumsum(n_targets)])
        block = max(1, min(len(ranked), _TABLE_CELLS // width))
        flags = np.zeros(block * width, bool)
        at = np.empty(ranked.shape, bool)
        for start in range(0, len(ranked), block):
            stop = min(start + block, len(ranked))
            marked = (user[ends[start] : ends[stop]] - start) * width + wanted[ends[start] : ends[stop]]
            flags[marked] = True
            part = ranked[start:stop]
            # Padding reads the first item of its row, and is dropped.
            at[start:stop] = flags[np.arange(stop - start)[:, None] * width + np.maximum(part, 0)] & (part >= 0)
            flags[marked] = False
        return cls(at, n_targets)

    @cached_property
    def _found(self) -> tuple[IntArray, IntArray, Values]:
        """Each found target: its user, its place counted from 0, and how many are found up to it; by user and place."""
        user, place = (found.astype(np.int64) for found in np.divmod(np.flatnonzero(self.at), max(1, self.at.shape[1])))
        before = np.cumsum(np.bincount(user, minlength=len(self.at))) - np.bincount(user, minlength=len(self.at))
        return user, place, (np.arange(1, len(user) + 1) - before[user]).astype(np.float64)

    def _sum(self, k: int, worth: npt.ArrayLike | None = None) -> Values:
        """Sum over the found targets among the first k of what each is worth (None: 1), [n_users]."""
        user, place, _ = self._found
        near = place < k
        weights = None if worth is None else np.asarray(worth)[near]
        return np.bincount(user[near], weights=weights, minlength=len(self.at)).astype(np.float64)

    def _where_targets(self, values: npt.ArrayLike) -> Values:
        return np.where(self.n_targets > 0, np.asarray(values, np.float64), np.nan)

    def hit_rate(self, k: int) -> Values:
        """1 if any target is among the first k, else 0; [n_users]. (RecTools ``HitRate``, LensKit ``Hit``.)"""
        return self._where_targets(self._sum(k) > 0)

    def precision(self, k: int) -> Values:
        """Found targets / k, also where the list is shorter than k; [n_users]. (RecTools ``Precision``.)"""
        return self._where_targets(self._sum(k) / k)

    def recall(self, k: int) -> Values:
        """Found targets / targets; [n_users]. (RecTools ``Recall``: not capped at k targets.)"""
        return self._where_targets(self._sum(k) / np.maximum(self.n_targets, 1))

    def map(self, k: int) -> Values:
        """Sum of precision at each found place / targets; [n_users]. (RecTools ``MAP``, ``divide_by_k=False``.)"""
        _, place, so_far = self._found
        return self._where_targets(self._sum(k, so_far / (place + 1)) / np.maximum(self.n_targets, 1))

    def mrr(self, k: int) -> Values:
        """1 / place of the first found target, 0 if none is in the first k; [n_users]. (RecTools ``MRR``.)"""
        _, place, so_far = self._found
        return self._where_targets(self._sum(k, (so_far == 1) / (place + 1)))

    def ndcg(self, k: int) -> Values:
        """Sum of 1 / log2(place + 1) over found targets / the best such sum that min(k, targets) allow; [n_users].

        (LensKit ``NDCG``, RecTools ``NDCG`` with ``divide_by_achievable=True``; binary relevance.)
        """
        _, place, _ = self._found
        discounts = discount(max(self.at.shape[1], min(k, int(self.n_targets.max(initial=0)))))
        ideal = np.concatenate([[1.0], np.cumsum(discounts)])[np.minimum(self.n_targets, k)]
        return self._where_targets(self._sum(k, discounts[place]) / ideal)


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
