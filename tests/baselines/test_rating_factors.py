"""Rating factors: their closed forms against plain ones, and planted rules that they must and must not find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from llmrec_core.baselines import RatingFactorsRecommender
from llmrec_core.baselines.rating_factors import RatedHistory, _Side, _unit_rows
from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import DataError, RunCancelledError
from llmrec_core.specs import RatingFactorsSpec, SplitSpec

N_USERS, N_ITEMS = 60, 30


def split_of(frame: pd.DataFrame) -> Split:
    return make_split(Dataset.from_frames("rated", frame), SplitSpec(protocol="random", test_fraction=0.2))


def rated(rating, seed: int = 0, share: float = 0.6) -> pd.DataFrame:
    """Rows of ``rating(user, item)`` for a share of all pairs; users and items by number."""
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(N_USERS) for i in range(N_ITEMS) if rng.random() < share]
    rows = [(f"u{u:02d}", f"i{i:02d}", float(rating(u, i)), float(n)) for n, (u, i) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def two_tastes(user: int, item: int) -> float:
    """Even users like even items, odd users odd ones."""
    return 5.0 if user % 2 == item % 2 else 2.0


def fitted(split: Split, **fields) -> RatingFactorsRecommender:
    model = RatingFactorsRecommender(RatingFactorsSpec(**{"n_factors": 2, "n_models": 2, **fields}))
    model.fit(split, FitContext(seed=0))
    return model


def history_of(split: Split, user: int) -> tuple[HistoryItem, ...]:
    table = split.dataset.interactions.iloc[split.train]
    own = table[table["user_idx"] == user]
    return tuple(HistoryItem(item, rating) for item, rating in zip(own["item_id"], own["rating"], strict=True))


def rmse_of_test(model: RatingFactorsRecommender, split: Split) -> float:
    errors = []
    asked = split.labelled("test")
    for user in np.unique(asked.user_idx):
        rows = asked.user_idx == user
        found = model.predict_ratings([Query("anyone", history_of(split, user))], asked.item_idx[rows][None])
        errors.extend((found[0] - asked.rating[rows]).tolist())
    return float(np.sqrt(np.mean(np.square(errors))))


def test_a_planted_rule_is_found_and_a_shuffled_one_is_not():
    frame = rated(two_tastes)
    assert rmse_of_test(fitted(split_of(frame)), split_of(frame)) < 0.3
    shuffled = frame.assign(rating=np.random.default_rng(1).permutation(frame["rating"].to_numpy()))
    # Half of the ratings are 5 and half 2, so knowing nothing gives 1.5.
    assert rmse_of_test(fitted(split_of(shuffled)), split_of(shuffled)) > 1.4


def test_a_user_is_the_closed_form_of_the_history():
    split = split_of(rated(two_tastes))
    model = fitted(split, n_models=1)._models[0]
    history = RatedHistory(np.array([1, 3, 7]), np.array([3, 7]), np.array([5.0, 2.0]))
    mean, deviation, noise = model.numbers
    size = model.items.shape[1]
    # Minimise over the free part z: precision * (z - prior)^2 + E[(left - y . (z, 1))^2] / noise.
    prior = model.from_met[[1, 3, 7]].sum(axis=0) / np.sqrt(3)
    matrix, wanted = np.diag(model.precision), model.precision * prior
    for item, rating in ((3, 5.0), (7, 2.0)):
        moment = model.moments[item].reshape(size, size)
        matrix = matrix + moment[:-1, :-1] / noise
        wanted = wanted + ((rating - mean) / deviation * model.items[item, :-1] - moment[:-1, -1]) / noise
    np.testing.assert_allclose(model.user(history), [*np.linalg.solve(matrix, wanted), 1.0])
    assert model.predict(history, np.array([4]))[0] == pytest.approx(
        mean + deviation * model.items[4] @ model.user(history)
    )


def test_the_prior_is_a_ridge_regression():
    rng = np.random.default_rng(0)
    features = _unit_rows(sp.csr_array((rng.random((20, 6)) < 0.5).astype(float)))
    side = _Side(5, np.arange(4), 4, features, rng)
    wanted = rng.normal(size=(20, 4))
    for _ in range(3):
        side._learn_prior(wanted, 2.0)
    dense = features.toarray()
    np.testing.assert_allclose(side.weights, np.linalg.solve(dense.T @ dense + 2.0 * np.eye(6), dense.T @ wanted))


def test_who_rated_what_says_something():
    """Users rate one half of the items, and whoever rates that half rates it so: ratings are noise beside it."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        own = rng.permutation(15)[:6] + 15 * (user % 2)
        both = [*own, int(rng.integers(0, 15)) + 15 * ((user + 1) % 2)]
        rows += [(f"u{user:02d}", f"i{item:02d}", 3.5 + 1.5 * (-1) ** user * (-1) ** item, 0.0) for item in both]
    split = split_of(pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]))
    with_seen, without = fitted(split), fitted(split, seen=False)
    # Of these users nothing but what they met is known.
    errors = {}
    for name, model in (("seen", with_seen), ("not", without)):
        asked = [
            Query("new", tuple(HistoryItem(f"i{item:02d}") for item in range(start, start + 6))) for start in (0, 15)
        ]
        found = model.predict_ratings(asked, np.arange(N_ITEMS))
        truth = 3.5 + 1.5 * np.array([[1], [-1]]) * (-1.0) ** np.arange(N_ITEMS)
        errors[name] = float(np.sqrt(np.mean((found - truth) ** 2)))
    assert errors["seen"] < 0.8 * errors["not"]


def test_ratings_on_another_scale_are_the_same_ratings():
    frame = rated(two_tastes)
    wide = frame.assign(rating=10 * frame["rating"] + 7)
    query = Query("x", (HistoryItem("i01", 5.0), HistoryItem("i04", 2.0)))
    other = Query("x", (HistoryItem("i01", 57.0), HistoryItem("i04", 27.0)))
    everything = np.arange(N_ITEMS)
    plain = fitted(split_of(frame)).score([query], everything)
    np.testing.assert_allclose(10 * plain + 7, fitted(split_of(wide)).score([other], everything), rtol=1e-4)


def test_a_known_user_is_served_by_the_history_alone():
    split = split_of(rated(two_tastes))
    model = fitted(split)
    history = history_of(split, 0)
    known, unknown = model.score([Query("u00", history), Query("nobody", history)], np.arange(N_ITEMS))
    np.testing.assert_array_equal(known, unknown)


def test_it_needs_ratings_and_can_be_cancelled():
    with pytest.raises(DataError, match="ratings"):
        fitted(split_of(rated(two_tastes).drop(columns="rating")))
    with pytest.raises(RunCancelledError):
        RatingFactorsRecommender().fit(split_of(rated(two_tastes)), FitContext(should_stop=lambda: "cancel"))
