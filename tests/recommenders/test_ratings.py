"""Ratings with a prior from item texts: what the text adds where nobody has rated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tiny_models import write_tiny_bert

from llmrec_core.baselines import RatingFactorsRecommender
from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError
from llmrec_core.recommenders.ratings import RatingsRecommender
from llmrec_core.specs import RatingFactorsSpec, RatingsSpec, SplitSpec

N_USERS, N_ITEMS = 40, 30
KINDS = ["comedy", "drama"] * (N_ITEMS // 2)


def comedies_are_liked() -> Split:
    """Comedies are rated 5 and dramas 2, by users who met 60 % of all items but the last of each kind."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user:02d}", f"i{item:02d}", 5.0 if KINDS[item] == "comedy" else 2.0, 0.0)
        for user in range(N_USERS)
        for item in range(N_ITEMS - 2)
        if rng.random() < 0.6
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(N_ITEMS)], "title": KINDS})
    return make_split(Dataset.from_frames("rated", frame, items), SplitSpec(protocol="random"))


def cold_pair(model: RatingFactorsRecommender) -> tuple[float, float]:
    """Ratings of the comedy and the drama that nobody has met."""
    model.fit(comedies_are_liked(), FitContext(seed=0))
    query = Query("x", (HistoryItem("i01", 2.0), HistoryItem("i02", 5.0)))
    comedy, drama = model.predict_ratings([query], np.array([28, 29]))[0].tolist()  # type: ignore[index]
    return comedy, drama


def test_the_text_of_an_item_that_nobody_rated_says_how_it_will_be_rated():
    comedy, drama = cold_pair(RatingsRecommender(RatingsSpec(model=None, n_factors=2, n_models=1)))
    assert comedy > drama + 1.5
    comedy, drama = cold_pair(RatingFactorsRecommender(RatingFactorsSpec(n_factors=2, n_models=1)))
    assert comedy == pytest.approx(drama)


def test_a_language_model_reads_the_texts_or_is_asked_for(tmp_path):
    write_tiny_bert(tmp_path / "tiny-bert")
    spec = RatingsSpec(model=str(tmp_path / "tiny-bert"), n_text=4, n_factors=2, n_models=1, n_iterations=6)
    model = RatingsRecommender(spec)
    model.fit(comedies_are_liked(), FitContext(workspace_models=tmp_path, device="cpu"))
    cold = model.item_vectors()[[26, 28, 27, 29]]
    # Items of one text that nobody met stand where their text says; the warm ones have moved on.
    assert np.abs(cold[1]).max() > 0
    assert not np.allclose(cold[1], cold[3])
    with pytest.raises(InputError, match="prepared models"):
        RatingsRecommender(spec).fit(comedies_are_liked(), FitContext())
