"""EASE, user-kNN, SVD, ALS, BPR, bias-kNN and recent popularity: against plain implementations of their formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmrec_core.baselines import (
    ALSRecommender,
    BiasKNNRecommender,
    BPRRecommender,
    EASERecommender,
    ItemKNNRecommender,
    PopularityRecommender,
    SVDRecommender,
    UserKNNRecommender,
    ease,
)
from llmrec_core.contracts import FitContext, HistoryItem, Query, Recommender
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import DataError, InputError, ModelError, RunCancelledError
from llmrec_core.specs import (
    ALSSpec,
    BiasKNNSpec,
    BPRSpec,
    EASESpec,
    ItemKNNSpec,
    PopularitySpec,
    SplitSpec,
    SVDSpec,
    UserKNNSpec,
)

N_USERS, N_ITEMS = 30, 16


def two_tastes(seed: int = 0, timed: bool = True, rated: bool = True) -> Split:
    """Even users take from the first half of the items, odd ones from the second, with one stray each."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        own = np.arange(8) + 8 * (user % 2)
        taken = [*rng.permutation(own)[:6], int(rng.integers(0, 8)) + 8 * ((user + 1) % 2)]
        for step, item in enumerate(rng.permutation(taken)):
            rows.append((f"u{user:02d}", f"i{item:02d}", float(rng.integers(1, 6)), 86_400.0 * (10 * user + step)))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    frame = frame.drop(columns=[c for c, keep in (("timestamp", timed), ("rating", rated)) if not keep])
    items = pd.DataFrame({"item_id": [f"i{number:02d}" for number in range(N_ITEMS + 1)]})
    return make_split(Dataset.from_frames("tastes", frame, items), SplitSpec())


