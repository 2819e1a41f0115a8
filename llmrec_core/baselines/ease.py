"""EASE: one closed-form item-item matrix, a strong linear autoencoder (Steck, "Embarrassingly Shallow Autoencoders for
Sparse Data", WWW 2019).

With X the training user-item matrix of ones, G = X'X + l2 * I and P = inverse(G), the weights are B = -P / diag(P) by
column with an empty diagonal, and a query's scores are its history row times B. Weighting that row by recency is what
makes it serve "what next" (``recency_decay`` 1 and a long ``last_items`` give the published model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sp

from llmrec_core.baselines._base import Arrays, demand
from llmrec_core.baselines._history import HistoryRecommender, user_rows
from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.errors import InputError
from llmrec_core.specs import EASESpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

#: The inverse is dense: 20,000 items need 3.2 GB while fitting and 1.6 GB afterwards.
MAX_ITEMS = 20_000


class EASERecommender(HistoryRecommender):
    """Dense item-item weights; the fit inverts one [n_items, n_items] matrix, so catalogues are limited.

    Raises (fit):
        InputError: more than ``MAX_ITEMS`` items.
    """

    family: ClassVar[str] = "ease"
    spec_type = EASESpec
    dtypes: ClassVar = {"counts": "int64", "weights": "float32"}

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        if dataset.n_items > MAX_ITEMS:
            raise InputError(
                f"EASE inverts a matrix of items by items; {dataset.n_items:,} items would need "
                f"{dataset.n_items**2 * 8 / 1e9:,.0f} GB.",
                where=f"ease, dataset {dataset.name}",
                fix=f"Use item-knn or als above {MAX_ITEMS:,} items, or an item k-core.",
            )
        matrix = user_rows(users, items, dataset.n_items).astype(np.float64)
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices_from(gram)] += self.spec.l2
        # Symmetric and positive definite: Cholesky halves the work of a general inverse.
        factor = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        inverse, info = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
        if info:
            raise InputError("the matrix of EASE cannot be inverted.", where="ease.l2", fix="Raise l2.")
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        inverse /= -np.diag(inverse)
        np.fill_diagonal(inverse, 0.0)
        self._weights = inverse.astype(np.float32)

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        return np.asarray(votes @ self._weights)

    def _learnt(self) -> Arrays:
        return {"weights": self._weights}

    def _take_learnt(self, arrays: Arrays, n_items: int) -> None:
        self._weights = arrays["weights"]
        demand(self._weights.shape == (n_items, n_items) and bool(np.isfinite(self._weights).all()))
