"""Caps: how many items of a category a list holds, and in how many lists of a batch an item stands.

Both are kept by filling each list from its best candidate down. An item that stands in too many lists leaves those in
which it stands lowest, and these lists take their next candidate; this goes on until no item is above its cap, which
is deferred acceptance with lists proposing (Gale and Shapley, 1962): the order of users does not matter but for ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from llmrec_core.contracts import IntArray
from llmrec_core.policies.choosing import Mask


@dataclass(frozen=True)
class CategoryLimit:
    """At most ``max_items`` of each category. ``has``: sparse [n_items, n_categories], any value above 0."""

    has: sp.csr_array
    max_items: int


def fill(items: IntArray, refused: Mask, k: int, limits: Sequence[CategoryLimit]) -> Mask:
    """Which candidates stand in each list: from the left, none that is refused or would break a limit, at most k.

    Args:
        items: item_idx, best first, [n_users, n_candidates], -1 padded.
        refused: same shape; candidates that may not be in.
    """
    open_to = (items >= 0) & ~refused
    if not limits:
        return open_to & (np.cumsum(open_to, axis=1) <= k)
    taken = np.zeros(items.shape, bool)
    counts = [np.zeros((len(items), limit.has.shape[1]), np.int64) for limit in limits]
    n_taken = np.zeros(len(items), np.int64)
    for column in range(items.shape[1]):
        asked = np.flatnonzero(open_to[:, column] & (n_taken < k))
        if not len(asked):
            continue
        rows = [limit.has[items[asked, column]].toarray() > 0 for limit in limits]
        fits = np.ones(len(asked), bool)
        for limit, row, count in zip(limits, rows, counts, strict=True):
            fits &= ~(row & (count[asked] >= limit.max_items)).any(axis=1)
        for row, count in zip(rows, counts, strict=True):
            count[asked[fits]] += row[fits]
        taken[asked[fits], column] = True
        n_taken[asked[fits]] += 1
    return taken


def fill_with_exposure(items: IntArray, k: int, limits: Sequence[CategoryLimit], max_lists: int, n_items: int) -> Mask:
    """As :func:`fill`, and no item stands in more than ``max_lists`` lists.

    An item keeps the lists in which it stands highest, ties by the order of the lists.
    """
    refused = np.zeros(items.shape, bool)
    taken = fill(items, refused, k, limits)
    while True:
        line, column = np.nonzero(taken)
        item = items[line, column]
        crowded = np.bincount(item, minlength=n_items) > max_lists
        of_crowded = crowded[item]
        if not of_crowded.any():
            return taken
        line, column, item = line[of_crowded], column[of_crowded], item[of_crowded]
        order = np.lexsort((line, column, item))
        line, column, item = line[order], column[order], item[order]
        first = np.r_[True, item[1:] != item[:-1]]
        place = np.arange(len(item)) - np.flatnonzero(first)[np.cumsum(first) - 1]
        out = place >= max_lists
        refused[line[out], column[out]] = True
        moved = np.unique(line[out])
        taken[moved] = fill(items[moved], refused[moved], k, limits)


def max_lists(max_share: float, n_lists: int) -> int:
    """The cap in lists: the share rounded down, but at least 1, as else nothing could be shown at all."""
    return max(1, int(max_share * n_lists + 1e-9))
