"""Matrix factorisation: a query's history becomes a vector of taste, an item's score is its product with the item's.

Three ways to learn the item factors V, and to fold a history (weights w by recency) in, so that new users and changed
histories are served without training again:

- ``svd``: the right singular vectors of the training matrix (PureSVD: Cremonesi et al., RecSys 2010); taste = w V.
- ``als``: weighted least squares on implicit data with confidence 1 + alpha (Hu, Koren and Volinsky, ICDM 2008), by the
  ``implicit`` library; taste solves (V'V + l2 * I + alpha * sum of w_i v_i v_i') u = sum of (1 + alpha * w_i) v_i.
- ``bpr``: pairwise logistic loss against drawn items (Rendle et al., UAI 2009), by ``implicit``; taste is the linear
  map of the mean history vector that comes nearest, in least squares over training users, to their learnt factors.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from llmrec_core.baselines._base import Arrays, demand
from llmrec_core.baselines._history import HistoryRecommender, user_rows
from llmrec_core.contracts import Capabilities, FitContext, FloatArray, IntArray
from llmrec_core.errors import RunCancelledError
from llmrec_core.specs import ALSSpec, BPRSpec, SVDSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

Matrix = npt.NDArray[np.float32]


class FactorRecommender(HistoryRecommender):
    """Item factors [n_items, n_factors] and one more matrix, ``fold``, for the way from a history to a taste."""

    dtypes: ClassVar = {"counts": "int64", "factors": "float32", "fold": "float32"}

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        matrix = user_rows(users, items, dataset.n_items)
        # As many factors as there are users or items would only remember the matrix.
        n_factors = max(1, min(self.spec.n_factors, min(matrix.shape) - 1))
        self._factors, self._fold = self._factorise(matrix, n_factors, ctx)

    @abstractmethod
    def _factorise(self, matrix: sp.csr_array, n_factors: int, ctx: FitContext) -> tuple[Matrix, Matrix]:
        """(item factors, fold) from the training matrix of ones."""

    @abstractmethod
    def _tastes(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        """Votes [n_queries, n_items] -> [n_queries, n_factors]."""

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        # Row by row: BLAS rounds a row differently in blocks of other heights, and equal queries must score equally.
        tastes = np.ascontiguousarray(self._tastes(votes), np.float32)
        scores = np.empty((len(tastes), len(self._factors)), np.float32)
        for row, taste in enumerate(tastes):
            np.dot(self._factors, taste, out=scores[row])
        return scores

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, similar=True)

    def item_vectors(self) -> FloatArray:
        """The item factors, [n_items, n_factors]; zeros for items without training rows, whose factors are chance."""
        self._known_items()
        return np.where(self._counts[:, None] > 0, self._factors, np.float32(0))

    def _learnt(self) -> Arrays:
        return {"factors": self._factors, "fold": self._fold}

    def _take_learnt(self, arrays: Arrays, n_items: int) -> None:
        self._factors, self._fold = arrays["factors"], arrays["fold"]
        demand(self._factors.ndim == 2 and len(self._factors) == n_items)
        demand(self._fold.shape == self._fold_shape(self._factors.shape[1]))
        demand(bool(np.isfinite(self._factors).all() and np.isfinite(self._fold).all()))

    @classmethod
    def _fold_shape(cls, n_factors: int) -> tuple[int, int]:
        return n_factors, n_factors


class SVDRecommender(FactorRecommender):
    """PureSVD; no fold matrix is needed, since the singular vectors are orthonormal."""

    family: ClassVar[str] = "svd"
    spec_type = SVDSpec

    def _factorise(self, matrix: sp.csr_array, n_factors: int, ctx: FitContext) -> tuple[Matrix, Matrix]:
        if min(matrix.shape) < 2:
            return np.ones((matrix.shape[1], 1), np.float32), np.empty((0, 0), np.float32)
        start = np.random.default_rng(ctx.seed).uniform(-1, 1, min(matrix.shape))
        _, _, right = svds(matrix.astype(np.float64), k=n_factors, v0=start)
        return np.ascontiguousarray(right[::-1].T, np.float32), np.empty((0, 0), np.float32)

    def _tastes(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        return np.asarray(votes @ self._factors)

    @classmethod
    def _fold_shape(cls, n_factors: int) -> tuple[int, int]:
        return 0, 0


class ALSRecommender(FactorRecommender):
    """Implicit-feedback ALS; ``fold`` is V'V + l2 * I."""

    family: ClassVar[str] = "als"
    spec_type = ALSSpec

    def _factorise(self, matrix: sp.csr_array, n_factors: int, ctx: FitContext) -> tuple[Matrix, Matrix]:
        with threadpool_limits(1, "blas"):
            # Imported and built inside: the library warns about, and is slowed by, threads of BLAS below its own.
            from implicit.cpu.als import AlternatingLeastSquares

            model = AlternatingLeastSquares(
                factors=n_factors,
                regularization=self.spec.l2,
                iterations=self.spec.n_iterations,
                random_state=ctx.seed,
            )
            model.fit(_library_matrix(matrix * (1.0 + self.spec.alpha)), False, callback=_stopper(ctx, self.family))
        factors = np.asarray(model.item_factors, np.float32)
        return factors, (factors.T @ factors + self.spec.l2 * np.eye(n_factors)).astype(np.float32)

    def _tastes(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        tastes = np.zeros((votes.shape[0], self._factors.shape[1]), np.float32)
        for row in range(len(tastes)):
            start, end = votes.indptr[row], votes.indptr[row + 1]
            had, extra = self._factors[votes.indices[start:end]], self.spec.alpha * votes.data[start:end]
            if len(had):
                normal = self._fold.astype(np.float64) + (had.T * extra) @ had
                tastes[row] = np.linalg.solve(normal, (1.0 + extra) @ had)
        return tastes


class BPRRecommender(FactorRecommender):
    """BPR; the last factor is the item's bias, and ``fold`` maps a mean history vector to a taste."""

    family: ClassVar[str] = "bpr"
    spec_type = BPRSpec

    def _factorise(self, matrix: sp.csr_array, n_factors: int, ctx: FitContext) -> tuple[Matrix, Matrix]:
        with threadpool_limits(1, "blas"):
            from implicit.cpu.bpr import BayesianPersonalizedRanking

            model = BayesianPersonalizedRanking(
                factors=n_factors,
                learning_rate=self.spec.learning_rate,
                regularization=self.spec.l2,
                iterations=self.spec.n_iterations,
                # One thread: several write over each other without locks, and no two fits would be alike.
                num_threads=1,
                random_state=ctx.seed,
            )
            model.fit(_library_matrix(matrix), False, callback=_stopper(ctx, self.family))
        factors = np.asarray(model.item_factors, np.float32)
        means = np.asarray(matrix @ factors[:, :-1]) / np.maximum(1, np.diff(matrix.indptr))[:, None]
        # A little ridge, relative to the size of what is mapped, keeps short data from wild maps.
        gram = means.T @ means
        gram += np.eye(len(gram)) * (1e-3 * np.trace(gram) / len(gram) + 1e-9)
        fold = np.linalg.solve(gram, means.T @ np.asarray(model.user_factors)[:, :-1])
        return factors, fold.astype(np.float32)

    def _tastes(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        totals = np.asarray(votes.sum(axis=1)).ravel()
        means = np.asarray(votes @ self._factors[:, :-1]) / np.maximum(totals, 1e-30)[:, None]
        mapped = np.stack([self._fold.T @ mean for mean in means]) if len(means) else np.empty((0, len(self._fold)))
        return np.concatenate([mapped, np.ones((len(mapped), 1), np.float32)], axis=1)

    @classmethod
    def _fold_shape(cls, n_factors: int) -> tuple[int, int]:
        return n_factors - 1, n_factors - 1


def _library_matrix(matrix: sp.csr_array) -> sp.csr_matrix:
    """``implicit`` knows SciPy's older matrix class and 32-bit indices only."""
    found = sp.csr_matrix(matrix, dtype=np.float32)
    found.indices, found.indptr = found.indices.astype(np.int32), found.indptr.astype(np.int32)
    return found


def _stopper(ctx: FitContext, family: str) -> Any:
    def callback(*_: Any) -> None:
        if ctx.should_stop() == "cancel":
            raise RunCancelledError(f"the fit of {family} was cancelled.")

    return callback
