"""The Recommender contract, held against every family."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from conformance.families import (
    CHINESE,
    COLD,
    FAMILIES,
    UNTITLED,
    VARIANTS,
    Factory,
    tiny_interactions,
    tiny_items,
    tiny_split,
)

from llmrec_core.baselines import BASELINES
from llmrec_core.contracts import Capabilities, FitContext, HistoryItem, Query, Recommender, rank_rows
from llmrec_core.data import Split
from llmrec_core.errors import InputError, ModelError
from llmrec_core.recommenders.vector_search import similar_items
from llmrec_core.specs import RecommenderSpec, Task

#: Endings of files that a load reads; taking one away or cutting it must be noticed.
_LOADED = {".json", ".npy", ".safetensors"}


@dataclass
class Fitted:
    recommender: Recommender
    split: Split
    queries: list[Query]
    ctx: FitContext
    saved: Path
    factory: Factory

    @property
    def everything(self) -> np.ndarray:
        return np.arange(self.split.dataset.n_items)

    def same(self, left: np.ndarray, right: np.ndarray) -> None:
        """Equal; a neural model may differ by rounding, as its batches are padded differently."""
        assert left.dtype == right.dtype == np.float32
        tolerance = 0.0 if self.recommender.family in BASELINES else 1e-4
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def _context(models: Path, seed: int = 0) -> FitContext:
    models.mkdir(parents=True, exist_ok=True)
    return FitContext(workspace_models=models, device="cpu", seed=seed)


def _odd_queries() -> list[Query]:
    """An unknown user, no history, a history of unknown items, and the same item twice."""
    return [
        Query("nobody", (HistoryItem("i01", 4.0, 1.0), HistoryItem("i02", 2.0, 2.0))),
        Query("u0"),
        Query("u1", (HistoryItem("no such item", 5.0, 1.0),)),
        Query("u2", (HistoryItem("i05"), HistoryItem("i05"), HistoryItem("i06"))),
    ]


@pytest.fixture(scope="module", params=[*FAMILIES, *VARIANTS])
def family_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def fitted(family_name, fitted_family, tmp_path_factory) -> Fitted:
    recommender, split, ctx = fitted_family(family_name)
    saved = tmp_path_factory.mktemp("saved")
    recommender.save(saved)
    queries = split.queries("test").queries + _odd_queries()
    return Fitted(recommender, split, queries, ctx, saved, (FAMILIES | VARIANTS)[family_name])


def test_every_family_of_the_specs_is_here():
    union = get_args(get_args(RecommenderSpec)[0])
    known = {spec.model_fields["family"].default for spec in union}
    assert known == set(FAMILIES), "a family without a factory in families.py is not held to the contract"


def test_its_name_and_capabilities(fitted):
    recommender = fitted.recommender
    assert recommender.family == recommender.spec.family
    assert FAMILIES[recommender.family]
    assert isinstance(recommender.capabilities, Capabilities)
    assert recommender.capabilities.tasks <= set(get_args(Task))
    assert recommender.n_items == fitted.split.dataset.n_items


def test_scores_are_finite_float32_for_any_query(fitted):
    scores = fitted.recommender.score(fitted.queries, fitted.everything)
    assert scores.shape == (len(fitted.queries), fitted.recommender.n_items)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_odd_items_are_scored_too(fitted):
    dataset = fitted.split.dataset
    odd = np.array([dataset.item_idx(item) for item in (UNTITLED, CHINESE, *COLD)])
    assert np.isfinite(fitted.recommender.score(fitted.queries, odd)).all()


def test_no_queries_and_no_candidates(fitted):
    assert fitted.recommender.score([], fitted.everything).shape == (0, fitted.recommender.n_items)
    assert fitted.recommender.score(fitted.queries[:2], np.empty(0, np.int64)).shape == (2, 0)
    assert fitted.recommender.top_k([], 3) == []


def test_one_list_for_all_equals_a_list_for_each(fitted):
    queries = fitted.queries[:4]
    shared = fitted.recommender.score(queries, fitted.everything)
    own = np.tile(fitted.everything, (len(queries), 1))
    fitted.same(fitted.recommender.score(queries, own), shared)


def test_a_score_does_not_depend_on_what_else_is_asked(fitted):
    whole = fitted.recommender.score(fitted.queries, fitted.everything)
    for item in (0, 3, 13):
        alone = fitted.recommender.score(fitted.queries, np.array([item]))
        fitted.same(alone, whole[:, [item]])
    backwards = fitted.recommender.score(fitted.queries[::-1], fitted.everything[::-1].copy())
    fitted.same(backwards, whole[::-1, ::-1])


def test_padding_scores_minus_infinity(fitted):
    candidates = np.array([[0, -1, 5], [-1, -1, -1], [2, 3, -1]])
    scores = fitted.recommender.score(fitted.queries[:3], candidates)
    assert ((scores == -np.inf) == (candidates == -1)).all()
    whole = fitted.recommender.score(fitted.queries[:1], fitted.everything)
    fitted.same(scores[0, [0, 2]], whole[0, [0, 5]])


@pytest.mark.parametrize(
    "candidates",
    [np.array([0, 14]), np.array([-2]), np.array([0.5]), np.array(["i01"]), np.zeros((2, 3), np.int64), np.array(3)],
    ids=["beyond", "below -1", "float", "id", "rows", "scalar"],
)
def test_wrong_candidates_are_refused(fitted, candidates):
    with pytest.raises(InputError):
        fitted.recommender.score(fitted.queries[:3], candidates)


def test_a_head_it_lacks_is_refused(fitted):
    with pytest.raises(InputError):
        fitted.recommender.score(fitted.queries[:1], fitted.everything, task="telepathy")
    for task in fitted.recommender.capabilities.tasks:
        assert np.isfinite(fitted.recommender.score(fitted.queries[:1], fitted.everything, task=task)).all()


def test_rankings_are_sorted_and_ties_go_to_the_lower_index(fitted):
    for ranking in fitted.recommender.top_k(fitted.queries, 8):
        assert ranking.items.dtype == np.int64
        assert ranking.scores.dtype == np.float32
        pairs = list(zip((-ranking.scores).tolist(), ranking.items.tolist(), strict=True))
        assert len(pairs) == 8
        assert pairs == sorted(pairs)
        assert len(set(ranking.items.tolist())) == 8


def test_rankings_follow_the_scores(fitted):
    if not fitted.recommender.capabilities.full_catalogue:
        pytest.skip("ranks a part of the catalogue: its order is its own")
    scores = fitted.recommender.score(fitted.queries, fitted.everything)
    for row, ranking in zip(scores, fitted.recommender.top_k(fitted.queries, 5), strict=True):
        assert ranking.items.tolist() == rank_rows(row[None], 5)[0].items.tolist()


def test_a_k_above_the_catalogue_gives_all_of_it(fitted):
    for ranking in fitted.recommender.top_k(fitted.queries[:3], 1000):
        assert sorted(ranking.items.tolist()) == list(range(fitted.recommender.n_items))


def test_excluded_items_never_appear(fitted):
    n_items = fitted.recommender.n_items
    exclude = [np.array([0, 1, 2]), np.empty(0, np.int64), np.arange(n_items)]
    first, second, third = fitted.recommender.top_k(fitted.queries[:3], n_items, exclude)
    assert set(first.items.tolist()) == set(range(3, n_items))
    assert len(second.items) == n_items
    assert len(third.items) == len(third.scores) == 0


def test_ratings_are_on_the_scale_or_not_offered(fitted):
    predicted = fitted.recommender.predict_ratings(fitted.queries, fitted.everything)
    if predicted is None:
        assert "rating" not in fitted.recommender.capabilities.tasks
        return
    low, high = fitted.split.dataset.rating_scale
    assert predicted.shape == (len(fitted.queries), fitted.recommender.n_items)
    assert predicted.dtype == np.float32
    assert ((predicted >= low) & (predicted <= high)).all()


def test_item_vectors_are_there_exactly_where_it_says_so(fitted):
    vectors = fitted.recommender.item_vectors()
    assert (vectors is not None) == fitted.recommender.capabilities.similar
    if vectors is None:
        with pytest.raises(InputError, match="no item vectors"):
            similar_items(fitted.recommender, 0, 3)
        return
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == fitted.recommender.n_items
    assert np.isfinite(vectors).all()
    ranking = similar_items(fitted.recommender, 0, 50)
    assert 0 not in ranking.items
    assert (np.diff(ranking.scores) <= 0).all()
    assert np.abs(ranking.scores).max() <= 1.0
    loaded = type(fitted.recommender).load(fitted.saved, fitted.split.dataset, fitted.ctx)
    fitted.same(loaded.item_vectors(), vectors)


def test_a_saved_one_scores_the_same(fitted):
    loaded = type(fitted.recommender).load(fitted.saved, fitted.split.dataset, fitted.ctx)
    assert loaded.spec == fitted.recommender.spec
    assert loaded.capabilities == fitted.recommender.capabilities
    scores = fitted.recommender.score(fitted.queries, fitted.everything)
    fitted.same(loaded.score(fitted.queries, fitted.everything), scores)


def test_a_loaded_one_can_be_saved_again(fitted, tmp_path):
    loaded = type(fitted.recommender).load(fitted.saved, fitted.split.dataset, fitted.ctx)
    loaded.save(tmp_path)
    again = type(fitted.recommender).load(tmp_path, fitted.split.dataset, fitted.ctx)
    scores = fitted.recommender.score(fitted.queries, fitted.everything)
    fitted.same(again.score(fitted.queries, fitted.everything), scores)


def test_nothing_pickled_is_written(fitted):
    kinds = {path.suffix for path in fitted.saved.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".npy", ".safetensors", ".txt", ".jinja", ".md"}
    for path in fitted.saved.rglob("*.npy"):
        np.load(path, allow_pickle=False)


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "one bit"])
def test_a_damaged_folder_is_refused(fitted, tmp_path, damage):
    parts = sorted(p.relative_to(fitted.saved) for p in fitted.saved.rglob("*") if p.suffix in _LOADED)
    assert parts
    for part in parts:
        folder = tmp_path / f"{damage} {str(part).replace('/', ' ')}"
        shutil.copytree(fitted.saved, folder)
        data = (folder / part).read_bytes()
        if damage == "gone":
            (folder / part).unlink()
        elif damage == "one bit":
            # The last byte but one: numbers in an array, so that nothing but a hash can notice.
            (folder / part).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        else:
            (folder / part).write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
        with pytest.raises(ModelError):
            type(fitted.recommender).load(folder, fitted.split.dataset, fitted.ctx)


def test_an_empty_or_missing_folder_is_refused(fitted, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelError):
            type(fitted.recommender).load(folder, fitted.split.dataset, fitted.ctx)


def test_another_catalogue_is_refused(fitted):
    items = tiny_items()
    new = pd.DataFrame([{"item_id": "i99", "title": "new", "category": "drama"}])
    longer = tiny_split(items=pd.concat([items, new], ignore_index=True))
    renamed = items.replace({"item_id": {"i13": "i98"}})
    for other in (longer, tiny_split(items=renamed)):
        with pytest.raises(ModelError):
            type(fitted.recommender).load(fitted.saved, other.dataset, fitted.ctx)


def test_the_same_seed_gives_the_same_scores_and_test_rows_teach_nothing(fitted, tmp_path):
    """Other items and ratings in the test rows: a second fit that looked at them would score differently."""
    frame = tiny_interactions()
    last = frame.groupby("user_id").tail(1).index
    for row in last:
        had = set(frame.loc[frame["user_id"] == frame.loc[row, "user_id"], "item_id"])
        frame.loc[row, "item_id"] = next(f"i{n:02d}" for n in range(12) if f"i{n:02d}" not in had)
        frame.loc[row, "rating"] = 6 - frame.loc[row, "rating"]
    other = tiny_split(frame)
    assert (other.dataset.item_ids == fitted.split.dataset.item_ids).all()
    again = fitted.factory(other, _context(tmp_path / "models"))
    scores = fitted.recommender.score(fitted.queries, fitted.everything)
    fitted.same(again.score(fitted.queries, fitted.everything), scores)
