"""Blends: the weights by hand, what is standardised, and what a blend of unlike members gains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.contracts import FitContext, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import ModelError
from llmrec_core.recommenders.blend import BlendRecommender, _standard, greedy_weights
from llmrec_core.specs import BlendSpec, EASESpec, ItemKNNSpec, PopularitySpec, SplitSpec


def world(seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user:02d}", f"i{item:02d}", float(step))
        for user in range(25)
        for step, item in enumerate(rng.permutation(20)[:9])
    ]
    return make_split(
        Dataset.from_frames("w", pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])), SplitSpec()
    )


def fitted(**fields: object) -> BlendRecommender:
    members = [{"family": "popularity"}, {"family": "item-knn"}, {"family": "ease", "l2": 5.0}]
    model = BlendRecommender(BlendSpec.model_validate({"members": members, **fields}))
    model.fit(world(), FitContext())
    return model


def test_scores_are_the_weighted_sum_of_standardised_members():
    model = fitted(weights=[1.0, 0.0, 3.0])
    split = world()
    queries, everything = split.queries("test").queries[:5], np.arange(split.dataset.n_items)
    parts = [member.score(queries, everything).astype(np.float64) for member in model.members]
    z = [(p - p.mean(axis=1, keepdims=True)) / p.std(axis=1, keepdims=True) for p in parts]
    np.testing.assert_allclose(model.score(queries, everything), 0.25 * z[0] + 0.75 * z[2], atol=1e-4)


def test_a_weight_of_one_is_that_member():
    split = world()
    alone = fitted(weights=[0.0, 1.0, 0.0])
    for mine, own in zip(
        alone.top_k(split.queries("test").queries, 5),
        alone.members[1].top_k(split.queries("test").queries, 5),
        strict=True,
    ):
        assert mine.items.tolist() == own.items.tolist()


def test_rows_of_equal_scores_become_zero():
    assert (_standard(np.full((2, 4), 7.0, np.float32)) == 0).all()
    tiny = _standard(np.array([[1e-12, 0.0, 5e-13]], np.float32))
    assert np.abs(tiny).max() < 1e-9
    assert tiny[0, 0] > tiny[0, 2] > tiny[0, 1]


def test_greedy_weights_find_the_better_mix():
    target = np.array([0.6, 0.0, 0.4])
    weights, value = greedy_weights(lambda w: -float(((w - target) ** 2).sum()), 3)
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights, target, atol=0.08)
    assert value > -0.01
    alone, _ = greedy_weights(lambda w: float(w[1]), 3)
    assert alone.tolist() == [0.0, 1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_greedy_weights_are_never_worse_than_the_best_alone(seed: int, n: int):
    rng = np.random.default_rng(seed)
    peak = rng.random(n)

    def value(w: np.ndarray) -> float:
        return float(-np.abs(w - peak).sum())

    weights, best = greedy_weights(value, n)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert best >= max(value(row) for row in np.eye(n))


def test_the_chosen_weights_are_told_with_what_each_does_alone():
    events: list[str] = []
    model = BlendRecommender(BlendSpec(members=(PopularitySpec(), ItemKNNSpec(), EASESpec(l2=5.0))))
    model.fit(world(), FitContext(emit=lambda event, **v: events.append(str(v.get("message")))))
    assert model.weights is not None
    assert model.weights.sum() == pytest.approx(1.0)
    said = next(message for message in events if "validation users" in message)
    assert all(name in said for name in ("popularity", "item-knn", "ease", "alone"))


def test_the_weights_are_chosen_on_validation_and_not_on_the_test():
    split = world()
    table = split.dataset.interactions.copy()
    rng = np.random.default_rng(1)
    # Other test targets, everything else as it was.
    swapped = table["item_id"].astype(str).to_numpy(object)
    swapped[split.test] = rng.permutation(swapped[split.test])
    other = pd.DataFrame({"user_id": table["user_id"].astype(str), "item_id": swapped, "timestamp": table["timestamp"]})
    model = BlendRecommender(BlendSpec(members=(PopularitySpec(), ItemKNNSpec(), EASESpec(l2=5.0))))
    again = BlendRecommender(model.spec)
    model.fit(split, FitContext())
    again.fit(make_split(Dataset.from_frames("w", other), SplitSpec()), FitContext())
    np.testing.assert_array_equal(model.weights, again.weights)


def test_odd_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 weights for 3 members"):
        fitted(weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="one above 0"):
        fitted(weights=[0.0, 0.0, 0.0])
    model = fitted()
    model.save(tmp_path)
    head = tmp_path / "recommender.json"
    head.write_text(head.read_text().replace('"weights": [', '"weights": [0.5,', 1))
    with pytest.raises(ModelError, match="do not fit"):
        BlendRecommender.load(tmp_path, world().dataset, FitContext())


def test_an_unknown_user_without_history_still_gets_a_ranking():
    ranking = fitted().top_k([Query("new")], 5)[0]
    assert len(ranking.items) == 5
