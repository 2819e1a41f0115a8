"""The nearest items of a vector: exact in blocks, and above a stated size through FAISS where it is installed.

FAISS looks into some of the cells that it has cut the space into (inverted file: Sivic and Zisserman, ICCV 2003). How
many is measured when the index is built: so many that on sampled queries the stated share of the exact best items is
found. What it finds is scored again with the true products, so scores are the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec_core.contracts import FloatArray, IntArray, Ranking, Recommender, rank_rows
from llmrec_core.errors import InputError

#: Score cells held at once (float32): 32 MB.
_BLOCK_CELLS = 8_000_000
#: Queries on which recall is measured, and how many of their best items are looked for.
_SAMPLE, _DEPTH = 200, 100


class VectorIndex:
    """Rows of ``vectors`` by inner product with a query.

    Args:
        vectors: float32 [n_items, n_dimensions], finite.
        approximate_above: more items than this are searched through FAISS, if it is there; else exactly.
        recall: share of the exact 100 best items that FAISS must find, on average over sampled queries.
        queries: queries as they will come, [n, n_dimensions], from which the sample is drawn; None: the items.
        seed: draws the sample.
    """

    def __init__(
        self,
        vectors: FloatArray,
        *,
        approximate_above: int,
        recall: float = 0.95,
        queries: FloatArray | None = None,
        seed: int = 0,
    ) -> None:
        self._vectors = np.ascontiguousarray(vectors, np.float32)
        #: Share that was found on the sample; 1.0 where the search is exact.
        self.recall = 1.0
        self._index: Any = None
        faiss = _faiss() if len(vectors) > approximate_above else None
        if faiss is not None:
            asked = self._vectors if queries is None or not len(queries) else queries
            rows = np.random.default_rng(seed).permutation(len(asked))[:_SAMPLE]
            self._build(faiss, np.ascontiguousarray(asked[np.sort(rows)], np.float32), recall)

    @property
    def approximate(self) -> bool:
        """Whether FAISS answers."""
        return self._index is not None

    def _build(self, faiss: ModuleType, sample: FloatArray, wanted: float) -> None:
        n_items, width = self._vectors.shape
        n_cells = max(1, min(int(4 * math.sqrt(n_items)), n_items // 39 or 1))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, n_cells, faiss.METRIC_INNER_PRODUCT)
        index.train(self._vectors)
        index.add(self._vectors)
        depth = min(_DEPTH, n_items)
        # By score, so that among equals any is a hit.
        border = np.array([r.scores[-1] for r in self._exact(sample, depth, None)], np.float32)[:, None]
        index.nprobe = 1
        while True:
            self.recall = float((index.search(sample, depth)[0] >= border - 1e-6).mean())
            if self.recall >= wanted or index.nprobe >= n_cells:
                break
            index.nprobe = min(n_cells, 2 * index.nprobe)
        self._index = index

    def search(self, queries: FloatArray, k: int, exclude: Sequence[IntArray] | None = None) -> list[Ranking]:
        """The k best items of each query, best first, ties by index.

        Args:
            queries: float32 [n_queries, n_dimensions].
            k: above the number of items gives all of them.
            exclude: item_idx never shown, one array a query.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        longest = max((len(e) for e in exclude), default=0) if exclude is not None else 0
        # What asks for much of the catalogue is not helped by cells.
        if self._index is None or 4 * (k + longest) > len(self._vectors):
            return self._exact(queries, k, exclude)
        found = self._index.search(queries, k + longest)[1]
        n_items, width = self._vectors.shape
        size = max(1, min(len(queries), _BLOCK_CELLS // max(1, found.shape[1] * width), 4 * _BLOCK_CELLS // n_items))
        hidden = np.zeros((size, n_items), bool)
        rankings: list[Ranking] = []
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            seen = None if exclude is None else exclude[part]
            rankings += self._true_scores(found[part], queries[part], k, seen, hidden)
        return rankings

    def _true_scores(
        self,
        items: IntArray,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None,
        hidden: npt.NDArray[np.bool_],
    ) -> list[Ranking]:
        """Rankings of what FAISS found of each query, [n_queries, n_found], -1 for nothing; too few are made up for.

        Args:
            hidden: all False before and after, at least [n_queries, n_items].
        """
        row = np.arange(len(items))
        dropped = items < 0
        if exclude is not None:
            line = np.repeat(row, [len(seen) for seen in exclude])
            column = np.concatenate([*exclude, np.empty(0, np.int64)]).astype(np.int64)
            hidden[line, column] = True
            dropped |= hidden[row[:, None], items]
            hidden[line, column] = False
        scores = np.matmul(self._vectors[items], queries[:, :, None])[:, :, 0]
        scores[dropped] = -np.inf
        least = items.shape[1] - max(1, k)
        border = np.partition(scores, least, axis=1)[:, least]
        of, place = np.nonzero((scores >= border[:, None]) & ~dropped)
        item, score = items[of, place].astype(np.int64), scores[of, place]
        order = np.lexsort((item, -score, of))
        item, score = item[order], score[order]
        ends = np.cumsum(np.bincount(of, minlength=len(items)))
        starts = np.concatenate([[0], ends[:-1]])
        stops = np.minimum(ends, starts + k)
        rankings = [Ranking(item[a:b].copy(), score[a:b].copy()) for a, b in zip(starts, stops, strict=True)]
        few = np.flatnonzero((~dropped).sum(axis=1) < k).tolist()
        again = self._exact(queries[few], k, None if exclude is None else [exclude[number] for number in few])
        for number, ranking in zip(few, again, strict=True):
            rankings[number] = ranking
        return rankings

    def _exact(self, queries: FloatArray, k: int, exclude: Sequence[IntArray] | None) -> list[Ranking]:
        """Blocks of queries against blocks of items, keeping the k best so far: memory does not grow with either."""
        n_items = len(self._vectors)
        # Whole rows where they fit; never so few queries that a product is no product of matrices.
        n_rows = max(1, min(len(queries), max(64, min(256, _BLOCK_CELLS // max(1, n_items)))))
        n_columns = max(1, _BLOCK_CELLS // n_rows)
        rankings: list[Ranking] = []
        for start in range(0, len(queries), n_rows):
            part = queries[start : start + n_rows]
            seen = None if exclude is None else exclude[start : start + n_rows]
            best: list[Ranking] | None = None
            for low in range(0, n_items, n_columns):
                scores = part @ self._vectors[low : low + n_columns].T
                here = None if seen is None else [e[(e >= low) & (e < low + scores.shape[1])] - low for e in seen]
                found = [Ranking(r.items + low, r.scores) for r in rank_rows(scores, k, here)]
                best = found if best is None else [_joined(*both, k) for both in zip(best, found, strict=True)]
            rankings += best or [Ranking(np.empty(0, np.int64), np.empty(0, np.float32))] * len(part)
        return rankings


def _joined(first: Ranking, second: Ranking, k: int) -> Ranking:
    """The k best of two rankings of different items."""
    return _best(np.concatenate([first.items, second.items]), np.concatenate([first.scores, second.scores]), k)


def _best(items: IntArray, scores: npt.NDArray[Any], k: int) -> Ranking:
    """The k best of some items, best first, ties by item; -inf never appears."""
    kept = np.flatnonzero(scores > -np.inf)
    if 0 < k < len(kept):
        values = scores[kept]
        border = np.partition(values, len(kept) - k)[len(kept) - k]
        kept = kept[values >= border]
    order = kept[np.lexsort((items[kept], -scores[kept]))][:k]
    return Ranking(items[order], scores[order].astype(np.float32))


def similar_items(recommender: Recommender, item_idx: int, k: int) -> Ranking:
    """The k items most like one, by cosine of their vectors, best first; the item itself is left out.

    Items of which nothing is known (a zero vector) are like nothing and are left out too.

    Raises:
        InputError: the recommender has no item vectors, the item is outside the catalogue, or nothing is known of it.
    """
    vectors = recommender.item_vectors()
    if vectors is None:
        raise InputError(
            f"a {recommender.family!r} recommender has no item vectors, so it cannot say which items are alike.",
            fix="Ask a sequence model, a two-tower, a content-kNN or matrix factors.",
        )
    if not 0 <= item_idx < len(vectors):
        raise InputError(f"item number {item_idx} is outside the catalogue of {len(vectors)} items.", where="item_idx")
    lengths = np.linalg.norm(vectors, axis=1)
    known = np.flatnonzero(lengths > 1e-9)
    if lengths[item_idx] <= 1e-9:
        raise InputError(
            "nothing is known of this item: it has neither text that the model reads nor training rows.",
            where="item",
            fix="Choose another item, or a recommender that reads item texts.",
        )
    known = known[known != item_idx]
    cosines = (vectors[known] @ vectors[item_idx]) / (lengths[known] * lengths[item_idx])
    return _best(known, np.clip(cosines, -1.0, 1.0).astype(np.float32), k)


def _faiss() -> ModuleType | None:
    """FAISS, where it is installed; it is an optional extra."""
    try:
        import faiss
    except ImportError:
        return None
    module: ModuleType = faiss
    return module
