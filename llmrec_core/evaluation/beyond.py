"""Beyond accuracy: what lists are like, whoever is right. One value per user wherever a user has one.

``ranked`` is as in :mod:`llmrec_core.evaluation.metrics`: item_idx, [n_users, n_places], best first, padded with -1.
Facts about items come from training rows alone (:class:`llmrec_core.data.item_features.ItemFeatures`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.contracts import IntArray
from llmrec_core.data.item_features import Categories, ItemFeatures, kl_divergence
from llmrec_core.evaluation.metrics import Hits, Values


def _mean_listed(values: npt.ArrayLike, ranked: IntArray, k: int) -> Values:
    """Mean of ``values`` [n_items] over the first k listed items, [n_users]; NaN for an empty list."""
    shown = np.asarray(ranked)[:, :k]
    listed = shown >= 0
    totals = (np.append(np.asarray(values, np.float64), 0.0)[shown] * listed).sum(axis=1)
    return np.where(listed.any(axis=1), totals / np.maximum(listed.sum(axis=1), 1), np.nan)


def arp(ranked: IntArray, features: ItemFeatures, k: int) -> Values:
    """Mean number of training users of the listed items. (Average Recommendation Popularity: Elliot ``ARP``.)"""
    return _mean_listed(features.item_users, ranked, k)


def aplt(ranked: IntArray, features: ItemFeatures, k: int) -> Values:
    """Share of long-tail items in the list. (Average Percentage of Long Tail items: Elliot ``APLT``.)"""
    return _mean_listed(features.tail, ranked, k)


def serendipity(ranked: IntArray, hits: Hits, features: ItemFeatures, n_catalogue: int, k: int) -> Values:
    """Mean over the listed items of max(p - p_any, 0) where the item is a target, else 0. (RecTools ``Serendipity``.)

    p = (n_catalogue + 1 - place in the list) / n_catalogue, p_any the same with the place in the charts, and 0 for an
    item that nobody has. NaN for an empty list and for users without targets.
    """
    shown = np.asarray(ranked)[:, :k]
    listed = shown >= 0
    n = max(1, n_catalogue)
    own = (n + 1 - np.arange(1, shown.shape[1] + 1)) / n
    places = features.chart_places[shown]
    anybody = np.where(places > 0, (n + 1 - places) / n, 0.0)
    gains = np.maximum(own - anybody, 0.0) * hits.at[:, : shown.shape[1]]
    defined = listed.any(axis=1) & (hits.n_targets > 0)
    return np.where(defined, gains.sum(axis=1) / np.maximum(listed.sum(axis=1), 1), np.nan)


def intra_list_diversity(ranked: IntArray, categories: Categories, k: int) -> Values:
    """Mean over pairs of listed items of 1 - cosine of their categories. (RecTools ``IntraListDiversity``.)

    Items without a category are left out; NaN with fewer than two others.
    """
    shown = np.asarray(ranked)[:, :k]
    unit = categories.unit
    line, place = np.nonzero((shown >= 0) & categories.known[shown])
    listed = sp.csr_array((np.ones(len(line)), (line, shown[line, place])), shape=(len(shown), unit.shape[0]))
    sums = listed @ unit
    squared = np.asarray((sums * sums).sum(axis=1)).ravel()
    m = np.bincount(line, minlength=len(shown))
    # |sum of unit vectors|^2 holds each pair's cosine twice, and each item with itself once.
    alike = (squared - m) / np.maximum(m * (m - 1), 1)
    return np.where(m > 1, 1.0 - alike, np.nan)


def miscalibration(ranked: IntArray, wanted: Values, categories: Categories, k: int) -> Values:
    """KL divergence, in nats, of the list's category mix from the wanted one; 0: the same mix. Lower is better.

    See :func:`llmrec_core.data.item_features.kl_divergence`. NaN where either is empty.

    Args:
        wanted: rows that sum to 1 or 0, [n_users, n_categories].
    """
    shown = np.asarray(ranked)[:, :k]
    mix = categories.mix(list(shown))
    defined = (wanted.sum(axis=1) > 0) & (mix.sum(axis=1) > 0)
    return np.where(defined, kl_divergence(wanted, mix), np.nan)


def gini(times_shown: npt.ArrayLike, n_catalogue: int) -> Values:
    """How unevenly a catalogue is shown: 0 every item as often, 1 a single one; along the last axis.

    sum_j (2 j - n - 1) x_j / ((n - 1) sum x) over ascending x (Elliot ``GiniIndex``, before it is turned round).

    Args:
        times_shown: how often items were shown, [..., n_shown]; the other items of the catalogue count 0.
        n_catalogue: items in all. NaN where nothing was shown or there is a single item.
    """
    ordered = np.sort(np.asarray(times_shown, np.float64), axis=-1)
    n_shown = ordered.shape[-1]
    ranks = np.arange(n_catalogue - n_shown + 1, n_catalogue + 1)
    totals = ordered.sum(axis=-1) * (n_catalogue - 1)
    uneven = ((2 * ranks - n_catalogue - 1) * ordered).sum(axis=-1)
    return np.divide(uneven, totals, out=np.full(np.shape(totals), np.nan), where=np.asarray(totals) > 0)