def training(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = split.dataset.interactions
    return tuple(table[c].to_numpy()[split.train] for c in ("user_idx", "item_idx", "rating"))  # type: ignore[return-value]


def ones(split: Split) -> np.ndarray:
    users, items, _ = training(split)
    matrix = np.zeros((split.dataset.n_users, split.dataset.n_items))
    matrix[users, items] = 1.0
    return matrix


def weights(history: list[int], last: int, decay: float) -> np.ndarray:
    row = np.zeros(N_ITEMS + 1)
    for back, item in enumerate(history[::-1][:last]):
        row[item] += decay**back
    return row


def ask(model: Recommender, history: list[int]) -> np.ndarray:
    query = Query("anyone", tuple(HistoryItem(f"i{item:02d}") for item in history))
    return model.score([query], np.arange(N_ITEMS + 1))[0].astype(np.float64)


def fitted(model: Recommender, split: Split, seed: int = 0) -> Recommender:
    model.fit(split, FitContext(seed=seed))
    return model


HISTORY = [3, 1, 9, 3, 6]


def test_ease_is_the_closed_form():
    split = two_tastes()
    matrix = ones(split)
    inverse = np.linalg.inv(matrix.T @ matrix + 5.0 * np.eye(N_ITEMS + 1))
    wanted = -inverse / np.diag(inverse)
    np.fill_diagonal(wanted, 0.0)
    found = ask(fitted(EASERecommender(EASESpec(l2=5.0, last_items=4, recency_decay=0.7)), split), HISTORY)
    np.testing.assert_allclose(found, weights(HISTORY, 4, 0.7) @ wanted, atol=1e-5)
    # The solution of the ridge regression of every column on the others, as it was published.
    for column in (0, 7):
        others = np.delete(np.arange(N_ITEMS + 1), column)
        left = matrix[:, others]
        ridge = np.linalg.solve(left.T @ left + 5.0 * np.eye(len(others)), left.T @ matrix[:, column])
        np.testing.assert_allclose(wanted[others, column], ridge, atol=1e-8)


def test_ease_refuses_a_catalogue_that_it_cannot_invert(monkeypatch):
    monkeypatch.setattr(ease, "MAX_ITEMS", 10)
    with pytest.raises(InputError, match="GB"):
        fitted(EASERecommender(), two_tastes())


def test_user_knn_by_its_formula():
    split = two_tastes()
    matrix = ones(split)
    row = weights(HISTORY, 50, 0.9)
    sizes = np.sqrt(matrix.sum(axis=1))
    near = matrix @ row / (np.linalg.norm(row) * sizes + 2.0)
    chosen = np.argsort(-near, kind="stable")[:5]
    wanted = near[chosen] @ matrix[chosen]
    found = ask(fitted(UserKNNRecommender(UserKNNSpec(n_neighbours=5, shrink=2.0)), split), HISTORY)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_svd_projects_on_the_leading_singular_vectors():
    split = two_tastes()
    _, _, right = np.linalg.svd(ones(split), full_matrices=False)
    basis = right[:3].T
    found = ask(fitted(SVDRecommender(SVDSpec(n_factors=3, recency_decay=1.0)), split), HISTORY)
    np.testing.assert_allclose(found, weights(HISTORY, 200, 1.0) @ basis @ basis.T, atol=1e-5)


def test_als_folds_a_history_in_as_it_solves_users():
    split = two_tastes()
    model = ALSRecommender(ALSSpec(n_factors=4, l2=0.1, alpha=3.0, recency_decay=1.0))
    fitted(model, split)
    factors = model._factors.astype(np.float64)
    # Weighted ridge over all items, the missing ones with confidence 1 and preference 0.
    had = weights([1, 9], 200, 1.0)
    confidence = np.diag(1.0 + 3.0 * had)
    taste = np.linalg.solve(
        factors.T @ confidence @ factors + 0.1 * np.eye(4), factors.T @ confidence @ (had > 0).astype(float)
    )
    np.testing.assert_allclose(ask(model, [1, 9]), factors @ taste, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EASERecommender(EASESpec(l2=3.0)),
        lambda: UserKNNRecommender(UserKNNSpec(n_neighbours=8)),
        lambda: SVDRecommender(SVDSpec(n_factors=2)),
        lambda: ALSRecommender(ALSSpec(n_factors=4)),
        lambda: BPRRecommender(BPRSpec(n_factors=4, n_iterations=200)),
        lambda: ItemKNNRecommender(ItemKNNSpec(direction="both")),
    ],
    ids=["ease", "user-knn", "svd", "als", "bpr", "item-knn"],
)
class TestEachOfThem:
    def test_learns_two_tastes(self, make):
        split = two_tastes()
        model = fitted(make(), split)
        first, second = ask(model, [0, 2, 5]), ask(model, [9, 12, 15])
        rest_first, rest_second = [1, 3, 4, 6, 7], [8, 10, 11, 13, 14]
        assert first[rest_first].mean() > first[rest_second].mean()
        assert second[rest_second].mean() > second[rest_first].mean()

    def test_a_history_of_nothing_known_ranks_by_popularity(self, make):
        split = two_tastes()
        model = fitted(make(), split)
        order = [int(i) for i in model.top_k([Query("new", (HistoryItem("??"),))], N_ITEMS)[0].items]
        counts = split.train_item_counts[order]
        assert (np.diff(counts) <= 0).all()

    def test_equal_seeds_give_equal_scores(self, make):
        split = two_tastes()
        np.testing.assert_array_equal(
            ask(fitted(make(), split, seed=3), HISTORY), ask(fitted(make(), split, seed=3), HISTORY)
        )

    def test_is_cancelled_or_quick(self, make):
        model = make()
        context = FitContext(should_stop=lambda: "cancel")
        if model.family in ("als", "bpr", "item-knn"):
            with pytest.raises(RunCancelledError):
                model.fit(two_tastes(), context)
        else:
            model.fit(two_tastes(), context)


def test_both_directions_add_up():
    split = two_tastes()
    forward = fitted(ItemKNNRecommender(ItemKNNSpec(shrink=0.0, step_decay=1.0)), split)
    both = fitted(ItemKNNRecommender(ItemKNNSpec(shrink=0.0, step_decay=1.0, direction="both")), split)
    table = both._similarity.toarray()
    np.testing.assert_allclose(table, table.T, atol=1e-6)
    assert (forward._similarity.toarray() > 0).sum() < (table > 0).sum()


