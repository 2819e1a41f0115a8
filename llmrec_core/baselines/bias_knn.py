"""Rating prediction without a language model: offsets of user and item, and what the nearest rated items leave over.

    rating(u, i) = mean + offset[i] + offset[u] + sum(s_ij * e_uj) / sum(s_ij)

over the ``n_neighbours`` rated history items j nearest to i, with e_uj = rating - mean - offset[j] - offset[u] and s_ij
the correlation of such residuals over common raters, times n / (n + shrink) for n of them; only positive ones vote
(Koren, "Factor in the Neighbors", TKDD 2010; Bell and Koren, KDD Cup 2007). The user's offset is taken from the query's
history, so that new users are served as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._base import SPARSE, Arrays, Baseline, demand, sparse_arrays, sparse_matrix
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query, check_candidates, check_task
from llmrec_core.errors import DataError
from llmrec_core.specs import BiasKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Split

#: Neighbours kept for each item; beyond them correlations on real data say nothing.
_KEPT = 500
#: Rows of the item-item matrix worked on at once.
_BLOCK = 512


class BiasKNNRecommender(Baseline):
    """Ranks by predicted rating. A history without ratings gives mean and item offset alone."""

    family: ClassVar[str] = "bias-knn"
    spec_type = BiasKNNSpec
    dtypes: ClassVar = {"offsets": "float64", "ratings": "float64", **SPARSE}

    def fit(self, split: Split, ctx: FitContext) -> None:
        """Raises: DataError where no training row has a rating."""
        dataset = split.dataset
        table = dataset.interactions
        ratings = table["rating"].to_numpy(np.float64)[split.train]
        rated = ~np.isnan(ratings)
        if not rated.any():
            raise DataError(
                "bias-knn predicts ratings, and the training rows have none.",
                where=f"dataset {dataset.name}",
                fix="Use another baseline, or import a rating column.",
            )
        users = table["user_idx"].to_numpy(np.int64)[split.train][rated]
        items = table["item_idx"].to_numpy(np.int64)[split.train][rated]
        ratings = ratings[rated]
        low, high = dataset.rating_scale or (ratings.min(), ratings.max())
        self._ratings = np.array([ratings.mean(), low, high])
        above = ratings - self._ratings[0]
        self._offsets = _damped(items, above, dataset.n_items, self.spec.damping)
        left = above - self._offsets[items]
        left -= _damped(users, left, dataset.n_users, self.spec.damping)[users]
        self._similarity = _correlations(users, items, left, dataset.n_users, dataset.n_items, self.spec.shrink)
        self._know(dataset)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), self.n_items)
        scores = np.empty(items.shape, np.float32)
        for row, query in enumerate(queries):
            scores[row] = self._row(query, np.maximum(items[row], 0))
        scores[items < 0] = -np.inf
        return scores

    def predict_ratings(self, queries: Sequence[Query], candidates: IntArray) -> FloatArray | None:
        scores = self.score(queries, candidates)
        _, low, high = self._ratings
        return np.where(np.isneginf(scores), scores, np.clip(scores, low, high)).astype(np.float32)

    def _row(self, query: Query, items: IntArray) -> npt.NDArray[np.float64]:
        offsets, known = self._offsets, self._known_items()
        rated = [
            (index, entry.rating)
            for entry in query.history
            if entry.rating is not None and (index := known.get(entry.item_id)) is not None
        ]
        found = self._ratings[0] + offsets[items]
        if not rated:
            return np.asarray(found)
        had = np.array([index for index, _ in rated])
        left = np.array([rating for _, rating in rated]) - self._ratings[0] - offsets[had]
        user = left.sum() / (len(left) + self.spec.damping)
        nearness = self._similarity[items][:, had].toarray()
        n_voters = self.spec.n_neighbours
        if n_voters < nearness.shape[1]:
            border = -np.partition(-nearness, n_voters - 1, axis=1)[:, n_voters - 1 : n_voters]
            nearness = np.where(nearness >= border, nearness, 0.0)
        weight = nearness.sum(axis=1)
        votes = (nearness * (left - user)).sum(axis=1) / np.where(weight > 0, weight, 1.0)
        return np.asarray(found + user + votes)

    def _arrays(self) -> Arrays:
        return {"offsets": self._offsets, "ratings": self._ratings, **sparse_arrays(self._similarity)}

    def _take(self, arrays: Arrays, n_items: int) -> None:
        self._offsets, self._ratings = arrays["offsets"], arrays["ratings"]
        demand(self._offsets.shape == (n_items,) and self._ratings.shape == (3,))
        demand(bool(np.isfinite(self._offsets).all() and np.isfinite(self._ratings).all()))
        self._similarity = sparse_matrix(arrays, (n_items, n_items))


def _damped(index: IntArray, values: npt.NDArray[np.float64], n: int, damping: float) -> npt.NDArray[np.float64]:
    """Mean of the values at each index [n], drawn towards 0; 0 where there are none."""
    counts = np.bincount(index, minlength=n)
    return np.asarray(np.bincount(index, values, minlength=n) / np.maximum(counts + damping, 1e-12))


def _correlations(
    users: IntArray, items: IntArray, left: npt.NDArray[np.float64], n_users: int, n_items: int, shrink: float
) -> sp.csr_array:
    """Shrunk positive correlations over common raters, float32 [n_items, n_items], diagonal empty, strongest kept."""
    shape = (n_users, n_items)
    residuals = sp.csr_array((left, (users, items)), shape=shape)
    squares = sp.csr_array((left**2, (users, items)), shape=shape)
    seen = sp.csr_array((np.ones(len(left)), (users, items)), shape=shape)
    by_item = [matrix.T.tocsr() for matrix in (residuals, squares, seen)]
    blocks = []
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, start + _BLOCK)
        together = (by_item[0][rows] @ residuals).toarray()
        own, other = (by_item[1][rows] @ seen).toarray(), (by_item[2][rows] @ squares).toarray()
        common = (by_item[2][rows] @ seen).toarray()
        near = together / np.sqrt(np.maximum(own * other, 1e-12)) * common / np.maximum(common + shrink, 1e-12)
        near[np.arange(len(near)), np.arange(start, start + len(near))] = 0.0
        near[near < 1e-6] = 0.0
        if n_items > _KEPT:
            border = np.partition(near, n_items - _KEPT, axis=1)[:, n_items - _KEPT][:, None]
            near[near < border] = 0.0
        blocks.append(sp.csr_array(near.astype(np.float32)))
    return sp.csr_array(sp.vstack(blocks, format="csr"))
