"""Sequential item-kNN: by hand, against a plain implementation, and its bounds."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.baselines import ItemKNNRecommender, _history
from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError, ModelError, RunCancelledError
from llmrec_core.specs import ItemKNNSpec, SplitSpec

ITEMS = "abcdefgh"


def split_of(*sequences: str) -> Split:
    """One user for each sequence; two more items (y, z) are held out at its end, so all of it is training."""
    rows = [
        (f"u{user}", item, float(time))
        for user, sequence in enumerate(sequences)
        for time, item in enumerate(sequence + "yz")
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": [*ITEMS, "y", "z"]})
    return make_split(Dataset.from_frames("toy", frame, items), SplitSpec())


def fitted(spec: ItemKNNSpec, *sequences: str) -> ItemKNNRecommender:
    model = ItemKNNRecommender(spec)
    model.fit(split_of(*sequences), FitContext())
    return model


def scores(model: ItemKNNRecommender, history: str) -> dict[str, float]:
    query = Query("anyone", tuple(HistoryItem(item) for item in history))
    return dict(zip([*ITEMS, "y", "z"], model.score([query], np.arange(10))[0].tolist(), strict=True))


def test_by_hand():
    model = fitted(ItemKNNSpec(window=2, step_decay=0.5, last_items=2, recency_decay=0.8, shrink=1), "abc", "ab")
    # visits: a->b 1 + 1, a->c 0.5, b->c 1. Row sums: a 2.5, b 1. Column sums: b 2, c 1.5.
    a_b, a_c, b_c = 2 / (math.sqrt(2.5 * 2) + 1), 0.5 / (math.sqrt(2.5 * 1.5) + 1), 1 / (math.sqrt(1 * 1.5) + 1)
    found = scores(model, "a")
    assert found["b"] == pytest.approx(a_b)
    assert found["c"] == pytest.approx(a_c)
    assert found["a"] == pytest.approx(0, abs=1e-9), "what came before does not vote backwards"
    assert found["h"] == 0, "an item without training rows"
    assert scores(model, "ab")["c"] == pytest.approx(b_c + 0.8 * a_c)
    assert scores(model, "ba")["c"] == pytest.approx(a_c + 0.8 * b_c)


def test_only_the_last_items_vote():
    model = fitted(ItemKNNSpec(window=1, last_items=2, shrink=0), "ab", "cd", "ef")
    found = scores(model, "ace")
    assert found["b"] < 1e-9 < found["d"] < found["f"]
    # Unknown ids do not take the place of a voter.
    query = Query("u", tuple(HistoryItem(item) for item in ("a", "c", "??", "e", "??")))
    assert model.score([query], np.arange(10))[0].tolist() == list(found.values())


def test_pairs_beyond_the_window_and_of_an_item_with_itself_do_not_count():
    assert scores(fitted(ItemKNNSpec(window=2), "abcd"), "a")["d"] < 1e-9
    assert scores(fitted(ItemKNNSpec(window=3), "abcd"), "a")["d"] > 1e-3
    repeated = scores(fitted(ItemKNNSpec(window=3, step_decay=0.5, shrink=0), "aaab"), "a")
    assert repeated["a"] < 1e-9
    # a->b at distances 1, 2, 3: the only pair there is, so its cosine is 1.
    assert repeated["b"] == pytest.approx(1.0)


def test_users_are_not_joined():
    assert scores(fitted(ItemKNNSpec(window=5), "ab", "cd"), "b")["c"] < 1e-9


def test_without_votes_popularity_orders():
    model = fitted(ItemKNNSpec(), "ab", "cb", "cd", "cb")
    ranking = model.top_k([Query("new")], 10)[0]
    assert [([*ITEMS, "y", "z"][item]) for item in ranking.items] == [*"bcad", *"efgh", "y", "z"]
    assert ranking.scores[0] <= 1e-12
    # Beside a vote the popularity term is rounded away: any vote beats any popularity.
    voted = scores(model, "c")
    assert min(voted["b"], voted["d"]) > 1e-3 > max(voted["a"], voted["c"])


def plain_scores(sequences: list[str], spec: ItemKNNSpec, history: str) -> list[float]:
    """The docstring's formulas with dictionaries and loops."""
    visits: dict[tuple[str, str], float] = defaultdict(float)
    for sequence in sequences:
        for i, first in enumerate(sequence):
            for j in range(i + 1, min(i + spec.window, len(sequence) - 1) + 1):
                if sequence[j] != first:
                    visits[first, sequence[j]] += spec.step_decay ** (j - i - 1)
    out, into = defaultdict(float), defaultdict(float)
    for (first, second), weight in visits.items():
        out[first] += weight
        into[second] += weight
    totals = defaultdict(float)
    for back, item in enumerate(history[::-1][: spec.last_items]):
        for (first, second), weight in visits.items():
            if first == item:
                similarity = weight / (math.sqrt(out[first] * into[second]) + spec.shrink)
                totals[second] += spec.recency_decay**back * similarity
    return [totals[item] for item in [*ITEMS, "y", "z"]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(ITEMS, min_size=1, max_size=9), min_size=1, max_size=4),
    st.text(ITEMS, max_size=6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 2.0]),
)
def test_equals_the_plain_formulas(sequences, history, window, last_items, shrink):
    spec = ItemKNNSpec(window=window, last_items=last_items, shrink=shrink)
    found = list(scores(fitted(spec, *sequences), history).values())
    np.testing.assert_allclose(found, plain_scores(sequences, spec, history), rtol=1e-5, atol=2e-12)


