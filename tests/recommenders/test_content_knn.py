"""Content-kNN: votes by hand, items that nobody has met, and statistics of training items only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_models import write_tiny_bert

from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError
from llmrec_core.recommenders.content_knn import ContentKNNRecommender
from llmrec_core.specs import ContentKNNSpec, SplitSpec

TITLES = {"a": "red war", "b": "red love", "c": "blue law", "d": "blue tax", "e": "", "f": "红色电影", "g": "红色游戏"}


def split(**titles: str) -> Split:
    rows = [(f"u{u}", i, 5.0 - n, float(n)) for u in range(6) for n, i in enumerate("abcde")]
    rows += [("v", "f", 1.0, 1.0)]
    names = {**TITLES, **titles}
    items = pd.DataFrame({"item_id": list(names), "title": list(names.values())})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return make_split(Dataset.from_frames("colours", frame, items), SplitSpec())


def fitted(part: Split, ctx: FitContext | None = None, **fields: object) -> ContentKNNRecommender:
    model = ContentKNNRecommender(ContentKNNSpec(**{"model": None, **fields}))
    model.fit(part, ctx or FitContext(device="cpu"))
    return model


def test_votes_by_hand():
    model = fitted(split(), recency_decay=0.5, rating_weight=0.4)
    like = model.item_vectors() @ model.item_vectors().T
    past = (HistoryItem("a", 1.0, 1.0), HistoryItem("nobody's", 5.0, 2.0), HistoryItem("c", 5.0, 3.0), HistoryItem("b"))
    scores = model.score([Query("x", past)], np.arange(7))[0]
    # Newest first: b without a rating, c with the best (1 + 0.4), a with the worst (1 - 0.4).
    np.testing.assert_allclose(scores, like[1] + 0.5 * 1.4 * like[2] + 0.25 * 0.6 * like[0], atol=1e-6)
    last = fitted(split(), last_items=1).score([Query("x", past)], np.arange(7))[0]
    np.testing.assert_allclose(last, like[1], atol=1e-6)


def test_words_in_common_make_items_alike_in_any_script():
    vectors = fitted(split()).item_vectors()
    like = vectors @ vectors.T
    assert like[0, 1] > 0.2 > abs(like[0, 2])
    assert like[5, 6] > 0.2, "f and g share a word, and nobody has met g"
    assert (vectors[4] == 0).all(), "without text it is like nothing"


def test_texts_of_other_items_than_training_ones_teach_nothing(tmp_path: Path):
    write_tiny_bert(tmp_path / "tiny")
    ctx = FitContext(workspace_models=tmp_path, device="cpu")
    for model in (None, str(tmp_path / "tiny")):
        plain = fitted(split(), ctx, model=model, n_text=3).item_vectors()
        other = fitted(split(g="red law tax war"), ctx, model=model, n_text=3).item_vectors()
        np.testing.assert_array_equal(plain[:6], other[:6])
        assert np.abs(plain[6] - other[6]).max() > 1e-3


def test_a_cold_twin_is_ranked_by_its_text(tmp_path: Path):
    write_tiny_bert(tmp_path / "tiny")
    ctx = FitContext(workspace_models=tmp_path, device="cpu")
    model = fitted(split(g=TITLES["d"]), ctx, model=str(tmp_path / "tiny"), n_text=3)
    scores = model.score([Query("x", (HistoryItem("c"), HistoryItem("d")))], np.arange(7))[0]
    assert scores[6] == pytest.approx(scores[3], abs=1e-6)


def test_nothing_known_leaves_the_order_to_popularity():
    model = fitted(split())
    order = model.top_k([Query("new")], 7)[0].items
    counts = split().train_item_counts[order]
    assert (np.diff(counts) <= 0).all()


def test_texts_without_a_word_and_models_without_a_folder():
    bare = fitted(split(**dict.fromkeys(TITLES, "...")))
    assert np.isfinite(bare.score([Query("x", (HistoryItem("a"),))], np.arange(7))).all()
    with pytest.raises(InputError, match="prepared models"):
        fitted(split(), model="minilm")
