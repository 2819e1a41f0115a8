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

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._history import HistoryRecommender
from llmrec_core.baselines._storage import read_parts, write_parts
from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.errors import ModelError, RunCancelledError
from llmrec_core.saved import catalogue_sha256
from llmrec_core.specs import ItemKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset


class ItemKNNRecommender(HistoryRecommender):
    """Sequential item-kNN; items that no history item leads to are ordered by popularity (a term of at most 1e-12).

    Items without training rows score exactly 0.
    """

    family: ClassVar[str] = "item-knn"

    def __init__(self, spec: ItemKNNSpec | None = None) -> None:
        super().__init__()
        self.spec: ItemKNNSpec = spec or ItemKNNSpec()
        self._similarity: Any = sp.csr_array((0, 0), dtype=np.float32)

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        visits = _co_visits(users, items, dataset.n_items, self.spec, ctx)
        out = np.asarray(visits.sum(axis=1)).ravel()
        into = np.asarray(visits.sum(axis=0)).ravel()
        rows = np.repeat(np.arange(dataset.n_items), np.diff(visits.indptr))
        visits.data /= np.sqrt(out[rows] * into[visits.indices]) + self.spec.shrink
        self._similarity = visits.astype(np.float32)

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        return np.asarray((votes @ self._similarity).toarray())

    def save(self, folder: Path) -> None:
        write_parts(
            folder,
            family=self.family,
            spec=self.spec,
            catalogue_sha256=self._catalogue,
            arrays={
                "counts": self._fitted(),
                "similarity_data": self._similarity.data,
                "similarity_indices": self._similarity.indices.astype(np.int64),
                "similarity_indptr": self._similarity.indptr.astype(np.int64),
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> ItemKNNRecommender:
        catalogue = catalogue_sha256(dataset.item_ids)
        spec, arrays = read_parts(
            folder,
            family=cls.family,
            spec_type=ItemKNNSpec,
            catalogue_sha256=catalogue,
            arrays={
                "counts": "int64",
                "similarity_data": "float32",
                "similarity_indices": "int64",
                "similarity_indptr": "int64",
            },
        )
        n_items = dataset.n_items
        data, indices, indptr = (arrays[f"similarity_{part}"] for part in ("data", "indices", "indptr"))
        try:
            similarity = sp.csr_array((data, indices, indptr), shape=(n_items, n_items))
            # SciPy's loops do not check bounds; a crafted index would read foreign memory.
            similarity.check_format(full_check=True)
            fits = arrays["counts"].shape == (n_items,) and bool(np.isfinite(data).all())
        except (ValueError, TypeError, IndexError):
            fits = False
        if not fits:
            raise ModelError("its arrays do not fit the catalogue.", where=str(folder), fix="Train it again.")
        loaded = cls(spec)
        loaded._similarity = similarity
        loaded._know(dataset, arrays["counts"], catalogue)
        return loaded


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