def test_recent_popularity_by_hand():
    rows = [("u", "a", 0.0), ("u", "a2", 86_400.0), ("u", "b", 2 * 86_400.0), ("u", "y", 9e5), ("u", "z", 9.1e5)]
    rows += [("v", "a", 0.0), ("v", "b", 2 * 86_400.0), ("v", "y", 9e5), ("v", "z", 9.1e5)]
    split = make_split(
        Dataset.from_frames("toy", pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])), SplitSpec()
    )
    model = fitted(PopularityRecommender(PopularitySpec(half_life_days=1.0)), split)
    found = dict(zip(split.dataset.item_ids, model.score([Query("w")], np.arange(5))[0].tolist(), strict=True))
    assert found == {"a": 0.5, "a2": 0.5, "b": 2.0, "y": 0.0, "z": 0.0}


def test_recent_popularity_needs_times():
    with pytest.raises(DataError, match="timestamps"):
        fitted(PopularityRecommender(PopularitySpec(half_life_days=1.0)), two_tastes(timed=False))


def plain_bias_knn(split: Split, spec: BiasKNNSpec, history: list[tuple[int, float]]) -> list[float]:
    users, items, ratings = training(split)
    mean = ratings.mean()
    of_item = [(ratings[items == i] - mean).sum() / ((items == i).sum() + spec.damping) for i in range(N_ITEMS + 1)]
    left = ratings - mean - np.array(of_item)[items]
    of_user = {u: left[users == u].sum() / ((users == u).sum() + spec.damping) for u in set(users.tolist())}
    rest = {(u, i): e - of_user[u] for u, i, e in zip(users.tolist(), items.tolist(), left.tolist(), strict=True)}
    raters = {i: {u for u, item in rest if item == i} for i in range(N_ITEMS + 1)}

    def near(a: int, b: int) -> float:
        common = raters[a] & raters[b]
        if a == b or not common:
            return 0.0
        top = sum(rest[u, a] * rest[u, b] for u in common)
        size = np.sqrt(sum(rest[u, a] ** 2 for u in common) * sum(rest[u, b] ** 2 for u in common))
        return max(0.0, top / size * len(common) / (len(common) + spec.shrink))

    own = [(j, r - mean - of_item[j]) for j, r in history]
    user = sum(e for _, e in own) / (len(own) + spec.damping)
    found = []
    for item in range(N_ITEMS + 1):
        voters = sorted(((near(item, j), e - user) for j, e in own), reverse=True)[: spec.n_neighbours]
        weight = sum(w for w, _ in voters)
        found.append(mean + of_item[item] + user + (sum(w * e for w, e in voters) / weight if weight else 0.0))
    return found


def test_bias_knn_by_its_formula():
    split = two_tastes()
    spec = BiasKNNSpec(n_neighbours=2, damping=3.0, shrink=1.0)
    model = fitted(BiasKNNRecommender(spec), split)
    history = [(1, 5.0), (4, 2.0), (12, 4.0), (6, 1.0)]
    query = Query("x", tuple(HistoryItem(f"i{item:02d}", rating) for item, rating in history))
    found = model.score([query], np.arange(N_ITEMS + 1))[0]
    np.testing.assert_allclose(found, plain_bias_knn(split, spec, history), rtol=1e-5)
    ratings = model.predict_ratings([query], np.array([0, -1, 16]))
    assert ratings is not None
    assert ratings[0, 1] == -np.inf
    assert 1.0 <= ratings[0, 0] <= 5.0


def test_bias_knn_needs_ratings():
    with pytest.raises(DataError, match="ratings"):
        fitted(BiasKNNRecommender(), two_tastes(rated=False))


@pytest.mark.parametrize("family", [ALSRecommender, SVDRecommender, BPRRecommender, EASERecommender])
def test_arrays_that_do_not_fit_are_refused(family, tmp_path):
    import hashlib
    import io
    import json

    split = two_tastes()
    model = fitted(family(), split)
    model.save(tmp_path)
    name = "weights" if family is EASERecommender else "factors"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 2), np.float32), allow_pickle=False)
    (tmp_path / f"{name}.npy").write_bytes(buffer.getvalue())
    head = json.loads((tmp_path / "recommender.json").read_text())
    head["arrays"][name]["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (tmp_path / "recommender.json").write_text(json.dumps(head))
    with pytest.raises(ModelError, match="do not fit"):
        family.load(tmp_path, split.dataset, FitContext())
