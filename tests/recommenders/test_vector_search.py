"""Nearest items: exact in blocks, FAISS to the stated recall, and similar items by cosine."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from llmrec_core.baselines import PopularityRecommender
from llmrec_core.contracts import rank_rows
from llmrec_core.errors import InputError
from llmrec_core.recommenders import vector_search
from llmrec_core.recommenders.vector_search import VectorIndex, similar_items


def points(n: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Clustered, as item vectors are; every tenth row stands twice, so that there are ties."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, width))
    found = centres[rng.integers(40, size=n)] + 0.4 * rng.normal(size=(n, width))
    found[1::10] = found[::10][: len(found[1::10])]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_blocks_give_what_whole_rows_give(monkeypatch):
    # Quarters: products are exact, and there are many ties.
    vectors, queries = np.round(4 * points(500)) / 4, np.round(4 * points(7, seed=1)) / 4
    exclude = [np.arange(row, 500, 7) for row in range(7)]
    wanted = [rank_rows((vectors @ query)[None], 20, [seen])[0] for query, seen in zip(queries, exclude, strict=True)]
    for cells in (8_000_000, 7 * 64):
        monkeypatch.setattr(vector_search, "_BLOCK_CELLS", cells)
        found = VectorIndex(vectors, approximate_above=1000).search(queries, 20, exclude)
        for one, other in zip(found, wanted, strict=True):
            assert one.items.tolist() == other.items.tolist()
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_all_are_given_and_none_where_all_are_excluded():
    index = VectorIndex(points(30), approximate_above=1000)
    assert not index.approximate
    assert index.recall == 1.0
    first, second = index.search(points(2), 100, [np.empty(0, np.int64), np.arange(30)])
    assert sorted(first.items.tolist()) == list(range(30))
    assert len(second.items) == len(second.scores) == 0
    assert index.search(np.empty((0, 16), np.float32), 3) == []


def test_faiss_finds_the_stated_share_with_the_true_scores():
    pytest.importorskip("faiss")
    vectors, queries = points(6000), points(50, seed=2)
    exclude = [np.arange(row, 6000, 60) for row in range(50)]
    index = VectorIndex(vectors, approximate_above=5000, recall=0.95, queries=points(300, seed=3))
    assert index.approximate
    assert index.recall >= 0.95
    exact = VectorIndex(vectors, approximate_above=10_000).search(queries, 50, exclude)
    found = index.search(queries, 50, exclude)
    shares = []
    for one, other, query, seen in zip(found, exact, queries, exclude, strict=True):
        assert len(one.items) == 50
        assert not set(one.items) & set(seen)
        np.testing.assert_allclose(one.scores, vectors[one.items] @ query, atol=1e-6)
        assert (np.diff(one.scores) <= 0).all()
        shares.append(np.isin(one.items, other.items).mean())
    assert np.mean(shares) >= 0.9, "other queries than those it was measured on"
    everything = index.search(queries[:1], 6000)[0]
    assert len(everything.items) == 6000, "what asks for much is answered exactly"


@pytest.mark.parametrize("cells", [8_000_000, 3 * 200 * 16])
def test_what_faiss_finds_is_ranked_row_by_row_as_by_hand(monkeypatch, cells):
    """With ties, with queries whose cells hold too few, and in blocks of queries."""
    pytest.importorskip("faiss")
    vectors, queries = points(6000), points(40, seed=2)
    exclude = [np.arange(row, 6000, 40) for row in range(40)]
    index = VectorIndex(vectors, approximate_above=5000, queries=points(300, seed=3))
    index._index.nprobe = 2
    monkeypatch.setattr(vector_search, "_BLOCK_CELLS", cells)
    asked = index._index.search(queries, 50 + 150)[1]
    n_few = 0
    for row, one in enumerate(index.search(queries, 50, exclude)):
        kept = np.setdiff1d(asked[row][asked[row] >= 0], exclude[row])
        if len(kept) < 50:
            n_few += 1
            kept = np.setdiff1d(np.arange(6000), exclude[row])
        best = kept[np.lexsort((kept, -(vectors[kept] @ queries[row])))][:50]
        np.testing.assert_allclose(one.scores, vectors[best] @ queries[row], atol=1e-6)
        np.testing.assert_allclose(one.scores, vectors[one.items] @ queries[row], atol=1e-6)
        assert len(set(one.items.tolist())) == 50
        assert not set(one.items.tolist()) & set(exclude[row].tolist())
        # Rows that stand twice have the same score: the lower number comes first.
        equal = np.flatnonzero(np.diff(one.scores) == 0)
        assert (one.items[equal] < one.items[equal + 1]).all()
        assert one.items.dtype == np.int64
        assert one.scores.dtype == np.float32
    assert 0 < n_few < 40
    assert [len(one.items) for one in index.search(queries[:2], 0, exclude[:2])] == [0, 0]


def test_a_higher_recall_is_kept_too():
    pytest.importorskip("faiss")
    assert VectorIndex(points(6000), approximate_above=5000, recall=1.0, queries=points(300, seed=3)).recall == 1.0


def test_without_faiss_it_is_exact(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = VectorIndex(points(200), approximate_above=10)
    assert not index.approximate
    assert (
        index.search(points(1), 3)[0].items.tolist()
        == rank_rows((points(200) @ points(1)[0])[None], 3)[0].items.tolist()
    )


class Placed(PopularityRecommender):
    """A recommender with the given item vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.vectors = vectors

    def item_vectors(self) -> np.ndarray:
        return self.vectors


def test_similar_by_hand():
    placed = Placed(np.array([[1, 0], [2, 0], [0, 3], [0, 0], [-1, 0], [4, 0]], np.float32))
    ranking = similar_items(placed, 0, 10)
    # 1 and 5 point the same way: the lower number comes first. Nothing is known of 3.
    assert ranking.items.tolist() == [1, 5, 2, 4]
    np.testing.assert_allclose(ranking.scores, [1.0, 1.0, 0.0, -1.0], atol=1e-6)
    assert similar_items(placed, 0, 1).items.tolist() == [1]


@pytest.mark.parametrize(("item", "words"), [(3, "nothing is known"), (6, "outside"), (-1, "outside")])
def test_what_is_like_nothing_is_refused(item, words):
    with pytest.raises(InputError, match=words):
        similar_items(Placed(np.array([[1, 0]] * 3 + [[0, 0]] + [[1, 1]] * 2, np.float32)), item, 3)


def test_a_recommender_without_vectors_is_refused():
    with pytest.raises(InputError, match="no item vectors"):
        similar_items(PopularityRecommender(), 0, 3)
