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
from llmrec_core.recommenders.blend import BlendRecommender, _standard, choice_weights
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


def choices(weights: list[float], n_users: int = 4000, n_items: int = 8, seed: int = 0):
    """Standardised scores of members and what users chose who weigh them like this."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(weights), n_users, n_items)).astype(np.float32)
    blended = np.tensordot(np.asarray(weights), scores, axes=1)
    chosen = (blended + rng.gumbel(size=blended.shape)).argmax(axis=1)
    return scores, np.ones((n_users, n_items), bool), np.arange(n_items) == chosen[:, None]


def test_the_weights_behind_choices_are_found_again():
    found = choice_weights(*choices([1.5, 0.0, 0.5]))
    assert found.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found, [0.75, 0.0, 0.25], atol=0.03)


def test_a_member_that_speaks_against_the_choice_weighs_nothing():
    assert choice_weights(*choices([1.0, -1.0])).tolist() == [1.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_no_other_weights_make_the_choices_likelier(seed: int, n: int):
    rng = np.random.default_rng(seed)
    scores, offered, relevant = choices(rng.random(n).tolist(), n_users=60, seed=seed)
    found = choice_weights(scores, offered, relevant)

    def log_likelihood(weights: np.ndarray) -> float:
        """At the best length of these weights: only their proportions are compared."""
        blended = np.tensordot(weights, scores.astype(np.float64), axes=1)
        lengths = np.linspace(0.0, 6.0, 121)[:, None, None]
        values = (lengths * blended)[:, relevant] - np.log(np.exp(lengths * blended).sum(axis=2))
        return float((values.sum(axis=1) - (lengths[:, 0, 0] ** 2) * (weights @ weights) / 2).max())

    best = log_likelihood(found)
    for row in [*np.eye(n), *rng.dirichlet(np.ones(n), size=5)]:
        assert best >= log_likelihood(row) - 0.05


def test_places_without_an_item_and_users_without_a_choice_say_nothing():
    scores, offered, relevant = choices([1.0, 0.4], n_users=300)
    wider = np.concatenate([scores, np.full((2, 300, 3), 9.0, np.float32)], axis=2)
    more = np.concatenate([wider, np.full((2, 50, 11), 5.0, np.float32)], axis=1)
    filled = np.zeros((350, 11), bool)
    filled[:300, :8] = True
    chosen = np.zeros((350, 11), bool)
    chosen[:300, :8] = relevant
    np.testing.assert_allclose(
        choice_weights(more, filled, chosen), choice_weights(scores, offered, relevant), atol=1e-6
    )
    nobody = choice_weights(scores, offered, np.zeros_like(relevant))
    assert nobody.tolist() == [0.5, 0.5]


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
