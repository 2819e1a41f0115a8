"""Item-kNN over sequences: what people had within a few steps of the items in your recent history.

``visits[a, b]`` sums ``step_decay ** (distance - 1)`` over every training pair in which one user came to b
``distance`` <= ``window`` steps after a; pairs of an item with itself do not count. ``direction`` "forward" leaves it
at that: similarity is directed. "both" adds the sums of the two orders. With ``out[a]`` and ``into[b]`` the sums of
rows and columns, the shrunk cosine is

    similarity[a, b] = visits[a, b] / (sqrt(out[a] * into[b]) + shrink)

and the score of b is the sum over the last ``last_items`` known history items, the newest with weight 1 and each step
back with ``recency_decay`` times less. (Item-based top-N recommendation: Deshpande and Karypis, TOIS 2004; the decays
follow the sequential variants compared by Ludewig and Jannach, UMUAI 2018.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._base import SPARSE, Arrays, sparse_arrays, sparse_matrix
from llmrec_core.baselines._history import HistoryRecommender
from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.errors import RunCancelledError
from llmrec_core.specs import ItemKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset


class ItemKNNRecommender(HistoryRecommender):
    """Sequential item-kNN; items that no history item leads to are ordered by popularity (a term of at most 1e-12).

    Items without training rows score exactly 0.
    """

    family: ClassVar[str] = "item-knn"
    spec_type = ItemKNNSpec
    dtypes: ClassVar = {"counts": "int64", **SPARSE}

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        visits = _co_visits(users, items, dataset.n_items, self.spec, ctx)
        out = np.asarray(visits.sum(axis=1)).ravel()
        into = np.asarray(visits.sum(axis=0)).ravel()
        rows = np.repeat(np.arange(dataset.n_items), np.diff(visits.indptr))
        visits.data /= np.sqrt(out[rows] * into[visits.indices]) + self.spec.shrink
        self._similarity = visits.astype(np.float32)

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        return np.asarray((votes @ self._similarity).toarray())

    def _learnt(self) -> Arrays:
        return sparse_arrays(self._similarity)

    def _take_learnt(self, arrays: Arrays, n_items: int) -> None:
        self._similarity = sparse_matrix(arrays, (n_items, n_items))


def _co_visits(users: IntArray, items: IntArray, n_items: int, spec: ItemKNNSpec, ctx: FitContext) -> sp.csr_array:
    """Decayed counts of "b within ``window`` steps after a", float64 [n_items, n_items], diagonal empty.

    ``users``, ``items``: training rows [n_rows], grouped by user, in time order within a user.
    """
    visits = sp.csr_array((n_items, n_items), dtype=np.float64)
    for distance in range(1, spec.window + 1):
        if ctx.should_stop() == "cancel":
            raise RunCancelledError("the fit of item-knn was cancelled.")
        earlier, later = items[:-distance], items[distance:]
        counted = (users[:-distance] == users[distance:]) & (earlier != later)
        if not counted.any():
            # Longer distances can still count: a user may go a, b, a, b ... with equal items in between.
            continue
        weights = np.full(int(counted.sum()), spec.step_decay ** (distance - 1))
        step = sp.coo_array((weights, (earlier[counted], later[counted])), shape=(n_items, n_items))
        visits = visits + step.tocsr()
    if spec.direction == "both":
        visits = (visits + visits.T).tocsr()
    visits.sort_indices()
    return visits
