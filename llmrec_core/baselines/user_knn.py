"""User-kNN: what the people whose history is most like yours had (Herlocker et al., SIGIR 1999, on implicit data).

The query's history, weighted by recency, is compared with every training user's set of items by shrunk cosine

    similarity[u] = sum of weights of shared items / (norm(history) * sqrt(items of u) + shrink)

and an item's score is the sum of the similarities of the ``n_neighbours`` nearest users who had it. A user's own
training rows are among the neighbours' (a query does not say whose it is), which adds the same to all of its own items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._base import SPARSE, Arrays, sparse_arrays, sparse_matrix
from llmrec_core.baselines._history import HistoryRecommender, user_rows
from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.specs import UserKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset


class UserKNNRecommender(HistoryRecommender):
    """Keeps every training user's items; a query costs one sparse product with them."""

    family: ClassVar[str] = "user-knn"
    spec_type = UserKNNSpec
    dtypes: ClassVar = {"counts": "int64", **SPARSE}

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        self._rows = user_rows(users, items, dataset.n_items)

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        sizes = np.sqrt(np.diff(self._rows.indptr)).astype(np.float32)
        norms = np.sqrt(np.asarray(votes.multiply(votes).sum(axis=1)).ravel())
        shared = (votes @ self._rows.T).tocsr()
        row = np.repeat(np.arange(shared.shape[0]), np.diff(shared.indptr))
        shared.data = (shared.data / (norms[row] * sizes[shared.indices] + self.spec.shrink)).astype(np.float32)
        return np.asarray((_strongest(shared, self.spec.n_neighbours) @ self._rows).toarray())

    def _learnt(self) -> Arrays:
        return sparse_arrays(self._rows)

    def _take_learnt(self, arrays: Arrays, n_items: int) -> None:
        self._rows = sparse_matrix(arrays, (len(arrays["similarity_indptr"]) - 1, n_items))


def _strongest(similarity: sp.csr_array, n: int) -> sp.csr_array:
    """The n largest entries of each row; ties go to the lower column."""
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    order = np.lexsort((similarity.indices, -similarity.data, rows))
    place = np.arange(len(order)) - np.repeat(similarity.indptr[:-1], np.diff(similarity.indptr))
    kept = np.sort(order[place < n])
    return sp.csr_array((similarity.data[kept], (rows[kept], similarity.indices[kept])), shape=similarity.shape)
