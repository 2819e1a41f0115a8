"""What every baseline that reads a query's history shares: weighted votes of its items, and the order without votes.

A history becomes one sparse row: the newest known item weighs 1 and each step back ``recency_decay`` times less, over
the last ``last_items`` of them. Items that no vote reaches are ordered by popularity through a term far below any vote.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._base import Arrays, Baseline, demand
from llmrec_core.contracts import (
    FitContext,
    FloatArray,
    HistoryItem,
    IntArray,
    Query,
    check_candidates,
    check_task,
    pick_scores,
)

if TYPE_CHECKING:
    from llmrec_core.data import Dataset, Split

#: Scale of the popularity term that orders items without votes. Far below any vote (the smallest on real data are
#: near 1e-7), and float32 still resolves it beside 0; beside a vote it is rounded away.
TIE_SCALE = 1e-12
#: Score cells held at once while scoring (float32): 16 MB.
BLOCK_CELLS = 4_000_000


class HistoryRecommender(Baseline):
    """Scores from the query's history alone, so that unknown users are served like known ones.

    A subclass has ``last_items`` and ``recency_decay`` in its spec and says what the votes of a block of queries come
    to. History ids outside the catalogue are passed over; an item met twice votes twice.
    """

    def __init__(self, spec: Any = None) -> None:
        super().__init__(spec)
        self._counts: IntArray = np.empty(0, np.int64)

    def fit(self, split: Split, ctx: FitContext) -> None:
        dataset = split.dataset
        users = dataset.interactions["user_idx"].to_numpy(np.int64)[split.train]
        items = dataset.interactions["item_idx"].to_numpy(np.int64)[split.train]
        # Stable: within a user the rows stay in the time order that the split gave them.
        by_user = np.argsort(users, kind="stable")
        self._learn(users[by_user], items[by_user], dataset, ctx)
        self._counts = np.bincount(items, minlength=dataset.n_items).astype(np.int64)
        self._know(dataset)

    @abstractmethod
    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        """Fits on training rows [n_rows], grouped by user, in time order within a user."""

    @abstractmethod
    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        """Votes [n_queries, n_items] -> scores [n_queries, n_items]; each row on its own."""

    def score(self, queries: Sequence[Query], candidates: IntArray, *, task: str | None = None) -> FloatArray:
        index, counts = self._known_items(), self._counts
        check_task(task, self.capabilities.tasks)
        items = check_candidates(candidates, len(queries), len(index))
        popularity = (counts / max(1, counts.max(initial=0)) * TIE_SCALE).astype(np.float32)
        scores = np.empty(items.shape, np.float32)
        block = max(1, BLOCK_CELLS // max(1, len(counts)))
        for start in range(0, len(queries), block):
            # Whole rows are summed even for a few candidates: a score must not depend on what else is asked.
            votes = self._votes(queries[start : start + block])
            found = self._block_scores(votes).astype(np.float32)
            # Without a single vote nothing is known of the user, and what a family has learned of items (the biases
            # of BPR) says less of what is chosen than how often it is chosen.
            found[np.diff(votes.indptr) == 0] = 0.0
            found += popularity
            scores[start : start + block] = pick_scores(found, items[start : start + block])
        return scores

    def _votes(self, queries: Sequence[Query]) -> sp.csr_array:
        """Weights of the voting history items, [n_queries, n_items]."""
        weights: list[float] = []
        voters: list[int] = []
        bounds = [0]
        index = self._known_items()
        for query in queries:
            weight = 1.0
            for past in reversed(query.history):
                item = index.get(past.item_id)
                if item is None:
                    continue
                if len(voters) - bounds[-1] == self.spec.last_items:
                    break
                voters.append(item)
                weights.append(weight * self._weight_of(past))
                weight *= self.spec.recency_decay
            bounds.append(len(voters))
        data = np.asarray(weights, np.float32)
        return sp.csr_array(
            (data, np.asarray(voters, np.int64), np.asarray(bounds, np.int64)), shape=(len(queries), self.n_items)
        )

    def _weight_of(self, past: HistoryItem) -> float:
        """What one history item weighs before recency."""
        return 1.0

    def _arrays(self) -> Arrays:
        return {"counts": self._counts, **self._learnt()}

    def _take(self, arrays: Arrays, n_items: int) -> None:
        self._counts = arrays["counts"]
        demand(self._counts.shape == (n_items,))
        self._take_learnt(arrays, n_items)

    @abstractmethod
    def _learnt(self) -> Arrays:
        """What was learnt, without the counts that every history recommender has."""

    @abstractmethod
    def _take_learnt(self, arrays: Arrays, n_items: int) -> None:
        """Puts :meth:`_learnt` back; raises as ``_take`` does."""


def user_rows(users: IntArray, items: IntArray, n_items: int) -> sp.csr_array:
    """What each training user had as ones, float32 [n_training_users, n_items]; rows in order of ``users``."""
    row = np.cumsum(np.diff(users, prepend=users[:1]) != 0) if len(users) else users
    n_rows = int(row[-1]) + 1 if len(row) else 0
    matrix = sp.csr_array((np.ones(len(items), np.float32), (row, items)), shape=(n_rows, n_items))
    matrix.data[:] = 1.0
    matrix.sort_indices()
    return matrix


__all__ = ["BLOCK_CELLS", "TIE_SCALE", "HistoryRecommender", "user_rows"]
