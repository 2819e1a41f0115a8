"""Item-kNN over sequences: what people went on to within a few steps of the items in your recent history.

Similarity is directed. ``visits[a, b]`` sums ``step_decay ** (distance - 1)`` over every training pair in which one
user came to b ``distance`` <= ``window`` steps after a; pairs of an item with itself do not count. With ``out[a]`` and
``into[b]`` the sums of its rows and columns, the shrunk cosine is

    similarity[a, b] = visits[a, b] / (sqrt(out[a] * into[b]) + shrink)

and the score of b is the sum over the last ``last_items`` known history items, the newest with weight 1 and each step
back with ``recency_decay`` times less. (Item-based top-N recommendation: Deshpande and Karypis, TOIS 2004; the decays
follow the sequential variants compared by Ludewig and Jannach, UMUAI 2018.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.sparse as sp

from llmrec_core.baselines._storage import read_parts, write_parts
from llmrec_core.contracts import (
    Capabilities,
    FitContext,
    FloatArray,
    IntArray,
    Query,
    Recommender,
    check_candidates,
    check_task,
)
from llmrec_core.errors import InputError, ModelError, RunCancelledError
from llmrec_core.saved import catalogue_sha256
from llmrec_core.specs import ItemKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Scale of the popularity term that orders items without votes. Far below any vote (the smallest on real data are
#: near 1e-7), and float32 still resolves it beside 0; beside a vote it is rounded away.
_TIE_SCALE = 1e-12
#: Score cells held at once while scoring (float32): 16 MB.
_BLOCK_CELLS = 4_000_000


class ItemKNNRecommender(Recommender):
    """Sequential item-kNN; scores depend on the query's history alone, so unknown users are served like known ones.

    History ids outside the catalogue are passed over. Items without votes (all of them after an empty history) are
    ordered by popularity through a term of at most 1e-12; items without training rows score exactly 0.
    """

    family: ClassVar[str] = "item-knn"

    def __init__(self, spec: ItemKNNSpec | None = None) -> None:
        self.spec: ItemKNNSpec = spec or ItemKNNSpec()
        self._similarity: sp.csr_array | None = None
        self._counts: IntArray = np.empty(0, np.int64)
        self._item_index: dict[str, int] = {}
        self._catalogue = ""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True)

    @property
    def n_items(self) -> int:
        return int(self._fitted().shape[0])

    def fit(self, split: Split, ctx: FitContext) -> None:
        dataset = split.dataset
        users = dataset.interactions["user_idx"].to_numpy()[split.train]
        items = dataset.interactions["item_idx"].to_numpy()[split.train]
        # Stable: within a user the rows stay in the time order that the split gave them.
        by_user = np.argsort(users, kind="stable")
        visits = _co_visits(users[by_user], items[by_user], dataset.n_items, self.spec, ctx)
        out = np.asarray(visits.sum(axis=1)).ravel()
        into = np.asarray(visits.sum(axis=0)).ravel()
        rows = np.repeat(np.arange(dataset.n_items), np.diff(visits.indptr))
        visits.data /= np.sqrt(out[rows] * into[visits.indices]) + self.spec.shrink
        self._similarity = visits.astype(np.float32)
        self._counts = np.bincount(items, minlength=dataset.n_items).astype(np.int64)
        self._item_index = dict(dataset.item_index)
        self._catalogue = catalogue_sha256(dataset.item_ids)

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        similarity = self._fitted()
        check_task(task, self.capabilities.tasks)
        n_items = similarity.shape[0]
        items = check_candidates(candidates, len(queries), n_items)
        popularity = (self._counts / max(1, self._counts.max(initial=0)) * _TIE_SCALE).astype(np.float32)
        scores = np.empty(items.shape, np.float32)
        block = max(1, _BLOCK_CELLS // max(1, n_items))
        for start in range(0, len(queries), block):
            # Whole rows are summed even for a few candidates: a score must not depend on what else is asked.
            votes = (self._votes(queries[start : start + block]) @ similarity).toarray() + popularity
            scores[start : start + block] = np.take_along_axis(votes, items[start : start + block], axis=1)
        scores[items < 0] = -np.inf
        return scores

    def _votes(self, queries: Sequence[Query]) -> sp.csr_array:
        """Weights of the voting history items, [n_queries, n_items]; an item met twice votes twice."""
        weights: list[float] = []
        voters: list[int] = []
        bounds = [0]
        for query in queries:
            weight = 1.0
            for past in reversed(query.history):
                item = self._item_index.get(past.item_id)
                if item is None:
                    continue
                if len(voters) - bounds[-1] == self.spec.last_items:
                    break
                voters.append(item)
                weights.append(weight)
                weight *= self.spec.recency_decay
            bounds.append(len(voters))
        data = np.asarray(weights, np.float32)
        return sp.csr_array(
            (data, np.asarray(voters, np.int64), np.asarray(bounds, np.int64)), shape=(len(queries), self.n_items)
        )

    def save(self, folder: Path) -> None:
        similarity = self._fitted()
        write_parts(
            folder,
            family=self.family,
            spec=self.spec,
            catalogue_sha256=self._catalogue,
            arrays={
                "counts": self._counts,
                "similarity_data": similarity.data,
                "similarity_indices": similarity.indices.astype(np.int64),
                "similarity_indptr": similarity.indptr.astype(np.int64),
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
        loaded._similarity, loaded._counts = similarity, arrays["counts"]
        loaded._item_index, loaded._catalogue = dict(dataset.item_index), catalogue
        return loaded

    def _fitted(self) -> sp.csr_array:
        if self._similarity is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._similarity


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
    visits.sort_indices()
    return visits