def test_blocks_do_not_change_scores(monkeypatch):
    model = fitted(ItemKNNSpec(), "abcd", "bcaf")
    queries = [Query("u", tuple(HistoryItem(item) for item in history)) for history in ("a", "abc", "", "fa", "d")]
    whole = model.score(queries, np.arange(10))
    monkeypatch.setattr(_history, "BLOCK_CELLS", 20)
    assert (model.score(queries, np.arange(10)) == whole).all()


def test_a_cancelled_fit_stops():
    with pytest.raises(RunCancelledError):
        ItemKNNRecommender().fit(split_of("abc"), FitContext(should_stop=lambda: "cancel"))


def test_unfitted_is_refused(tmp_path):
    with pytest.raises(InputError, match="not fitted"):
        ItemKNNRecommender().save(tmp_path)


def test_a_crafted_matrix_is_refused(tmp_path):
    """Hashes that fit, indices that do not: SciPy would read past the end of its arrays."""
    split, model = split_of("abc"), fitted(ItemKNNSpec(), "abc")
    model.save(tmp_path)
    indices = np.load(tmp_path / "similarity_indices.npy")
    indices[0] = 10**9
    np.save(tmp_path / "similarity_indices.npy", indices)
    head = json.loads((tmp_path / "recommender.json").read_text())
    data = (tmp_path / "similarity_indices.npy").read_bytes()
    head["arrays"]["similarity_indices"]["sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "recommender.json").write_text(json.dumps(head))
    with pytest.raises(ModelError, match="do not fit"):
        ItemKNNRecommender.load(tmp_path, split.dataset, FitContext())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"family": "popularity"},
        {"spec": {"family": "item-knn", "window": 0}},
        {"spec": {"family": "item-knn", "surprise": 1}},
        {"spec": None},
        {"arrays": None},
        {"arrays": []},
    ],
)
def test_a_head_edited_by_hand_is_refused(tmp_path, change):
    split, model = split_of("abc"), fitted(ItemKNNSpec(), "abc")
    model.save(tmp_path)
    head = json.loads((tmp_path / "recommender.json").read_text())
    (tmp_path / "recommender.json").write_text(json.dumps(head | change))
    with pytest.raises(ModelError):
        ItemKNNRecommender.load(tmp_path, split.dataset, FitContext())


def test_a_pickle_in_place_of_an_array_is_not_opened(tmp_path):
    split, model = split_of("abc"), fitted(ItemKNNSpec(), "abc")
    model.save(tmp_path)
    np.save(tmp_path / "counts.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    head = json.loads((tmp_path / "recommender.json").read_text())
    head["arrays"]["counts"]["sha256"] = hashlib.sha256((tmp_path / "counts.npy").read_bytes()).hexdigest()
    (tmp_path / "recommender.json").write_text(json.dumps(head))
    with pytest.raises(ModelError, match="not a NumPy array"):
        ItemKNNRecommender.load(tmp_path, split.dataset, FitContext())
